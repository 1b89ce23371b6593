"""Metadata in the memory of the process, with the same contract as a database."""

from __future__ import annotations

import bisect
import heapq
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import accumulate, islice
from typing import Any, TypeVar

import attrs

from jobserver_core.errors import (
    BinaryInUse,
    BinaryNotFound,
    ContextExists,
    ContextNotFound,
    ContextStopping,
    DuplicateId,
    ServerClosed,
)
from jobserver_core.models.arguments import check_callable
from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import (
    Job,
    JobPage,
    JobProgress,
    JobQuery,
    JobResult,
    QueueLimits,
    decode_cursor,
)
from jobserver_core.models.json_values import JsonObject, plain
from jobserver_core.models.lifecycle import (
    CONTEXTS,
    DELIVERIES,
    JOBS,
    ContextState,
    DeliveryState,
    JobState,
    Lifecycle,
)
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_core.models.storage import MetadataUsage
from jobserver_core.ports.metadata import PIN_EXPIRY, MetadataStore

M = TypeVar("M", Binary, Context, Job, Delivery, ServerRequest)
R = TypeVar("R", Context, Job)
_Key = tuple[datetime, str]


@attrs.frozen
class _Pin:
    """The blob that a server counts on, without an end if the server runs."""

    server_id: str
    digest: str
    expires_at: datetime | None = None


