"""Making the past true: what a server that ended without a word left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from jobserver_core.environment import Environment
from jobserver_core.errors import JobServerError, ServerClosed, StaleState
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobQuery
from jobserver_core.models.lifecycle import CONTEXTS, JOBS, ContextEvent, JobEvent
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.jobs import JobService

__all__ = ["Recovery"]

_log = logging.getLogger(__name__)

PAGE = 200
"""How many jobs are read at a time."""


class Recovery:
    """Settles the contexts and jobs of an earlier server, none of which can be alive any more.

    Contexts end ERROR, and so do the jobs that had begun in one; who gave a callback is told. A job that was
    accepted and had not begun loses nothing: it runs in a new context like the one that it waited for.
    """

    def __init__(self, environment: Environment, jobs: JobService) -> None:
        self._environment = environment
        self._jobs = jobs

    def settle(self) -> list[Job]:
        """Store the truth about everything that is not final; return the jobs to run again."""
        metadata = self._environment.metadata
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
            self._end_context(context)
        return again

    def restart(self, jobs: list[Job]) -> None:
        """Run the jobs again that :meth:`settle` found, in their old order."""
        begun: list[tuple[Job, Preparation[None]]] = []
        for job in jobs:
            with self._ending_if_impossible(job):
                begun.append((job, self._jobs.begin_restart(job)))
        for job, preparation in begun:
            with preparation, self._ending_if_impossible(job):
                preparation.finish()

    @contextmanager
    def _ending_if_impossible(self, job: Job) -> Iterator[None]:
        try:
            yield
        except ServerClosed:
            _log.info("job %s stays for the next start: the server is ending already", job.id)
        except JobServerError as error:
            _log.warning("job %s could not be run again: %s", job.id, error)
            current = self._environment.metadata.job(job.id) or job
            if not current.state.final:
                self._end_job(current, None, reason=str(error))

    def _live_jobs(self) -> Iterator[Job]:
        """Iterate over the jobs that are not final, oldest first."""
        found: list[Job] = []
        cursor = None
        while True:
            page = self._environment.metadata.jobs(
                JobQuery(states=JOBS.live_states, after=cursor, limit=PAGE)
            )
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return iter(reversed(found))

    def _end_job(self, job: Job, context: Context | None, reason: str = "the job server ended") -> None:
        env = self._environment
        message = f"Context ({job.context_name}) for this job was terminated"
        event = JobEvent.KILL if job.kill_requested else JobEvent.FAIL
        killed = job.kill_requested
        ended = attrs.evolve(
            job,
            state=JOBS.next(job.state, event),
            ended_at=env.clock.now(),
            failure=None if killed else FailureKind.CONTEXT_LOST,
            error=ErrorInfo(
                message=f"Job {job.id} killed" if killed else message,
                error_class="" if killed else "ContextTerminated",
                stack="" if killed else reason,
            ),
        )
        cancelled = killed or (context is not None and context.stop_requested)
        delivery = None if cancelled else env.callbacks.new_delivery(ended)
        try:
            env.metadata.advance_job(ended, expected=job.state, delivery=delivery)
        except StaleState as error:
            _log.warning("job %s was ended by another writer: %s", job.id, error)
            return
        env.job_changed(ended, delivery)

    def _end_context(self, context: Context) -> None:
        env = self._environment
        ended = attrs.evolve(
            context,
            state=CONTEXTS.next(context.state, ContextEvent.FAIL),
            ended_at=env.clock.now(),
            error=ErrorInfo(message="the job server ended, and its contexts with it"),
        )
        try:
            env.metadata.advance_context(ended, expected=context.state)
        except StaleState as error:
            _log.warning("context %s was ended by another writer: %s", context.name, error)
            return
        env.context_changed(ended)
