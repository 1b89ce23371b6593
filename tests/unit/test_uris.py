from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.settings import FetcherSettings
from jobserver_core.errors import InvalidSetting, MalformedUrl
from jobserver_core.uris import Uri, UriPolicy, redacted


@pytest.mark.parametrize(
    "text",
    [
        "file:/a/b.jar",
        "file:///a/b.jar",
        "file://localhost/a/b.jar",
        "FILE://LOCALHOST/a/b.jar",
        "file:////a/b.jar",
    ],
)
def test_every_way_to_write_a_file_is_the_same_file(text: str) -> None:
    uri = Uri.parse(text)
    assert uri.file == Path("/a/b.jar")
    assert uri.canonical == "file:///a/b.jar"


def test_the_name_of_a_file_is_percent_decoded() -> None:
    assert Uri.parse("local:/a%20b/%C3%BC%3F%23%25.jar").file == Path("/a b/ü?#%.jar")
    assert Uri.parse("local:/a b.jar").canonical == Uri.parse("local:/a%20b.jar").canonical


def test_a_network_uri_has_its_parts() -> None:
    uri = Uri.parse("ftp://us%40er:p%3Aw@Host.Example.:2121/a%20b/c.jar?x=1#fragment")
    assert (uri.scheme, uri.host, uri.port, uri.user, uri.password) == (
        *("ftp", "host.example", 2121),
        *("us@er", "p:w"),
    )
    assert (uri.path, uri.query, uri.name) == ("/a%20b/c.jar", "x=1", "c.jar")


def test_what_is_not_ascii_is_encoded_as_the_web_does() -> None:
    uri = Uri.parse("http://bücher.example/ä b?ö=ü")
    assert uri.host == "xn--bcher-kva.example"
    assert uri.encoded_path == "/%C3%A4%20b"
    assert uri.encoded_query == "%C3%B6=%C3%BC"
    assert Uri.parse("http://host").encoded_path == "/"


def test_the_canonical_form_has_the_user_and_not_the_password() -> None:
    assert Uri.parse("http://user:pw@host/x").canonical == "http://user@host/x"
    assert Uri.parse("http://[::1]:8080/x?y").canonical == "http://[::1]:8080/x?y"


def test_what_is_shown_has_neither_user_nor_password_nor_query() -> None:
    shown = str(Uri.parse("http://user:pw@host:80/x?token=t#f"))
    assert shown == "http://***@host:80/x?…"
    assert "pw" not in repr(Uri.parse("http://user:pw@host/x?pw"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plain", "scheme:path"),
        ("http://host/a\tb", "control characters"),
        ("http://host/a%0ab", "control characters"),
        ("http:/x", "needs a host"),
        ("ftp:x", "needs a host"),
        ("http://host:99999/x", "host or port"),
        ("http://a b/x", "blank or a backslash"),
        ("http://allowed\\@evil/x", "blank or a backslash"),
        ("file:a.jar", "absolute path"),
        ("file://server/a.jar", "on this machine"),
        ("file:/a?", "%3F and %23"),
        ("file:/a%00b", "NUL"),
        ("http://" + "ä" * 300 + "/x", "domain name system"),
    ],
)
def test_a_malformed_uri_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(MalformedUrl, match=reason):
        Uri.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_uri_or_malformed(text: str) -> None:
    for candidate in (text, f"http://{text}", f"file:/{text}", f"ftp://user:{text}@host/"):
        try:
            uri = Uri.parse(candidate)
        except MalformedUrl:
            continue
        assert Uri.parse(uri.canonical).canonical == uri.canonical


@given(st.text(min_size=4, max_size=20, alphabet=st.characters(blacklist_categories=["Cs"])))
def test_text_before_an_at_sign_is_never_shown(secret: str) -> None:
    secret = f"<{secret}>"
    assert secret not in redacted(f"ftp://user:{secret}@host/x")


# -- the policy ------------------------------------------------------------------------------------


