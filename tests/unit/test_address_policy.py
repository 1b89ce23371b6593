"""Which hosts and addresses are allowed, in every notation."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.settings import CallbackSettings, FetcherSettings, Settings
from jobserver_core.errors import InvalidRequest, InvalidSetting, MalformedUrl
from jobserver_net import AddressPolicy
from jobserver_net.addresses import parse_address, reached

METADATA = IPv4Address("169.254.169.254")

DENIED_BY_DEFAULT = {
    "IPv4": "169.254.169.254",
    "another link-local address": "169.254.0.1",
    "decimal": "2852039166",
    "hexadecimal": "0xa9fea9fe",
    "octal": "025177524776",
    "octal in four parts": "0251.0376.0251.0376",
    "parts of several kinds": "0xa9.254.0251.254",
    "three parts": "169.254.43518",
    "two parts": "169.16689662",
    "IPv4-mapped": "::ffff:169.254.169.254",
    "IPv4-mapped in hexadecimal": "::ffff:a9fe:a9fe",
    "IPv4-mapped, written out": "0:0:0:0:0:ffff:a9fe:a9fe",
    "IPv4-compatible": "::a9fe:a9fe",
    "IPv4-translated": "::ffff:0:a9fe:a9fe",
    "NAT64": "64:ff9b::a9fe:a9fe",
    "NAT64 with dots": "64:ff9b::169.254.169.254",
    "local NAT64 of 96 bits": "64:ff9b:1::a9fe:a9fe",
    "local NAT64 of 96 bits, subnet 7": "64:ff9b:1:7::a9fe:a9fe",
    "local NAT64 of 64 bits": "64:ff9b:1:0:a9:fea9:fe00:0",
    "local NAT64 of 56 bits": "64:ff9b:1:a9:fe:a9fe::",
    "local NAT64 of 48 bits": "64:ff9b:1:a9fe:a9:fe00::",
    "6to4": "2002:a9fe:a9fe::1",
    "Teredo client": "2001:0:c000:201:0:0:5601:5601",
    "Teredo server": "2001:0:a9fe:a9fe::1",
    "ISATAP": "2001:db8::5efe:a9fe:a9fe",
    "ISATAP with the universal bit": "2001:db8::200:5efe:a9fe:a9fe",
    "link-local IPv6": "fe80::1",
    "link-local IPv6 with a zone": "fe80::1%eth0",
    "link-local IPv6 with an encoded zone": "fe80::1%25eth0",
    "AWS over IPv6": "fd00:ec2::254",
    "Google over IPv6": "fd20:ce::254",
    "Alibaba": "100.100.100.200",
    "Alibaba over NAT64": "64:ff9b::6464:64c8",
    "Oracle": "192.0.0.192",
    "Azure": "168.63.129.16",
    "unspecified": "0.0.0.0",
    "unspecified, short": "0",
    "unspecified, hexadecimal": "0x0",
    "unspecified IPv6": "::",
    "unspecified, mapped": "::ffff:0.0.0.0",
    "unspecified over NAT64": "64:ff9b::",
    "this network": "0.1.2.3",
    "multicast": "224.0.0.1",
    "multicast IPv6": "ff02::1",
    "broadcast": "255.255.255.255",
}

ALLOWED_BY_DEFAULT = [
    *("127.0.0.1", "::1", "10.0.0.1", "203.0.113.9", "2130706433", "192.0.0.193", "168.63.129.17"),
    *("fd00:ec2::253", "2001:db8::1", "2002:cb00:7109::1", "64:ff9b::cb00:7109", "64:ff9b:1::cb00:7109"),
]


def written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def allowed(policy: AddressPolicy, text: str, *addresses: str) -> bool:
    try:
        policy.check_addresses(policy.check(text), addresses)
    except MalformedUrl:
        return False
    return True


def of_fetching() -> AddressPolicy:
    settings = FetcherSettings()
    return AddressPolicy.from_settings(settings, schemes=settings.allowed_schemes)


def of_callbacks() -> AddressPolicy:
    return AddressPolicy.from_settings(CallbackSettings(), schemes=("http", "https"))


POLICIES = pytest.mark.parametrize("policy", [AddressPolicy(), of_fetching(), of_callbacks()])


@POLICIES
@pytest.mark.parametrize("host", DENIED_BY_DEFAULT.values(), ids=DENIED_BY_DEFAULT)
def test_no_spelling_of_a_metadata_address_is_allowed_by_default(policy: AddressPolicy, host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(MalformedUrl, match="not allowed"):
            policy.check(f"{scheme}://{written(host)}/latest/meta-data")
    assert allowed(policy, "http://name.example/x")
    assert not allowed(policy, "http://name.example/x", host)
    assert not allowed(policy, "http://name.example/x", "203.0.113.9", host)


@POLICIES
@pytest.mark.parametrize("host", ALLOWED_BY_DEFAULT)
def test_other_addresses_are_allowed_by_default(policy: AddressPolicy, host: str) -> None:
    assert allowed(policy, f"http://{written(host)}/x", host)


FULL_WIDTH = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254.",
        "169.254.169.254...",
        "169.254.169.254".translate(FULL_WIDTH),
        "169.254.169.254".replace(".", "\N{IDEOGRAPHIC FULL STOP}"),
    ],
)
def test_dots_and_digits_of_other_scripts_make_no_other_host(host: str) -> None:
    with pytest.raises(MalformedUrl, match="not allowed"):
        AddressPolicy().check(f"http://{host}/x")


def test_networks_that_are_denied_beside_do_not_replace_the_default() -> None:
    policy = AddressPolicy(denied_networks=["10.0.0.0/8"])
    assert not allowed(policy, "http://10.0.0.1/x")
    assert not allowed(policy, "http://169.254.169.254/x")


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (["169.254.7.0/24"], True),
        (["169.254.0.0/16"], True),
        (["169.254.169.254/32"], False),
        (["0.0.0.0/0"], False),
        (["169.0.0.0/8"], False),
    ],
)
def test_a_link_local_network_is_allowed_where_it_is_named(networks: list[str], expected: bool) -> None:
    assert allowed(AddressPolicy(allowed_networks=networks), "http://169.254.7.1/x") is expected
    assert allowed(AddressPolicy(allowed_hosts=networks), "http://169.254.7.1/x") is expected


def test_an_unspecified_address_is_denied_even_where_everything_is_allowed() -> None:
    policy = AddressPolicy(allowed_networks=["0.0.0.0/0", "::/0"], allowed_hosts=["0.0.0.0"])
    assert not allowed(policy, "http://0.0.0.0/x")
    assert not allowed(policy, "http://[::]/x")


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_found_in_the_ipv6_addresses_that_carry_it(address: IPv4Address) -> None:
    number = int(address)
    high, low = number >> 16, number & 0xFFFF
    flipped = f"{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"
    for text in (
        f"64:ff9b::{high:x}:{low:x}",
        f"64:ff9b:1:ffff::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
        f"2001:0:7f00:1::{flipped}",
    ):
        found = ip_address(text)
        assert address in reached(found)
        assert found in reached(found)


@given(st.ip_addresses())
def test_an_address_is_read_as_it_is_written(address: IPv4Address | IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert parse_address(str(address)) == (mapped or address)


@pytest.mark.parametrize(
    "name", ["", "host.example", "1.2.3.4.5", "256.256.256.256", "0x", "127.0.0.1x", ":", "a:b"]
)
def test_a_host_name_is_not_an_address(name: str) -> None:
    assert parse_address(name) is None


def test_a_bucket_may_have_a_name_of_digits() -> None:
    assert allowed(AddressPolicy(schemes=["s3"]), "s3://12345/key")
    assert not allowed(AddressPolicy(schemes=["hdfs"]), "hdfs://2852039166/key")


def test_port_0_is_refused() -> None:
    with pytest.raises(MalformedUrl, match="port 0"):
        AddressPolicy().check("http://host:0/")


def test_the_reference_says_that_metadata_addresses_are_denied() -> None:
    assert Settings().fetcher.denied_networks == Settings().callbacks.denied_networks == ()
    with pytest.raises(InvalidSetting, match=r"jobserver\.callbacks\.denied-networks"):
        AddressPolicy(denied_networks=["nonsense"], section="jobserver.callbacks")


# -- lists of one's own ----------------------------------------------------------------------------


def test_only_listed_schemes_are_allowed_in_any_case() -> None:
    policy = AddressPolicy(schemes=["HTTPS"])
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
    policy = AddressPolicy(allowed_hosts=["*.example.org", "exact.example.com.", "10.0.0.0/8", "fd00::/8"])
    addresses = ["203.0.113.1"] if host[0].isalpha() or host[0].isupper() else []
    assert allowed(policy, f"http://{host}/x", *addresses) is expected


def test_deny_rules_win_over_allow_rules() -> None:
    policy = AddressPolicy(
        allowed_hosts=["*.example.org"], denied_hosts=["bad.example.org"], denied_networks=["10.0.0.0/8"]
    )
    assert allowed(policy, "http://good.example.org/x", "203.0.113.1")
    assert not allowed(policy, "http://bad.example.org/x")
    assert not allowed(policy, "http://good.example.org/x", "203.0.113.1", "10.0.0.1")


@pytest.mark.parametrize("address", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_every_form_of_an_address_is_checked(address: str) -> None:
    assert not allowed(AddressPolicy(denied_networks=["10.0.0.0/8", "fe80::/10"]), "http://name/x", address)


def test_every_address_of_a_name_must_be_in_an_allowed_network() -> None:
    policy = AddressPolicy(allowed_networks=["203.0.113.0/24"])
    assert allowed(policy, "http://name/x", "203.0.113.1", "203.0.113.2")
    assert not allowed(policy, "http://name/x", "203.0.113.1", "198.51.100.1")


def test_a_network_that_is_none_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSetting, match=r"jobserver\.fetcher\.denied-networks"):
        AddressPolicy(denied_networks=["10.0.0.0/99"])


def test_the_settings_make_the_policy() -> None:
    settings = FetcherSettings(
        allowed_schemes=["http", "file"],
        allowed_hosts=["*.example.org"],
        denied_hosts=["bad.example.org"],
        allowed_networks=["203.0.113.0/24"],
        denied_networks=["203.0.113.7/32"],
    )
    policy = AddressPolicy.from_settings(settings, schemes=settings.allowed_schemes)
    assert allowed(policy, "http://a.example.org/x", "203.0.113.1")
    assert not allowed(policy, "http://a.example.org/x", "203.0.113.7")
    assert not allowed(policy, "http://a.example.org/x", "198.51.100.1")
    assert not allowed(policy, "http://bad.example.org/x")
    assert not allowed(policy, "http://example.com/x")
    assert not allowed(policy, "ftp://a.example.org/x")
    assert allowed(policy, "file:/etc/x")


@pytest.mark.parametrize(
    "names", ["schemes", "allowed_hosts", "denied_hosts", "allowed_networks", "denied_networks"]
)
def test_one_string_instead_of_a_list_is_refused(names: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{names} must be a list of strings, not str$"):
        AddressPolicy(**{names: "internal.example"})
