"""Reconcile the records with reality after a server ended without closing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.errors import JobServerError, ServerClosed
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job, JobQuery
from jobserver_core.models.lifecycle import CONTEXTS, JOBS, ContextEvent
from jobserver_core.ports import Fetched, MetadataStore
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.jobs import JobService
from jobserver_core.running.records import FinalOutcome, Records

__all__ = ["Recovery"]

_log = logging.getLogger(__name__)

PAGE = 200
"""The number of jobs to read at a time."""
_SERVER_ENDED = ErrorInfo(message="the job server ended, and its contexts with it")


class Recovery:
    """Ends the contexts and jobs of an earlier server, none of which can still be alive.

    Contexts end in ERROR, and so do the jobs that had begun in one; their callbacks are sent. A job that was
    accepted but had not begun is kept: it runs in a new context like the one that it waited for.
    """

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        records: Records,
        jobs: JobService,
        contexts: ContextService,
        fetching: FetchService,
        class_paths: ClassPaths,
    ) -> None:
        self._metadata = metadata
        self._records = records
        self._jobs = jobs
        self._contexts = contexts
        self._fetching = fetching
        self._class_paths = class_paths

    def end_lost(self) -> list[Job]:
        """End everything that is not final and cannot continue; return the jobs to run again."""
        metadata = self._metadata
        contexts = {c.id: c for c in metadata.contexts(ContextQuery(states=CONTEXTS.live_states))}
        again = []
        for job in list(self._live_jobs()):
            context = contexts.get(job.context_id) or metadata.context(job.context_id)
            ended_on_request = job.kill_requested or (context is not None and context.stop_requested)
            if context is not None and job.waiting and not ended_on_request:
                again.append(job)
            else:
                self._end_job(job, context)
        for context in contexts.values():
            ended = self._records.end_context(context, ContextEvent.FAIL, _SERVER_ENDED)
            self._records.publish_context(ended)
        return again

    def restart(self, jobs: list[Job]) -> None:
        """Run the jobs again that :meth:`end_lost` returned, in their old order."""
        begun: list[tuple[Job, Preparation[None]]] = []
        for job in jobs:
            with self._ending_if_impossible(job):
                begun.append((job, self._begin_restart(job)))
        for job, preparation in begun:
            with preparation, self._ending_if_impossible(job):
                preparation.finish()

    def _begin_restart(self, job: Job) -> Preparation[None]:
        """Run a job that had not begun, in a context like the one it waited for."""
        uris = self._contexts.uris_of_successor(job.context_id, job.context_name)
        return self._fetching.prepare(uris, lambda fetched: self._restart(job, fetched))

    def _restart(self, job: Job, fetched: Mapping[str, Fetched]) -> None:
        with ExitStack() as files:
            code = self._class_paths.lease(job.class_path, files)
            spec = self._jobs.spec(job.id, job.class_name, code, self._jobs.config(job.id))
            context, context_spec = self._contexts.successor(job.context_id, job.context_name, fetched)
            live = self._jobs.live(job, spec, files.pop_all())
        self._jobs.give(live, context, context_spec, lambda: context.adopt(live))

    @contextmanager
    def _ending_if_impossible(self, job: Job) -> Iterator[None]:
        try:
            yield
        except ServerClosed:
            _log.info("job %s waits for the next start: the server is closing", job.id)
        except JobServerError as error:
            _log.warning("job %s could not be run again: %s", job.id, error)
            current = self._metadata.job(job.id) or job
            if not current.state.final:
                self._end_job(current, None, reason=str(error))

    def _live_jobs(self) -> Iterator[Job]:
        """Iterate over the jobs that are not final, oldest first."""
        found: list[Job] = []
        cursor = None
        while True:
            page = self._metadata.jobs(JobQuery(states=JOBS.live_states, after=cursor, limit=PAGE))
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return iter(reversed(found))

    def _end_job(self, job: Job, context: Context | None, reason: str = "the job server ended") -> None:
        cancelled = job.kill_requested or (context is not None and context.stop_requested)
        outcome = FinalOutcome.without_context(job, reason)
        ended, delivery = self._records.end_job(job, outcome, cancelled=cancelled)
        self._records.syncer.sync()
        self._records.publish_job(ended, delivery)
