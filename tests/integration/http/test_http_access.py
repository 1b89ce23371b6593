"""Who may do what over HTTP: permissions, addresses, browsers and namespaces."""

from __future__ import annotations

from typing import Any

import pytest

from jobserver_core.errors import ContextNotFound, InvalidName, JobNotFound
from jobserver_core.testing.builders import a_job
from jobserver_http.access import (
    PERMISSIONS,
    SIGNED_IN,
    Namespace,
    allows,
    parse_permissions,
    single_permissions,
)
from jobserver_http.addresses import BrowserGuard, network_of
from jobserver_http.errors import Rejected

# -- permissions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        ("*", "jobs:delete", True),
        ("jobs", "jobs:delete", True),
        ("jobs:read", "jobs:read", True),
        ("jobs:read", "jobs:delete", False),
        ("data, contexts:read", "binaries:read", False),
    ],
)
def test_permissions_are_everything_a_group_or_one_action(held: str, wanted: str, allowed: bool) -> None:
    assert allows(parse_permissions(held), wanted) is allowed


@pytest.mark.parametrize("text", ["", "job", "jobs:kill", "jobs:", "*:read", "jobs,root"])
def test_permissions_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="permission"):
        parse_permissions(text)


def test_every_route_asks_for_a_permission_of_the_contract_or_is_public_for_a_reason() -> None:
    from jobserver_http.routes import ROUTES

    known = {f"{group}:{action}" for group, actions in PERMISSIONS.items() for action in actions}
    public = {route.name for route in ROUTES if route.permission is None}
    operations = {"get_health", "get_readiness", "get_openapi", "get_docs", "get_asset"}
    assert public == {*operations, "get_index", "get_ui_file"}
    assert {route.permission for route in ROUTES if route.permission} == known
    assert [route.name for route in ROUTES if route.permission == SIGNED_IN] == ["get_user"]


def test_the_single_permissions_of_a_caller_are_those_that_routes_want() -> None:
    assert single_permissions({"contexts", "jobs:read"}) == [
        "contexts:read",
        "contexts:start",
        "contexts:delete",
        "contexts:reset",
        "jobs:read",
    ]
    assert len(single_permissions({"*"})) == sum(map(len, PERMISSIONS.values()))


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_64(address: str, network: str) -> None:
    assert network_of(address) == network


# -- browsers --------------------------------------------------------------------------------------


def headers(**values: str) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in values.items()}


@pytest.mark.parametrize(
    ("method", "origin", "host"),
    [
        ("POST", "", "127.0.0.1:8090"),
        ("POST", "http://127.0.0.1:8090", "127.0.0.1:8090"),
        ("POST", "http://[::1]:8090", "[::1]:8090"),
        ("DELETE", "https://jobs.example.org", "jobs.example.org"),
        ("DELETE", "https://jobs.example.org", "jobs.example.org:443"),
        ("GET", "http://evil.example", "127.0.0.1:8090"),
        ("POST", "https://console.example.org", "127.0.0.1:8090"),
    ],
)
def test_programs_and_the_servers_own_pages_are_let_in(method: str, origin: str, host: str) -> None:
    guard = BrowserGuard(origins=("https://console.example.org",))
    guard.check(method, headers(host=host, **({"origin": origin} if origin else {})))


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1", "http://[broken", "x"],
)
def test_a_cross_origin_page_changes_nothing(origin: str) -> None:
    with pytest.raises(Rejected) as caught:
        BrowserGuard().check("POST", headers(host="127.0.0.1:8090", origin=origin))
    assert caught.value.status == 403


@pytest.mark.parametrize("host", ["localhost:8090", "127.0.0.1", "[::1]:8090", "a.localhost", "10.1.2.3:1"])
def test_a_local_server_answers_to_addresses_and_localhost(host: str) -> None:
    BrowserGuard(local_only=True).check("GET", headers(host=host))


@pytest.mark.parametrize("host", ["evil.example:8090", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_a_local_server_rejects_requests_for_foreign_host_names(host: str) -> None:
    with pytest.raises(Rejected, match="allow-unauthenticated"):
        BrowserGuard(local_only=True).check("GET", headers(host=host))


# -- namespaces ------------------------------------------------------------------------------------


def test_without_proxy_users_names_stay_unchanged() -> None:
    names = Namespace()
    assert names.stored("etl") == names.new("etl") == names.shown("etl") == "etl"
    assert names.owns("anything")
    assert names.settings({"spark": {"proxy": {"user": "bob"}}}) == {"spark": {"proxy": {"user": "bob"}}}


def test_names_get_a_prefix_that_is_removed_again() -> None:
    names = Namespace("alice")
    assert names.stored("etl") == names.new("etl") == "alice~etl"
    assert names.shown("alice~etl") == "etl"
    assert names.owns("alice~etl")
    assert not names.owns("bob~etl")
    assert not names.owns("alice2~etl")


@pytest.mark.parametrize(
    "settings",
    [
        {"spark.proxy.user": "root"},
        {"spark": {"proxy": {"user": "root"}}},
        {"spark": {"proxy.user": "root"}},
        {"spark.proxy": {"user": {"x": 1}}},
        {},
    ],
)
def test_the_proxy_user_is_the_caller_despite_the_settings(settings: dict[str, Any]) -> None:
    assert Namespace("alice").settings(settings) == {"spark": {"proxy": {"user": "alice"}}}


def test_the_visible_name_obeys_the_rules() -> None:
    with pytest.raises(InvalidName, match="must start with a letter"):
        Namespace("alice").new("1x")
    with pytest.raises(InvalidName, match="at most"):
        Namespace("alice").new("x" * 252)
    with pytest.raises(ContextNotFound):
        Namespace("alice").stored("")


def test_jobs_of_other_users_are_not_found() -> None:
    job = a_job()
    with pytest.raises(JobNotFound):
        Namespace("alice").checked(job)
    assert Namespace().checked(job) is job
