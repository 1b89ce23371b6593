"""Fetch the files of class paths, so that a slow host delays only the callers that need it.

Users choose the host that a file comes from. That host may accept a connection and never answer, or send one
byte per second. So no request waits for a fetch on a thread that others need: fetches run on separate
threads, whose number is bounded, and the caller gets a waiter. Three rules keep one host or one caller from
occupying all of these threads:

- at most ``per_host`` fetches from one host and ``per_caller`` for one caller run at once; further ones wait
  without a thread, and fetches that have room overtake them;
- a fetch that receives less than ``PROGRESS`` bytes in ``stall_timeout`` seconds is ended. Time counts only
  while nothing but the host can be the cause. A fetch that is queued behind others of the same host counts as
  waiting for that host, unless they make progress;
- a fetch ends at once when its caller leaves, or when the server stops accepting work.

Ending a fetch means two things. The waiter fails at once, whatever the fetcher does. The fetcher is notified
through its :class:`Cancellation`; if it does not react, it keeps its place until it returns, so the number of
threads stays bounded.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from jobserver_core.errors import Conflict, FetchError, JobServerError, ServerClosed
from jobserver_core.ports import Cancellation, Clock, Fetched, Fetcher
from jobserver_core.ports.faults import release
from jobserver_core.running.user_thread import CallBack, call_here
from jobserver_core.running.waiting import Promise, Waiter
from jobserver_core.shutdown import Admission
from jobserver_core.uris import Uri

if TYPE_CHECKING:
    from jobserver_core.config.settings import FetcherSettings

__all__ = ["PROGRESS", "FetchService", "FetchedFiles", "Preparation"]

PROGRESS = 32 * 1024
"""The number of bytes that a fetch must receive to count as making progress."""
MAX_WAITING = 1000
"""The maximum number of queued fetches. It does not apply to the server's own fetches after a restart."""
_INSPECTIONS = 1.0
"""Seconds between two checks of the progress of fetches."""

T = TypeVar("T")


@attrs.define(eq=False)
class _Meter:
    """When something last made progress, by the clock's monotonic time."""

    at: float = float("-inf")
    _bytes: int = 0

    def add(self, size: int, now: float) -> None:
        self._bytes += max(0, size)
        if self._bytes >= PROGRESS:
            self._bytes = 0
            self.at = now


@attrs.define(eq=False)
class _Fetch:
    """One URI for one class path: waiting for a place, running, or done."""

    uri: str
    parsed: Uri
    files: FetchedFiles
    caller: str
    queued_at: float
    since: float
    """The time from which only the host can be the cause of a delay."""
    meter: _Meter
    host_meter: _Meter
    cancellation: Cancellation = attrs.field(factory=Cancellation)

    @property
    def host(self) -> str:
        return _host_of(self.parsed)


class FetchedFiles(Mapping[str, Fetched]):
    """The files of one class path by URI, complete once :attr:`ready` is done.

    Leaving its ``with`` block cancels running fetches and releases the files.
    """

    def __init__(
        self, uris: Iterable[str], leave: Callable[[FetchedFiles], None], call_back: CallBack = call_here
    ) -> None:
        self._promise: Promise[None] = Promise("fetching the files of a class path", call_back)
        self.ready: Waiter[None] = self._promise.waiter
        """Done once every file is fetched; fails with the first error."""
        self._missing = set(uris)
        self._files: dict[str, Fetched] = {}
        self._leases = ExitStack()
        self._lock = threading.Lock()
        self._closed = False
        self._leave = leave
        if not self._missing:
            self._promise.keep(None)

    @property
    def missing(self) -> list[str]:
        """The URIs of missing files, without the parts that may be secret."""
        with self._lock:
            return sorted(str(Uri.parse(uri)) for uri in self._missing)

    def cancel(self, error: JobServerError) -> None:
        """Stop fetching, and fail the waiter with an error; does nothing once every file is fetched."""
        with self._lock:
            self._closed = self._closed or bool(self._missing)
        self._promise.fail(error)
        self._leave(self)

    def close(self) -> None:
        """Stop fetching, and release the files; idempotent."""
        if not (self._files or self._missing):
            return
        self.cancel(FetchError(url=", ".join(self.missing), reason="it is no longer needed"))
        with self._lock:  # no more files arrive: either all are here, or cancel() has closed this
            leases = self._leases.pop_all()
        release("fetched files", leases.close)

    def _deliver(self, uri: str, fetched: Fetched, lease: ExitStack) -> None:
        """Take ownership of a file and its lease, unless the file is no longer needed."""
        with self._lock:
            if self._closed:
                return
            self._leases.push(lease.pop_all())
            self._files[uri] = fetched
            self._missing.discard(uri)
            complete = not self._missing
        if complete:
            self._promise.keep(None)

    def __getitem__(self, uri: str) -> Fetched:
        return self._files[uri]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __enter__(self) -> FetchedFiles:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@attrs.define(eq=False)
