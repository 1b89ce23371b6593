"""Submit jobs: check a request, fetch its files, record it, and give it to a context."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import attrs

from jobserver_core.binaries.class_paths import ClassPaths, uris_of
from jobserver_core.callbacks.service import CallbackService
from jobserver_core.errors import (
    ContextNotFound,
    DuplicateId,
    IdempotencyMismatch,
    JobServerError,
    ServerClosed,
    StorageError,
    Unavailable,
)
from jobserver_core.models.binaries import ResolvedEntry
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import JobRequest, QueueLimits
from jobserver_core.ports import ContextSpec, Fetched, MetadataStore
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.context_settings import time_limits
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.jobs import JobConfigs, JobService
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.records import Records
from jobserver_core.running.waiting import JobHandle

if TYPE_CHECKING:
    from jobserver_core.config.settings import JobLimits

_FINGERPRINTED_OPTIONS = ("max_queue_time", "max_run_time", "priority", "restartable", "context_owner")


@attrs.frozen
class _Checked:
    """A request with its configuration as JSON, its hash if it has an idempotency key, and its caller."""

    request: JobRequest
    config: str
    fingerprint: str | None
    caller: str


@attrs.define(kw_only=True, eq=False)
class SubmissionService:
    """Accepts jobs. Thread-safe."""

    _metadata: MetadataStore
    _jobs: JobService
    _contexts: ContextRegistry
    _records: Records
    _fetching: FetchService
    _class_paths: ClassPaths
    _configs: JobConfigs
    _callbacks: CallbackService
    _limits: JobLimits

    def begin(self, request: JobRequest, caller: str = "", *, durable: bool = True) -> Preparation[JobHandle]:
        """Check a request and begin to fetch its files.

        Finishing the preparation stores the job and gives it to its context. With ``durable``, the record is
        on disk before the job's handle is returned.
        """
        if request.callback_url is not None:
            self._callbacks.check(request.callback_url)
        config = self._configs.to_json(request.config)
        fingerprint = _fingerprint(request, config) if request.idempotency_key is not None else None
        checked = _Checked(request, config, fingerprint, caller)
        earlier = self._submitted_before(checked)
        if earlier is not None:
            return self._fetching.prepare((), lambda _fetched: self._wait_for_sync(earlier))
        uris = uris_of((*request.class_path, *request.packages))
        if request.context is None:
            uris += self._contexts.uris(request.context_settings)
        return self._fetching.prepare(
            uris, lambda fetched: self._submit(checked, fetched, durable=durable), caller
        )

    def _submit(self, checked: _Checked, fetched: Mapping[str, Fetched], *, durable: bool) -> JobHandle:
        try:
            handle = self._accept(checked, fetched)
        except DuplicateId:
            # Another request with the same key arrived at the same time and was faster.
            earlier = self._submitted_before(checked)
            if earlier is None:
                raise
            return self._wait_for_sync(earlier)
        except ServerClosed:
            raise
        except Unavailable:
            self._jobs.count_refusal()
            raise
        # After a power cut, a request that is repeated with the same key must find its job.
        if durable or checked.request.idempotency_key is not None:
            try:
                self._wait_for_sync(handle)
            except StorageError:
                with suppress(JobServerError):
                    self._jobs.kill(handle.id, force=False)
                raise
        return handle

    def _wait_for_sync(self, handle: JobHandle) -> JobHandle:
        """Return a job's handle once the job is on disk."""
        self._records.syncer.sync()
        return handle

    def _accept(self, checked: _Checked, fetched: Mapping[str, Fetched]) -> JobHandle:
        """Record a job and give it to its context, or to the successor of that context."""
        try:
            return self._accept_once(checked, fetched)
        except ContextNotFound:
            context = checked.request.context
            if context is None:
                raise
            if not self._contexts.has_successor(context):
                raise self._records.context_not_found(context) from None
            return self._accept_once(checked, fetched)

    def _accept_once(self, checked: _Checked, fetched: Mapping[str, Fetched]) -> JobHandle:
        request = checked.request
        with ExitStack() as files:
            entries = self._class_paths.resolve_job(request, fetched, files)
            named = self._contexts.find(request.context) if request.context is not None else None
            if isinstance(named, Context):
                return self._enqueue(checked, entries, named)
            code = self._class_paths.lease(entries, files)
            spec = self._jobs.spec(self._records.new_id(), request.class_name, code, checked.config)
            # May record a context for the job. A failure between here and the handover would leave it alone.
            context, context_spec = self._ad_hoc_context(checked, fetched) if named is None else (named, None)
            job = self._records.new_job(
                spec.id,
                request,
                entries,
                context.record,
                limits=context.time_limits,
                fingerprint=checked.fingerprint,
            )
            live = self._jobs.make_live(job, spec, files.pop_all())
            handle = self._jobs.handle_of(live)
            self._jobs.hand_over_new(
                live, context, context_spec, lambda: context.accept(live, checked.config)
            )
        return handle

    def _enqueue(self, checked: _Checked, entries: tuple[ResolvedEntry, ...], context: Context) -> JobHandle:
        """Store a job for a context of another server, which then picks it up (:mod:`.intake`)."""
        job = self._records.new_job(
            self._records.new_id(),
            checked.request,
            entries,
            context,
            limits=time_limits(context.settings),
            fingerprint=checked.fingerprint,
        )
        limits = QueueLimits(slots=self._limits.max_jobs_per_context, places=self._limits.max_queued_jobs)
        self._records.enqueue_job(job, checked.config, limits)
        return self._jobs.watched(job)

    def _ad_hoc_context(
        self, checked: _Checked, fetched: Mapping[str, Fetched]
    ) -> tuple[LiveContext, ContextSpec]:
        request = checked.request
        ad_hoc = f"{self._records.new_id()[:8]}-{request.class_name}"
        name = f"{request.context_owner}~{ad_hoc}" if request.context_owner else ad_hoc
        return self._contexts.create(
            name, request.context_settings, fetched, ad_hoc=True, caller=checked.caller
        )

    def _submitted_before(self, checked: _Checked) -> JobHandle | None:
        request = checked.request
        key = request.idempotency_key
        job = self._metadata.job_with_key(key) if key else None
        if job is None:
            return None
        same_user = job.submitted_by == request.submitted_by
        if not same_user or job.fingerprint != checked.fingerprint:
            # A job has no context_owner, so without submitted_by it is unknown whose job this is.
            own = same_user and (request.submitted_by or not request.context_owner)
            raise IdempotencyMismatch(key=key, job_id=job.id if own else None)
        return self._jobs.handle(job.id)


def _fingerprint(request: JobRequest, config: str) -> str:
    """Return a hash that is equal for equal requests, regardless of the order of their keys.

    ``1.10`` and ``1.1`` differ, as they do for a job that reads the text of a number.
    """
    parts = [
        request.class_name,
        [str(entry) for entry in request.class_path],
        json.loads(config, parse_float=lambda written: {"number": written}),
        request.context,
        request.context_settings,
        request.callback_url,
        # Only options that are set, so that requests without them keep the hashes of earlier releases.
        *((name, value) for name in _FINGERPRINTED_OPTIONS if (value := getattr(request, name))),
        *(["packages", *map(str, request.packages)] for _ in request.packages[:1]),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
