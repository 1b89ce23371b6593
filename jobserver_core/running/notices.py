"""Notices between servers that share the metadata store, and the workers that the notices wake.

Theory
======

The problem: one server stores something for another: a job for its context, or the end of a job that a client
is waiting for there. The other server should react within milliseconds, but must not query the store many
times a second, and a notice may be lost.

The idea: a notice only names what to read: a topic and the ids of records. The truth is in the store. Each
topic has one :class:`Worker`, which *scans* the named records on a separate thread. When notices may have
been lost, and every :data:`POLL` seconds in any case, it scans all records. So a lost notice costs time,
never a job.

The invariants: sending never blocks or fails; notices that cannot be sent are dropped. A worker runs
one scan at a time; records that are named during a scan are read in the next one.

Deliberately not handled: a store that is not shared. Its only server already knows everything, so nothing is
sent and no worker is woken.
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

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

POLL = 5.0
"""Seconds between two scans of all records."""
_BATCH = 50
"""The maximum number of ids in one notice, which stays far below the maximum length."""

Scan = Callable[[frozenset[str] | None], None]


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
    PASSED_ON = "passed-on"
    """These servers were given jobs of lost contexts for which another one has no room."""
    ANSWERED = "answered"
    """These requests have an answer."""


def notice_of(topic: Topic, record_id: str) -> str:
    """Return one notice as it is sent."""
    return json.dumps([topic.value, record_id])


class Worker:
    """Runs one scan at a time, on a thread that exists only while there is something to scan. Thread-safe."""

    def __init__(self, name: str, scan: Scan) -> None:
        self._name = name
        self._scan = scan
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._everything = False
        self._wanted = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def wake(self, ids: frozenset[str] | None) -> None:
        """Scan the records with these ids (possibly none), or all records if ``ids`` is None."""
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
            except RuntimeError as error:  # no more threads; the next call tries again
                _repeats.warning(name, "cannot read the notices of other servers: %s", error)
                return
            self._running, self._thread = True, thread

    def close(self) -> None:
        """Start no more scans, and wait for a running one. Idempotent."""
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
                self._scan(ids)
            except StorageError as error:
                text = f"notices of other servers ({self._name}) wait for storage: %s"
                _repeats.warning(self._name, text, error)
            except Exception:  # noqa: BLE001 - the next scan may succeed
                _log.exception("cannot act on notices of other servers (%s)", self._name)


class Notices:
    """Sends notices to the other servers, and wakes workers when notices arrive. Thread-safe."""

    def __init__(self, metadata: MetadataStore, clock: Clock, has_peers: Callable[[], bool]) -> None:
        """``has_peers`` returns whether there are other servers that may wait for jobs of this one."""
        self._metadata = metadata
        self._clock = clock
        self._has_peers = has_peers
        self._workers: dict[str, Worker] = {}
        self._sender = Worker("sender", self._send)
        self._timer: Timer | None = None
        self._lock = threading.Lock()
        self._started = False
        self._heard = False
        self._closed = False

    def on(self, topic: Topic, scan: Scan) -> None:
        """Call ``scan`` with the ids of records that others named, or with None for all records.

        Its calls do not overlap, and run on a separate thread. Register it before :meth:`start`.
        """
        self._workers[topic.value] = Worker(topic.value, scan)

    def start(self) -> None:
        """Start to listen and scan, if the store is shared."""
        if self._metadata.shared:
            self._started = True
            self._metadata.listen(self._receive)
            self._schedule()

    def wake(self, topic: Topic, ids: frozenset[str] | None = frozenset()) -> None:
        """Have this server scan these records, as if a notice had named them."""
        if self._started:
            self._workers[topic.value].wake(ids)

    def send(self, topic: Topic, record_id: str) -> None:
        """Notify all servers that there is something new about a record."""
        if self._started and (topic is not Topic.ENDED or self._heard or self._has_peers()):
            self._sender.wake(frozenset([notice_of(topic, record_id)]))

    def close(self) -> None:
        """Stop sending and scanning, and wait for running scans. Idempotent."""
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
        except (ValueError, TypeError):  # from a later release, or from another program
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
