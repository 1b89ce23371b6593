"""The launcher contract's part about calls that have to return at once.

The core may call a handle on one thread while the listener handles a report on another. The first may hold
a lock that the second waits for. So a handle that waits for the report deadlocks the server: it waits if it
takes the lock that the launcher holds around the listener, or if its result is a later report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from jobserver_core.ports import ContextEnd, Launcher
from jobserver_core.testing.launcher.access import LauncherAccess, RunningContext


class _CallsDuringAReport:
    """Calls on other threads while the listener handles a report, each of which has to return."""

    def __init__(
        self, context: RunningContext, report: str, calls: Mapping[str, Callable[[], object]], timeout: float
    ) -> None:
        self._report, self._calls, self._timeout = report, calls, timeout
        self._faults: list[str] = []
        self._made = threading.Event()
        context.listener.during(report, self._make)

    def _make(self) -> None:
        threads = {
            name: threading.Thread(target=self._guarded, args=(name, call), daemon=True)
            for name, call in self._calls.items()
        }
        for thread in threads.values():
            thread.start()
        deadline = time.monotonic() + self._timeout
        for name, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._faults.append(
                    f"{name} did not return within {self._timeout:g} s while the listener handled "
                    f"{self._report}; it must not take the lock that is held around the listener, nor wait "
                    "for a report, or the server deadlocks"
                )
        self._made.set()

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - shown in the test's thread
            self._faults.append(f"{name} raised {error!r}; it has to raise nothing")

    def check(self) -> None:
        """Wait for the calls, after the report has arrived, and fail if one has not returned."""
        assert self._made.wait(2 * self._timeout), f"the listener did not return from {self._report}"
        assert not self._faults, "; ".join(self._faults)


class CallsContract(LauncherAccess):
    """No call waits for what is reported to the listener."""

    def test_calls_of_a_handle_return_while_the_listener_handles_a_report(
        self, context: RunningContext
    ) -> None:
        handle = context.handle
        other = self.spec_of(context, "echo", '{"value": 1}')
        killed, last = self.spec_of(context, "endless", "{}"), self.spec_of(context, "endless", "{}")
        calls: dict[str, Callable[[], object]] = {
            "preparing": lambda: handle.preparing,
            "submit": partial(handle.submit, other),
            "kill_job": partial(handle.kill_job, killed.id),
            "acknowledge": partial(handle.acknowledge, "never-heard-of"),
        }
        during = _CallsDuringAReport(context, "job_running", calls, self.call_timeout)
        handle.submit(killed)
        context.listener.wait_for("job_running", killed.id, timeout=self.timeout)
        during.check()
        self.outcome(context, killed)
        self.expect_success(context, other)

        handle.submit(last)
        context.listener.wait_for("job_running", last.id, timeout=self.timeout)
        calls = {"stop": partial(handle.stop, 60.0), "kill": handle.kill}
        during = _CallsDuringAReport(context, "job_ended", calls, self.call_timeout)
        handle.kill_job(last.id)
        context.listener.wait_for("job_ended", last.id, timeout=self.timeout)
        during.check()
        self.end_of(context)

    def test_a_start_returns_before_the_listener_has_handled_that_the_context_is_ready(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        begun = threading.Event()
        listener = self.listener()
        listener.during("context_ready", lambda: begun.wait(self.call_timeout))
        before = time.monotonic()
        context = self.start(launcher, tmp_path, self.settings(), listener=listener)
        took = time.monotonic() - before
        begun.set()
        assert took < self.call_timeout, (
            f"start_context returned after {took:.1f} s; it has to return at once, and to report "
            "context_ready or context_ended later, from another thread"
        )
        listener.wait_for("context_ready", timeout=self.start_timeout)
        context.handle.kill()
        self.end_of(context)

    def test_a_start_does_not_wait_for_the_context(self, launcher: Launcher, tmp_path: Path) -> None:
        settings = self.unready_settings(tmp_path)
        if settings is None:
            pytest.skip("unready_settings() of this suite returns none")
        context = self.start(launcher, tmp_path, settings)
        assert context.listener.events == [], (
            f"with unready_settings(), nothing may be reported before the kill, but {context.listener.events}"
        )
        context.handle.kill()
        self.expect_end(context, ContextEnd.KILLED, "that was killed while it started")