class MemoryMetadataStore(MetadataStore):
    """Records in dictionaries behind one lock.

    The cost of a page is proportional to its length; filters add the jobs that do not match. Servers of this
    process may share it if it is ``shared``; ``now`` is the clock by which it judges their leases.
    """

    def __init__(self, *, shared: bool = False, now: Callable[[], datetime] | None = None) -> None:
        if now is not None:
            check_callable("now", now, arguments=0)
        self.shared = shared
        self._now = now or partial(datetime.now, timezone.utc)
        self._servers: dict[str, Server] = {}
        self._lock = threading.RLock()
        self._binaries: dict[str, Binary] = {}
        self._contexts: dict[str, Context] = {}
        self._jobs: dict[str, Job] = {}
        self._order: list[_Key] = []
        self._live: set[str] = set()
        self._keys: dict[str, str] = {}
        self._configs: dict[str, str] = {}
        self._results: dict[str, JobResult] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._requests: dict[str, ServerRequest] = {}
        self._listeners: list[Callable[[str | None], None]] = []
        self._pins: dict[str, _Pin] = {}
        self._removals: dict[str, tuple[str, datetime]] = {}
        """The server that removes a blob, and until when at most, by digest."""

    # -- binaries ----------------------------------------------------------------------------------

    def add_binary(self, binary: Binary) -> None:
        with self._lock:
            _refuse_known("binary", binary.id, self._binaries)
            self._binaries[binary.id] = _stored(binary)

    def binary(self, name: str) -> Binary | None:
        return next(iter(self.binary_versions(name)), None)

    def binaries(self) -> list[Binary]:
        with self._lock:
            newest = {b.name: b for b in _oldest_first(self._binaries.values(), "uploaded_at")}
        return sorted(newest.values(), key=lambda binary: binary.name)

    def binary_versions(self, name: str) -> list[Binary]:
        with self._lock:
            versions = [b for b in self._binaries.values() if b.name == name]
        return _oldest_first(versions, "uploaded_at")[::-1]

    def delete_binary(self, name: str) -> list[Binary]:
        with self._lock:
            versions = self.binary_versions(name)
            if not versions:
                raise BinaryNotFound(name=name)
            if users := self._users({binary.id for binary in versions}):
                raise BinaryInUse(name=name, job_ids=users)
            for binary in versions:
                del self._binaries[binary.id]
            return versions

    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        with self._lock:
            used = {e.binary_id for job_id in self._live for e in self._jobs[job_id].class_path}
            names = {binary.name for binary in self._binaries.values()}
            kept = {b.id for name in names for b in self.binary_versions(name)[:keep]} | used
            oldest_first = _oldest_first(self._binaries.values(), "uploaded_at")
            old = [b for b in oldest_first if b.uploaded_at < uploaded_before and b.id not in kept][:limit]
            for binary in old:
                del self._binaries[binary.id]
            return old

    def _users(self, binary_ids: set[str]) -> tuple[str, ...]:
        live = sorted((self._jobs[job_id] for job_id in self._live), key=_key)
        return tuple(j.id for j in live if any(e.binary_id in binary_ids for e in j.class_path))

    # -- servers -----------------------------------------------------------------------------------

    def register_server(
        self, server_id: str, *, started_at: datetime, address: str, lease: float, version: str = ""
    ) -> None:
        with self._lock:
            self._servers[server_id] = Server(
                id=server_id,
                started_at=started_at.astimezone(timezone.utc),
                address=address,
                lease_until=self._end_of(lease),
                version=version,
            )
            self._let_pins_expire(lambda owner: owner == server_id)

    def renew_server(self, server_id: str, *, lease: float) -> bool:
        return self._change_server(server_id, lease_until=self._end_of(lease))

    def drain_server(self, server_id: str) -> bool:
        return self._change_server(server_id, draining=True)

    def _change_server(self, server_id: str, **changes: Any) -> bool:
        with self._lock:
            server = self._servers.get(server_id)
            if server is not None:
                self._servers[server_id] = attrs.evolve(server, **changes)
            return server is not None

    def servers(self, *, expired: bool | None = None) -> list[Server]:
        with self._lock:
            found = [s for s in self._servers.values() if expired in (None, self._expired(s))]
        return sorted(found, key=lambda server: (server.started_at, server.id))

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        with self._lock:
            server = self._servers.get(server_id)
            if server is None or (only_expired and not self._expired(server)):
                return False
            del self._servers[server_id]
            return True

    def _end_of(self, lease: float) -> datetime:
        return (self._now() + timedelta(seconds=lease)).astimezone(timezone.utc)

    def _expired(self, server: Server) -> bool:
        return server.lease_until <= self._now()

    # -- contexts ----------------------------------------------------------------------------------

    def add_context(self, context: Context) -> None:
        with self._lock:
            _refuse_known("context", context.id, self._contexts)
            self._put_context(context)

    def context(self, context_id: str) -> Context | None:
        with self._lock:
            found = self._contexts.get(context_id)
        return found and _with_own_settings(found)

    def context_named(self, name: str) -> Context | None:
        found = self.contexts(ContextQuery(name=name))
        return next((c for c in found if not c.state.final), found[0] if found else None)

    def contexts(self, query: ContextQuery) -> list[Context]:
        with self._lock:
            newest_first = _oldest_first(self._contexts.values(), "started_at")[::-1]
        wanted = (c for c in newest_first if _selects_context(query, c))
        return [_with_own_settings(context) for context in islice(wanted, query.limit)]

    def advance_context(
        self,
        context: Context,
        *,
        expected: ContextState,
        epoch: int | None = None,
        successor: Context | None = None,
    ) -> None:
        with self._lock:
            _compare(CONTEXTS, self._contexts.get(context.id), context, expected, epoch)
            if successor is not None:
                _refuse_known("context", successor.id, self._contexts)
            before = self._contexts[context.id]
            self._put_context(context)
            if successor is not None:
                try:
                    self._put_context(successor)
                except ContextExists:
                    self._contexts[context.id] = before
                    raise

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        with self._lock:
            served = {job.context_id for job in self._jobs.values()}
            ended = ((end, c.id) for end, c in _ended(self._contexts.values()) if c.id not in served)
            old = heapq.nsmallest(limit, (e for e in ended if e[0] < ended_before), key=lambda e: e[0])
            for _, context_id in old:
                del self._contexts[context_id]
            return [context_id for _, context_id in old]

    def _put_context(self, context: Context) -> None:
        rivals = (c for c in self._contexts.values() if c.name == context.name and c.id != context.id)
        if not context.state.final and any(not rival.state.final for rival in rivals):
            raise ContextExists(name=context.name)
        self._contexts[context.id] = _with_own_settings(_stored(context))

    # -- jobs --------------------------------------------------------------------------------------

    def add_job(self, job: Job, *, config: str) -> None:
        with self._lock:
            _refuse_known("job", job.id, self._jobs)
            self._refuse_known_key(job)
            for entry in job.class_path:
                if entry.binary_id is not None and entry.binary_id not in self._binaries:
                    raise BinaryNotFound(name=entry.source)
            self._put_job(job)
            self._configs[job.id] = config

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        with self._lock:
            context = self._contexts.get(job.context_id)
            if context is None or context.state.final:
                raise ContextNotFound(name=job.context_name)
            if context.state is ContextState.STOPPING or context.stop_requested:
                raise ContextStopping(name=context.name)
            owner = self._servers.get(context.owner)
            if owner is not None and owner.draining:
                raise ServerClosed()
            jobs = [found for key in self._live if (found := self._jobs[key]).context_id == context.id]
            waiting = [found.submitted_by for found in jobs if found.waiting]
            limits.check(
                context.name,
                job.submitted_by,
                running=len(jobs) - len(waiting),
                waiting=len(waiting),
                waiting_of_user=waiting.count(job.submitted_by),
            )
            self.add_job(job, config=config)

    def job(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def job_with_key(self, idempotency_key: str) -> Job | None:
        with self._lock:
            return self._jobs.get(self._keys.get(idempotency_key, ""))

    def job_config(self, job_id: str) -> str | None:
        with self._lock:
            return self._configs.get(job_id)

    def job_result(self, job_id: str) -> JobResult | None:
        with self._lock:
            return self._results.get(job_id)

    def jobs(self, query: JobQuery) -> JobPage:
        with self._lock:
            wanted = (job for job in self._newest_first(query) if _selects_job(query, job))
            found = list(islice(wanted, query.offset, query.offset + query.limit + 1))
        return JobPage.of(found, query.limit)

    def _newest_first(self, query: JobQuery) -> Iterator[Job]:
        end = len(self._order)
        if query.after is not None:
            end = bisect.bisect_left(self._order, decode_cursor(query.after))
        if query.until is not None:
            end = min(end, bisect.bisect_left(self._order, (query.until, "")))
        start = bisect.bisect_left(self._order, (query.since, "")) if query.since is not None else 0
        return (self._jobs[self._order[position][1]] for position in range(end - 1, start - 1, -1))

    def advance_job(
        self,
        job: Job,
        *,
        expected: JobState,
        epoch: int | None = None,
        result: JobResult | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        with self._lock:
            stored = self._jobs.get(job.id)
            _compare(JOBS, stored, job, expected, epoch)
            self._refuse_known_key(job)
            if delivery is not None:
                _refuse_known(DELIVERIES.kind, delivery.id, self._deliveries)
                self._deliveries[delivery.id] = _stored(delivery)
            if result is not None:
                self._results[job.id] = result
            if job.progress is None and stored is not None and stored.progress is not None:
                job = attrs.evolve(job, progress=stored.progress)
            self._put_job(job)

    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        with self._lock:
            if job_id in self._live:
                self._jobs[job_id] = attrs.evolve(self._jobs[job_id], progress=progress)

    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        with self._lock:
            held = {d.job_id for d in self._deliveries.values() if not d.state.final}
            ended = ((end, *_key(job)) for end, job in _ended(self._jobs.values()) if job.id not in held)
            old = heapq.nsmallest(limit, (entry for entry in ended if entry[0] < ended_before))
            for _, _, job_id in old:
                self._forget(self._jobs[job_id])
                del self._configs[job_id]
                self._results.pop(job_id, None)
            gone = {job_id for _, _, job_id in old}
            self._deliveries = {k: d for k, d in self._deliveries.items() if d.job_id not in gone}
            return len(old)

    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        with self._lock:
            sizes = {job_id: result.size for job_id, result in self._results.items()}
            ended = sorted(
                ((e, sizes.get(job.id, 0)) for e, job in _ended(self._jobs.values())), reverse=True
            )
        excess = [] if jobs is None else [end for end, _ in ended[jobs : jobs + 1]]
        if result_bytes is not None:
            totals = accumulate(size for _, size in ended)
            too_much = (end for (end, _), total in zip(ended, totals, strict=True) if total > result_bytes)
            excess += islice(too_much, 1)
        return max(excess, default=None)

    def _put_job(self, job: Job) -> None:
        if job.id in self._jobs:
            self._forget(self._jobs[job.id])
        self._jobs[job.id] = stored = _stored(job)
        bisect.insort(self._order, _key(stored))
        if not job.state.final:
            self._live.add(job.id)
        if job.idempotency_key is not None:
            self._keys[job.idempotency_key] = job.id

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        del self._order[bisect.bisect_left(self._order, _key(job))]
        self._live.discard(job.id)
        if job.idempotency_key is not None:
            del self._keys[job.idempotency_key]

    def _refuse_known_key(self, job: Job) -> None:
        key = job.idempotency_key
        if key is not None and (holder := self._keys.get(key, job.id)) != job.id:
            raise DuplicateId(kind="idempotency key", id=key, holder=holder)

    # -- callback deliveries -----------------------------------------------------------------------

    def delivery(self, delivery_id: str) -> Delivery | None:
        with self._lock:
            return self._deliveries.get(delivery_id)

    def deliveries_of(self, job_id: str) -> list[Delivery]:
        with self._lock:
            return sorted((d for d in self._deliveries.values() if d.job_id == job_id), key=_age)

    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        left_out = set(excluding)
        with self._lock:
            pending = (d for d in self._deliveries.values() if d.state is DeliveryState.PENDING)
            due = [d for d in pending if d.due_at <= now and d.receiver not in left_out]
        return heapq.nsmallest(limit, due, key=lambda delivery: (delivery.due_at, *_age(delivery)))

    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        with self._lock:
            _compare(DELIVERIES, self._deliveries.get(delivery.id), delivery, expected, epoch)
            self._deliveries[delivery.id] = _stored(delivery)

    def deliveries_in(
        self, state: DeliveryState, *, limit: int, excluding: Iterable[str] = ()
    ) -> list[Delivery]:
        left_out = set(excluding)
        with self._lock:
            found = (d for d in self._deliveries.values() if d.state is state and d.owner not in left_out)
            return heapq.nsmallest(limit, found, key=_age)

    # -- blobs in use ------------------------------------------------------------------------------

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        with self._lock:
            used = {binary.digest for binary in self._binaries.values()}
            used |= {entry.digest for job_id in self._live for entry in self._jobs[job_id].class_path}
            used |= {result.digest for result in self._results.values() if result.digest is not None}
        return [digest for digest in dict.fromkeys(digests) if digest not in used]

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        with self._lock:
            self._pins.setdefault(pin_id, _Pin(server_id, digest))
            return not self._is_removed(digest)

    def unpin_blobs(self, pin_ids: Iterable[str]) -> None:
        with self._lock:
            for pin_id in pin_ids:
                self._pins.pop(pin_id, None)

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        with self._lock:
            self._let_pins_expire(lambda owner: owner not in self._servers)
            pinned = {pin.digest for pin in self._pins.values()}
            free = [
                digest
                for digest in self.unreferenced(digests)
                if digest not in pinned and not self._is_removed(digest)
            ]
            self._removals |= dict.fromkeys(free, (server_id, self._end_of(lease)))
            return free

    def end_removal(self, digests: Iterable[str], *, server_id: str) -> None:
        with self._lock:
            for digest in digests:
                if self._removals.get(digest, ("",))[0] == server_id:
                    del self._removals[digest]

    def _is_removed(self, digest: str) -> bool:
        return digest in self._removals and self._removals[digest][1] > self._now()

    def _let_pins_expire(self, ended: Callable[[str], bool]) -> None:
        """Limit the pins of servers that have ended, and remove those that have expired."""
        expires_at = self._end_of(PIN_EXPIRY)
        for pin_id, pin in list(self._pins.items()):
            if pin.expires_at is None and ended(pin.server_id):
                self._pins[pin_id] = attrs.evolve(pin, expires_at=expires_at)
            elif pin.expires_at is not None and pin.expires_at <= self._now():
                del self._pins[pin_id]

    # -- requests to other servers -----------------------------------------------------------------

    def add_request(self, request: ServerRequest) -> None:
        with self._lock:
            _refuse_known("request", request.id, self._requests)
            self._requests[request.id] = _stored(request)

    def requests_to(self, server_id: str) -> list[ServerRequest]:
        with self._lock:
            found = [r for r in self._requests.values() if r.recipient == server_id and r.answer is None]
        return sorted(found, key=lambda request: (request.created_at, request.id))

    def answer_request(self, request_id: str, answer: str) -> bool:
        with self._lock:
            request = self._requests.get(request_id)
            if request is None or request.answer is not None:
                return False
            self._requests[request_id] = attrs.evolve(request, answer=answer)
            return True

    def request(self, request_id: str) -> ServerRequest | None:
        with self._lock:
            return self._requests.get(request_id)

    def remove_request(self, request_id: str) -> ServerRequest | None:
        with self._lock:
            return self._requests.pop(request_id, None)

    def delete_requests(self, *, created_before: datetime) -> int:
        with self._lock:
            old = [r.id for r in self._requests.values() if r.created_at < created_before]
            for request_id in old:
                del self._requests[request_id]
            return len(old)

    # -- notices -----------------------------------------------------------------------------------

    def notify(self, notice: str) -> None:
        for receive in list(self._listeners):
            receive(notice)

    def listen(self, receive: Callable[[str | None], None]) -> None:
        self._listeners.append(receive)

    # -- the store itself --------------------------------------------------------------------------

    def usage(self) -> MetadataUsage:
        with self._lock:
            return MetadataUsage(
                binaries=len(self._binaries),
                binary_bytes=sum(binary.size for binary in self._binaries.values()),
                contexts=len(self._contexts),
                jobs=len(self._jobs),
                results=len(self._results),
                result_bytes=sum(result.size for result in self._results.values()),
                deliveries=len(self._deliveries),
            )


def _stored(model: M) -> M:
    """Return the record as a database would: with its times in UTC."""
    times: JsonObject = {
        name: value.astimezone(timezone.utc)
        for name in (field.name for field in attrs.fields(type(model)))
        if isinstance(value := getattr(model, name), datetime) and value.tzinfo is not timezone.utc
    }
    return attrs.evolve(model, **times) if times else model


def _with_own_settings(context: Context) -> Context:
    return attrs.evolve(context, settings=plain(context.settings))


def _key(job: Job) -> _Key:
    return (job.submitted_at, job.id)


def _age(delivery: Delivery) -> _Key:
    return (delivery.created_at, delivery.id)


def _oldest_first(models: Iterable[M], time: str) -> list[M]:
    """Sort by a time; equal times keep the order in which they were added."""
    return sorted(models, key=lambda model: getattr(model, time))


def _ended(records: Iterable[R]) -> Iterator[tuple[datetime, R]]:
    """Yield the final records, and when they ended."""
    return ((r.ended_at, r) for r in records if r.state.final and r.ended_at is not None)


def _refuse_known(kind: str, record_id: str, records: Container[str]) -> None:
    if record_id in records:
        raise DuplicateId(kind=kind, id=record_id, holder=record_id)


def _compare(
    lifecycle: Lifecycle[Any, Any],
    stored: Context | Job | Delivery | None,
    record: Context | Job | Delivery,
    expected: ContextState | JobState | DeliveryState,
    epoch: int | None,
) -> None:
    held = record.epoch if epoch is None else epoch
    if stored is None or stored.state is not expected or stored.epoch != held:
        raise lifecycle.stale(record.id, expected, None if stored is None else stored.state)


def _selects_context(query: ContextQuery, context: Context) -> bool:
    return (
        (query.states is None or context.state in query.states)
        and query.name in (None, context.name)
        and query.owner in (None, context.owner)
    )


def _selects_job(query: JobQuery, job: Job) -> bool:
    return (
        (query.states is None or job.state in query.states)
        and query.context_id in (None, job.context_id)
        and query.context_name in (None, job.context_name)
        and query.class_name in (None, job.class_name)
    )
