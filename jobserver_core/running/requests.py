"""Requests to other servers: kill their jobs and contexts, stop or reset contexts, read logs.

Theory
======

The problem: users may ask any server, but only the owner of a context can act on it. The user must get the
same result as from the owner, even if the owner dies in the meantime.

The idea: the request is stored for the owner, and a notice wakes it. The owner acts and stores its answer,
and another notice wakes the server that asked. Servers need no connection to each other and no common secret:
they communicate only through the database, which they already trust.

The invariants: every request is idempotent, because an owner that dies may have acted before it could answer.
A living owner acts once, and keeps an answer that could not be stored. A server that stops waiting removes
its request, and retries the removal if it fails, so that the owner does not act on it later. If there is an
answer at that moment, it counts, whatever else went wrong. An owner that is no longer registered will not
answer. The caller then gets an error at once: the context is being taken over, and a retry may succeed.

A server may die before it can remove its request. That request must not be carried out much later, when
nobody expects it. The clocks of two servers may differ, so the age of a request is measured by the clock that
all leases share: the request contains the time at which the owner's lease would have expired when it was
made. Once the lease has been renewed far beyond that time, the owner no longer acts. A request also contains
ids, never only a name that another context may have by then.

Logs are read on a separate thread, because a kill must not wait for a slow disk or for many readers of logs.

Deliberately not handled: a server that dies while it asks. Until its request is too old, the owner may still
carry it out. Requests that nobody removes are deleted after :data:`REQUEST_RETENTION`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum

from jobserver_core.errors import JobServerError, OnAnotherServer, ServerClosed, StorageError, Unavailable
from jobserver_core.models import json_values
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports import Clock, Ids, MetadataStore
from jobserver_core.running.notices import Notices, Topic, Worker
from jobserver_core.running.records import taken_over

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for an answer. An owner that takes longer hangs, or is about to be declared dead."""
ANSWER_POLL_INTERVAL = 1.0
"""Seconds between two checks of the store for an answer whose notice was lost."""
REQUEST_RETENTION = timedelta(hours=1)
"""How long a request that nobody removes is kept."""

Act = Callable[[JsonMapping], JsonObject]


class Action(str, Enum):
    """What one server can ask of another."""

    KILL_JOB = "kill-job"
    STOP_CONTEXT = "stop-context"
    KILL_CONTEXT = "kill-context"
    RESET_CONTEXTS = "reset-contexts"
    READ_LOG = "read-log"


