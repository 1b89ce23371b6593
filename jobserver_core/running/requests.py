"""Requests to the server that has a context: to kill, to stop, and to read a log.

Theory
======

The problem: a user asks any server, but only the owner of a context can act on it. The user must get the same
answer as from the owner, also if the owner dies in the meantime.

The idea: the request is stored for the owner, a notice wakes it, it acts and stores its answer, and a notice
wakes the server that asked. Servers need no connection to each other and no common secret: the database,
which they trust already, is the only way between them.

The invariants: every request is idempotent, because an owner that dies may have acted before it could
answer. A server that waits no longer removes its request, so the owner does not act on it later; if there is
an answer at that moment, it counts. An owner whose registration is gone will not answer: the caller is told
at once that the context is being taken over, and can try again.

Deliberately not handled: requests of a server that dies before it has removed them. They are acted on, and
are deleted after :data:`KEPT`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from enum import Enum

from jobserver_core.errors import JobServerError, OnAnotherServer, ServerClosed, Unavailable
from jobserver_core.models import json_values
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports import Clock, Ids, MetadataStore
from jobserver_core.running.notices import Notices, Topic

__all__ = ["Action", "Requests"]

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for an answer; an owner that takes longer hangs, or is about to be declared dead."""
PAUSE = 1.0
"""Seconds between two looks at the store for an answer whose notice was lost."""
KEPT = timedelta(hours=1)
"""How long a request is kept that nobody removes."""

Act = Callable[[JsonMapping], JsonObject]


class Action(str, Enum):
    """What a server can ask of another one."""

    KILL_JOB = "kill-job"
    STOP_CONTEXT = "stop-context"
    KILL_CONTEXT = "kill-context"
    READ_LOG = "read-log"


class Requests:
    """Asks other servers, and answers what they ask. Thread-safe."""

    def __init__(
        self, *, metadata: MetadataStore, notices: Notices, clock: Clock, ids: Ids, server_id: str
    ) -> None:
        self._metadata = metadata
        self._notices = notices
        self._clock = clock
        self._ids = ids
        self._server_id = server_id
        self._actions: dict[str, Act] = {}
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._cleaned_at: float | None = None
        self._closed = False
        notices.on(Topic.REQUESTED, self._answer_all)
        notices.on(Topic.ANSWERED, self._wake)

    def on(self, action: Action, act: Act) -> None:
        """Answer requests for an action with what ``act`` returns for their arguments, or its error."""
        self._actions[action.value] = act

    def close(self) -> None:
        """Let those who wait for an answer fail with ServerClosed. Idempotent."""
        self._closed = True
        self._wake(None)

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, server_id: str, action: Action, arguments: JsonMapping, what: str) -> JsonObject:
        """Have another server act, and return its answer, or raise the error that it raised.

        ``what`` names what belongs to the other server.

        Raises:
            Unavailable: The other server is gone or does not answer. The caller can try again.
            ServerClosed: This server is closing.
        """
        self._check_alive(server_id, what)
        request = ServerRequest(
            id=self._ids.new(),
            recipient=server_id,
            created_at=self._clock.now(),
            text=json_values.dumps({"action": action.value, "arguments": arguments}),
        )
        answered = threading.Event()
        with self._lock:
            self._waiting[request.id] = answered
        try:
            self._metadata.add_request(request)
            self._notices.send(Topic.REQUESTED, server_id)
            return self._wait(request, answered, what)
        except OnAnotherServer as moved:
            raise Unavailable(message=f"{what} has moved to another server; try again") from moved
        finally:
            with self._lock:
                self._waiting.pop(request.id, None)

    def _wait(self, request: ServerRequest, answered: threading.Event, what: str) -> JsonObject:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        try:
            while time.monotonic() < deadline and not self._closed:
                answered.wait(PAUSE)
                answered.clear()
                stored = self._metadata.request(request.id)
                if stored is None or stored.answer is not None:
                    break
                self._check_alive(request.recipient, what)
        finally:
            removed = self._metadata.remove_request(request.id)
        if removed is not None and removed.answer is not None:
            return _read(removed.answer)
        if self._closed:
            raise ServerClosed()
        raise Unavailable(message=f"the server of {what} does not respond; try again")

    def _check_alive(self, server_id: str, what: str) -> None:
        if all(server.id != server_id for server in self._metadata.servers()):
            raise Unavailable(message=f"{what} is being taken over by another server; try again")

    def _wake(self, request_ids: frozenset[str] | None) -> None:
        with self._lock:
            chosen = [e for key, e in self._waiting.items() if request_ids is None or key in request_ids]
        for event in chosen:
            event.set()

    # -- answering ---------------------------------------------------------------------------------

    def _answer_all(self, server_ids: frozenset[str] | None) -> None:
        """Answer the requests to this server. Raises StorageError."""
        if server_ids is None:
            self._clean()
        elif self._server_id not in server_ids:
            return
        for request in self._metadata.requests_to(self._server_id):
            if not self._closed and self._metadata.request(request.id) is not None:
                self._metadata.answer_request(request.id, self._answer(request))
                self._notices.send(Topic.ANSWERED, request.id)

    def _answer(self, request: ServerRequest) -> str:
        from jobserver_core.models.serialization import unstructure  # noqa: PLC0415 - needs cattrs

        try:
            asked = json_values.loads(request.text)
            answer = self._actions[asked["action"]](asked["arguments"])
            return json_values.dumps({"answer": answer})
        except JobServerError as error:
            return json_values.dumps({"error": unstructure(error)})
        except Exception:  # noqa: BLE001 - the other server must not wait for nothing
            _log.exception("a request of another server failed")
            problem = Unavailable(message="the other server could not act on the request")
            return json_values.dumps({"error": unstructure(problem)})

    def _clean(self) -> None:
        now = self._clock.monotonic()
        if self._cleaned_at is None or now - self._cleaned_at > KEPT.total_seconds():
            self._metadata.delete_requests(created_before=self._clock.now() - KEPT)
            self._cleaned_at = now


def _read(answer: str) -> JsonObject:
    from jobserver_core.models.serialization import structure  # noqa: PLC0415 - needs cattrs

    read = json_values.loads(answer)
    if "error" in read:
        raise structure(read["error"], JobServerError)
    found: JsonObject = read["answer"]
    return found
