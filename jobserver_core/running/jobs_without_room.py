"""Jobs of lost contexts that cannot run again yet, usually because there is no room for their contexts.

Theory
======

The problem: the server that has claimed a lost context may have no room for its jobs, while another one has.
No server knows how much room another one has: that depends on its settings, on its pools of spares, and on
what it starts at the same moment.

The idea: the owner of the jobs tries again every :data:`RETRY_INTERVAL`. If there still is no room, it
*passes* the jobs of the lost context *on*: it gives the context to the next server, in the order of their
ids, and notifies it. That server finds the context as if it had claimed it itself, and does the same. So each
server gets a turn, until one has room. If a context of the same name lives on another server, the jobs can
only run there, and are passed on to that server at once.

The invariants: to pass a context on is a compare-and-set of its owner and its epoch by the server that owns
it, so it always has one owner, and a server that was declared dead meanwhile passes nothing on and retries
nothing. Each server keeps a context for at least one interval, and passes on at most :data:`PASSED_AT_ONCE`
contexts per interval. So full servers do not keep one another busy. Servers that are draining get nothing.

Deliberately not handled: servers with different limits. A server ends a job whose context could never fit
there, even if it would fit on another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import attrs

from jobserver_core.errors import StorageError
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.ports import Clock, MetadataStore
from jobserver_core.repeats import Repeats
from jobserver_core.running.notices import Notices, Topic
from jobserver_core.running.records import Records

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

RETRY_INTERVAL = 5.0
"""Seconds between two attempts to rerun jobs for which there is no room."""
PASSED_AT_ONCE = 20
"""The maximum number of lost contexts that are passed on after one attempt."""


@attrs.define(kw_only=True, eq=False)
class JobsWithoutRoom:
    """Retries jobs for which there is no room, and passes them on to other servers. Thread-safe.

    ``heirs`` returns the ids of the other servers that accept work. ``restart`` reruns jobs; it calls
    :meth:`keep` for those that still cannot run.
    """

    _metadata: MetadataStore
    _records: Records
    _clock: Clock
    _notices: Notices
    _heirs: Callable[[], Sequence[str]]
    _restart: Callable[[list[Job]], None]
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _kept: dict[str, Job] = attrs.field(factory=dict, init=False)
    _scheduled: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def close(self) -> None:
        """Leave the jobs to the next scan of another server, or to the next start. Idempotent."""
        self._closed = True

    def keep(self, jobs: Sequence[Job]) -> None:
        """Retry jobs after a while. A job that is already kept is not retried twice."""
        with self._lock:
            self._kept.update((job.id, job) for job in jobs)
            if self._scheduled or not self._kept:
                return
            self._scheduled = True
        # Not on the clock's thread: fetching files may be slow.
        thread = threading.Thread(target=self._retry, name="jobserver-recovery", daemon=True)
        self._clock.call_later(RETRY_INTERVAL, thread.start)

    def pass_to_namesake(self, job: Job) -> None:
        """Pass a job on to another server that runs a context of the name that the job waited for."""
        namesake = self._namesake(job)
        if namesake is not None and namesake.owner != self._records.server_id:
            self._pass_on(job, namesake.owner)

    def _retry(self) -> None:
        with self._lock:
            jobs, self._kept, self._scheduled = list(self._kept.values()), {}, False
        if self._closed:
            return
        try:
            ours = [job for job in jobs if self._is_ours(self._metadata.context(job.context_id))]
            self._restart(ours)
            self._pass_on_refused(ours)
        except StorageError as error:
            text = "%d jobs that cannot be run again yet wait for storage: %s"
            _repeats.warning("storage", text, len(jobs), error)
            self.keep(jobs)

    def _pass_on_refused(self, tried: list[Job]) -> None:
        """Pass on what was refused again, oldest first."""
        with self._lock:
            refused = [job for job in tried if job.id in self._kept]
        passed: set[str] = set()
        for job in refused:
            if job.context_id in passed:
                continue
            if len(passed) == PASSED_AT_ONCE:
                break
            heir = self._heir_for(job)
            if heir is not None and self._pass_on(job, heir):
                passed.add(job.context_id)
        with self._lock:
            self._kept = {key: job for key, job in self._kept.items() if job.context_id not in passed}

    def _heir_for(self, job: Job) -> str | None:
        """Return the server whose turn it is next to try a job; None if only this one can."""
        heirs, here = sorted(self._heirs()), self._records.server_id
        namesake = self._namesake(job)
        if namesake is not None:
            return namesake.owner if namesake.owner in heirs else None
        return next((heir for heir in heirs if heir > here), heirs[0] if heirs else None)

    def _pass_on(self, job: Job, heir: str) -> bool:
        """Pass on the lost context of a job; return whether that is done."""
        lost = self._metadata.context(job.context_id)
        if lost is None or not self._is_ours(lost) or self._records.claim_context(lost, owner=heir) is None:
            return False
        _repeats.warning("passed on", "the jobs of context %s are passed on to server %s", lost.name, heir)
        self._notices.send(Topic.PASSED_ON, heir)
        return True

    def _is_ours(self, lost: Context | None) -> bool:
        """Whether this server reruns the jobs of a lost context. A context without a record has no owner."""
        return lost is None or (lost.state.final and lost.owner == self._records.server_id)

    def _namesake(self, job: Job) -> Context | None:
        found = self._metadata.context_named(job.context_name)
        return None if found is None or found.state.final else found
