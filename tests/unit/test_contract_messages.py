"""Failures of the contracts, which authors of backends read, say what is wrong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jobserver_core.testing
import jobserver_http.testing
from jobserver_core.errors import MalformedUrl
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryFetcher
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import JsonObject
from jobserver_core.ports import JobCode, JobOutcome
from jobserver_core.testing.fetcher import _assert_refused, _error_of_fetch
from jobserver_core.testing.launcher import LauncherContract, RunningContext
from jobserver_core.testing.recording import RecordingListener
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


class AcceptsEverything(Authenticator):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        return Identity(name="alice", permissions=frozenset({"*"}))

    def current(self, identity: Identity) -> bool:
        return False


class AuthenticatorSuite(AuthenticatorContract):
    def valid(self) -> Credentials:
        return Credentials(scheme="basic", user="alice", secret="secret")

    def owner(self) -> tuple[str, frozenset[str]]:
        return "alice", frozenset({"*"})

    def revoke(self, authenticator: Authenticator) -> None:
        raise NotImplementedError


def test_failures_of_the_contract_of_authenticators_say_what_would_be_right() -> None:
    suite, authenticator = AuthenticatorSuite(), AcceptsEverything()
    with pytest.raises(AssertionError, match="current has to be true while"):
        suite.test_valid_credentials_identify_their_owner(authenticator)
    with pytest.raises(AssertionError, match=r"the wrong secret .* was accepted"):
        suite.test_a_wrong_secret_identifies_nobody(authenticator, "x")
    with pytest.raises(AssertionError, match="bearer credentials were accepted"):
        suite.test_credentials_of_another_scheme_identify_nobody(authenticator, None)
