from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.errors import MalformedUrl
from jobserver_core.uris import Uri, redacted


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


def test_non_ascii_characters_are_percent_encoded() -> None:
    uri = Uri.parse("http://bücher.example/ä b?ö=ü")
    assert uri.host == "xn--bcher-kva.example"
    assert uri.encoded_path == "/%C3%A4%20b"
    assert uri.encoded_query == "%C3%B6=%C3%BC"
    assert Uri.parse("http://host").encoded_path == "/"


def test_the_canonical_form_has_the_user_and_not_the_password() -> None:
    assert Uri.parse("http://user:pw@host/x").canonical == "http://user@host/x"
    assert Uri.parse("http://[::1]:8080/x?y").canonical == "http://[::1]:8080/x?y"


def test_a_displayed_url_omits_user_password_and_query() -> None:
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
        ("http://straße.example/x", "more than one way"),
        ("http://169.254.169%2e254/x", "no name and no address"),
    ],
)
def test_a_malformed_uri_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(MalformedUrl, match=reason):
        Uri.parse(text)


@given(st.text(max_size=60))
def test_any_string_is_a_uri_or_malformed(text: str) -> None:
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
