"""Start the successors of supervised contexts that died.

:mod:`~jobserver_core.running.restarts` has the theory, and decides which contexts have a successor.

A successor lives in this process from the moment it is stored: it accepts jobs, which wait in its queue, and
it can be stopped. First it gets the jobs of its predecessor. Then a timer waits for the pause, the files of
its class path are fetched, and finally it is launched. None of this happens on the thread that reported the
death, and no thread waits for the pause. Any failure here ends the successor, which counts as a death like
any other.

Nothing is launched until the server has reconciled what an earlier one left; otherwise the launcher's sweep
would end it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from jobserver_core.errors import JobServerError, ServerClosed, StorageError
from jobserver_core.ports import Clock
from jobserver_core.repeats import Repeats
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.fetching import FetchService
from jobserver_core.running.jobs import JobService
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.live_job import LiveJob
from jobserver_core.running.restarts import pause_before

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

STORAGE_PAUSE = 1.0
"""Seconds between two attempts to move a job while storage is failing."""


@attrs.define(kw_only=True, eq=False)
class Supervisor:
    """Gives the successors of dead contexts their jobs, and launches them after a pause. Thread-safe."""

    _registry: ContextRegistry
    _jobs: JobService
    _fetching: FetchService
    _clock: Clock
    _open: threading.Event = attrs.field(factory=threading.Event, init=False)
    _closed: threading.Event = attrs.field(factory=threading.Event, init=False)

    def start(self) -> None:
        """Start to launch contexts."""
        self._open.set()

    def close(self) -> None:
        """Stop launching. Jobs that could not be moved wait for the next server. Idempotent."""
        self._closed.set()
        self._open.set()

    def restart(self, context: LiveContext, jobs: Sequence[LiveJob]) -> None:
        """Give a successor the jobs of its predecessor, in their order, and launch it later."""
        record = context.record
        pause = pause_before(record)
        reason = record.error.message if record.error else ""
        text = "restarting context %s in %g s (restart %d): %s"
        _log.warning(text, record.name, pause, record.restarts, reason)
        self._on_thread(lambda: self._take_jobs(context, jobs, pause))

    def _take_jobs(self, context: LiveContext, jobs: Sequence[LiveJob], pause: float) -> None:
        for live in jobs:
            self._move(live, context)
        self._open.wait()
        if not self._closed.is_set():
            self._clock.call_later(pause, lambda: self._on_thread(lambda: self._launch(context)))

    def _move(self, live: LiveJob, context: LiveContext) -> None:
        while True:
            try:
                self._jobs.hand_over(live, context, None, partial(context.adopt, live))
                return
            except StorageError as error:
                _repeats.warning("storage", "job %s waits for storage: %s", live.job.id, error)
                if not self._closed.wait(STORAGE_PAUSE):
                    continue
            except JobServerError as error:
                _log.warning("job %s is not run again here: %s", live.job.id, error)
            live.postpone()
            return

    def _launch(self, context: LiveContext) -> None:
        """Fetch the files of a context and start it. Any failure ends it."""
        if self._closed.is_set() or not context.record.state.starting:
            return
        try:
            uris = self._registry.uris(context.record.settings)
            begin = partial(self._registry.begin_successor, context)
            with self._fetching.prepare(uris, begin) as preparation:
                preparation.finish()
        except ServerClosed:
            _log.info("context %s is not started again: the server is closing", context.record.name)
        except Exception as error:  # noqa: BLE001 - any failure is why it has died again
            context.fail(error)

    def _on_thread(self, call: Callable[[], None]) -> None:
        threading.Thread(target=call, name="jobserver-restart", daemon=True).start()
