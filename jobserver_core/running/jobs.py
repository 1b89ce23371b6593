"""Submitting, listing, killing jobs, and what comes out of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobserver_core.binaries.class_paths import ClassPaths, uris_of
from jobserver_core.config.trees import overlaid
from jobserver_core.environment import Environment
from jobserver_core.errors import (
    DuplicateId,
    IdempotencyMismatch,
    InvalidConfig,
    JobAlreadyFinal,
    JobNotFound,
    JobServerError,
    LogNotFound,
)
from jobserver_core.models.jobs import Job, JobPage, JobQuery, JobRequest
from jobserver_core.models.json_values import dumps, loads
from jobserver_core.ports import ContextSpec, Fetched, JobCode, JobSpec
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.handles import JobHandle
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.results import ResultReader
from jobserver_core.running.waiting import Promise, Waiter

__all__ = ["JobService"]


class JobService:
    """The use cases of jobs, and the registry of those that live in this process."""

    def __init__(
        self,
        environment: Environment,
        class_paths: ClassPaths,
        fetching: FetchService,
        contexts: ContextService,
    ) -> None:
        self._environment = environment
        self._class_paths = class_paths
        self._fetching = fetching
        self._contexts = contexts
        self._lock = threading.Lock()
        self._live: dict[str, tuple[LiveJob, LiveContext]] = {}

    @property
    def begun(self) -> int:
        """How many jobs the launcher was given that have not ended."""
        with self._lock:
            return sum(not live.job.state.final and not live.job.waiting for live, _ in self._live.values())

    # -- submitting --------------------------------------------------------------------------------

    def begin(self, request: JobRequest, caller: str = "") -> Preparation[JobHandle]:
        """Check a request, and fetch what it needs; then it can be recorded and handed to its context."""
        self._environment.admission.check()
        if request.callback_url is not None:
            self._environment.callbacks.check(request.callback_url)
        config = self._config_text(request.config)
        fingerprint = _fingerprint(request, config)
        earlier = self._submitted_before(request, fingerprint)
        if earlier is not None:
            return Preparation(self._fetching.begin(()), lambda: earlier)
        uris = uris_of(request.class_path)
        if request.context is None:
            uris += self._contexts.uris(request.context_settings)
        return Preparation(
            files := self._fetching.begin(uris, caller),
            lambda: self._submit(request, config, fingerprint, files),
        )

    def _submit(
        self, request: JobRequest, config: str, fingerprint: str, fetched: Mapping[str, Fetched]
    ) -> JobHandle:
        self._environment.admission.check()
        try:
            return self._accept(request, config, fingerprint, fetched)
        except DuplicateId:
            # The same key came twice at once, and the other one was faster.
            earlier = self._submitted_before(request, fingerprint)
            if earlier is None:
                raise
            return earlier

    def begin_restart(self, job: Job) -> Preparation[None]:
        """Run a job of an earlier server that had not begun, in a context like the one it waited for."""
        uris = self._contexts.uris_of_successor(job.context_id, job.context_name)
        return Preparation(files := self._fetching.begin(uris), lambda: self._restart(job, files))

    def _restart(self, job: Job, fetched: Mapping[str, Fetched]) -> None:
        env = self._environment
        with ExitStack() as files:
            codes = self._class_paths.lend(job.class_path, files)
            spec = self._spec(job.id, job.class_name, codes, env.metadata.job_config(job.id) or "{}")
            live = LiveJob(env, job, spec, files.pop_all())
        context, context_spec = self._contexts.successor(job.context_id, job.context_name, fetched)
        self._give(live, context, context_spec, lambda: context.adopt(live))

    def _accept(
        self, request: JobRequest, config: str, fingerprint: str, fetched: Mapping[str, Fetched]
    ) -> JobHandle:
        env = self._environment
        with env.deposits.making(), ExitStack() as files:
            entries = self._class_paths.resolve(request.class_path, fetched)
            self._class_paths.check_mix(entries)
            codes = self._class_paths.lend(entries, files)
            spec = self._spec(env.ids.new(), request.class_name, codes, config)
            # Nothing may fail between this, which may record a context for the job, and the giving.
            context, context_spec = self._context_for(request, fetched)
            job = Job(
                id=spec.id,
                class_name=request.class_name,
                class_path=entries,
                context_id=context.record.id,
                context_name=context.record.name,
                submitted_at=env.clock.now(),
                callback_url=request.callback_url,
                idempotency_key=request.idempotency_key,
                fingerprint=fingerprint,
            )
            live = LiveJob(env, job, spec, files.pop_all())
            handle = self._handle(live)
            self._give(live, context, context_spec, lambda: context.accept(live, config))
        return handle

    def _context_for(
        self, request: JobRequest, fetched: Mapping[str, Fetched]
    ) -> tuple[LiveContext, ContextSpec | None]:
        if request.context is not None:
            return self._contexts.live(request.context), None
        ad_hoc = f"{self._environment.ids.new()[:8]}-{request.class_name}"
        owner = request.context_owner
        name = f"{owner}~{ad_hoc}" if owner else ad_hoc
        return self._contexts.prepare(name, request.context_settings, fetched, ad_hoc=True)

    def _give(
        self, live: LiveJob, context: LiveContext, spec: ContextSpec | None, take: Callable[[], None]
    ) -> None:
        """Let a context take the job; one that was made for it is begun then, or ended."""
        self._register(live, context)
        try:
            take()
        except BaseException:
            self._forget(live)
            live.release()
            if spec is not None:
                context.abandon()
            raise
        if spec is not None:
            _begin(context, spec)

    def _spec(self, job_id: str, class_name: str, codes: tuple[JobCode, ...], config: str) -> JobSpec:
        """Return the job for its launcher: its configuration lies over that of every job."""
        below = self._environment.settings.jobs.default_config
        return JobSpec(
            id=job_id,
            class_name=class_name,
            class_path=codes,
            config=dumps(overlaid(below, loads(config))) if below else config,
            log_path=self._environment.folders.job_log(job_id),
        )

    def _config_text(self, config: str | Mapping[str, Any]) -> str:
        tree = self._environment.parse(config) if isinstance(config, str) else config
        try:
            return dumps(tree)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(message=f"a job's configuration holds JSON values only: {error}") from error

    def _submitted_before(self, request: JobRequest, fingerprint: str) -> JobHandle | None:
        key = request.idempotency_key
        job = self._environment.metadata.job_with_key(key) if key else None
        if job is None:
            return None
        if job.fingerprint != fingerprint:
            raise IdempotencyMismatch(key=key, job_id=job.id)
        return self.handle(job.id)

    # -- looking -----------------------------------------------------------------------------------

    def page(self, query: JobQuery) -> JobPage:
        """Return a page of jobs, newest first."""
        return self._environment.metadata.jobs(query)

    def get(self, job_id: str) -> Job:
        """Return a job as it is recorded. Raises JobNotFound."""
        job = self._environment.metadata.job(job_id)
        if job is None:
            raise JobNotFound(job_id=job_id)
        return job

    def handle(self, job_id: str) -> JobHandle:
        """Return a handle to wait for a job. Raises JobNotFound."""
        with self._lock:
            found = self._live.get(job_id)
        if found is not None:
            return self._handle(found[0])
        # It is forgotten here only after its end was stored, so what is stored now is the end.
        job = self.get(job_id)
        over = Promise.kept(job)
        return JobHandle(job, started=over, finished=over, open_result=self.open_result)

    def config(self, job_id: str) -> str:
        """Return the job's configuration as JSON text. Raises JobNotFound."""
        text = self._environment.metadata.job_config(job_id)
        if text is None:
            raise JobNotFound(job_id=job_id)
        return text

    def open_result(self, job_id: str) -> ResultReader | None:
        """Open the result of a finished job; None when it has none. Raises JobNotFound."""
        result = self._environment.metadata.job_result(job_id)
        if result is None:
            self.get(job_id)
            return None
        return ResultReader(result, self._environment.blobs)

    def log(self, job_id: str) -> Path:
        """Return the file of the job's output. Raises JobNotFound, LogNotFound."""
        self.get(job_id)
        path = self._environment.folders.job_log(job_id)
        if not path.exists():
            raise LogNotFound(kind="job", id=job_id)
        return path

    # -- ending ------------------------------------------------------------------------------------

    def kill(self, job_id: str, *, force: bool) -> Waiter[Job]:
        """Begin to end a job. Raises JobNotFound, JobAlreadyFinal."""
        with self._lock:
            found = self._live.get(job_id)
        if found is None:
            raise JobAlreadyFinal(job_id=job_id, state=self.get(job_id).state.value)
        live, context = found
        return context.kill_job(live, force=force)

    # -- inside ------------------------------------------------------------------------------------

    def _handle(self, live: LiveJob) -> JobHandle:
        return JobHandle(
            live.job,
            started=live.started.waiter,
            finished=live.finished.waiter,
            open_result=self.open_result,
        )

    def _register(self, live: LiveJob, context: LiveContext) -> None:
        with self._lock:
            self._live[live.job.id] = (live, context)
        live.finished.waiter.add_done_callback(lambda _waiter: self._forget(live))

    def _forget(self, live: LiveJob) -> None:
        with self._lock:
            self._live.pop(live.job.id, None)


def _begin(context: LiveContext, spec: ContextSpec) -> None:
    """Start the context of an accepted job; what goes wrong has ended the job, which tells it."""
    try:
        context.begin(spec)
    except JobServerError:
        return


def _fingerprint(request: JobRequest, config: str) -> str:
    """Return a hash that is equal for equal requests, whatever their order of keys.

    ``1.10`` and ``1.1`` differ, as they do for a job that reads the text of a number.
    """
    parts = [
        request.class_name,
        [str(entry) for entry in request.class_path],
        json.loads(config, parse_float=lambda written: {"number": written}),
        request.context,
        request.context_settings,
        request.callback_url,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
