"""The living jobs of this process, and queries about any job."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import (
    JobAlreadyFinal,
    JobNotFound,
    JobServerError,
    OnAnotherServer,
    StorageError,
    Unavailable,
)
from jobserver_core.models.contexts import ContextLoad, LoadStatus
from jobserver_core.models.jobs import Job, JobPage, JobQuery
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.ports import Clock, ContextSpec, JobCode, JobSpec, MetadataStore
from jobserver_core.running.job_configs import JobConfigs
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records
from jobserver_core.running.requests import Action, Requests
from jobserver_core.running.results import ResultReader, ResultStore
from jobserver_core.running.waiting import JobHandle, Promise, Waiter
from jobserver_core.running.watching import JobWatch

__all__ = ["SHEDDING", "JobService"]

SHEDDING = 60.0
"""Seconds after a refused submit for which the server counts as shedding load."""


class JobService:
    """Knows the jobs that are not final, and answers questions about all. Thread-safe."""

    def __init__(
        self,
        *,
        records: Records,
        results: ResultStore,
        configs: JobConfigs,
        metadata: MetadataStore,
        data_directory: DataDirectory,
        clock: Clock,
        requests: Requests,
    ) -> None:
        self._requests = requests
        requests.on(Action.KILL_JOB, self._kill_for_another)
        self.kill_waiting: Callable[[str], Job | None] = lambda _job_id: None
        """Ends a job of a context here that another server has accepted, if it was not picked up yet."""
        self._records = records
        self._results = results
        self._configs = configs
        self._metadata = metadata
        self._data_directory = data_directory
        self._clock = clock
        self.watch = JobWatch(metadata)
        """Looks for the ends of jobs of other servers."""
        self._lock = threading.Lock()
        self._live: dict[str, tuple[LiveJob, LiveContext]] = {}
        self._refused = 0
        self._refused_at: float | None = None

    # -- living jobs -------------------------------------------------------------------------------

    def spec(self, job_id: str, class_name: str, code: tuple[JobCode, ...], config: str) -> JobSpec:
        """Return a job for its launcher. ``config`` is as it is recorded. Raises StorageError."""
        return JobSpec(
            id=job_id,
            class_name=class_name,
            class_path=code,
            config=self._configs.with_defaults(config),
            log_path=self._data_directory.job_log(job_id),
        )

    def live(self, job: Job, spec: JobSpec, files: ExitStack) -> LiveJob:
        """Return a job that is about to be given to a context; ``files`` keeps its code on this machine."""
        return LiveJob(job, spec, files, records=self._records, results=self._results, clock=self._clock)

    def give(
        self, live: LiveJob, context: LiveContext, spec: ContextSpec | None, accept: Callable[[], None]
    ) -> None:
        """Let a context accept a new job, as :meth:`move` does; if this raises, the job is forgotten."""
        try:
            self.move(live, context, spec, accept)
        except BaseException:
            self._forget(live)
            if live.job.state.final:
                live.release()
            else:  # it is recorded already, or nobody waits for it
                live.postpone()
            raise
        live.finished.waiter.add_done_callback(lambda _waiter: self._forget(live))

    def move(
        self, live: LiveJob, context: LiveContext, spec: ContextSpec | None, accept: Callable[[], None]
    ) -> None:
        """Let a context accept a living job, with ``accept``; if this raises, the job stays as it is.

        ``spec`` belongs to a context that was created for the job: that context is started, or ended if this
        raises. An error of its start is not raised here: it ends the job and becomes the job's error.
        """
        with self._lock:
            self._live[live.job.id] = (live, context)
        try:
            accept()
        except BaseException:
            if spec is not None:
                context.abandon()
            raise
        if spec is not None:
            with suppress(JobServerError):
                context.begin(spec)

    def count_refusal(self) -> None:
        """Count a submit that was refused because there was no room for its job."""
        with self._lock:
            self._refused += 1
            self._refused_at = self._clock.monotonic()

    @property
    def load(self) -> LoadStatus:
        """The jobs that run and wait, and the submits that were refused."""
        with self._lock:
            waiting = sum(live.job.waiting for live, _ in self._live.values())
            ended = sum(live.job.state.final for live, _ in self._live.values())
            since = None if self._refused_at is None else self._clock.monotonic() - self._refused_at
            return LoadStatus(
                running=len(self._live) - waiting - ended,
                waiting=waiting,
                refused=self._refused,
                shedding=since is not None and since < SHEDDING,
            )

    @property
    def context_loads(self) -> dict[str, ContextLoad]:
        """The jobs that run and wait in each context, by its ID. Contexts without jobs are missing."""
        with self._lock:
            jobs = [live.job for live, _ in self._live.values() if not live.job.state.final]
        running = Counter(job.context_id for job in jobs if not job.waiting)
        waiting = Counter(job.context_id for job in jobs if job.waiting)
        return {key: ContextLoad(running=running[key], waiting=waiting[key]) for key in {*running, *waiting}}

    def _forget(self, live: LiveJob) -> None:
        with self._lock:
            self._live.pop(live.job.id, None)

    @property
    def begun(self) -> int:
        """The number of jobs given to the launcher that have not ended."""
        with self._lock:
            return sum(not live.job.state.final and not live.job.waiting for live, _ in self._live.values())

    def lives(self, job_id: str) -> bool:
        """Whether the job is one of those that this process takes care of."""
        with self._lock:
            return job_id in self._live

    def handle_of(self, live: LiveJob) -> JobHandle:
        """Return a handle to wait for a living job."""
        return JobHandle(
            live.job,
            started=live.started.waiter,
            finished=live.finished.waiter,
            open_result=self.open_result,
            known_result=lambda: live.result,
        )

    # -- looking -----------------------------------------------------------------------------------

    def page(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""
        with self._lock:
            behind = {context for live, context in self._live.values() if not live.is_stored}
        for context in behind:
            with suppress(StorageError):
                context.store_running()
        return self._metadata.jobs(query)

    def get(self, job_id: str) -> Job:
        """Return a job, a living one as its context knows it. Raises JobNotFound."""
        with self._lock:
            found = self._live.get(job_id)
        if found is not None and not found[0].job.state.final:
            return found[0].job
        job = self._metadata.job(job_id)
        if job is None:
            raise JobNotFound(job_id=job_id)
        return job

    def with_key(self, idempotency_key: str) -> Job | None:
        """Return the job that was submitted with a key, or None."""
        return self._metadata.job_with_key(idempotency_key)

    def handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job. Raises JobNotFound."""
        with self._lock:
            found = self._live.get(job_id)
        if found is not None:
            return self.handle_of(found[0])
        # A job of this server leaves the registry only after its end was stored: then the record is final.
        job = self.get(job_id)
        if job.state.final or not self._metadata.shared:
            over = Promise.kept(job)
            return JobHandle(job, started=over, finished=over, open_result=self.open_result)
        return self.watched(job)

    def watched(self, job: Job) -> JobHandle:
        """Return a handle to wait for a job of another server."""
        watched = self.watch.watch(job)
        return JobHandle(
            job,
            started=watched.started.waiter,
            finished=watched.finished.waiter,
            open_result=self.open_result,
        )

    def config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text. Raises JobNotFound."""
        text = self._metadata.job_config(job_id)
        if text is None:
            raise JobNotFound(job_id=job_id)
        return text

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open the result of a finished job, or return None if it has none. Raises JobNotFound."""
        result = self._metadata.job_result(job_id)
        if result is None:
            self.get(job_id)
            return None
        return self._results.open(result)

    # -- ending ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Notify those who wait for jobs of other servers that this one is closing. Idempotent."""
        self.watch.close()

    def kill(self, job_id: str, *, force: bool) -> Waiter[Job]:
        """Begin to end a job, on whatever server it is.

        Raises:
            JobNotFound: No job has this id.
            JobAlreadyFinal: The job has ended.
            Unavailable: Its server is gone, and no other one has taken it over yet.
        """
        try:
            return self._kill_here(job_id, force=force)
        except OnAnotherServer:
            job = self.get(job_id)
            context = self._metadata.context(job.context_id)
            if context is None:
                raise
        arguments: JsonObject = {"id": job_id, "force": force}
        self._requests.ask(context.owner, Action.KILL_JOB, arguments, f"job {job_id}")
        return self.watched(job).finished

    def _kill_here(self, job_id: str, *, force: bool) -> Waiter[Job]:
        with self._lock:
            found = self._live.get(job_id)
        if found is None:
            job = self.get(job_id)
            if job.state.final:
                raise JobAlreadyFinal(job_id=job_id, state=job.state.value)
            self._records.check_here("job", job_id, self._metadata.context(job.context_id))
            # Another server has just accepted it, or it has lost its context and was not run again yet.
            killed = self.kill_waiting(job_id) or self._kill_left(job)
            if killed is not None:
                return Promise.kept(killed)
            with self._lock:
                found = self._live.get(job_id)
        if found is None:
            raise Unavailable(message=f"job {job_id} is being taken over by another server; try again")
        live, context = found
        return context.kill_job(live, force=force)

    def _kill_left(self, job: Job) -> Job | None:
        """End a job whose context is final, unless it is just being run again; None if it is.

        Running it again and ending it are compare-and-set, so only one of them happens.
        """
        context = self._metadata.context(job.context_id)
        if self.lives(job.id) or (context is not None and not context.state.final):
            return None
        ended, _ = self._records.end_job(job, FinalOutcome.killed(job.id), cancelled=True, exact=True)
        self._records.syncer.sync()
        if not ended.state.final:
            return None
        self._records.publish_job(ended)
        return ended

    def _kill_for_another(self, arguments: JsonMapping) -> JsonObject:
        self._kill_here(arguments["id"], force=arguments["force"])
        return {}
