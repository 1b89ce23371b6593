"""How the HTTP server verifies credentials, and slows down those who guess them."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from jobserver_http.authentication import (
    Authenticator,
    Credentials,
    CredentialVerifier,
    Identity,
    parse_authorization,
)
from jobserver_http.errors import Rejected
from jobserver_http.thread_pools import ThreadPool
from jobserver_http.throttle import Throttle


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Advance the time at once and let other threads run."""
        self.now += seconds
        await asyncio.sleep(0)


def a_verifier(authenticator: Authenticator, clock: Time, threads: int = 1) -> CredentialVerifier:
    return CredentialVerifier(authenticator, ThreadPool(threads), clock=clock, sleep=clock.sleep)


class Counting(Authenticator):
    """Knows one user, counts how often it is asked, and on which thread."""

    def __init__(self) -> None:
        self.asked = 0
        self.threads: set[int] = set()
        self.holds = True

    def authenticate(self, credentials: Credentials) -> Identity | None:
        self.asked += 1
        self.threads.add(threading.get_ident())
        right = credentials == Credentials(scheme="basic", user="alice", secret="s3cret")
        return Identity(name="alice", permissions=frozenset({"*"})) if right else None

    def current(self, identity: Identity) -> bool:
        return self.holds


class Changing(Authenticator):
    """Knows one user whose password can be changed."""

    password = "s3cret"

    def authenticate(self, credentials: Credentials) -> Identity | None:
        right = credentials.secret == self.password
        return Identity(name="alice", permissions=frozenset({"*"})) if right else None


class Tokens(Authenticator):
    """Knows one token."""

    def authenticate(self, credentials: Credentials) -> Identity | None:
        right = credentials == Credentials(scheme="bearer", secret="right")
        return Identity(name="ci", permissions=frozenset({"*"})) if right else None


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


def basic(user: str, password: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Basic " + base64.b64encode(f"{user}:{password}".encode()))]


def admitted(
    verifier: CredentialVerifier, headers: list[tuple[bytes, bytes]], address: str = "10.0.0.1"
) -> Identity:
    return asyncio.run(verifier.admit(headers, address))


def refused(
    verifier: CredentialVerifier, headers: list[tuple[bytes, bytes]], address: str = "10.0.0.1"
) -> Rejected:
    with pytest.raises(Rejected) as caught:
        admitted(verifier, headers, address)
    return caught.value


# -- credentials -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "credentials"),
    [
        ("Bearer abc", Credentials(scheme="bearer", secret="abc")),
        ("bearer  abc ", Credentials(scheme="bearer", secret="abc")),
        ("Basic dTpwOnE=", Credentials(scheme="basic", user="u", secret="p:q")),
        ("Basic dQ==", None),
        ("Basic !!!", None),
        ("Basic /w==", None),
        ("Digest x", None),
        ("Bearer", None),
        ("", None),
    ],
)
def test_an_authorization_header_is_read(header: str, credentials: Credentials | None) -> None:
    assert parse_authorization(header) == credentials


def test_secrets_are_in_no_repr() -> None:
    assert "s3cret" not in repr(Credentials(scheme="basic", user="u", secret="s3cret"))
    assert "proof" not in repr(Identity(name="u", permissions=frozenset(), proof="x"))


# -- the verifier --------------------------------------------------------------------------------------


def test_a_success_is_verified_off_the_loop_and_remembered_for_a_while() -> None:
    clock, authenticator = Time(), Counting()
    verifier = CredentialVerifier(authenticator, ThreadPool(1), clock=clock)
    for _ in range(3):
        assert admitted(verifier, basic("alice", "s3cret")).name == "alice"
    assert authenticator.asked == 1
    assert threading.get_ident() not in authenticator.threads
    clock.now += 61
    admitted(verifier, basic("alice", "s3cret"))
    assert authenticator.asked == 2


def test_a_remembered_success_ends_when_the_identity_no_longer_holds() -> None:
    authenticator = Counting()
    verifier = CredentialVerifier(authenticator, ThreadPool(1))
    admitted(verifier, basic("alice", "s3cret"))
    authenticator.holds = False
    admitted(verifier, basic("alice", "s3cret"))
    assert authenticator.asked == 2


def test_the_cache_holds_no_passwords() -> None:
    verifier = CredentialVerifier(Counting(), ThreadPool(1))
    admitted(verifier, basic("alice", "s3cret"))
    assert "s3cret" not in repr(vars(verifier))


