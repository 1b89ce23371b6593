"""Failures of the contracts, which authors of backends read, say what is wrong."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import jobserver_core.testing
import jobserver_http.testing
from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryBlobStore, MemoryFetcher
from jobserver_core.memory.transport import MemoryTransport
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import JsonObject
from jobserver_core.ports import Fetcher, JobCode, JobOutcome, Message
from jobserver_core.testing.blobs import _created, _listed, _local_path, _opened, _put
from jobserver_core.testing.fetcher import FetcherContract, _assert_refused, _error_of_fetch
from jobserver_core.testing.launcher import LauncherContract, RunningContext
from jobserver_core.testing.recording import RecordingListener
from jobserver_core.testing.transport import _sent
from jobserver_core.testing.transport import message as a_message
from jobserver_http import Authenticator, Credentials, Identity
from jobserver_http.testing import AuthenticatorContract

SOURCES = [
    *sorted(Path(jobserver_core.testing.__file__).parent.rglob("*.py")),
    Path(jobserver_http.testing.__file__),
]


def without_words(source: str) -> Iterator[int]:
    """The lines of assertions without a message whose failure says neither what was expected nor what came.

    A comparison for equality shows both. Pytest shows the call of a store's method with its result.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.msg is None:
            test = node.test.operand if isinstance(node.test, ast.UnaryOp) else node.test
            compares = isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Eq, ast.NotEq, ast.Is))
            told = isinstance(test, ast.Call) and ast.unparse(test.func).startswith(("store.", "_pin"))
            narrows = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)  # for mypy
            if not (compares or narrows or told) and "isinstance" not in ast.unparse(test):
                yield node.lineno


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_an_assertion_that_shows_no_values_has_a_message(source: Path) -> None:
    assert list(without_words(source.read_text(encoding="utf-8"))) == []


class Suite(LauncherContract):
    timeout = start_timeout = 30.0
    calls = 0

    def class_name(self, kind: str) -> str:
        return f"test.{kind}"

    def class_path(self) -> tuple[JobCode, ...]:
        self.calls += 1
        return (JobCode(path=Path("jobs.whl"), type=BinaryType.WHEEL, digest="0" * 64, source="jobs"),)

    def label_code(self, directory: Path, kind: str, text: str) -> JobCode:
        return JobCode(path=directory / "x.whl", type=BinaryType.WHEEL, digest="1" * 64, source=kind)

    def settings(self) -> JsonObject:
        return {}

    def failing_settings(self) -> tuple[JsonObject, str]:
        raise NotImplementedError

    def refused_settings(self) -> tuple[JsonObject, str]:
        raise NotImplementedError


CONFIGS: list[Any] = []


def hold(job: InlineJob) -> None:
    CONFIGS.append(job.config)
    raise KeyError("no such key")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunningContext]:
    CONFIGS.clear()
    launcher = InlineLauncher({"test.hold": hold})
    context = Suite().start(launcher, tmp_path, {})
    context.listener.wait_for("context_ready", timeout=Suite.timeout)
    yield context
    launcher.close()


def test_a_hold_job_that_ends_without_its_lock_is_reported_with_its_error(context: RunningContext) -> None:
    with pytest.raises(AssertionError, match=r"the job hold ended .*KeyError.*no such key"):
        Suite().hold(context)


def test_a_hold_job_is_always_told_whether_to_return(context: RunningContext) -> None:
    with pytest.raises(AssertionError):
        Suite().hold(context)
    assert CONFIGS[0]["return"] is False


def test_the_class_path_is_made_once_for_each_test(context: RunningContext) -> None:
    suite = Suite()
    for _ in range(2):
        suite.submit(context, "echo")
    assert suite.calls == 1


def test_waiting_for_an_event_of_a_job_that_has_ended_fails_at_once_with_the_reason() -> None:
    listener = RecordingListener()
    error = ErrorInfo(message="no such table", error_class="ValueError")
    listener.job_ended("j", JobOutcome(error=error, failure=FailureKind.RAISED))
    with pytest.raises(AssertionError, match=r"job j ended without job_running; .*no such table"):
        listener.wait_for("job_running", "j", timeout=30.0)


def test_a_job_that_has_to_succeed_and_fails_is_reported_with_its_outcome(context: RunningContext) -> None:
    suite = Suite()
    with pytest.raises(AssertionError, match=r"job test.hold has to succeed, but ended with .*no such key"):
        suite.value(context, suite.submit(context, "hold", '{"lock": "lock"}'))


def test_a_uri_that_a_fetcher_has_to_refuse_is_named() -> None:
    fetcher = MemoryFetcher()
    fetcher.publish("http://host.example/x", b"")
    with pytest.raises(
        AssertionError, match=r"fetch\('http://host.example/x'\) entered its block; .*Malformed"
    ):
        _error_of_fetch(fetcher, "http://host.example/x", MalformedUrl)
    with pytest.raises(AssertionError, match=r"check\('http://host.example/x'\) accepted it; .*MalformedUrl"):
        _assert_refused(fetcher, "http://host.example/x")