class Requests:
    """Asks other servers, and answers what they ask. Thread-safe."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        notices: Notices,
        clock: Clock,
        ids: Ids,
        server_id: str,
        lease: float,
    ) -> None:
        self._lifetime = timedelta(seconds=ANSWER_TIMEOUT + lease)
        self._metadata = metadata
        self._notices = notices
        self._clock = clock
        self._ids = ids
        self._server_id = server_id
        self._actions: dict[str, Act] = {}
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._abandoned: set[str] = set()
        self._unsent: dict[str, str] = {}
        self._cleaned_at: float | None = None
        self._closed = False
        self._reader = Worker("logs", self._answer_reads)
        notices.on(Topic.REQUESTED, self._answer_all)
        notices.on(Topic.ANSWERED, self._wake)

    def on(self, action: Action, act: Act) -> None:
        """Answer requests for an action with the result or the error of ``act`` for their arguments."""
        self._actions[action.value] = act

    def close(self) -> None:
        """Make all waits for an answer fail with ServerClosed. Idempotent."""
        self._closed = True
        self._wake(None)
        self._reader.close()

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, server_id: str, action: Action, arguments: JsonMapping, what: str) -> JsonObject:
        """Have another server act, and return its answer or raise its error.

        ``what`` names the object on the other server, for errors.

        Raises:
            Unavailable: The other server is gone or does not answer. The caller can try again.
            ServerClosed: This server is closing.
        """
        leased_until = self._check_alive(server_id, what).isoformat()
        asked = {"action": action.value, "arguments": arguments, "leased_until": leased_until}
        request = ServerRequest(
            id=self._ids.new(),
            recipient=server_id,
            created_at=self._clock.now(),
            payload=json_values.dumps(asked),
        )
        answered = threading.Event()
        with self._lock:
            self._waiting[request.id] = answered
        try:
            return self._wait(request, answered, what)
        except OnAnotherServer as moved:
            raise Unavailable(message=f"{what} has moved to another server; try again") from moved
        finally:
            with self._lock:
                self._waiting.pop(request.id, None)

    def _wait(self, request: ServerRequest, answered: threading.Event, what: str) -> JsonObject:
        problem: JobServerError = Unavailable(message=f"the server of {what} does not respond; try again")
        deadline = time.monotonic() + ANSWER_TIMEOUT
        try:
            self._metadata.add_request(request)
            self._notices.send(Topic.REQUESTED, request.recipient)
            while not self._closed:
                answered.wait(ANSWER_POLL_INTERVAL)
                answered.clear()
                stored = self._metadata.request(request.id)
                if stored is None or stored.answer is not None:
                    break
                self._check_alive(request.recipient, what)
                if time.monotonic() >= deadline:
                    break
        except JobServerError as error:
            problem = error
        removed = self._remove(request.id)
        if removed is not None and removed.answer is not None:
            return _result_of(removed.answer)
        raise ServerClosed() if self._closed else problem

    def _remove(self, request_id: str) -> ServerRequest | None:
        """Remove a request, now or as soon as storage works again."""
        try:
            return self._metadata.remove_request(request_id)
        except StorageError as error:
            _log.warning("request %s to another server cannot be removed yet: %s", request_id, error)
            with self._lock:
                self._abandoned.add(request_id)
            return None

    def _check_alive(self, server_id: str, what: str) -> datetime:
        """Return when another server's lease expires, by the store's clock.

        Raises:
            Unavailable: The server is no longer registered.
        """
        leased_until = self._leased_until(server_id)
        if leased_until is None:
            raise taken_over(what)
        return leased_until

    def _leased_until(self, server_id: str) -> datetime | None:
        return next((s.lease_until for s in self._metadata.servers() if s.id == server_id), None)

    def _wake(self, request_ids: frozenset[str] | None) -> None:
        with self._lock:
            chosen = [e for key, e in self._waiting.items() if request_ids is None or key in request_ids]
        for event in chosen:
            event.set()

    # -- answering ---------------------------------------------------------------------------------

    def _answer_all(self, server_ids: frozenset[str] | None) -> None:
        if server_ids is None:
            self._clean()
        elif self._server_id not in server_ids:
            return
        pending = self._metadata.requests_to(self._server_id)
        if reads := frozenset(request.id for request in pending if _is_read(request)):
            self._reader.wake(reads)
            pending = [request for request in pending if request.id not in reads]
        for request_id in self._unsent.keys() - {request.id for request in pending}:
            del self._unsent[request_id]
        for request in pending:
            if self._closed or self._metadata.request(request.id) is None:
                continue
            if request.id not in self._unsent:
                self._unsent[request.id] = self._answer(request)
            self._metadata.answer_request(request.id, self._unsent[request.id])
            del self._unsent[request.id]
            self._notices.send(Topic.ANSWERED, request.id)

    def _answer_reads(self, request_ids: frozenset[str] | None) -> None:
        """Answer requests to read logs. If the store fails, the next full scan tries again."""
        for request_id in sorted(request_ids or ()):
            request = None if self._closed else self._metadata.request(request_id)
            if request is not None and request.answer is None:
                self._metadata.answer_request(request_id, self._answer(request))
                self._notices.send(Topic.ANSWERED, request_id)

    def _answer(self, request: ServerRequest) -> str:
        from jobserver_core.models.serialization import unstructure  # noqa: PLC0415 - needs cattrs

        try:
            asked = json_values.loads(request.payload)
            self._check_recent(asked)
            answer = self._actions[asked["action"]](asked["arguments"])
            return json_values.dumps({"answer": answer})
        except JobServerError as error:
            return json_values.dumps({"error": unstructure(error)})
        except Exception:  # noqa: BLE001 - the other server must not wait in vain
            _log.exception("a request of another server failed")
            problem = Unavailable(message="the other server could not act on the request")
            return json_values.dumps({"error": unstructure(problem)})

    def _check_recent(self, asked: JsonMapping) -> None:
        now, asked_at = self._leased_until(self._server_id), datetime.fromisoformat(asked["leased_until"])
        if now is None or now - asked_at > self._lifetime:
            raise Unavailable(message="the request is too old; try again")

    def _clean(self) -> None:
        with self._lock:
            abandoned = list(self._abandoned)
        for request_id in abandoned:
            self._metadata.remove_request(request_id)
            with self._lock:
                self._abandoned.discard(request_id)
        now = self._clock.monotonic()
        if self._cleaned_at is None or now - self._cleaned_at > REQUEST_RETENTION.total_seconds():
            self._metadata.delete_requests(created_before=self._clock.now() - REQUEST_RETENTION)
            self._cleaned_at = now


def _is_read(request: ServerRequest) -> bool:
    try:
        return bool(json_values.loads(request.payload)["action"] == Action.READ_LOG.value)
    except (ValueError, LookupError, TypeError):  # the answer says what is wrong
        return False


def _result_of(answer: str) -> JsonObject:
    from jobserver_core.models.serialization import structure  # noqa: PLC0415 - needs cattrs

    read = json_values.loads(answer)
    if "error" in read:
        raise structure(read["error"], JobServerError)
    found: JsonObject = read["answer"]
    return found
