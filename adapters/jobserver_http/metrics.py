"""Measurements for Prometheus: requests, jobs and contexts, in a registry of each application's own."""

from __future__ import annotations

import weakref
from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from jobserver_core.events import Event, JobChanged
from jobserver_core.models.contexts import Context, StartQueueStatus
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_core.server import JobServer

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The measurements of one application. Labels are routes and states, whose number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "jobserver_http_requests",
            "Requests that were answered",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "jobserver_http_request_duration_seconds",
            "Time from a request's head to the end of its answer",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._open = Gauge("jobserver_http_requests_open", "Requests under way", registry=self.registry)
        self._jobs = Counter("jobserver_jobs", "Jobs that ended", ("state",), registry=self.registry)
        self._submitted = Counter(
            "jobserver_jobs_submitted", "Jobs that were accepted", registry=self.registry
        )
        self._contexts = Gauge("jobserver_contexts", "Contexts that live", ("state",), registry=self.registry)
        self._starting = Gauge(
            "jobserver_contexts_starting", "Contexts that are starting now", registry=self.registry
        )
        self._queued = Gauge(
            "jobserver_contexts_queued", "Contexts that wait for their turn to start", registry=self.registry
        )

    def watch(self, server: JobServer) -> None:
        """Count the server's jobs from now on, as long as these measurements are used."""
        mine = weakref.ref(self)

        def subscriber(event: Event) -> None:
            metrics = mine()
            if metrics is None:
                subscription.close()
            else:
                metrics.happened(event)

        subscription = server.subscribe(subscriber)

    def happened(self, event: Event) -> None:
        """Count what an event tells of a job: its first record, and its end."""
        if not isinstance(event, JobChanged):
            return
        if event.job.state.final:
            self._jobs.labels(event.job.state.value).inc()
        elif event.job.state is JobState.STARTED and event.job.dispatched_at is None:
            self._submitted.inc()

    def began(self) -> None:
        """Count a request that is under way."""
        self._open.inc()

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that is over; ``route`` is a route's name, or ``none``."""
        self._open.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, contexts: Iterable[Context], starts: StartQueueStatus) -> bytes:
        """Return all of it in Prometheus' text format, with the contexts that live and start now."""
        self._starting.set(starts.starting)
        self._queued.set(starts.queued)
        living = Tally(context.state for context in contexts)
        for state in ContextState:
            if not state.final:
                self._contexts.labels(state.value).set(living[state])
        return generate_latest(self.registry)