@pytest.mark.parametrize(
    "headers",
    [[], basic("alice", "wrong"), basic("bob", "s3cret"), [(b"authorization", b"Basic ?")]],
)
def test_missing_and_wrong_credentials_are_challenged(headers: list[tuple[bytes, bytes]]) -> None:
    rejected = refused(CredentialVerifier(Counting(), ThreadPool(1)), headers)
    assert rejected.status == 401
    assert rejected.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_two_authorization_headers_are_refused() -> None:
    assert refused(CredentialVerifier(Counting(), ThreadPool(1)), basic("alice", "s3cret") * 2).status == 401


def test_guessing_is_slowed_down_and_the_right_password_waits_but_is_let_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, authenticator = Time(), Counting()
    verifier = a_verifier(authenticator, clock)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            assert refused(verifier, basic("alice", f"guess-{number}")).status == 401
        assert clock.now == 100.0
        for number in range(5, 10):
            assert refused(verifier, basic("alice", f"guess-{number}")).status == 401
    assert clock.now == 110.0  # two seconds for each guess after the fifth
    assert "guess" not in caplog.text
    assert "alice" in caplog.text
    assert admitted(verifier, basic("alice", "s3cret"), "10.0.0.2").name == "alice"
    assert clock.now == 110.0


def test_the_right_password_for_an_account_that_was_guessed_from_the_same_address_waits_two_seconds() -> None:
    clock = Time()
    verifier = a_verifier(Counting(), clock)
    for number in range(5):
        refused(verifier, basic("alice", f"guess-{number}"))
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"
    assert clock.now == 102.0
    for number in range(5, 8):
        refused(verifier, basic("alice", f"guess-{number}"))
    before = clock.now
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"
    assert clock.now == before  # it is remembered now and does not wait


def test_a_minute_without_a_failure_ends_the_throttling() -> None:
    clock = Time()
    verifier = a_verifier(Counting(), clock)
    for number in range(5):
        refused(verifier, basic("alice", f"guess-{number}"))
    clock.now += 60
    for number in range(5):
        refused(verifier, basic("alice", f"again-{number}"))
    assert clock.now == 160.0


def test_a_client_that_repeats_an_old_password_does_not_slow_down_others() -> None:
    clock, authenticator = Time(), Counting()
    verifier = a_verifier(authenticator, clock)
    for _ in range(50):
        assert refused(verifier, basic("alice", "old")).status == 401
        clock.now += 1
    assert authenticator.asked == 10  # it is checked every five seconds
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"
    assert clock.now == 150.0


def test_credentials_that_were_right_before_do_not_wait_because_of_a_guesser_beside_them() -> None:
    clock = Time()
    verifier = a_verifier(Counting(), clock)
    admitted(verifier, basic("alice", "s3cret"))
    clock.now += 3600  # long after the success is remembered
    for number in range(7):
        assert refused(verifier, basic("alice", f"guess-{number}")).status == 401
    before = clock.now
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"
    assert clock.now == before


def test_a_formerly_wrong_password_works_within_five_seconds_of_the_change() -> None:
    clock, authenticator = Time(), Changing()
    verifier = a_verifier(authenticator, clock)
    assert refused(verifier, basic("alice", "new")).status == 401
    authenticator.password = "new"
    assert refused(verifier, basic("alice", "new")).status == 401
    clock.now += 5
    assert admitted(verifier, basic("alice", "new")).name == "alice"
    assert admitted(verifier, basic("alice", "new")).name == "alice"


def test_credentials_that_stop_being_valid_are_no_longer_remembered() -> None:
    clock, authenticator = Time(), Changing()
    verifier = a_verifier(authenticator, clock)
    admitted(verifier, basic("alice", "s3cret"))
    clock.now += 61
    authenticator.password = "changed"
    assert refused(verifier, basic("alice", "s3cret")).status == 401
    for number in range(4):
        refused(verifier, basic("alice", f"guess-{number}"))
    assert refused(verifier, basic("alice", "s3cret")).status == 401
    assert clock.now == 161.0
    clock.now += 5
    assert refused(verifier, basic("alice", "another")).status == 401


def test_failures_of_one_account_refuse_no_other_account_however_many_there_are() -> None:
    verifier = CredentialVerifier(Counting(), ThreadPool(1))
    for number in range(200):
        refused(verifier, basic(f"user-{number}", "wrong"))
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"


