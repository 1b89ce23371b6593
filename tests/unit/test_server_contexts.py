"""Contexts of a server, and their slots for jobs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_server import running

from conditions import wait_until
from jobserver_core import (
    ContextState,
    FailureKind,
    JobHandle,
    JobServer,
    JobState,
    Settings,
    Waiter,
    errors,
)
from jobserver_core.config.settings import CONTEXT_KEYS, SparkSettings
from jobserver_core.memory import InlineLauncher
from jobserver_core.ports import UuidIds
from jobserver_core.running.context_settings import check_settings
from jobserver_core.testing.clock import ManualClock
from serving import FUNCTIONS, WAIT, a_request, a_server, upload


@pytest.fixture
def server() -> Iterator[JobServer]:
    with a_server() as server:
        upload(server)
        yield server


# -- contexts --------------------------------------------------------------------------------------


def test_settings_of_a_context_stay_out_of_the_defaults_of_all_contexts() -> None:
    defaults = {"passthrough": {}}
    settings = Settings(spark=SparkSettings(context_settings=defaults))
    with a_server(settings=settings) as server:
        server.create_context("mine", {"passthrough.fs.s3a.secret.key": "hunter2"}).result(WAIT)
        yours = server.create_context("yours").result(WAIT)
    assert yours.settings["passthrough"] == {}
    assert defaults == {"passthrough": {}}


def test_a_context_is_created_lives_and_is_stopped(server: JobServer) -> None:
    context = server.create_context("shared", {"spark.executor.memory": "1g"}).result(WAIT)
    assert context.state is ContextState.RUNNING
    assert context.settings["spark"]["executor"]["memory"] == "1g"
    assert [c.name for c in server.contexts()] == ["shared"]
    with pytest.raises(errors.ContextExists, match="context shared exists"):
        server.create_context("shared")
    assert server.stop_context("shared").result(WAIT).state is ContextState.FINISHED
    assert server.contexts() == []
    assert server.context("shared").ended_at is not None
    with pytest.raises(errors.ContextNotFound):
        server.stop_context("shared")
    server.create_context("shared").result(WAIT)


@pytest.mark.parametrize(
    ("name", "rule"), [("bad name", "it may contain letters"), ("1st", "it must start with a letter")]
)
def test_stopping_a_context_with_an_impossible_name_says_what_is_wrong_with_it(
    server: JobServer, name: str, rule: str
) -> None:
    for end in (server.stop_context, server.kill_context):
        with pytest.raises(
            errors.ContextNotFound, match=f"^context {name} not found: the name is not allowed: {rule}"
        ):
            end(name)
    with pytest.raises(errors.ContextNotFound, match=f"^context {name} not found") as caught:
        server.context(name)
    assert (caught.value.reason is None) == (name == "1st"), "which may be an ID"


def test_stopping_a_context_that_has_failed_says_why_it_failed(server: JobServer) -> None:
    with pytest.raises(errors.ContextFailed):
        server.create_context("bad", {"inline.fail": "no cores left"}).result(WAIT)
    with pytest.raises(
        errors.ContextNotFound, match=r"^context bad not found: it failed at .*: no cores left$"
    ):
        server.stop_context("bad")


@pytest.mark.parametrize(
    ("fault", "reason"), [("no cores left", ": it failed at .*: no cores left"), (None, "")]
)
def test_ending_the_ended_context_of_a_job_does_not_say_that_its_name_is_not_allowed(
    fault: str | None, reason: str
) -> None:
    class Digits(UuidIds):
        """Ids that begin with a digit, as most of them do; the name of such a context begins with one."""

        def new(self) -> str:
            return f"1{super().new()[1:]}"

    with a_server(ids=Digits()) as server:
        upload(server)
        settings = {"inline.fail": fault} if fault else {}
        handle = server.submit(a_request("w.Count", "input.string = a", context_settings=settings))
        name = server.job(handle.id).context_name
        wait_until(lambda: server.context(name).state.final)
        for end in (server.stop_context, server.kill_context):
            with pytest.raises(errors.ContextNotFound, match=f"^context {name} not found{reason}$"):
                end(name)


def test_a_context_that_cannot_start_says_why(server: JobServer) -> None:
    waiter = server.create_context("bad", {"inline.fail": "no cores left"})
    with pytest.raises(errors.ContextFailed, match="no cores left"):
        waiter.result(WAIT)
    context = server.context("bad")
    assert context.state is ContextState.ERROR
    assert context.error is not None
    assert context.error.message == "no cores left"


def test_a_configured_context_that_cannot_start_says_why_in_the_log_and_to_a_submit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings(spark=SparkSettings(contexts={"warm": {"inline.fail": "no cores left"}}))
    with a_server(settings=settings) as server:
        upload(server)
        wait_until(lambda: server.context("warm").state is ContextState.ERROR)
        with pytest.raises(errors.ContextNotFound) as caught:
            server.submit(a_request("w.Echo", context="warm"))
        ended_at = server.context("warm").ended_at
    assert ended_at is not None
    when = f"{ended_at:%Y-%m-%d %H:%M:%S}+00:00"
    assert str(caught.value) == f"context warm not found: it failed at {when}: no cores left"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["context warm ended as ERROR: no cores left"]


def test_a_job_whose_own_context_cannot_start_says_why(server: JobServer) -> None:
    job = server.submit(a_request("w.Echo", context_settings={"inline.fail": "no cores left"}))
    record = job.finished.result(WAIT)
    assert record.failure is FailureKind.CONTEXT_INIT
    assert record.error is not None
    assert record.error.message == "no cores left"


def test_a_context_that_is_not_ready_in_time_is_an_error() -> None:
    clock = ManualClock()
    with a_server(clock=clock, start_delay=WAIT * 10) as server:
        waiter = server.create_context("slow")
        clock.advance(server.settings.contexts.creation_timeout)
        with pytest.raises(errors.ContextFailed, match="not ready after 180 s"):
            waiter.result(WAIT)
        wait_until(lambda: server.context("slow").state is ContextState.ERROR)


def test_jobs_for_a_context_that_starts_wait_for_it() -> None:
    with a_server(start_delay=0.2) as server:
        upload(server)
        server.create_context("slow")
        job = server.submit(a_request("w.Echo", {"value": 1}, context="slow"))
        assert server.job(job.id).waiting
        assert not job.started.done()
        assert job.result(WAIT) == 1


def test_jobs_of_a_stopped_context_end_in_error_with_the_old_wording(server: JobServer) -> None:
    server.create_context("shared").result(WAIT)
    job = running(server, context="shared")
    server.stop_context("shared").result(WAIT)
    record = server.job(job.id)
    assert record.state is JobState.ERROR
    assert record.failure is FailureKind.CONTEXT_LOST
    assert record.error is not None
    assert record.error.message == "Context (shared) for this job was terminated"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda server: server.stop_context("shared"), "stopped on request"),
        (lambda server: server.stop_context("shared", user="ann"), "stopped by user ann"),
        (lambda server: server.kill_context("shared"), "killed on request"),
        (lambda server: server.kill_context("shared", user="ann"), "killed by user ann"),
        (lambda server: server.reset_contexts(user="ann"), "stopped with all other contexts by user ann"),
    ],
)
def test_jobs_of_a_context_that_was_ended_say_who_did_it(
    server: JobServer, end: Callable[[JobServer], Waiter[Any]], reason: str
) -> None:
    server.create_context("shared").result(WAIT)
    job = running(server, context="shared")
    end(server).result(WAIT)
    assert _reason(server, job) == reason
    with pytest.raises(errors.JobFailed) as caught:
        job.result(WAIT)
    words = "ContextTerminated: Context (shared) for this job was terminated"
    assert str(caught.value) == f"job {job.id}: {words}: {reason}"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("idle-timout", "idle-timeout"), ("max-restart", "max-restarts"), ("supervised", "supervise")],
)
def test_a_slip_in_the_name_of_a_setting_is_refused_in_memory_too(
    server: JobServer, key: str, nearest: str
) -> None:
    expected = f"setting '{key}': a context has no such setting; did you mean '{nearest}'?"
    with pytest.raises(errors.InvalidSetting, match=re.escape(expected)):
        server.create_context("etl", {key: "10 s"})


def test_every_setting_that_the_core_reads_is_known_to_all_launchers() -> None:
    class Recorded(dict[str, Any]):
        """Settings that know which of them were read."""

        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    read: set[str] = set()
    check_settings(Recorded(), InlineLauncher())
    assert {"cp", "supervise", "max-lifetime"} <= read
    assert read - {"inline"} <= set(CONTEXT_KEYS)


def test_settings_for_spark_are_accepted_in_memory(server: JobServer) -> None:
    settings = {"hadoop-conf-dir": "/etc/hadoop", "passthrough.spark.x": 1, "spark.executor.memory": "1g"}
    server.create_context("etl", settings).result(WAIT)


def test_jobs_of_a_server_that_is_stopped_say_so() -> None:
    server = a_server().start()
    upload(server)
    server.create_context("shared").result(WAIT)
    job = running(server, context="shared")
    server.close(WAIT)
    ended = job.finished.result(0)
    assert ended.error is not None
    assert ended.error.stack == "the server was stopped"


def test_jobs_whose_context_was_killed_for_another_job_say_so() -> None:
    settings = Settings.from_mapping({"jobserver.jobs.kill-timeout": "50 ms"})
    stop = threading.Event()
    launcher = InlineLauncher({**FUNCTIONS, "w.Deaf": lambda _job: stop.wait(WAIT)})
    with a_server(settings=settings, launcher=launcher) as server:
        upload(server)
        server.create_context("shared").result(WAIT)
        deaf, other = running(server, "w.Deaf", context="shared"), running(server, context="shared")
        try:
            server.kill_job(deaf.id, force=True)
            assert other.finished.result(WAIT).state is JobState.ERROR
        finally:
            stop.set()
        assert _reason(server, other) == f"killed to end job {deaf.id}, which could not be killed alone"


def test_jobs_of_a_context_that_stops_when_a_job_fails_say_which_one_did(server: JobServer) -> None:
    server.create_context("strict", {"stop-context-on-job-error": "true"}).result(WAIT)
    job = running(server, context="strict")
    failed = server.submit(a_request("w.Fail", context="strict"))
    assert job.finished.result(WAIT).state is JobState.ERROR
    assert _reason(server, job) == f"job {failed.id} failed, and stop-context-on-job-error is set"


@pytest.mark.parametrize(("job_class", "failed"), [("w.Echo", False), ("w.Fail", True)])
@pytest.mark.parametrize("strict", [False, True])
def test_the_own_context_of_a_job_ends_because_the_job_failed_only_if_it_did(
    server: JobServer, job_class: str, failed: bool, strict: bool
) -> None:
    settings = {"stop-context-on-job-error": strict}
    job = server.submit(a_request(job_class, context_settings=settings))
    ended = job.finished.result(WAIT)
    wait_until(lambda: server.context(ended.context_id).state is ContextState.FINISHED)
    expected = f"job {job.id} failed, and stop-context-on-job-error is set" if failed and strict else ""
    assert server.context(ended.context_id).end_reason == expected


def _reason(server: JobServer, job: JobHandle) -> str:
    """Return why the context of a job ended, according to the job's error."""
    error = server.job(job.id).error
    assert error is not None
    assert error.error_class == "ContextTerminated"
    return error.stack