class Misfetching(MemoryFetcher):
    """A fetcher whose ``fetch`` returns something else."""

    def __init__(self, returned: object) -> None:
        super().__init__()
        self.returned = returned

    def fetch(self, uri: str, **_options: Any) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ((one for one in "x"), r"fetch returned <generator .*; it has to return a context manager"),
        (nullcontext("path"), r"the block of fetch yielded 'path'; .* instance of Fetched"),
    ],
    ids=["generator", "string"],
)
def test_what_a_fetch_returned_is_shown_with_what_would_be_right(returned: object, message: str) -> None:
    suite = FetcherSuite()
    with pytest.raises(AssertionError, match=message):
        suite.test_the_file_stays_while_others_use_it(Misfetching(returned))


def test_a_fetch_that_raises_another_error_is_shown_with_the_right_one() -> None:
    class Failing(MemoryFetcher):
        def fetch(self, uri: str, **_options: Any) -> Any:
            raise PermissionError("no")

    with pytest.raises(AssertionError, match=r"raised PermissionError\('no'\); it has to raise FetchError"):
        _error_of_fetch(Failing(), "http://host.example/x", FetchError)


class FetcherSuite(FetcherContract):
    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        return f"http://host.example/{name}"

    def missing(self) -> str:
        raise NotImplementedError

    def refused(self) -> list[str]:
        raise NotImplementedError

    def files(self, fetcher: Fetcher) -> set[str]:
        raise NotImplementedError

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (200, r"send returned 200; it has to return an instance of Answer"),
        (OSError("no"), r"send raised OSError\('no'\); it has to return Answer\(error=…\)"),
    ],
    ids=["status", "error"],
)
def test_what_a_send_did_is_shown_with_what_would_be_right(outcome: Any, message: str) -> None:
    class Missending(MemoryTransport):
        def send(self, message: Message, *, timeout: float) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    with pytest.raises(AssertionError, match=message):
        _sent(Missending(), a_message("https://receiver.example/"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("create", "create returned None; it has to return an instance of BlobWriter"),
        ("put", "put returned None; it has to return an instance of Blob"),
        ("open", "open returned None; it has to return a binary file"),
        ("local_path", "local_path returned None; it has to return a context manager"),
        ("digests", "digests returned None; it has to return an iterator"),
    ],
)
def test_what_a_blob_store_returned_is_shown_with_what_would_be_right(method: str, message: str) -> None:
    store = type("Misreturning", (MemoryBlobStore,), {method: lambda *_, **__: None})()
    uses: dict[str, Callable[[], object]] = {
        "create": lambda: _created(store),
        "put": lambda: _put(store, [b"x"]),
        "open": lambda: _opened(store, "0" * 64),
        "local_path": lambda: _local_path(store, "0" * 64).__enter__(),
        "digests": lambda: _listed(store, modified_before=datetime.now(timezone.utc)),
    }
    with pytest.raises(AssertionError, match=message):
        uses[method]()


class AcceptsEverything(Authenticator):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        return Identity(name="alice", permissions=frozenset({"*"}))

    def current(self, identity: Identity) -> bool:
        return False


class ReturnsATuple(AcceptsEverything):
    challenges: Any = "Bearer"

    def authenticate(self, credentials: Credentials) -> Any:
        return "alice", {"*"}


class AuthenticatorSuite(AuthenticatorContract):
    def valid(self) -> Credentials:
        return Credentials(scheme="basic", user="alice", secret="secret")

    def owner(self) -> tuple[str, frozenset[str]]:
        return "alice", frozenset({"*"})

    def revoke(self, authenticator: Authenticator) -> None:
        raise NotImplementedError


def test_failures_of_the_contract_of_authenticators_say_what_would_be_right() -> None:
    suite, authenticator = AuthenticatorSuite(), AcceptsEverything()
    with pytest.raises(AssertionError, match=r"authenticate returned .* it has to return an Identity"):
        suite.test_valid_credentials_identify_their_owner(ReturnsATuple())
    with pytest.raises(
        AssertionError, match="challenges has to be a tuple: challenges = \\('Bearer',\\), not"
    ):
        suite.test_the_challenge_names_the_scheme(ReturnsATuple())
    with pytest.raises(AssertionError, match="current has to be true while"):
        suite.test_valid_credentials_identify_their_owner(authenticator)
    with pytest.raises(AssertionError, match=r"the wrong secret .* was accepted"):
        suite.test_a_wrong_secret_identifies_nobody(authenticator, "x")
    with pytest.raises(AssertionError, match="bearer credentials were accepted"):
        suite.test_credentials_of_another_scheme_identify_nobody(authenticator, None)


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (PermissionError("no"), r"authenticate raised PermissionError\('no'\) for .*; .* or None"),
        (False, r"authenticate returned False for .*; it has to return an Identity, or None"),
    ],
    ids=["error", "answer"],
)
def test_what_an_authenticator_did_is_shown_with_what_would_be_right(outcome: Any, message: str) -> None:
    class Wrong(AcceptsEverything):
        def authenticate(self, credentials: Credentials) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    with pytest.raises(AssertionError, match=message) as caught:
        AuthenticatorSuite().test_a_wrong_secret_identifies_nobody(Wrong(), "x")
    assert "xsecret" not in str(caught.value), "the message shows a secret"
