"""The handle of a submitted job, to wait for it."""

from __future__ import annotations

from collections.abc import Callable, Generator

from jobserver_core.errors import JobFailed, JobKilled
from jobserver_core.models.jobs import ErrorInfo, Job
from jobserver_core.models.json_values import Json
from jobserver_core.models.lifecycle import JobState
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import Waiter

__all__ = ["JobHandle"]


class JobHandle:
    """A submitted job.

    ``job`` is the record at the time the handle was created. ``started`` is done when the job
    runs (its validation passed), has to wait for a slot, or ended; ``finished`` when it ended with any
    outcome. Both return the job's record; they fail with JobPostponed for a job that has not begun
    when the server closes, since the next server runs it.
    """

    def __init__(
        self,
        job: Job,
        *,
        started: Waiter[Job],
        finished: Waiter[Job],
        open_result: Callable[[str], ResultReader | None],
    ) -> None:
        self.job = job
        self.started = started
        self.finished = finished
        self._open_result = open_result

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    def done(self) -> bool:
        """Whether the job ended."""
        return self.finished.done()

    def result(self, timeout: float | None = None) -> Json:
        """Wait for the result and return it as Python values; a streamed one as its bytes.

        Raises ResultTimeout after ``timeout`` seconds (the job continues), JobFailed when it ended
        ERROR, JobKilled when it was killed, JobPostponed when the server closes before the job has begun.
        """
        return self._value(self.finished.result(timeout))

    def add_done_callback(self, call: Callable[[JobHandle], None]) -> None:
        """Call with this handle once the job ends, on the thread that ends it; at once if it has ended."""
        self.finished.add_done_callback(lambda _waiter: call(self))

    def __await__(self) -> Generator[object, None, Json]:
        return self._wait().__await__()

    async def _wait(self) -> Json:
        import asyncio  # noqa: PLC0415 - only needed to await

        job = await self.finished
        return await asyncio.to_thread(self._value, job)

    def _value(self, job: Job) -> Json:
        if job.state is JobState.KILLED:
            raise JobKilled(job_id=job.id, error=job.error or ErrorInfo(message=f"Job {job.id} killed"))
        if job.state is JobState.ERROR:
            raise JobFailed(job_id=job.id, error=job.error, failure=job.failure)
        reader = self._open_result(job.id)
        return reader.value() if reader else None
