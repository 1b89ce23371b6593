"""The context that is started to create the archive of its JVM's classes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

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

_START_TIMEOUT = 180.0
_STOP_TIMEOUT = 120.0


class _Nowhere(ResultSink):
    def write(self, data: bytes) -> None:
        """Drop the bytes."""


class TrainingSession(ContextListener):
    """Runs one training job in a context and stops it gracefully, so that the JVM writes the archive."""

    def __init__(self, directory: Path, python: str) -> None:
        self._changed = threading.Condition()
        self._ready = False
        self._outcome: JobOutcome | None = None
        self._end: ContextEnd | None = None
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

    def follow(self, handle: ContextHandle) -> bool:
        """Run the job and stop the context; return whether both succeeded."""
        if not self._wait(lambda: self._ready, _START_TIMEOUT):
            handle.kill()
            return False
        # A Python job without a package: its class is the launcher's own.
        handle.submit(
            JobSpec(id=str(uuid4()), class_name=CLASS_NAME, class_path=(), config="{}", log_path=self._log)
        )
        worked = self._wait(lambda: self._outcome is not None, _START_TIMEOUT) and not self._failed
        handle.stop(_STOP_TIMEOUT)
        self._wait(lambda: False, _STOP_TIMEOUT + 10)
        return worked and self._end is ContextEnd.STOPPED

    @property
    def _failed(self) -> bool:
        return self._outcome is None or self._outcome.error is not None

    def _wait(self, reached: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or reached(), timeout)
            return self._end is None

    def _set(self, name: str, value: object) -> None:
        with self._changed:
            setattr(self, name, value)
            self._changed.notify_all()

    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        self._set("_ready", True)

    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        self._set("_end", end)

    def job_running(self, job_id: str) -> None:
        """Ignore it."""

    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Ignore it."""

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        return _Nowhere()

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        self._set("_outcome", outcome)