def allowed(policy: UriPolicy, text: str, *addresses: str) -> bool:
    try:
        policy.check_addresses(policy.check(text), addresses)
    except MalformedUrl:
        return False
    return True


def test_only_listed_schemes_are_allowed_in_any_case() -> None:
    policy = UriPolicy(schemes=["HTTPS"])
    assert allowed(policy, "https://host/x")
    assert allowed(policy, "HTTPS://host/x")
    with pytest.raises(MalformedUrl, match="protocol http is not supported; supported: https"):
        policy.check("http://host/x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.org", False),
        ("a.example.org", True),
        ("A.B.EXAMPLE.ORG.", True),
        ("notexample.org", False),
        ("exact.example.com", True),
        ("sub.exact.example.com", False),
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("[fd00::1]", True),
        ("[fe80::1]", False),
    ],
)
def test_allowed_hosts_are_names_wildcards_addresses_and_networks(host: str, expected: bool) -> None:
    policy = UriPolicy(allowed_hosts=["*.example.org", "exact.example.com.", "10.0.0.0/8", "fd00::/8"])
    addresses = ["203.0.113.1"] if host[0].isalpha() or host[0].isupper() else []
    assert allowed(policy, f"http://{host}/x", *addresses) is expected


def test_what_is_denied_stays_denied_when_it_is_allowed_too() -> None:
    policy = UriPolicy(
        allowed_hosts=["*.example.org"], denied_hosts=["bad.example.org"], denied_networks=["10.0.0.0/8"]
    )
    assert allowed(policy, "http://good.example.org/x", "203.0.113.1")
    assert not allowed(policy, "http://bad.example.org/x")
    assert not allowed(policy, "http://good.example.org/x", "203.0.113.1", "10.0.0.1")


@pytest.mark.parametrize("address", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_every_form_of_an_address_is_judged(address: str) -> None:
    assert not allowed(UriPolicy(denied_networks=["10.0.0.0/8", "fe80::/10"]), "http://name/x", address)


def test_every_address_of_a_name_must_be_in_an_allowed_network() -> None:
    policy = UriPolicy(allowed_networks=["203.0.113.0/24"])
    assert allowed(policy, "http://name/x", "203.0.113.1", "203.0.113.2")
    assert not allowed(policy, "http://name/x", "203.0.113.1", "198.51.100.1")


def test_a_network_that_is_none_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSetting, match=r"jobserver\.fetcher\.denied-networks"):
        UriPolicy(denied_networks=["10.0.0.0/99"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/x.jar", True),
        ("/data/deep/x.jar", True),
        ("/data/../etc/passwd", False),
        ("/data/%2e%2e/etc/passwd", False),
        ("/database/x.jar", False),
        ("/x.jar", False),
        ("/other/../data/x.jar", True),
    ],
)
def test_files_are_allowed_below_the_listed_folders_only(path: str, expected: bool) -> None:
    policy = UriPolicy(allowed_folders=[Path("/data/")])
    assert allowed(policy, f"file:{path}") is expected
    assert allowed(policy, f"local://{path}") is expected


def test_the_settings_make_the_policy() -> None:
    settings = FetcherSettings(
        allowed_schemes=["http", "file"],
        allowed_hosts=["*.example.org"],
        denied_hosts=["bad.example.org"],
        allowed_networks=["203.0.113.0/24"],
        denied_networks=["203.0.113.7/32"],
        allowed_folders=["/data"],
    )
    policy = UriPolicy.from_settings(settings)
    assert allowed(policy, "http://a.example.org/x", "203.0.113.1")
    assert not allowed(policy, "http://a.example.org/x", "203.0.113.7")
    assert not allowed(policy, "http://a.example.org/x", "198.51.100.1")
    assert not allowed(policy, "http://bad.example.org/x")
    assert not allowed(policy, "http://example.com/x")
    assert not allowed(policy, "ftp://a.example.org/x")
    assert not allowed(policy, "file:/etc/x")