def test_a_killed_context_ends_killed(server: JobServer) -> None:
    server.create_context("shared").result(WAIT)
    assert server.kill_context("shared").result(WAIT).state is ContextState.KILLED


def test_a_failing_job_stops_its_context_where_that_is_wanted(server: JobServer) -> None:
    server.create_context("strict", {"stop-context-on-job-error": "true"}).result(WAIT)
    server.submit(a_request("w.Echo", context="strict")).result(WAIT)
    assert server.context("strict").state is ContextState.RUNNING
    server.submit(a_request("w.Fail", context="strict")).finished.result(WAIT)
    wait_until(lambda: server.context("strict").state is ContextState.FINISHED)


def test_configured_contexts_start_with_the_server_and_again_after_a_reset() -> None:
    settings = Settings.from_mapping({"spark": {"contexts": {"one": {"num-cpu-cores": 1}, "two": {}}}})
    with a_server(settings=settings) as server:
        wait_until(lambda: {c.state for c in server.contexts()} == {ContextState.RUNNING})
        assert {c.name for c in server.contexts()} == {"one", "two"}
        server.create_context("three").result(WAIT)
        before = {c.id for c in server.contexts()}
        server.reset_contexts().result(WAIT)
        assert {c.name for c in server.contexts()} == {"one", "two"}
        assert not before & {c.id for c in server.contexts()}