def test_wrong_tokens_do_not_lock_out_a_valid_one() -> None:
    verifier = CredentialVerifier(Tokens(), ThreadPool(1))
    for number in range(200):
        assert refused(verifier, bearer(f"wrong-{number}")).status == 401
    assert admitted(verifier, bearer("right")).name == "ci"


def test_one_wrong_token_that_is_sent_again_and_again_is_refused() -> None:
    verifier = CredentialVerifier(Tokens(), ThreadPool(1))
    assert [refused(verifier, bearer("stale")).status for _ in range(7)] == [401] * 7


def test_all_addresses_of_an_ipv6_64_are_one_client() -> None:
    clock = Time()
    verifier = a_verifier(Counting(), clock)
    for number in range(5):
        assert refused(verifier, basic("alice", f"guess-{number}"), f"2001:db8::{number}").status == 401
    assert admitted(verifier, basic("alice", "s3cret"), "2001:db8:0:1::1").name == "alice"
    assert clock.now == 100.0
    assert refused(verifier, basic("alice", "guess"), "2001:db8:0:0:ffff::1").status == 401
    assert clock.now == 102.0


class Slow(Counting):
    """Checks credentials only once the test lets it, and notes how many checks are under way at most."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def authenticate(self, credentials: Credentials) -> Identity | None:
        assert self.go.wait(10)
        return super().authenticate(credentials)


async def at_once(
    verifier: CredentialVerifier,
    slow: Slow,
    headers: list[list[tuple[bytes, bytes]]],
    addresses: Iterable[str] = itertools.repeat("10.0.0.1"),
) -> list[Any]:
    """Return the outcome of each of many concurrent log-ins."""
    waiting = [
        asyncio.ensure_future(verifier.admit(each, address))
        for each, address in zip(headers, addresses, strict=False)
    ]
    for _ in range(5):
        await asyncio.sleep(0)  # lets each of them begin
    slow.go.set()
    return await asyncio.gather(*waiting, return_exceptions=True)


def test_equal_credentials_at_once_are_checked_once() -> None:
    slow = Slow()
    outcomes = asyncio.run(
        at_once(CredentialVerifier(slow, ThreadPool(2)), slow, [basic("alice", "s3cret")] * 20)
    )
    assert [outcome.name for outcome in outcomes] == ["alice"] * 20
    assert slow.asked == 1


def test_equal_credentials_from_many_addresses_at_once_are_checked_once() -> None:
    slow = Slow()
    verifier = CredentialVerifier(slow, ThreadPool(2))
    addresses = [f"10.0.0.{number}" for number in range(1, 21)]
    headers = [basic("alice", "s3cret")] * 20
    outcomes = asyncio.run(at_once(verifier, slow, headers, addresses))
    assert [outcome.name for outcome in outcomes] == ["alice"] * 20
    assert slow.asked == 1


class Stuck(Counting):
    """Takes as long as the test likes for a wrong password, and no time for the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def authenticate(self, credentials: Credentials) -> Identity | None:
        found = super().authenticate(credentials)
        assert found is not None or self.go.wait(10)
        return found


async def log_in_beside(verifier: CredentialVerifier, stuck: Stuck, guesses: list[Any]) -> Identity:
    """Log in while guesses are being checked, which end once this has succeeded or failed."""
    guessing = [asyncio.ensure_future(guess) for guess in guesses]
    for _ in range(5):
        await asyncio.sleep(0)  # lets each of them begin
    try:
        return await asyncio.wait_for(verifier.admit(basic("alice", "s3cret"), "10.0.0.2"), 5)
    finally:
        stuck.go.set()
        await asyncio.gather(*guessing, return_exceptions=True)


@pytest.mark.parametrize("familiar", [True, False])
def test_checks_of_wrong_passwords_from_one_address_delay_no_other_address(familiar: bool) -> None:
    stuck, clock = Stuck(), Time()
    verifier = a_verifier(stuck, clock, threads=2)
    if familiar:
        admitted(verifier, basic("alice", "s3cret"), "10.0.0.2")
        clock.now += 61  # it has to be checked again
    guesses = [verifier.admit(basic(f"user-{number}", "guess"), "10.0.0.1") for number in range(10)]
    assert asyncio.run(log_in_beside(verifier, stuck, guesses)).name == "alice"


