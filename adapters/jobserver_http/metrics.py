"""Prometheus metrics of requests, jobs, contexts, callbacks and storage. Each application has a registry.

Counters by state begin with 0 for each final state: Prometheus does not see an increase if the first value
of a series is already 1.
"""

from __future__ import annotations

import importlib.metadata
import weakref
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from functools import partial
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from jobserver_core.events import ContextChanged, DeliveryChanged, Event, JobChanged
from jobserver_core.models.contexts import Context
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.server import JobServer

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RESOURCES = {
    "contexts": "jobserver_contexts_{}",
    "cores": "jobserver_cores_{}",
    "memory": "jobserver_memory_{}_bytes",
}


class Metrics:
    """The metrics of one application. Labels are routes and states, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        ProcessCollector(registry=self.registry)
        version = importlib.metadata.version("jobserver-core")
        gauge("jobserver_build_info", "1, with the version", ("version",)).labels(version).set(1)
        doc = "1 if the server can write to this part of its storage, otherwise 0"
        self._storage = gauge("jobserver_storage_working", doc, ("part",))
        labels = ("route", "method", "status")
        self._requests = counter("jobserver_http_requests", "Completed requests", labels)
        self._seconds = Histogram(
            "jobserver_http_request_duration_seconds",
            "Time from the head of a request to the end of its response",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._open = gauge("jobserver_http_requests_open", "Requests in progress")
        self._jobs = counter("jobserver_jobs", "Jobs that have ended", ("state",))
        self._submitted = counter("jobserver_jobs_submitted", "Jobs that have been accepted")
        self._contexts = gauge("jobserver_contexts", "Live contexts", ("state",))
        self._contexts_ended = counter("jobserver_contexts_ended", "Contexts that have ended", ("state",))
        doc = "Supervised contexts that this server has started again"
        self._context_restarts = counter("jobserver_context_restarts", doc)
        doc = "Callbacks that were delivered or given up"
        self._callbacks = counter("jobserver_callbacks", doc, ("state",))
        for ended, states in (
            (self._jobs, JobState),
            (self._contexts_ended, ContextState),
            (self._callbacks, DeliveryState),
        ):
            for state in states:
                if state.final:
                    ended.labels(state.value)
        self._starting = gauge("jobserver_contexts_starting", "Contexts that are starting")
        self._queued = gauge("jobserver_contexts_queued", "Contexts that are queued to start")
        doc = "Contexts that are kept started for new ones"
        self._spares = gauge("jobserver_spare_contexts", doc, ("pool", "state"))
        used = "What live contexts and spares may use at most"
        limit = "What they may use in total; +Inf without a limit"
        self._used = {resource: gauge(name.format("used"), used) for resource, name in _RESOURCES.items()}
        self._limits = {resource: gauge(name.format("limit"), limit) for resource, name in _RESOURCES.items()}
        self._running = gauge("jobserver_jobs_running", "Jobs that have begun")
        self._waiting = gauge("jobserver_jobs_waiting", "Jobs that wait for a slot or their context")
        self._refused = counter("jobserver_jobs_refused", "Submits refused for lack of room")
        doc = "1 if a submit was refused for lack of room within the last minute"
        self._shedding = gauge("jobserver_shedding_load", doc)
        takeovers = {
            "contexts_reattached": "Contexts that continued after a restart of their server",
            "leases_taken_over": "Other servers that this one has declared dead",
            "leases_lost": "How often others have declared this server dead",
        }
        self._takeovers = {name: counter(f"jobserver_{name}", doc) for name, doc in takeovers.items()}
        self._counted: dict[Counter, int] = {}
        """The last value of each counter that the server counts by itself."""

    def watch(self, server: JobServer) -> None:
        """Count the server's jobs from now on, for as long as this object exists."""
        self_reference = weakref.ref(self)

        def subscriber(event: Event) -> None:
            metrics = self_reference()
            if metrics is None:
                subscription.close()
            else:
                metrics.count_event(event)

        subscription = server.subscribe(subscriber)

    def count_event(self, event: Event) -> None:
        """Count the submission of a job, and the end of a job, a context or a callback."""
        match event:
            case JobChanged(job=job) if job.state.final:
                self._jobs.labels(job.state.value).inc()
            case JobChanged(job=job) if job.state is JobState.STARTED and job.dispatched_at is None:
                self._submitted.inc()
            case ContextChanged(context=context) if context.state.final:
                self._contexts_ended.labels(context.state.value).inc()
            case ContextChanged(context=context) if context.state is ContextState.RESTARTING:
                if context.epoch == 0 and not context.stop_requested:  # else it is published once more
                    self._context_restarts.inc()
            case DeliveryChanged(delivery=delivery) if delivery.state.final:
                self._callbacks.labels(delivery.state.value).inc()

    def request_started(self) -> None:
        """Count a request that is in progress."""
        self._open.inc()

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a completed request. ``route`` is a route's name, or ``none``."""
        self._open.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(
        self, server: JobServer, contexts: Iterable[Context], storage: Mapping[str, str | None]
    ) -> bytes:
        """Return all metrics in Prometheus' text format, including the current contexts and load.

        ``storage`` has the reason why a part of the storage does not work, or None.
        """
        for part, reason in storage.items():
            self._storage.labels(part).set(reason is None)
        load, starts = server.load, server.start_queue()
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._shedding.set(load.shedding)
        self._count_up(self._refused, load.refused)
        for name, counter in self._takeovers.items():
            self._count_up(counter, getattr(server.takeovers, name))
        self._starting.set(starts.starting)
        self._queued.set(starts.queued)
        live = Tally(context.state for context in contexts)
        for state in ContextState:
            if not state.final:
                self._contexts.labels(state.value).set(live[state])
        for pool in server.spare_pools():
            self._spares.labels(pool.name, "ready").set(pool.ready)
            self._spares.labels(pool.name, "starting").set(pool.starting)
        for of in server.resource_usage():
            self._used[of.resource].set(inf if of.used is None else of.used)
            self._limits[of.resource].set(inf if of.limit is None else of.limit)
        return generate_latest(self.registry)

    def _count_up(self, counter: Counter, value: int) -> None:
        counter.inc(max(0, value - self._counted.get(counter, 0)))
        self._counted[counter] = value