def test_the_number_of_contexts_is_limited() -> None:
    settings = Settings.from_mapping({"jobserver": {"contexts": {"max-contexts": 1}}})
    with a_server(settings=settings) as server:
        server.create_context("one").result(WAIT)
        with pytest.raises(errors.Unavailable, match=r"context limit reached \(1, "):
            server.create_context("two")
        server.stop_context("one").result(WAIT)
        server.create_context("two").result(WAIT)


# -- slots -----------------------------------------------------------------------------------------


def limited(running_jobs: int, queued: int) -> JobServer:
    limits = {"max-jobs-per-context": running_jobs, "max-queued-jobs": queued}
    server = a_server(settings=Settings.from_mapping({"jobserver": {"jobs": limits}})).start()
    upload(server)
    server.create_context("shared").result(WAIT)
    return server


def test_without_a_queue_a_full_context_refuses_with_the_old_wording() -> None:
    with limited(1, 0) as server:
        running(server, context="shared")
        with pytest.raises(errors.NoSlots) as caught:
            server.submit(a_request("w.Echo", context="shared"))
        assert str(caught.value) == (
            "context shared has no free job slot (running jobs: 1): all slots are taken "
            "(jobserver.jobs.max-jobs-per-context = 1), and no job may wait "
            "(jobserver.jobs.max-queued-jobs = 0); try again when a job has ended"
        )
        assert len(server.jobs().jobs) == 1