class FetchService:
    """Fetches the files of class paths, within ``settings``; sizes are in bytes, times in seconds."""

    _fetcher: Fetcher
    _clock: Clock
    _settings: FetcherSettings
    _admission: Admission
    _call_back: CallBack = call_here
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _waiting: list[_Fetch] = attrs.field(factory=list, init=False)
    _running: list[_Fetch] = attrs.field(factory=list, init=False)
    _meters: dict[str, _Meter] = attrs.field(factory=dict, init=False)
    _inspecting: bool = attrs.field(default=False, init=False)
    _nothing: FetchedFiles = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._nothing = FetchedFiles((), self._leave, self._call_back)

    def begin(self, uris: Iterable[str], caller: str = "") -> FetchedFiles:
        """Begin to fetch. The caller must close the result.

        ``caller`` is subject to the limit per caller; the empty string, for the server itself, has no limit.

        Raises:
            MalformedUrl: A URI is malformed or not allowed. Nothing is fetched.
            FetchError: Too many fetches are queued.
            ServerClosed: The server accepts no new work.
        """
        wanted = list(dict.fromkeys(uris))
        for uri in wanted:
            self._fetcher.check(uri)
        if not wanted:
            return self._nothing
        files = FetchedFiles(wanted, self._leave, self._call_back)
        now = self._clock.monotonic()
        with self._lock:
            self._admission.check()
            if caller and len(self._waiting) + len(wanted) > MAX_WAITING:
                reason = f"{len(self._waiting)} fetches wait already; try again later"
                raise FetchError(url=str(Uri.parse(wanted[0])), reason=reason)
            self._waiting += [self._make_fetch(uri, files, caller, now) for uri in wanted]
            started = self._start_those_with_room()
            self._inspect_later()
        self._run(started)
        return files

    def prepare(
        self, uris: Iterable[str], finish: Callable[[FetchedFiles], T], caller: str = ""
    ) -> Preparation[T]:
        """Begin to fetch the files for an operation, which ``finish`` carries out.

        Finishing fails with ServerClosed if the server accepts no new work.

        Raises:
            JobServerError: As :meth:`begin` does.
        """
        self._admission.check()
        files = self.begin(uris, caller)

        def finish_if_open() -> T:
            self._admission.check()
            return finish(files)

        return Preparation(files, finish_if_open)

    def close(self) -> None:
        """Cancel every fetch and refuse new ones; waiting callers get ServerClosed."""
        with self._lock:
            self._admission.close()
            affected = [*self._waiting, *self._running]
        for files in {id(fetch.files): fetch.files for fetch in affected}.values():
            files.cancel(ServerClosed())

    # -- places ------------------------------------------------------------------------------------

    def _make_fetch(self, uri: str, files: FetchedFiles, caller: str, now: float) -> _Fetch:
        parsed = Uri.parse(uri)
        meter, host_meter = (self._meters.setdefault(key, _Meter()) for key in _keys(parsed))
        return _Fetch(uri, parsed, files, caller, now, now, meter, host_meter)

    def _start_those_with_room(self) -> list[_Fetch]:
        """Start the queued fetches that may run, oldest first."""
        hosts = Counter(fetch.host for fetch in self._running)
        callers = Counter(fetch.caller for fetch in self._running)
        started: list[_Fetch] = []
        for fetch in self._waiting:
            if len(self._running) >= self._settings.concurrency:
                break
            caller_has_room = not fetch.caller or callers[fetch.caller] < self._settings.per_caller
            if hosts[fetch.host] < self._settings.per_host and caller_has_room:
                hosts[fetch.host] += 1
                callers[fetch.caller] += 1
                fetch.since = max(fetch.since, fetch.host_meter.at)
                self._running.append(fetch)
                started.append(fetch)
        self._waiting = [fetch for fetch in self._waiting if fetch not in started]
        return started

    def _leave(self, files: FetchedFiles) -> None:
        """Remove the queued fetches of a caller that left, and cancel the running ones."""
        with self._lock:
            self._waiting = [fetch for fetch in self._waiting if fetch.files is not files]
            running = [fetch for fetch in self._running if fetch.files is files]
        for fetch in running:
            fetch.cancellation.cancel("it is no longer needed")

    # -- running -----------------------------------------------------------------------------------

    def _run(self, started: list[_Fetch]) -> None:
        for fetch in started:
            name = f"jobserver-fetch-{fetch.host}"
            threading.Thread(target=self._fetch, args=(fetch,), name=name, daemon=True).start()

    def _fetch(self, fetch: _Fetch) -> None:
        try:
            progress, cancellation = self._progress_of(fetch), fetch.cancellation
            with ExitStack() as lease:
                fetched = lease.enter_context(
                    self._fetcher.fetch(fetch.uri, progress=progress, cancellation=cancellation)
                )
                fetch.files._deliver(fetch.uri, fetched, lease)
            fetch.host_meter.add(PROGRESS, self._clock.monotonic())
        except JobServerError as error:
            fetch.files.cancel(error)
        finally:
            self._end(fetch)

    def _end(self, fetch: _Fetch) -> None:
        with self._lock:
            self._running.remove(fetch)
            started = self._start_those_with_room()
            fetches = [*self._running, *self._waiting]
            if len(self._meters) > 100 + 4 * len(fetches):  # drop unused ones from time to time
                needed = {key for fetch in fetches for key in _keys(fetch.parsed)}
                self._meters = {key: meter for key, meter in self._meters.items() if key in needed}
        self._run(started)

    def _progress_of(self, fetch: _Fetch) -> Callable[[int, int | None], None]:
        before = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal before
            now = self._clock.monotonic()
            fetch.meter.add(done - before, now)
            fetch.host_meter.add(done - before, now)
            before = done

        return progress

    # -- ending stalled fetches --------------------------------------------------------------------

    def _inspect_later(self) -> None:
        if not self._inspecting:
            self._inspecting = True
            delay = min(_INSPECTIONS, self._settings.stall_timeout / 4)
            self._clock.call_later(delay, self._inspect)

    def _inspect(self) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._inspecting = False
            hosts = Counter(fetch.host for fetch in self._running)
            # Waiting fetches come first: otherwise they would take the places of running ones that fail here.
            failed = [(fetch, self._fault_of_waiting(fetch, hosts, now)) for fetch in self._waiting]
            failed += [(fetch, self._fault_of_running(fetch, now)) for fetch in self._running]
            if self._running or self._waiting:
                self._inspect_later()
        for fetch, reason in failed:
            if reason is not None:
                fetch.files.cancel(FetchError(url=str(fetch.parsed), reason=reason))

    def _fault_of_running(self, fetch: _Fetch, now: float) -> str | None:
        limit = self._settings.stall_timeout
        if now - max(fetch.since, fetch.meter.at) >= limit:
            return f"it received less than {PROGRESS // 1024} KiB in {limit:g} s"
        return self._timed_out(fetch, now)

    def _fault_of_waiting(self, fetch: _Fetch, hosts: Counter[str], now: float) -> str | None:
        limit, others = self._settings.stall_timeout, hosts[fetch.host]
        if others < self._settings.per_host:
            fetch.since = now  # it is not waiting for its host
        elif now - max(fetch.since, fetch.host_meter.at) >= limit:
            return f"{others} other fetches from {fetch.host} received next to nothing in {limit:g} s"
        return self._timed_out(fetch, now)

    def _timed_out(self, fetch: _Fetch, now: float) -> str | None:
        if now - fetch.queued_at >= self._settings.timeout:
            return f"it took longer than {self._settings.timeout:g} s"
        return None


