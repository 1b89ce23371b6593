"""The context that is started to create the archive of its JVM's classes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobOutcome,
    JobSpec,
    ResultSink,
)
from jobserver_pyspark.installation.training import CLASS_NAME


class _Nowhere(ResultSink):
    def write(self, data: bytes) -> None:
        """Drop the bytes."""


class TrainingSession(ContextListener):
    """Runs one training job in a context and stops it gracefully, so that the JVM writes the archive.

    ``timeout`` is the number of seconds for each of these: the start, the job, and the stop.
    """

    def __init__(self, directory: Path, python: str, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._ready = False
        self._outcome: JobOutcome | None = None
        self._end: ContextEnd | None = None
        self._error: ErrorInfo | None = None
        self._log = directory / "job.log"
        data = directory / "data"
        data.mkdir()
        self.spec = ContextSpec(
            id=str(uuid4()),
            name="class-data-training",
            settings={"spark": {"master": "local[1]"}, "python": {"executable": python}},
            log_path=directory / "context.log",
            work_dir=directory / "work",
            data_dir=data,
        )

    def follow(self, handle: ContextHandle) -> None:
        """Run the job and stop the context.

        Raises:
            LaunchError: This failed, or took too long. The message says which part did, and why.
        """
        try:
            self._run(handle)
        except LaunchError:
            handle.kill()
            self._wait(lambda: False)
            raise

    def _run(self, handle: ContextHandle) -> None:
        self._reach(lambda: self._ready, "start")
        # A Python job without a package: its class is the launcher's own.
        handle.submit(
            JobSpec(id=str(uuid4()), class_name=CLASS_NAME, class_path=(), config="{}", log_path=self._log)
        )
        self._reach(lambda: self._outcome is not None, "finish its job")
        if self._outcome is not None and self._outcome.error is not None:
            raise LaunchError(message=f"its job failed: {self._outcome.error.message}")
        handle.stop(self._timeout)
        self._reach(lambda: self._end is ContextEnd.STOPPED, "stop")

    def _reach(self, reached: Callable[[], bool], what: str) -> None:
        self._wait(reached)
        if reached():
            return
        if self._end is not None:
            raise LaunchError(message=self._error.message if self._error else f"its context did not {what}")
        message = self.spec.last_message()
        last = f"; its log ends with: {message}" if message else ""
        raise LaunchError(message=f"its context did not {what} within {self._timeout:g} s{last}")

    def _wait(self, reached: Callable[[], bool]) -> None:
        """Wait until this is reached or the context has ended, at most the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or reached(), self._timeout)

    def _set(self, name: str, value: object) -> None:
        with self._changed:
            setattr(self, name, value)
            self._changed.notify_all()

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        self._set("_ready", True)

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        self._error = error
        self._set("_end", end)

    def job_running(self, job_id: str) -> None:
        """Ignore it."""

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Ignore it."""

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        return _Nowhere()

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        self._set("_outcome", outcome)
