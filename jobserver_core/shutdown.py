"""Shut a server down within a known time, whatever hangs.

A shutdown is rarely delayed by the server itself, but by a JVM that does not answer, a database that is gone,
or a receiver of callbacks that never replies. An orchestrator does not wait for them: after its grace period
it kills the server, and what was not stored by then is lost. So one deadline covers everything, divided from
its end: the last phases, in which nothing may be lost, have fixed shares that the first ones cannot use up.

====================  =========================  =========================================================
phase                 time                       what happens
====================  =========================  =========================================================
drain                 ``http.drain-timeout``     nothing new is taken, jobs that have begun may end
stop                  what is left of the rest   contexts stop gracefully, all at once
force                 ``FORCE``                  contexts that have not stopped are killed
release               ``RELEASE``                callbacks in progress end, stores are closed
====================  =========================  =========================================================

The last three are the ``jobserver.stop-timeout``. Each step runs in a thread of its own; a step that has not
returned when its time is over is left behind, and the log says so.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jobserver_core.errors import JobServerError, ServerClosed
from jobserver_core.forks import Origin

_log = logging.getLogger(__name__)

FORCE = 4.0
"""Seconds for killing the contexts that have not stopped."""
RELEASE = 3.0
"""Seconds for closing everything else."""
_BRIEF = 1.0
"""Seconds up to which nobody wonders why a shutdown takes long."""
_MOMENT = 0.1
"""Seconds for a step for which no time is left."""

SUBSCRIBER = "a subscriber"
"""The place of code that is called with an event."""
_user_code: ContextVar[str] = ContextVar("user code", default="")


@contextmanager
def user_code(place: str) -> Iterator[None]:
    """Say what code of the user runs on this thread, in case it closes the server and so waits for itself."""
    token = _user_code.set(place)
    try:
        yield
    finally:
        _user_code.reset(token)


def blocks_changes() -> bool:
    """Whether this thread runs a subscriber, after which other changes wait to be published."""
    return _user_code.get() == SUBSCRIBER


def log_own_wait(seconds: float) -> None:
    """Name the likely cause of a long shutdown if code of the user began it that may have to end first."""
    place = _user_code.get()
    if place and seconds > _BRIEF:
        text = "closing took %.1f s: close() was called in %s, which it may have waited for; %s"
        _log.warning(text, seconds, place, "call it on another thread")


class Admission:
    """Whether the server accepts new work. Once closed, it never opens again."""

    def __init__(self) -> None:
        self._open = True
        self._ended = False
        self.origin = Origin()

    @property
    def open(self) -> bool:
        """Whether the server accepts new work."""
        return self._open

    def close(self) -> None:
        """Accept no new work from now on."""
        self._open = False

    def end(self) -> None:
        """Accept nothing at all from now on: the server has closed."""
        self._open, self._ended = False, True

    def check(self) -> None:
        """Check that the server accepts new work.

        Raises:
            ServerClosed: It does not.
            Conflict: It belongs to another process.
        """
        self.check_not_ended()
        if not self._open:
            raise ServerClosed()

    def check_not_ended(self) -> None:
        """Check that the server has not closed.

        Raises:
            ServerClosed: It has.
            Conflict: It belongs to another process.
        """
        self.origin.check("job server")
        if self._ended:
            raise ServerClosed(message="the job server is closed; create a new one")


def warn_of_forgotten(owner: object, closing: str) -> None:
    """Warn of an object that nobody has closed, as Python does of a file. To be called by its ``__del__``.

    ``closing`` says how to close it. There is no warning at the end of the process, when little works.
    """
    if not sys.is_finalizing():
        warnings.warn(
            f"unclosed {type(owner).__name__}: {closing}", ResourceWarning, stacklevel=3, source=owner
        )


class Steps:
    """Runs steps one after another, together within ``seconds``; none of them can hold up the others."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def run(self, name: str, step: Callable[[], object]) -> None:
        """Run a step, and log if it fails or hangs. A step for which no time is left gets a moment.

        ``name`` says what the step does, as in "closing the clock".
        """

        def work() -> None:
            try:
                step()
            except (JobServerError, OSError) as error:
                _log.warning("%s: %s", name, error)
            except Exception:  # noqa: BLE001 - a backend's defect must not keep the others from being closed
                _log.exception("%s", name)

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        thread.join(max(_MOMENT, self._deadline - time.monotonic()))
        if thread.is_alive():
            _log.warning("%s takes too long; the shutdown goes on without it", name)
