"""Authenticators are plug-ins: what one does against its port is an internal error, and the log names it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from jobserver_core.errors import BackendError, InvalidRequest, Unavailable
from jobserver_http import Authenticator, Credentials, Identity, create_app
from serving import a_server

ALICE = Identity(name="alice", permissions=frozenset({"jobs:read"}))


def answer(authenticator: Authenticator, calls: int = 1) -> httpx.Response:
    """Return the last response to requests with credentials."""

    async def get() -> httpx.Response:
        with a_server() as server:
            application = create_app(server, authenticator=authenticator)
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                responses = [await client.get("/jobs", auth=("alice", "secret")) for _ in range(calls)]
            application.close()
        return responses[-1]

    return asyncio.run(get())


class Returning(Authenticator):
    def __init__(self, value: Any, still: Any = True) -> None:
        self.value = value
        self.still = still

    def authenticate(self, credentials: Credentials) -> Identity | None:
        identity: Identity | None = self.value
        return identity

    def current(self, identity: Identity) -> bool:
        current: bool = self.still
        return current


class Async(Authenticator):
    async def authenticate(self, credentials: Credentials) -> Identity | None:  # type: ignore[override]
        return None


class Raising(Authenticator):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        raise KeyError("the row of alice")


@pytest.mark.parametrize(
    ("authenticator", "fault"),
    [
        (
            Returning(True),
            "authenticate of the authenticator Returning returned bool instead of Identity or None",
        ),
        (
            Returning(("alice", {"*"})),
            "authenticate of the authenticator Returning returned a tuple of str and set instead of "
            "Identity or None",
        ),
        (
            Async(),
            "authenticate of the authenticator Async returned coroutine instead of Identity or None; "
            "declare it without async",
        ),
        (Raising(), "authenticate of the authenticator Raising raised KeyError: 'the row of alice'"),
    ],
)
def test_an_authenticator_that_breaks_its_port_is_an_internal_error_that_only_the_log_explains(
    authenticator: Authenticator, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = answer(authenticator)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert fault in caplog.text
    assert "alice" not in response.text


def test_a_check_of_an_identity_that_returns_something_else_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert answer(Returning(ALICE)).status_code == 200
    assert answer(Returning(ALICE, still=None), calls=2).status_code == 500
    assert "current of the authenticator Returning returned None instead of bool" in caplog.text


def test_an_authenticator_whose_source_does_not_respond_is_unavailable() -> None:
    class Off(Authenticator):
        def authenticate(self, credentials: Credentials) -> Identity | None:
            raise Unavailable(message="the directory does not respond")

    assert answer(Off()).status_code == 503


@pytest.mark.parametrize(
    "challenges", ['Bearer realm="me"', (), None, (b"Basic",), ("",), ("Basic\r\nX: y",), {"Basic": 1}]
)
def test_challenges_that_are_not_a_tuple_of_strings_are_refused_at_the_start(challenges: Any) -> None:
    authenticator = Returning(None)
    authenticator.challenges = challenges
    message = (
        "the authenticator Returning must name its challenges, the values of WWW-Authenticate: "
        f"""challenges = ('Basic realm="jobserver"',), not {challenges!r}"""
    )
    with a_server() as server, pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        create_app(server, authenticator=authenticator)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": None}, "the name of an Identity must be a string, not NoneType"),
        ({"proof": 5}, "the proof of an Identity must be a string, not int"),
        (
            {"permissions": "jobs"},
            'the permissions of an Identity must be a set of permissions, such as frozenset({"jobs:read"}), '
            "not str",
        ),
        (
            {"permissions": None},
            'the permissions of an Identity must be a set of permissions, such as frozenset({"jobs:read"}), '
            "not NoneType",
        ),
        (
            {"permissions": frozenset({"job"})},
            "the permissions of an Identity: unknown permission 'job'; expected one of *, binaries, "
            "binaries:read, ",
        ),
        (
            {"permissions": frozenset({5})},
            "the permissions of an Identity: unknown permission 5; expected one of ",
        ),
    ],
)
def test_an_identity_checks_its_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}"):
        Identity(**{"name": "alice", "permissions": frozenset({"*"}), **fields})
