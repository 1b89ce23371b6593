"""The launcher contract's part about jobs."""

from __future__ import annotations

import json
from pathlib import Path

import attrs

from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import JobSpec, Launcher
from jobserver_core.testing.launcher.access import EARLIER, LauncherAccess, RunningContext

_NOT_KILLED = "a job that kill_job ended has to be reported with JobOutcome(killed=True)"


class JobsContract(LauncherAccess):
    """Jobs run, report their results, and end."""

    def expect_one_end(self, context: RunningContext, job: JobSpec) -> None:
        """Check that the end of a job that was killed is reported once."""
        reports = context.listener.of_job(job.id)
        assert reports.count("job_ended") == 1, (
            f"kill_job does nothing once the job has ended; job_ended has to come once, not as in {reports}"
        )

    def test_a_job_runs_delivers_its_result_and_ends(self, context: RunningContext) -> None:
        job = self.submit(context, "echo", '{"value": {"a": [1, 2.5, null, "é"]}}')
        assert self.value(context, job) == {"a": [1, 2.5, None, "é"]}
        self.expect_reports(context.listener, job, "job_running", "open_result", "job_ended")

    def test_null_is_a_result(self, context: RunningContext) -> None:
        job = self.submit(context, "echo", '{"value": null}')
        assert self.value(context, job) is None
        self.expect_reports(context.listener, job, "job_running", "open_result", "job_ended")

    def test_a_large_result_arrives_whole(self, context: RunningContext) -> None:
        expected = ["é\n🙂" * 100] * 600  # less than the limit of a configuration
        job = self.submit(context, "echo", json.dumps({"value": expected}, ensure_ascii=False))
        assert self.value(context, job) == expected, (
            "a large result has to arrive whole: write() may be called any number of times, each time with "
            "the next bytes"
        )

    def test_events_never_overlap(self, context: RunningContext) -> None:
        context.listener.linger = self.linger
        jobs = [self.submit(context, "echo", f'{{"value": {number}}}') for number in range(3)]
        assert [self.value(context, job) for job in jobs] == [0, 1, 2]
        context.listener.linger = 0.0
        assert context.listener.faults == []

    def test_a_job_whose_process_ends_by_itself_has_crashed(self, context: RunningContext) -> None:
        job = self.submit(context, "crash")
        error = self.error_of(context, job, FailureKind.CRASHED)
        assert error.message, "the error of a job has to say why it failed"
        self.expect_reports(context.listener, job, "job_running", "job_ended")
        assert self.value(context, self.submit(context, "echo", '{"value": 7}')) == 7

    def test_processes_that_a_job_started_end_with_it(self, context: RunningContext) -> None:
        job = self.submit_hold(context, returns=True)
        assert self.value(context, job) is None
        assert context.listener.faults == []

    def test_processes_with_a_session_of_their_own_and_no_pipe_of_the_job_end_with_it(
        self, context: RunningContext
    ) -> None:
        killed = self.hold(context, detached=True)
        self.wait_until_detached(killed)
        context.handle.kill_job(killed.id)
        assert self.outcome(context, killed).killed, _NOT_KILLED
        assert context.listener.faults == []
        returning = self.submit_hold(context, returns=True, detached=True)
        assert self.value(context, returning) is None
        assert context.listener.faults == []

    def test_the_first_entry_of_a_class_path_wins(self, context: RunningContext, tmp_path: Path) -> None:
        first, second = (self.label_code(tmp_path, "ordered", text) for text in ("first", "second"))
        job = self.submit(context, "ordered", first=(first, second))
        assert self.value(context, job) == "first", "of two classes with one name, the first entry's is used"

    def test_the_class_path_of_the_context_comes_before_that_of_the_job(
        self, context: RunningContext, tmp_path: Path
    ) -> None:
        own = self.label_code(tmp_path, "shared", "from the job")
        for first in ((), (own,)):
            found = self.value(context, self.submit(context, "shared", first=first))
            assert found == "from the context", (
                f"the class path of the context comes first: use its class, not that {found}"
            )

    def test_a_job_that_raises_fails_with_its_exception(self, context: RunningContext) -> None:
        job = self.submit(context, "raise", '{"message": "no such table"}')
        error = self.error_of(context, job, FailureKind.RAISED)
        assert "no such table" in error.message, f"no message of the exception: {error}"
        assert error.error_class, "the error has to name the class of the exception that was raised"
        assert "no such table" in error.stack, f"no stack trace of the exception: {error}"
        self.expect_reports(context.listener, job, "job_running", "job_ended")

    def test_a_job_that_refuses_its_configuration_never_runs(self, context: RunningContext) -> None:
        job = self.submit(context, "refuse", '{"message": "input.string is missing"}')
        error = self.error_of(context, job, FailureKind.VALIDATION)
        assert "input.string is missing" in error.message, f"no reason for the refusal: {error}"
        self.expect_reports(context.listener, job, "job_ended")

    def test_a_class_that_does_not_exist_is_an_error_of_its_own_kind(self, context: RunningContext) -> None:
        job = self.spec_of(context, "echo", "{}")
        context.handle.submit(attrs.evolve(job, class_name=f"{job.class_name}NotThere"))
        self.error_of(context, job, FailureKind.CLASS_NOT_FOUND)
        self.expect_reports(context.listener, job, "job_ended")

    def test_a_streamed_result_arrives_as_its_bytes(self, context: RunningContext) -> None:
        for kind in ("stream", "astream"):
            job = self.submit(context, kind, '{"chunks": ["[1, ", "2, ", "3]"]}')
            self.expect_success(context, job)
            stream, data = context.listener.results[job.id]
            assert stream, "a streamed result has to be opened with stream=True"
            assert bytes(data) == b"[1, 2, 3]", "the sink has to get the bytes that the job yields, unchanged"

    def test_a_result_over_the_limit_is_the_jobs_error(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.started(launcher, tmp_path, self.settings(), listener=self.listener(result_limit=10))
        job = self.submit(context, "echo", '{"value": "more than ten bytes"}')
        error = self.error_of(context, job, FailureKind.RESULT)
        assert "limit of 10 bytes" in error.message, f"no message of the TooLarge that write raised: {error}"
        context.handle.kill()
        self.end_of(context)

    def test_what_a_job_prints_is_appended_to_its_log(self, context: RunningContext) -> None:
        config = '{"text": "hello from the job", "error": "a warning of the job"}'
        job = self.spec_of(context, "print", config)
        job.log_path.write_text(EARLIER)
        context.handle.submit(job)
        self.expect_success(context, job)
        text = job.log_path.read_text(encoding="utf-8")
        assert text.startswith(EARLIER), (
            f"the log was not appended to; it had {EARLIER!r} before, and has now {text!r}"
        )
        assert "hello from the job" in text, f"the log has no standard output of the job: {text!r}"
        assert "a warning of the job" in text, f"the log has no standard error of the job: {text!r}"

    def test_jobs_run_at_the_same_time(self, context: RunningContext) -> None:
        jobs = [self.submit(context, "endless") for _ in range(2)]
        for job in jobs:
            context.listener.wait_for("job_running", job.id, timeout=self.timeout)
        for job in jobs:
            context.handle.kill_job(job.id)
            assert self.outcome(context, job).killed, _NOT_KILLED

    def test_a_kill_ends_a_job_and_disturbs_no_other(self, context: RunningContext) -> None:
        victim, neighbour = self.hold(context), self.submit(context, "endless")
        context.listener.wait_for("job_running", neighbour.id, timeout=self.timeout)
        context.handle.kill_job(victim.id)
        assert self.outcome(context, victim).killed, _NOT_KILLED
        assert context.listener.faults == []
        self.expect_reports(context.listener, neighbour, "job_running")
        later = self.submit(context, "echo", '{"value": 7}')
        self.expect_success(context, later)

    def test_killing_a_job_twice_or_after_its_end_changes_nothing(self, context: RunningContext) -> None:
        job = self.submit(context, "endless")
        context.listener.wait_for("job_running", job.id, timeout=self.timeout)
        context.handle.kill_job(job.id)
        context.handle.kill_job(job.id)
        self.outcome(context, job)
        context.handle.kill_job(job.id)
        context.handle.kill_job("never-heard-of")
        later = self.submit(context, "echo", '{"value": 7}')
        self.outcome(context, later)
        self.expect_one_end(context, job)

    def test_killing_a_job_right_after_its_submit_ends_it_once(self, context: RunningContext) -> None:
        for _ in range(5):
            job = self.submit(context, "endless")
            context.handle.kill_job(job.id)
            assert self.outcome(context, job).killed, _NOT_KILLED
            self.expect_one_end(context, job)