def _keys(uri: Uri) -> tuple[str, str]:
    """Return the keys under which the meters of a URI and its host are kept."""
    return uri.canonical, f"host {_host_of(uri)}"


def _host_of(uri: Uri) -> str:
    """Return the host that a URI is fetched from; URIs of a scheme without hosts share one."""
    return uri.host or uri.scheme


class Preparation(Generic[T]):
    """An operation whose files are being fetched: wait for :attr:`ready`, then :meth:`finish`, once.

    Leaving its ``with`` block without finishing cancels it, and nothing is recorded.
    """

    def __init__(self, files: FetchedFiles, finish: Callable[[], T]) -> None:
        self._files = files
        self._finish = finish
        self._lock = threading.Lock()
        self._over: str | None = None
        """Why it cannot be finished any more."""

    @property
    def ready(self) -> Waiter[None]:
        """Done once :meth:`finish` can be called without waiting for the network."""
        return self._files.ready

    @property
    def missing(self) -> list[str]:
        """The URIs of missing files, without the parts that may be secret."""
        return self._files.missing

    def finish(self) -> T:
        """Wait for the files, carry out the operation, and return its result. Its errors propagate.

        Raises:
            Conflict: It was called before, or the preparation is closed.
        """
        self._check()
        self._files.ready.result()
        with self._lock:
            self._check()
            self._over = "finish() was called already"
        return self._finish()

    def _check(self) -> None:
        if self._over is not None:
            raise Conflict(message=f"nothing was done: {self._over}; begin again")

    def close(self) -> None:
        """Cancel the unfinished fetches, and release the files. Idempotent."""
        with self._lock:
            self._over = self._over or "the preparation is closed"
        self._files.close()

    def __enter__(self) -> Preparation[T]:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
