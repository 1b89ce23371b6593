"""The jobs that other servers stored for contexts of this one.

Theory
======

The problem: any server accepts a job for any context, but only the owner of the context runs it. Between the
two, the job is a record that waits. It must not get lost when the owner overlooks it, and must not run twice.

The idea: the record is the queue. The accepting server stores the job in a transaction that compares the
state of the context and counts its jobs (:meth:`~jobserver_core.ports.MetadataStore.enqueue_job`). The owner
picks it up when a notice names it or when it looks at all jobs of its contexts. From then on the job is like
one that was submitted here. What the owner has not picked up when it dies is a job that had not begun in a
lost context: the recovery of another server runs it again.

The invariants: only the owner of its context writes to such a job. No job is enqueued any more once the end
of the context is stored, so one look after that finds all that were not picked up in time. They end or, if
the context has a successor, run there, as the other jobs that waited in the context do.

Deliberately not handled: a server that is closing. What it does not pick up waits for another server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.errors import ContextNotFound, JobServerError, ServerClosed, StorageError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobQuery
from jobserver_core.models.lifecycle import JOBS
from jobserver_core.ports import MetadataStore
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.jobs import JobService
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.notices import Notices, Topic
from jobserver_core.running.records import FinalOutcome, Records

__all__ = ["Intake"]

_log = logging.getLogger(__name__)

_PAGE = 200
"""The number of jobs to read at a time."""


class Intake:
    """Picks up the jobs that other servers accepted for contexts of this one."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        records: Records,
        jobs: JobService,
        registry: ContextRegistry,
        class_paths: ClassPaths,
        notices: Notices,
    ) -> None:
        self._notices = notices
        self._metadata = metadata
        self._records = records
        self._jobs = jobs
        self._registry = registry
        self._class_paths = class_paths
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._ended: dict[str, LiveContext] = {}
        self._closed = False

    def close(self) -> None:
        """Pick up no more jobs. Idempotent."""
        self._closed = True

    def context_ended(self, context: LiveContext) -> None:
        """Let the next look end the jobs that were not picked up before a context ended."""
        if self._metadata.shared and not self._closed and not context.leaves_jobs:
            with self._lock:
                self._ended[context.record.id] = context
            self._notices.wake(Topic.SUBMITTED)

    def look(self, job_ids: frozenset[str] | None) -> None:
        """Pick up the jobs with these ids, or all that wait. Raises StorageError; then call it again."""
        with self._looking:
            if not self._closed:
                self._look(job_ids)

    def _look(self, job_ids: frozenset[str] | None) -> None:
        if job_ids is None:
            for context in self._registry.all():
                for job in self._waiting_in(context):
                    self._pick_up(job.id, context)
        for job_id in sorted(job_ids or ()):
            named = self._metadata.job(job_id)
            owner = self._registry.with_id(named.context_id) if named is not None else None
            if owner is not None:
                self._pick_up(job_id, owner)
        self._end_left_over()

    def _waiting_in(self, context: LiveContext) -> Iterator[Job]:
        """Return the jobs of a context that this server does not know, oldest first."""
        found: list[Job] = []
        cursor = None
        while True:
            query = JobQuery(context_id=context.record.id, states=JOBS.live_states, after=cursor, limit=_PAGE)
            page = self._metadata.jobs(query)
            found += [job for job in page.jobs if job.waiting and not self._jobs.lives(job.id)]
            cursor = page.next
            if cursor is None:
                return iter(found[::-1])

    def _pick_up(self, job_id: str, context: LiveContext) -> None:
        if self._jobs.lives(job_id):
            return
        job = self._metadata.job(job_id)  # as it is now: it may have ended here a moment ago
        if job is None or not job.waiting or job.context_id != context.record.id or self._closed:
            return
        self._give(job, context, context.pick_up)

    def _give(self, job: Job, context: LiveContext, accept: Callable[[LiveJob], None]) -> None:
        try:
            with ExitStack() as undo:
                code = self._class_paths.lease(job.class_path, undo)
                spec = self._jobs.spec(job.id, job.class_name, code, self._jobs.config(job.id))
                live = self._jobs.live(job, spec, undo.pop_all())
            self._jobs.give(live, context, None, partial(accept, live))
        except (ContextNotFound, ServerClosed):
            return  # it is left over, or runs on another server
        except StorageError:
            raise
        except JobServerError as error:
            _log.warning("job %s of another server cannot be run: %s", job.id, error)
            self._end(job, FinalOutcome.failed(FailureKind.CONTEXT_LOST, ErrorInfo.from_exception(error)))

    def _end_left_over(self) -> None:
        """End the jobs that were not picked up before their context ended, or give them to its successor."""
        with self._lock:
            ended = list(self._ended.values())
        for context in ended:
            record = context.record
            if record.owner == self._records.server_id:  # else another server deals with its jobs
                reason = record.error.message if record.error is not None else ""
                successor = context.successor
                for job in self._waiting_in(context):
                    if successor is not None:
                        self._give(job, successor, successor.adopt)
                        continue
                    self._end(job, FinalOutcome.without_context(job, reason), silent=record.stop_requested)
            with self._lock:
                self._ended.pop(record.id, None)

    def _end(self, job: Job, outcome: FinalOutcome, *, silent: bool = False) -> None:
        ended, delivery = self._records.end_job(job, outcome, cancelled=silent or job.kill_requested)
        self._records.syncer.sync()
        if ended.state.final:
            self._records.publish_job(ended, delivery)
