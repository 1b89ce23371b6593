"""Pick up the jobs that other servers have stored for contexts of this one.

Theory
======

The problem: any server accepts a job for any context, but only the owner of the context runs it. Until then,
the job is a waiting record. It must not be lost if the owner misses it, and must not run twice.

The idea: the record is the queue. The accepting server stores the job in a transaction that compares the
state of the context and counts its jobs (:meth:`~jobserver_core.ports.MetadataStore.enqueue_job`). The owner
picks it up when a notice names it or when it scans all jobs of its contexts. From then on, the job is treated
as if it had been submitted here. If the owner dies before it picks up a job, the job has not begun and its
context is lost, so the recovery of another server runs it.

The invariants: only the owner of its context writes to such a job, and only one of its threads at a time,
which has *claimed* the job. A claim is not a lock: while a thread has one, subscribers may run, and may pick
up or kill other jobs. Once the end of a context is stored, no more jobs can be enqueued for it. A single scan
after that point therefore finds every job that was not picked up. They run in the successor of the context if
it has one, and in a new context if it ended by itself while it was idle or drained; otherwise they end with
it.

A job whose files cannot be leased does not hold up the others: each scan tries it again. Neither does a job
whose files arrive slowly: they are leased on a separate thread. The scan waits for that thread only briefly,
so that jobs whose files are already here keep their order. All jobs with the same class path share one such
thread. In both cases, the job ends once it has waited for its ``max_queue_time`` or for
:data:`LEASE_TIMEOUT`; only the thread then still hangs. A job is claimed only once its files are here, so a
kill, which needs no files, does not wait for them.

Deliberately not handled: a server that is closing. What it does not pick up waits for another server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.errors import ContextNotFound, ContextStopping, JobServerError, ServerClosed, StorageError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import ContextState, JobEvent
from jobserver_core.ports import Clock, JobCode, MetadataStore
from jobserver_core.repeats import Repeats
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.job_queue import queue_time_exceeded
from jobserver_core.running.jobs import JobService
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.notices import Notices, Topic
from jobserver_core.running.records import FinalOutcome, Records

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

LEASE_TIMEOUT = 300.0
"""Seconds that a job without ``max_queue_time`` waits for its files."""
DOWNLOAD_WAIT = 0.2
"""Seconds that a job whose files are missing holds up the jobs behind it."""
KILL_TIMEOUT = 5.0
"""Seconds that a kill waits for a thread that is picking up the job."""


@attrs.define(kw_only=True, eq=False)
class Intake:
    """Picks up the jobs that other servers accepted for contexts of this one.

    Methods that raise StorageError, because the metadata store failed, can be called again.
    """

    _metadata: MetadataStore
    _records: Records
    _jobs: JobService
    _registry: ContextRegistry
    _class_paths: ClassPaths
    _notices: Notices
    _clock: Clock
    _restart: Callable[[list[Job]], None]
    """Reruns jobs whose context has ended by itself."""
    _unclaimed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    """Guards the jobs that are claimed, the awaited files and the ended contexts; notified after a claim."""
    _claimed: set[str] = attrs.field(factory=set, init=False)
    """The jobs that a thread is picking up or ending."""
    _put_off: dict[str, float] = attrs.field(factory=dict, init=False)
    """The monotonic time at which each job that waits for its files was first put off."""
    _awaited: set[tuple[str, ...]] = attrs.field(factory=set, init=False)
    """The class paths, as digests, for whose files a thread is waiting."""
    _ended: dict[str, LiveContext] = attrs.field(factory=dict, init=False)
    """The contexts that have ended since the last scan; some of their jobs may not have been picked up."""
    _closed: bool = attrs.field(default=False, init=False)

    def close(self) -> None:
        """Stop picking up jobs. Idempotent."""
        self._closed = True

    def context_ended(self, context: LiveContext) -> None:
        """Have the next scan handle the jobs that were not picked up before a context ended."""
        if self._metadata.shared and not self._closed and not context.leaves_jobs:
            with self._unclaimed:
                self._ended[context.record.id] = context
            self._notices.wake(Topic.SUBMITTED)

    def scan(self, job_ids: frozenset[str] | None) -> None:
        """Pick up the jobs with these ids, or all waiting ones. Call it from one thread at a time."""
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

    def kill(self, job_id: str, user: str) -> Job | None:
        """End a job that waits for a context here and was not picked up; None if there is no such job."""
        with self._claim(job_id, KILL_TIMEOUT) as claimed:
            job = self._metadata.job(job_id)
            if not claimed or job is None or not job.waiting or self._jobs.lives(job_id):
                return None
            if self._registry.with_id(job.context_id) is None:
                return None
            return self._end(job, FinalOutcome.killed(job, user))

    @contextmanager
    def _claim(self, job_id: str, timeout: float = 0.0) -> Iterator[bool]:
        """Keep other threads from picking up or ending a job inside the block.

        Yields False if another thread is already doing so.
        """
        with self._unclaimed:
            claimed = self._unclaimed.wait_for(lambda: job_id not in self._claimed, timeout)
            if claimed:
                self._claimed.add(job_id)
        try:
            yield claimed
        finally:
            if claimed:
                with self._unclaimed:
                    self._claimed.discard(job_id)
                    self._unclaimed.notify_all()

    def _waiting_in(self, context: LiveContext) -> list[Job]:
        """Return the jobs of a context that this server does not know, oldest first."""
        found = self._records.live_jobs(context.record.id)
        return [job for job in found if job.waiting and not self._jobs.lives(job.id)]

    def _pick_up(self, job_id: str, context: LiveContext) -> None:
        job = self._metadata.job(job_id)
        if job is not None and job.waiting and not (self._closed or self._jobs.lives(job_id)):
            self._with_files(job, partial(self._accept, context, context.pick_up))

    def _accept(
        self, context: LiveContext, accept: Callable[[LiveJob], None], job: Job, files: ExitStack
    ) -> None:
        """Lease the files of a job, and give it to its context."""
        try:
            code = self._class_paths.lease(job.class_path, files)
        except StorageError as error:
            _repeats.warning(job.id, "job %s of another server waits for its files: %s", job.id, error)
            self._wait_for_files(job, ErrorInfo.from_exception(error))
            return
        with self._claim(job.id) as claimed:
            if not claimed or self._closed or self._jobs.lives(job.id):
                return
            current = self._metadata.job(job.id)  # as it is now: it may have ended here a moment ago
            if current is not None and current.waiting and current.context_id == job.context_id:
                self._hand_over(current, code, context, accept, files)
            else:
                self._put_off.pop(job.id, None)

    def _with_files(self, job: Job, accept: Callable[[Job, ExitStack], None]) -> None:
        """Accept a job once its files are here, waiting only briefly.

        If another job is already waiting for the same files, a later scan accepts this one.
        """
        wanted = tuple(entry.digest for entry in job.class_path)
        with self._unclaimed:
            awaited = wanted in self._awaited
            self._awaited.add(wanted)
        if awaited or not self._accept_in_time(job, wanted, accept):
            message = f"the files of its class path did not arrive within {LEASE_TIMEOUT:g} s"
            self._wait_for_files(job, ErrorInfo(message=message))

    def _accept_in_time(
        self, job: Job, wanted: tuple[str, ...], accept: Callable[[Job, ExitStack], None]
    ) -> bool:
        """Accept a job on a separate thread; return whether it was done within :data:`DOWNLOAD_WAIT`."""
        failures: list[StorageError] = []
        late = threading.Event()

        def run() -> None:
            try:
                with ExitStack() as files:
                    accept(job, files)
            except StorageError as error:
                failures.append(error)
            except Exception:  # noqa: BLE001 - the next scan may succeed
                _log.exception("job %s of another server cannot be picked up", job.id)
            finally:
                with self._unclaimed:
                    self._awaited.discard(wanted)
                if late.is_set():  # others may have waited for the same files
                    self._notices.wake(Topic.SUBMITTED, None)

        thread = threading.Thread(target=run, name="jobserver-notices-files", daemon=True)
        thread.start()
        thread.join(DOWNLOAD_WAIT)
        if thread.is_alive():
            late.set()
            return False
        if failures:
            raise failures[0]
        return True

    def _hand_over(
        self,
        job: Job,
        code: tuple[JobCode, ...],
        context: LiveContext,
        accept: Callable[[LiveJob], None],
        files: ExitStack,
    ) -> None:
        try:
            spec = self._jobs.spec(job.id, job.class_name, code, self._jobs.config(job.id))
            live = self._jobs.make_live(job, spec, files.pop_all())
            self._jobs.hand_over_new(live, context, None, partial(accept, live))
            self._put_off.pop(job.id, None)
        except (ContextNotFound, ServerClosed):
            return  # it is left over, or runs on another server
        except ContextStopping:
            self._expire(job)
        except StorageError:
            raise
        except JobServerError as error:
            _log.warning("job %s of another server cannot be run: %s", job.id, error)
            self._end(job, FinalOutcome.failed(FailureKind.CONTEXT_LOST, ErrorInfo.from_exception(error)))

    def _wait_for_files(self, job: Job, reason: ErrorInfo) -> None:
        """Leave a job to a later scan, or end it if it has waited too long."""
        with self._claim(job.id) as claimed:
            if not claimed or self._jobs.lives(job.id):
                return
            current = self._metadata.job(job.id)
            if current is None or not current.waiting or current.context_id != job.context_id:
                self._put_off.pop(job.id, None)
            elif not self._expire(current) and self._waited(current) >= LEASE_TIMEOUT:
                self._end(current, FinalOutcome.failed(FailureKind.LOADING, reason))

    def _expire(self, job: Job) -> bool:
        """End a job that has waited longer than its ``max_queue_time``; return whether it had."""
        if job.max_queue_time is None or self._waited(job) < job.max_queue_time:
            return False
        self._end(job, queue_time_exceeded(job))
        return True

    def _waited(self, job: Job) -> float:
        """Return for how many seconds a job has been put off, by this server's clock."""
        now = self._clock.monotonic()
        return now - self._put_off.setdefault(job.id, now)

    def _end_left_over(self) -> None:
        """Handle the jobs that were not picked up before their context ended."""
        with self._unclaimed:
            ended = list(self._ended.values())
        for context in ended:
            scan_again = False
            if context.record.owner == self._records.server_id:  # otherwise another server handles its jobs
                again: list[Job] = []
                successor = context.successor
                for job in self._waiting_in(context):
                    if successor is not None:
                        self._with_files(job, partial(self._accept, successor, successor.adopt))
                        scan_again = True  # its files may not be here yet
                        continue
                    with self._claim(job.id) as claimed:
                        if claimed and self._leave(job, context):
                            again.append(job)
                if again and not self._closed:
                    # Fetching files for another context may be slow, and other jobs wait for this thread.
                    call = partial(self._run_again, again)
                    threading.Thread(target=call, name="jobserver-notices-restart", daemon=True).start()
            if not scan_again:
                with self._unclaimed:
                    self._ended.pop(context.record.id, None)

    def _leave(self, job: Job, context: LiveContext) -> bool:
        """End a job whose context has no successor, or return True if it has to run elsewhere."""
        record = context.record
        if record.state is ContextState.FINISHED and not (record.stop_requested or job.kill_requested):
            self._put_off.pop(job.id, None)
            return True
        outcome = FinalOutcome.without_context(job, context.reason_of_end)
        self._end(job, outcome, silent=record.stop_requested)
        return False

    def _run_again(self, jobs: list[Job]) -> None:
        try:
            self._restart(jobs)
        except StorageError as error:  # the next scan for lost contexts finds them
            _log.warning("%d jobs whose context has ended wait for storage: %s", len(jobs), error)

    def _end(self, job: Job, outcome: FinalOutcome, *, silent: bool = False) -> Job | None:
        """End a job, unless it has changed; return the ended job, or None."""
        self._put_off.pop(job.id, None)
        cancelled = silent or job.kill_requested or outcome.event is JobEvent.KILL
        ended, delivery = self._records.end_job(job, outcome, cancelled=cancelled, exact=True)
        self._records.syncer.sync()
        if not ended.state.final:
            return None
        self._records.publish_job(ended, delivery)
        return ended