def test_jobs_wait_their_turn_in_the_order_of_their_submits() -> None:
    with limited(1, 2) as server:
        first = running(server, context="shared")
        second = server.submit(a_request("w.Echo", context="shared"))
        third = server.submit(a_request("w.Echo", context="shared"))
        assert second.started.result(WAIT).waiting
        with pytest.raises(errors.NoSlots):
            server.submit(a_request("w.Echo", context="shared"))
        server.kill_job(first.id)
        for job in (second, third):
            job.result(WAIT)
        dispatched = [server.job(job.id).dispatched_at for job in (second, third)]
        assert dispatched[0] is not None
        assert dispatched[1] is not None
        assert dispatched[0] < dispatched[1]


def test_a_waiting_job_can_be_killed_at_once_and_never_runs() -> None:
    with limited(1, 2) as server:
        running(server, context="shared")
        waiting = server.submit(a_request("w.Echo", context="shared"))
        killed = server.kill_job(waiting.id, user="ann").result(WAIT)
        assert (killed.state, killed.dispatched_at) == (JobState.KILLED, None)
        assert killed.error is not None
        assert (killed.error.message, killed.error.stack) == (f"Job {waiting.id} killed", "by user ann")


def test_the_log_says_when_a_context_starts_is_ready_and_ends(
    server: JobServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jobserver_core")
    server.create_context("warm").result(WAIT)
    server.submit(a_request("w.Echo")).result(WAIT)  # in a context of its own, at the level DEBUG
    server.stop_context("warm", user="ann").result(WAIT)
    lives = [message for message in caplog.messages if message.startswith("context ")]
    assert [re.sub(r"\d+\.\d", "0.1", life) for life in lives] == [
        "context warm is starting",
        "context warm is ready after 0.1 s",
        "context warm ended as FINISHED: stopped by user ann",
    ]