def test_credentials_that_were_right_before_are_checked_beside_guesses_from_many_addresses() -> None:
    stuck, clock = Stuck(), Time()
    verifier = a_verifier(stuck, clock, threads=2)
    admitted(verifier, basic("alice", "s3cret"))
    clock.now += 61
    guesses = [verifier.admit(basic("alice", "guess"), f"10.0.1.{number}") for number in range(10)]
    assert asyncio.run(log_in_beside(verifier, stuck, guesses)).name == "alice"


def test_one_wrong_password_sent_many_times_at_once_is_one_failure() -> None:
    slow = Slow()
    verifier = CredentialVerifier(slow, ThreadPool(2))
    outcomes = asyncio.run(at_once(verifier, slow, [basic("alice", "wrong")] * 20))
    assert {outcome.status for outcome in outcomes} == {401}
    assert slow.asked == 1
    assert admitted(verifier, basic("alice", "s3cret")).name == "alice"


def test_many_guesses_at_once_are_checked_one_by_one_and_too_many_are_refused() -> None:
    slow, clock = Slow(), Time()
    guesses = [basic("alice", f"guess-{number}") for number in range(30)]
    outcomes = asyncio.run(at_once(a_verifier(slow, clock, threads=8), slow, guesses))
    assert [outcome.status for outcome in outcomes] == [401] * 20 + [429] * 10
    assert {outcome.headers["Retry-After"] for outcome in outcomes[20:]} == {"2"}
    assert slow.asked == 20


def test_the_right_password_gets_its_turn_among_guesses_from_the_same_address() -> None:
    slow = Slow()
    guesses = [basic("alice", f"guess-{number}") for number in range(10)]
    headers = [*guesses, basic("alice", "s3cret")]
    *others, own = asyncio.run(at_once(a_verifier(slow, Time(), threads=8), slow, headers))
    assert [outcome.status for outcome in others] == [401] * 10
    assert own.name == "alice"


def test_a_caller_that_disconnects_does_not_cancel_the_check_for_others() -> None:
    slow = Slow()
    verifier = CredentialVerifier(slow, ThreadPool(2))

    async def leave_and_stay() -> Identity:
        first = asyncio.ensure_future(verifier.admit(basic("alice", "s3cret"), "10.0.0.1"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(verifier.admit(basic("alice", "s3cret"), "10.0.0.1"))
        await asyncio.sleep(0)
        first.cancel()
        slow.go.set()
        return await second

    assert asyncio.run(leave_and_stay()).name == "alice"
    assert slow.asked == 1


def test_a_user_name_cannot_forge_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        refused(CredentialVerifier(Counting(), ThreadPool(1)), basic("eve\nlog-in of root succeeded", "x"))
    assert "\nlog-in of root" not in caplog.text


# -- the throttle ----------------------------------------------------------------------------------


def test_only_failures_count_and_a_minute_without_one_ends_the_count() -> None:
    clock = Time()
    throttle = Throttle(per_account=2, pace=2.0, clock=clock)
    throttle.count_failure("n", "u")
    assert throttle.pause("n", "u") == 0
    clock.now += 50
    throttle.count_failure("n", "u")
    assert throttle.pause("n", "u") == 2
    assert throttle.pause("n", "v") == throttle.pause("m", "u") == 0
    clock.now += 1.5
    assert throttle.pause("n", "u") == 0.5
    clock.now += 58
    throttle.count_failure("n", "u")
    assert throttle.pause("n", "u") == 2
    clock.now += 60
    throttle.count_failure("n", "u")
    assert throttle.pause("n", "u") == 0


def test_a_network_that_tries_many_accounts_has_one_try_for_each() -> None:
    throttle = Throttle(per_network=3, clock=Time())
    for number in range(3):
        throttle.count_failure("n", f"u{number}")
    assert [throttle.pause("n", f"u{number}") for number in range(4)] == [2, 2, 2, 0]
    assert throttle.pause("m", "u0") == 0


def test_the_throttle_holds_a_bounded_number_of_counts_and_none_for_refused_attempts() -> None:
    throttle = Throttle(capacity=50)
    for number in range(1000):
        throttle.pause(f"network-{number}", "u")
    assert len(throttle._counts) == 0
    for number in range(1000):
        throttle.count_failure(f"network-{number}", "u")
    assert len(throttle._counts) <= 50
