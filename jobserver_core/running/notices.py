"""Notices between the servers that share the metadata store, and who is woken by them.

Theory
======

The problem: one server stores something for another one: a job for its context, or the end of a job that
somebody waits for there. The other one should act within milliseconds, but must not query the store many
times a second, and a notice may be lost.

The idea: a notice says only that there is something to look at: a topic and the ids of records. What is true
is in the store. Each topic has one :class:`Worker`, which looks at the named records on a thread of its own.
When notices may have been lost, and every :data:`POLL` seconds in any case, it looks at everything. So a lost
notice costs time, never a job.

The invariants: sending never blocks or fails; notices that cannot be sent are dropped. A worker makes one
look at a time, and whatever was named during a look is looked at in the next one.

Deliberately not handled: a store that nobody shares. Its server knows everything already, so nothing is sent
and nobody is woken.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from enum import Enum

from jobserver_core.errors import StorageError
from jobserver_core.ports import Clock, MetadataStore, Timer
from jobserver_core.repeats import Repeats

__all__ = ["POLL", "Notices", "Topic", "notice_of"]

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

POLL = 5.0
"""Seconds between two looks at everything."""
_BATCH = 50
"""The most ids in one notice, far below the limit of its length."""

Look = Callable[[frozenset[str] | None], None]


class Topic(str, Enum):
    """What a notice is about."""

    SUBMITTED = "submitted"
    """Jobs were stored for contexts of other servers."""
    ENDED = "ended"
    """Jobs or contexts have ended."""
    REQUESTED = "requested"
    """There are requests to these servers."""
    LEFT = "left"
    """These servers have ended, and what they left can be taken over."""
    ANSWERED = "answered"
    """These requests have an answer."""


def notice_of(topic: Topic, record_id: str) -> str:
    """Return one notice as it is sent."""
    return json.dumps([topic.value, record_id])


class Worker:
    """Makes one look at a time, on a thread that runs while there is something to look at. Thread-safe."""

    def __init__(self, name: str, look: Look) -> None:
        self._name = name
        self._look = look
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._everything = False
        self._wanted = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def wake(self, ids: frozenset[str] | None) -> None:
        """Look at the records with these ids, which may be none, or with None at everything."""
        with self._lock:
            self._everything |= ids is None
            self._ids |= ids or frozenset()
            self._wanted = True
            if self._running or self._closed:
                return
            name = f"jobserver-notices-{self._name}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads; the next call looks
                _repeats.warning(name, "cannot look at notices of other servers: %s", error)
                return
            self._running, self._thread = True, thread

    def close(self) -> None:
        """Make no more looks, and wait for one that runs. Idempotent."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed or not self._wanted:
                    self._running = False
                    return
                ids = None if self._everything else frozenset(self._ids)
                self._ids, self._everything, self._wanted = set(), False, False
            try:
                self._look(ids)
            except StorageError as error:
                _repeats.warning(
                    self._name, f"notices of other servers ({self._name}) wait for storage: %s", error
                )
            except Exception:  # noqa: BLE001 - the next look may succeed
                _log.exception("cannot act on notices of other servers (%s)", self._name)


class Notices:
    """Sends notices to the other servers, and wakes those who wait for them here. Thread-safe."""

    def __init__(self, metadata: MetadataStore, clock: Clock) -> None:
        self._metadata = metadata
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._sender = Worker("sender", self._send)
        self._timer: Timer | None = None
        self._lock = threading.Lock()
        self._started = False
        self._heard = False
        self._closed = False
        self.has_peers: Callable[[], bool] = lambda: True
        """Whether other servers are known, who may wait for jobs of this one."""

    def on(self, topic: Topic, look: Look) -> None:
        """Call ``look`` with the ids of records that others named, or with None for everything.

        It is called once at a time, on a thread of its own. Call this before :meth:`start`.
        """
        self._workers[topic.value] = Worker(topic.value, look)

    def start(self) -> None:
        """Listen and look from now on, if the store is shared."""
        if self._metadata.shared:
            self._started = True
            self._metadata.listen(self._receive)
            self._schedule()

    def wake(self, topic: Topic, ids: frozenset[str] | None = frozenset()) -> None:
        """Let this server look again, as if a notice had named these records."""
        if self._started:
            self._workers[topic.value].wake(ids)

    def send(self, topic: Topic, record_id: str) -> None:
        """Notify all servers that there is something new about a record."""
        if self._started and (topic is not Topic.ENDED or self._heard or self.has_peers()):
            self._sender.wake(frozenset([notice_of(topic, record_id)]))

    def close(self) -> None:
        """Send and look no more, and wait for looks that run. Idempotent."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        for worker in (self._sender, *self._workers.values()):
            worker.close()

    def _send(self, notices: frozenset[str] | None) -> None:
        pending = sorted(notices or ())
        for start in range(0, len(pending), _BATCH):
            self._metadata.notify(f"[{','.join(pending[start : start + _BATCH])}]")

    def _receive(self, notice: str | None) -> None:
        if notice is None:
            self._wake_all()
            return
        try:
            named: dict[str, set[str]] = {}
            for topic, record_id in json.loads(notice):
                named.setdefault(topic, set()).add(record_id)
        except (ValueError, TypeError):  # of a later release, or of somebody else
            _log.debug("a notice cannot be read: %r", notice)
            return
        self._heard |= named.keys() != {Topic.ENDED.value}
        for topic, ids in named.items():
            if topic in self._workers:
                self._workers[topic].wake(frozenset(ids))

    def _wake_all(self) -> None:
        for worker in self._workers.values():
            worker.wake(None)

    def _poll(self) -> None:
        try:
            self._wake_all()
        finally:
            self._schedule()

    def _schedule(self) -> None:
        with self._lock:
            if not self._closed:
                self._timer = self._clock.call_later(POLL, self._poll)
