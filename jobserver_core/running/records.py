"""Every write to the records of contexts and jobs, and the events that result from it.

A living context and its jobs, the recovery after a crash and the withdrawal of a failed request all change
records. This module defines the rules for such changes: the lifecycle table, compare-and-set, what belongs to
an end, which ends send a callback, and what to do when another writer was faster. Storing and publishing are
separate calls, because a living context publishes only after it has released its lock.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import Any

import attrs

from jobserver_core.callbacks.service import CallbackService
from jobserver_core.errors import (
    CONTEXT_TERMINATED,
    JOB_KILLED,
    ContextNotFound,
    InvalidName,
    OnAnotherServer,
    ServerClosed,
    StaleState,
    StorageError,
    Unavailable,
)
from jobserver_core.events import ContextChanged, EventBus, JobChanged, JobProgressed
from jobserver_core.models.binaries import ResolvedEntry
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress, JobQuery, JobRequest, JobResult, QueueLimits
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.lifecycle import CONTEXTS, JOBS, ContextEvent, ContextState, JobEvent, JobState
from jobserver_core.models.validation import check_context_name
from jobserver_core.ports import Clock, Ids, MetadataStore
from jobserver_core.running.context_settings import TimeLimits
from jobserver_core.running.notices import Notices, Topic
from jobserver_core.running.outbox import Syncer
from jobserver_core.running.retries import Withdrawals
from jobserver_core.running.user_thread import CallBack

_log = logging.getLogger(__name__)

_LIKE_AN_ID = re.compile(r"[\w.-]+")
_PAGE = 200
"""The number of jobs to read at a time."""
_REFUSED = ErrorInfo(message="the request was refused: storage failed while it was being recorded")


@attrs.frozen(kw_only=True)
class FinalOutcome:
    """The outcome of a job, ready to be stored: the event of its lifecycle, and the data recorded with it."""

    event: JobEvent
    error: ErrorInfo | None = None
    failure: FailureKind | None = None
    result: JobResult | None = None

    @classmethod
    def killed(cls, job: Job, user: str = "") -> FinalOutcome:
        """Return the outcome of a job that was killed, in the words of the HTTP contract.

        It names the ``user``, or the one that was recorded when the kill was requested.
        """
        error = ErrorInfo(message=f"Job {job.id} killed")
        if user:
            error = attrs.evolve(error, error_class=JOB_KILLED, stack=f"by user {user}")
        return cls(event=JobEvent.KILL, error=job.error or error)

    @classmethod
    def failed(cls, failure: FailureKind, error: ErrorInfo) -> FinalOutcome:
        """Return the outcome of a job that failed."""
        return cls(event=JobEvent.FAIL, error=error, failure=failure)

    @classmethod
    def without_context(cls, job: Job, reason: str) -> FinalOutcome:
        """Return the outcome of a job whose context ended: killed if that was requested, else failed."""
        if job.kill_requested:
            return cls.killed(job)
        message = f"Context ({job.context_name}) for this job was terminated"
        error = ErrorInfo(message=message, error_class=CONTEXT_TERMINATED, stack=reason)
        return cls.failed(FailureKind.CONTEXT_LOST, error)


@attrs.define(kw_only=True, eq=False)
class Records:
    """Creates and changes the records of contexts and jobs, and publishes what was stored. Thread-safe.

    Methods raise StorageError if the store fails; what they were to record is not recorded then.
    ``server_id`` is the owner of contexts that are created here; ``address`` tells people where it runs.
    """

    _metadata: MetadataStore
    _clock: Clock
    _ids: Ids
    _bus: EventBus
    _callbacks: CallbackService
    syncer: Syncer
    """Syncs the records to disk. A job's record or end must not be announced before that."""
    _notices: Notices
    call_back: CallBack
    """Calls functions that users have registered with waiters."""
    server_id: str
    address: str = ""
    refused: dict[str, str] = attrs.field(factory=dict, init=False)
    """Why configured contexts could not even be recorded, by name."""
    _withdrawals: Withdrawals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._withdrawals = Withdrawals(self._clock)

    def now(self) -> datetime:
        """Return the time for a new record."""
        return self._clock.now()

    # -- contexts ----------------------------------------------------------------------------------

    def new_context(self, name: str, settings: JsonMapping, *, ad_hoc: bool) -> Context:
        """Return the record of a new context, which is not stored yet."""
        now = self._clock.now()
        return Context(
            id=self._ids.new(),
            name=name,
            settings=settings,
            ad_hoc=ad_hoc,
            owner=self.server_id,
            owned_since=now,
            started_at=now,
            server_id=self.server_id,
            server=self.address,
        )

    def add_context(self, context: Context) -> None:
        """Store a new context. If this fails but may have stored the context, that is undone later.

        Raises:
            ContextExists: A context of this name is not final.
            StorageError: The store failed, or has been failing for a while.
        """
        self._withdrawals.check_room()
        try:
            self._metadata.add_context(context)
        except StorageError:
            self._withdrawals.put(context.id, lambda: self._withdraw_context(context.id))
            raise
        self.refused.pop(context.name, None)

    def advance_context(
        self,
        context: Context,
        event: ContextEvent | None,
        *,
        successor: Context | None = None,
        **changes: Any,
    ) -> Context:
        """Store a context in the state after an event (None: the same state), with other changes.

        ``successor`` is a new context that takes its name; both are stored, or neither is. Returns the stored
        record. A repeated call recognizes an earlier write that succeeded although it seemed to fail.

        Raises:
            IllegalTransition: The state does not accept the event.
            StaleState: Another writer changed the state, or another server took the context over.
            StorageError: The store failed and changed nothing.
        """
        state = CONTEXTS.next(context.state, event) if event else context.state
        changed = attrs.evolve(context, state=state, **changes)
        try:
            self._metadata.advance_context(
                changed, expected=context.state, epoch=context.epoch, successor=successor
            )
        except StaleState:
            stored = self._metadata.context(context.id)
            if stored is None or _written_by(changed) != _written_by(stored):
                raise
            return stored
        return changed

    def claim_context(self, context: Context, *, owner: str | None = None) -> Context | None:
        """Store that the context of a server that is gone now belongs to this one, with a higher epoch.

        The context may be final; this then claims its jobs. To give it to another server, pass ``owner``.

        Returns None if the context has changed: another server was faster, or its owner is still alive.
        """
        try:
            return self.advance_context(
                context,
                None,
                owner=owner or self.server_id,
                owned_since=self._clock.now(),
                epoch=context.epoch + 1,
            )
        except StaleState as stale:
            _log.info("context %s is not taken over: %s", context.name, stale)
            return None

    def end_context(
        self,
        context: Context,
        event: ContextEvent,
        error: ErrorInfo | None,
        *,
        ended_at: datetime | None = None,
        reason: str = "",
    ) -> Context:
        """Store the end of a context, or adopt one that another writer stored.

        ``ended_at`` defaults to now. ``reason`` is what ended a context that has not failed.
        """
        if error is None and CONTEXTS.next(context.state, event) is ContextState.ERROR:
            error = ErrorInfo(message="the context ended by itself")
        try:
            return self.advance_context(
                context,
                event,
                error=error,
                ended_at=ended_at or self._clock.now(),
                end_reason="" if error else reason,
            )
        except StaleState as stale:
            _log.warning("context %s was ended by another writer: %s", context.name, stale)
            return self._metadata.context(context.id) or context

    def replace_context(
        self,
        context: Context,
        event: ContextEvent,
        error: ErrorInfo | None,
        *,
        ended_at: datetime,
        successor: Context,
    ) -> Context | None:
        """Store the end of a context together with the new context that takes its name.

        Stores nothing and returns None if another writer has ended the context or taken it over.
        """
        try:
            return self.advance_context(context, event, successor=successor, error=error, ended_at=ended_at)
        except StaleState as stale:
            _log.warning("context %s is not started again here: %s", context.name, stale)
            return None

    def check_here(self, kind: str, record_id: str, context: Context | None) -> None:
        """Check that no other server has the context.

        ``kind`` and ``record_id`` name in the error what the caller asked for.

        Raises:
            OnAnotherServer: Another server has it.
            Unavailable: Its server is gone, and no other server has taken it over yet.
        """
        if not self._metadata.shared or context is None or context.owner == self.server_id:
            return
        for server in self._metadata.servers():
            if server.id == context.owner:
                raise OnAnotherServer(kind=kind, id=record_id, server=server.address or server.id)
        if not context.state.final:
            raise taken_over(f"{kind} {record_id}")

    def context_elsewhere(self, name: str) -> Context | None:
        """Return the record of a context of this name that belongs to another server, or None."""
        context = self._shared_context(name)
        return None if context is None or context.owner == self.server_id else context

    def check_context_here(self, name: str) -> None:
        """Check that no context of this name lives on another server.

        Raises:
            OnAnotherServer: One does.
            Unavailable: One has not ended, and no server has taken it over yet.
        """
        context = self._shared_context(name)
        if context is not None:
            self.check_here("context", name, context)
            raise taken_over(f"context {name}")

    def _shared_context(self, name: str) -> Context | None:
        """Return the record of the living context of this name, if other servers share the store."""
        context = self._metadata.context_named(name) if self._metadata.shared else None
        return None if context is None or context.state.final else context

    def context_not_found(self, name: str, *, or_id: bool = False) -> ContextNotFound:
        """Return the error that no context of this name lives (``or_id``: or has this id), with the reason.

        A configured context may have been refused, or the last context of the name may have failed. Names
        that no context can have are not allowed, except those of contexts that jobs had for themselves.
        """
        if (why := self.refused.get(name)) is not None:
            return ContextNotFound(name=name, reason=f"the configured context could not be started: {why}")
        last = self._metadata.context_named(name)
        if last is not None:
            return ContextNotFound(name=name, reason=last.failure)
        try:
            check_context_name(name)
        except InvalidName as error:
            if not (or_id and _LIKE_AN_ID.fullmatch(name)):
                return ContextNotFound(name=name, reason=f"the name is not allowed: {error.rule}")
        return ContextNotFound(name=name)

    # -- jobs --------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """Return a unique id."""
        return self._ids.new()

    def new_job(
        self,
        job_id: str,
        request: JobRequest,
        entries: tuple[ResolvedEntry, ...],
        context: Context,
        *,
        limits: TimeLimits,
        fingerprint: str | None,
    ) -> Job:
        """Return the record of a new job, which is not stored yet. ``limits`` are the context's."""
        return Job(
            id=job_id,
            class_name=request.class_name,
            class_path=entries,
            context_id=context.id,
            context_name=context.name,
            submitted_at=self._clock.now(),
            callback_url=request.callback_url,
            idempotency_key=request.idempotency_key,
            fingerprint=fingerprint,
            max_queue_time=request.max_queue_time or limits.job_max_queue_time,
            max_run_time=request.max_run_time or limits.job_max_run_time,
            priority=request.priority,
            submitted_by=request.submitted_by,
            restartable=request.restartable,
        )

    def live_jobs(self, context_id: str | None = None) -> list[Job]:
        """Return the jobs that are not final, of one context or of all, oldest first."""
        found: list[Job] = []
        cursor = None
        while True:
            query = JobQuery(context_id=context_id, states=JOBS.live_states, after=cursor, limit=_PAGE)
            page = self._metadata.jobs(query)
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return found[::-1]

    def add_job(self, job: Job, config: str) -> None:
        """Store a new job. If this fails but may have stored the job, that is undone later.

        Sync before you notify the submitter.

        Raises:
            DuplicateId: A job with the same idempotency key is stored.
            StorageError: The store failed, or has been failing for a while.
        """
        self._withdrawals.check_room()
        try:
            self._metadata.add_job(job, config=config)
        except StorageError:
            self._withdrawals.put(job.id, lambda: self._withdraw_job(job))
            raise

    def enqueue_job(self, job: Job, config: str, limits: QueueLimits) -> None:
        """Store a new job for the context of another server; otherwise like :meth:`add_job`.

        If this fails although it stored the job, the context's owner may run the job at any time. Therefore a
        job with an idempotency key is kept, and repeating the request returns it.

        Raises:
            ContextNotFound: The context has ended.
            ContextStopping: The context is stopping.
            NoSlots: The context has no room.
            Unavailable: The server of the context is shutting down.
            DuplicateId: A job with the same idempotency key is stored.
            StorageError: The store failed, or has been failing for a while.
        """
        self._withdrawals.check_room()
        try:
            self._metadata.enqueue_job(job, config=config, limits=limits)
        except ServerClosed as error:  # the owner, not this server
            message = f"the server of context {job.context_name} is shutting down; try again"
            raise Unavailable(message=message) from error
        except StorageError:
            if job.idempotency_key is None:
                self._withdrawals.put(job.id, lambda: self._withdraw_job(job))
            raise
        self._notices.send(Topic.SUBMITTED, job.id)

    def advance_job(self, job: Job, event: JobEvent | None, *, expected: JobState, **changes: Any) -> Job:
        """Store a job in the state after an event, with other changes, as :meth:`advance_context` does.

        ``expected`` is the currently stored state. Each step raises the epoch, so that a step and a takeover
        never both win.
        """
        changes["epoch"] = job.epoch + 1
        state = JOBS.next(job.state, event) if event else job.state
        changed = attrs.evolve(job, state=state, **changes)
        try:
            self._metadata.advance_job(changed, expected=expected, epoch=job.epoch)
        except StaleState:
            stored = self._metadata.job(job.id)
            if stored is None or _step(changed) != _step(stored):
                raise
            return stored
        return changed

    def end_job(
        self,
        job: Job,
        outcome: FinalOutcome,
        *,
        cancelled: bool,
        expected: JobState | None = None,
        ended_at: datetime | None = None,
        exact: bool = False,
        **changes: Any,
    ) -> tuple[Job, Delivery | None]:
        """Store the end of a job and the first delivery of its callback, in one transaction.

        ``expected`` is the stored state, if it differs from the job's. ``cancelled`` means that a user
        requested this end, so a callback is sent only for a result. ``ended_at`` defaults to now. If an end
        is already stored, by another writer or by an earlier attempt that seemed to fail, it is adopted. A
        job that another server has moved to another context does not end; with ``exact``, neither does a job
        that has changed in any way since ``job`` was read. Returns the stored job and delivery. Sync before
        you notify anyone.
        """
        ended = self._ended(job, outcome, ended_at or self._clock.now(), **changes)
        silent = cancelled and ended.state is not JobState.FINISHED
        delivery = None if silent else self._callbacks.new_delivery(ended)
        try:
            self._metadata.advance_job(
                ended, expected=expected or job.state, result=outcome.result, delivery=delivery
            )
        except StaleState as stale:
            stored = self._metadata.job(job.id)
            if exact and stored is not None and not stored.state.final:
                return stored, None
            if stored is not None and not stored.state.final and stored.context_id == job.context_id:
                return self.end_job(stored, outcome, cancelled=cancelled, ended_at=ended_at, **changes)
            _log.warning("job %s was ended or moved by another writer: %s", job.id, stale)
            return stored or ended, next(iter(self._metadata.deliveries_of(job.id)), None)
        return ended, delivery

    def _ended(self, job: Job, outcome: FinalOutcome, ended_at: datetime, **changes: Any) -> Job:
        # If the launcher reported only the end, that is the latest time at which the job can have started to
        # run.
        ran_at = ended_at if outcome.event is JobEvent.FINISH else None
        return attrs.evolve(
            job,
            state=JOBS.next(job.state, outcome.event),
            running_at=job.running_at or ran_at,
            ended_at=ended_at,
            error=outcome.error,
            failure=outcome.failure,
            has_result=outcome.result is not None,
            kill_requested=job.kill_requested or outcome.event is JobEvent.KILL,
            **changes,
        )

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        """Store a job's progress."""
        self._metadata.record_progress(job_id, progress)

    # -- events ------------------------------------------------------------------------------------

    def publish_context(self, context: Context) -> None:
        """Publish a context that was stored."""
        if self._bus.has_subscribers:
            self._bus.publish(ContextChanged(at=self._clock.now(), context=context))
        if context.state.final:
            self._notices.send(Topic.ENDED, context.id)

    def publish_job(self, job: Job, delivery: Delivery | None = None) -> None:
        """Publish a job that was stored, and begin to deliver the callback that was stored with it."""
        if self._bus.has_subscribers:
            self._bus.publish(JobChanged(at=self._clock.now(), job=job))
        if job.state.final:
            self._notices.send(Topic.ENDED, job.id)
        if delivery is not None:
            self._callbacks.publish_new(delivery)

    def publish_progress(self, job: Job) -> None:
        """Publish a job's progress."""
        if self._bus.has_subscribers:
            self._bus.publish(JobProgressed(at=self._clock.now(), job=job))

    # -- withdrawals -------------------------------------------------------------------------------

    def _withdraw_context(self, context_id: str) -> None:
        context = self._metadata.context(context_id)
        if context is not None and not context.state.final:
            self.end_context(context, ContextEvent.FAIL, _REFUSED)

    def _withdraw_job(self, job: Job) -> None:
        """End a job that a failed request has stored, so that repeating the request is a new attempt.

        If the job has changed since, the owner of its context has begun it: it keeps its key and continues.
        """
        if self._metadata.job(job.id) is not None:
            outcome = FinalOutcome.failed(FailureKind.CONTEXT_LOST, _REFUSED)
            self.end_job(job, outcome, cancelled=True, exact=True, idempotency_key=None)
            self.syncer.sync()


def taken_over(what: str) -> Unavailable:
    """Return the error for a record that no server can change until another one has taken it over."""
    return Unavailable(message=f"{what} is being taken over by another server; try again")


def _written_by(context: Context) -> tuple[object, ...]:
    """Return the fields that identify the write of a stored context."""
    return context.state, context.owner, context.epoch


def _step(job: Job) -> tuple[object, ...]:
    """Return the fields that identify the write of a stored job."""
    return job.state, job.context_id, job.epoch, job.waiting, job.kill_requested
