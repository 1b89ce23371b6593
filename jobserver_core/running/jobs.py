"""Jobs: their configurations, those that live in this process, and queries for any job."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import attrs

from jobserver_core.config.trees import overlaid
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import (
    JobAlreadyFinal,
    JobNotFound,
    JobServerError,
    OnAnotherServer,
    StorageError,
)
from jobserver_core.models.arguments import config_text
from jobserver_core.models.contexts import ContextLoad, LoadStatus
from jobserver_core.models.jobs import Job, JobPage, JobQuery
from jobserver_core.models.json_values import JsonMapping, JsonObject, dumps, loads
from jobserver_core.ports import Clock, ContextSpec, JobCode, JobSpec, MetadataStore
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.records import FinalOutcome, Records, taken_over
from jobserver_core.running.requests import Action, Requests
from jobserver_core.running.result_storage import ResultStore
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import JobHandle, Promise, Waiter
from jobserver_core.running.watching import Watch

if TYPE_CHECKING:
    from jobserver_core.config.settings import InputLimits

_log = logging.getLogger(__name__)

SHEDDING = 60.0
"""Seconds for which the server counts as shedding load after it refused a submit."""


@attrs.frozen(eq=False)
class JobConfigs:
    """Parses configurations of users, within the limits, and adds ``defaults`` for the job."""

    _limits: InputLimits
    _defaults: JsonMapping

    def parse(self, text: str | bytes) -> JsonMapping:
        """Parse HOCON or JSON from a user; JSON keeps its text.

        Raises:
            InvalidConfig: The text is invalid or exceeds a limit.
        """
        from jobserver_core.config import hocon  # noqa: PLC0415 - only servers that receive HOCON need it

        limits = self._limits
        return hocon.read_untrusted(text, max_bytes=limits.config_size, max_depth=limits.config_depth)

    def to_json(self, config: str | JsonMapping) -> str:
        """Return a configuration as the JSON to record.

        Raises:
            InvalidConfig: It cannot be represented in JSON, or exceeds a limit.
        """
        tree = self.parse(config) if isinstance(config, str) else config
        return config_text(tree)

    def with_defaults(self, config: str) -> str:
        """Merge a recorded configuration over the defaults; the job gets the result."""
        return dumps(overlaid(self._defaults, loads(config))) if self._defaults else config


@attrs.define(kw_only=True, eq=False)
class JobService:
    """Keeps track of living jobs, and reads the records of all jobs. Thread-safe.

    Methods that take the id of a job raise JobNotFound if no job has it.
    ``kill_waiting`` ends, for a user, a job of another server that was not picked up here yet. ``watch``
    waits for jobs of other servers to end.
    """

    _records: Records
    _results: ResultStore
    _configs: JobConfigs
    _metadata: MetadataStore
    _data_directory: DataDirectory
    _clock: Clock
    _requests: Requests
    _kill_waiting: Callable[[str, str], Job | None]
    watch: Watch[Job] = attrs.field(init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _live: dict[str, tuple[LiveJob, LiveContext]] = attrs.field(factory=dict, init=False)
    _refused: int = attrs.field(default=0, init=False)
    _refused_at: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._requests.on(Action.KILL_JOB, self._kill_for_another)
        self.watch = Watch(
            self._metadata.job, lambda job_id: JobNotFound(job_id=job_id), self._records.call_back
        )

    # -- living jobs -------------------------------------------------------------------------------

    def spec(self, job_id: str, class_name: str, code: tuple[JobCode, ...], config: str) -> JobSpec:
        """Return a job's spec for the launcher, given its recorded configuration.

        Raises:
            StorageError: There is no directory for its log.
        """
        return JobSpec(
            id=job_id,
            class_name=class_name,
            class_path=code,
            config=self._configs.with_defaults(config),
            log_path=self._data_directory.job_log(job_id),
        )

    def make_live(self, job: Job, spec: JobSpec, files: ExitStack) -> LiveJob:
        """Return a job that is about to be handed to a context; ``files`` keeps its code on this machine."""
        return LiveJob(job, spec, files, self._records, self._results, self._clock)

    def hand_over_new(
        self, live: LiveJob, context: LiveContext, spec: ContextSpec | None, accept: Callable[[], None]
    ) -> None:
        """Have a context accept a new job, as :meth:`hand_over` does. If this raises, forget the job."""
        try:
            self.hand_over(live, context, spec, accept)
        except BaseException:
            self._forget(live)
            if live.job.state.final:
                live.release()
            else:  # it is already recorded, or nobody waits for it
                live.postpone()
            raise
        live.finished.waiter.notify(lambda _waiter: self._forget(live))

    def hand_over(
        self, live: LiveJob, context: LiveContext, spec: ContextSpec | None, accept: Callable[[], None]
    ) -> None:
        """Have a context accept a living job by calling ``accept``; if this raises, the job is unchanged.

        If a context was created for the job, pass its ``spec``. The context is then started, or ended if this
        raises. If its start fails, nothing is raised here: the job ends with that error.
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
        """The numbers of running and waiting jobs, and of refused submits."""
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
        """The numbers of running and waiting jobs by context ID. Contexts without jobs are left out."""
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
        """Whether this process is responsible for the job."""
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
            launcher=self._results.launcher,
        )

    # -- queries -----------------------------------------------------------------------------------

    def page(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""
        with self._lock:
            behind = {context for live, context in self._live.values() if not live.is_stored}
        for context in behind:
            with suppress(StorageError):
                context.store_running()
        return self._metadata.jobs(query)

    def get(self, job_id: str) -> Job:
        """Return a job. A living one may be newer than its record."""
        with self._lock:
            found = self._live.get(job_id)
        if found is not None and not found[0].job.state.final:
            return found[0].job
        job = self._metadata.job(job_id)
        if job is None:
            raise JobNotFound(job_id=job_id)
        return job

    def handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job."""
        with self._lock:
            found = self._live.get(job_id)
        if found is not None:
            return self.handle_of(found[0])
        # A job of this server is forgotten only after its end was stored, so the record is final by then.
        job = self.get(job_id)
        if job.state.final or not self._metadata.shared:
            over = Promise.kept(job, f"job {job.id}", self._records.call_back)
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
        """Return the job's configuration as JSON text."""
        text = self._metadata.job_config(job_id)
        if text is None:
            raise JobNotFound(job_id=job_id)
        return text

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open the result of a finished job, or return None if it has none."""
        self._data_directory.check_open()  # handles outlive the server
        result = self._metadata.job_result(job_id)
        if result is None:
            self.get(job_id)
            return None
        return self._results.open(result)

    # -- ending ------------------------------------------------------------------------------------

    def kill(self, job_id: str, *, force: bool, user: str | None = None) -> Waiter[Job]:
        """Begin to end a job, wherever it runs. Log and error name the user who asked for it; None: none did.

        Raises:
            JobNotFound: No job has this id.
            JobAlreadyFinal: The job has ended.
            Unavailable: Its server is gone, and no other server has taken the job over yet.
        """
        try:
            waiter = self._kill_here(job_id, force, user or "")
            _log_kill(job_id, user)
            return waiter
        except OnAnotherServer:
            job = self.get(job_id)
            context = self._metadata.context(job.context_id)
            if context is None:
                raise
        arguments: JsonObject = {"id": job_id, "force": force, "user": user or ""}
        self._requests.ask(context.owner, Action.KILL_JOB, arguments, f"job {job_id}")
        _log_kill(job_id, user)
        return self.watched(job).finished

    def _kill_here(self, job_id: str, force: bool, user: str) -> Waiter[Job]:
        with self._lock:
            found = self._live.get(job_id)
        if found is None:
            job = self.get(job_id)
            if job.state.final:
                raise JobAlreadyFinal(job_id=job_id, state=job.state)
            self._records.check_here("job", job_id, self._metadata.context(job.context_id))
            # Another server has just accepted it, or it has lost its context and does not run again yet.
            killed = self._kill_waiting(job_id, user) or self._kill_left(job, user)
            if killed is not None:
                return Promise.kept(killed, f"job {job_id}", self._records.call_back)
            with self._lock:
                found = self._live.get(job_id)
        if found is None:
            raise taken_over(f"job {job_id}")
        live, context = found
        return context.kill_job(live, force=force, user=user)

    def _kill_left(self, job: Job, user: str) -> Job | None:
        """End a job whose context is final. Return None if the job is just being run again.

        Both running it again and ending it use compare-and-set, so only one of them happens.
        """
        context = self._metadata.context(job.context_id)
        if self.lives(job.id) or (context is not None and not context.state.final):
            return None
        outcome = FinalOutcome.killed(job, user)
        ended, _ = self._records.end_job(job, outcome, cancelled=True, exact=True)
        self._records.syncer.sync()
        if not ended.state.final:
            return None
        self._records.publish_job(ended)
        return ended

    def _kill_for_another(self, arguments: JsonMapping) -> JsonObject:
        self._kill_here(arguments["id"], arguments["force"], arguments.get("user", ""))
        return {}


def _log_kill(job_id: str, user: str | None) -> None:
    if user is not None:
        _log.info("job %s is killed %s", job_id, f"by user {user}" if user else "on request")
