"""The launcher contract's part about the life of contexts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import Resources
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd, Launcher
from jobserver_core.testing.contract import assert_none_left, returned, threads_and_processes
from jobserver_core.testing.launcher.access import EARLIER, LauncherAccess, RunningContext

_WORK_DIR_LEFT = (
    "the context was reported as ended, but its work_dir is still there; remove it before context_ended"
)


class ContextsContract(LauncherAccess):
    """Contexts start, stop and end, and leave nothing."""

    def test_a_context_is_ready_once_and_stops_with_nothing_left(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        context = self.started(launcher, tmp_path, self.settings())
        context.handle.stop(30.0)
        context.handle.stop(30.0)
        self.expect_end(context, ContextEnd.STOPPED, "that was stopped")
        reports = [event[0] for event in context.listener.events]
        assert reports == ["context_ready", "context_ended"], (
            f"context_ready and context_ended have to be reported once each, not {reports}"
        )
        assert context.listener.faults == []
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT
        text = context.spec.log_path.read_text(encoding="utf-8")
        assert text.startswith(EARLIER), (
            f"the log was not appended to; it had {EARLIER!r} before, and has now {text!r}"
        )

    def test_a_launcher_whose_contexts_start_passes_its_check(self, launcher: Launcher) -> None:
        right = "it has to return None where contexts start, and to raise LaunchError where they cannot"
        found: object = None
        try:
            found = launcher.check()  # type: ignore[func-returns-value]
        except Exception as error:
            raise AssertionError(f"check() raised {error!r}; {right}") from error
        assert found is None, f"check() returned {found!r}; {right}"

    def test_settings_that_may_work_pass_validation(self, launcher: Launcher) -> None:
        for settings in (self.settings(), self.failing_settings()[0]):
            found: object = launcher.validate(settings)  # type: ignore[func-returns-value]
            assert found is None, (
                f"validate({settings}) returned {found!r}; it has to return None, or to raise InvalidSetting"
            )

    def test_the_same_settings_always_ask_for_the_same_resources(self, launcher: Launcher) -> None:
        first, again = (
            returned("resources", launcher.resources(self.settings()), Resources) for _ in range(2)
        )
        assert first == again, "the sum of all contexts would depend on the time"
        assert all(amount is None or amount >= 0 for amount in (first.cores, first.memory)), (
            f"resources below zero: {first}"
        )

    def test_settings_that_can_never_work_are_refused_before_and_at_the_start(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, key = self.refused_settings()
        directory = tmp_path / "refused"
        directory.mkdir()
        with pytest.raises(InvalidSetting) as before:
            launcher.validate(settings)
        with pytest.raises(InvalidSetting) as at_start:
            self.start(launcher, directory, settings)
        found = [(error.value.key, str(error.value)) for error in (before, at_start)]
        assert found == [(key, found[0][1])] * 2, (
            f"validate and start_context have to refuse {key} with the same error, not with {found}"
        )
        logs = list(directory.glob("*.log"))
        written = [log.read_text() for log in logs]
        assert written == [EARLIER], f"a refused start writes nothing to the log, but it has {written}"
        left = set(directory.iterdir()) - {directory / "code", directory / "data", *logs}
        assert not left, f"a refused start leaves nothing, but here is {left}"

    def test_a_killed_context_ends_killed_with_nothing_left(self, context: RunningContext) -> None:
        self.hold(context)
        context.handle.kill()
        self.expect_end(context, ContextEnd.KILLED, "that was killed")
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT
        assert context.listener.faults == []

    def test_killing_a_starting_context_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.kill()
        self.expect_end(context, ContextEnd.KILLED, "that was killed while it started")
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT

    def test_stopping_a_starting_context_ends_it(self, launcher: Launcher, tmp_path: Path) -> None:
        context = self.start(launcher, tmp_path, self.settings())
        context.handle.stop(30.0)
        self.expect_end(context, ContextEnd.STOPPED, "that was stopped while it started")

    def test_a_context_that_cannot_start_reports_the_real_reason(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        settings, reason = self.failing_settings()
        context = self.start(launcher, tmp_path, settings)
        end, error = self.end_of(context, timeout=self.start_timeout)
        assert end is ContextEnd.FAILED, f"the end of a context that cannot start has to be FAILED, not {end}"
        assert isinstance(error, ErrorInfo), (
            f"the error of a failed context has to be an ErrorInfo: {error!r}"
        )
        assert reason in error.message, (
            f"the error has to give the real reason, {reason!r}: {error.message!r}"
        )
        reports = [event[0] for event in context.listener.events]
        assert reports == ["context_ended"], f"only context_ended may be reported once, not {reports}"
        assert not context.spec.work_dir.exists(), _WORK_DIR_LEFT

    def test_closing_the_launcher_kills_what_is_left_and_waits_for_it(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        context = self.started(launcher, tmp_path, self.settings())
        self.hold(context)
        self.close(launcher)
        events = list(context.listener.events)
        self.close(launcher)
        assert events[-1][:2] == ("context_ended", ContextEnd.KILLED), (
            f"close has to return only once context_ended was reported with KILLED; reported: {events}"
        )
        later = context.listener.events[len(events) :]
        assert not later, f"nothing may be reported after close, but {later} was"
        assert context.listener.faults == []

    def test_a_context_stops_with_its_running_jobs(self, launcher: Launcher, tmp_path: Path) -> None:
        before = threads_and_processes()
        context = self.started(launcher, tmp_path, self.settings())
        self.hold(context)
        context.handle.stop(60.0)
        self.expect_end(context, ContextEnd.STOPPED, "that was stopped")
        assert context.listener.faults == []
        self.close(launcher)
        assert_none_left(
            before,
            "report context_ended only once the context's jobs are gone, with their threads and processes; "
            "close() has to end those of the launcher, and wait for them",
        )

    def test_a_job_for_a_context_that_ended_is_ignored(self, context: RunningContext) -> None:
        context.handle.kill()
        self.end_of(context)
        job = self.submit(context, "echo", '{"value": 1}')
        context.handle.kill_job(job.id)
        context.handle.stop(1.0)
        context.handle.kill()
        self.expect_reports(context.listener, job)
