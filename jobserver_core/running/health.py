"""Check whether the parts of a server work, for probes that need a quick answer.

Checking storage means writing to it, and a disk or network that hangs blocks the writer. Probes arrive every
few seconds from several clients, and time out after a few more. So each part has a checker that runs at most
one check at a time, on its own thread, and shares the outcome with every probe that arrives within
:data:`FRESH` seconds. A probe waits at most :data:`TIMEOUT` seconds. While a check is overdue, further probes
fail at once. So a part that hangs costs one thread, no matter how long it hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from jobserver_core.errors import JobServerError

_log = logging.getLogger(__name__)

FRESH = 2.0
"""Seconds for which the outcome of a check is valid for further probes."""
TIMEOUT = 3.0
"""Seconds that a check may take before its part counts as not working."""


class Health:
    """The checks of a server's parts, by name. Each raises an error that says what is wrong."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], None]],
        *,
        fresh: float = FRESH,
        timeout: float = TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._checkers = {name: _Checker(name, check, fresh) for name, check in checks.items()}

    def check(self, parts: Iterable[str] | None = None) -> dict[str, str | None]:
        """Return the problem of each part, or None if it works; ``None`` checks all parts."""
        checkers = {name: self._checkers[name] for name in (self._checkers if parts is None else parts)}
        for checker in checkers.values():
            checker.begin()
        deadline = time.monotonic() + self._timeout
        return {name: checker.outcome(deadline, self._timeout) for name, checker in checkers.items()}


class _Checker:
    """Checks one part. Uses :func:`time.monotonic` directly, because it checks the real machine."""

    def __init__(self, name: str, check: Callable[[], None], fresh: float) -> None:
        self._name = name
        self._check = check
        self._fresh = fresh
        self._changed = threading.Condition()
        self._began: float | None = None
        self._ended: float | None = None
        self._problem: str | None = None

    def begin(self) -> None:
        """Begin a check, unless one is under way or has just ended."""
        now = time.monotonic()
        with self._changed:
            if self._began is not None or (self._ended is not None and now - self._ended < self._fresh):
                return
            self._began = now
        threading.Thread(target=self._run, name=f"jobserver-check {self._name}", daemon=True).start()

    def outcome(self, deadline: float, timeout: float) -> str | None:
        """Return the problem, waiting until the deadline for a check that is not overdue."""
        with self._changed:
            if self._began is not None:
                deadline = min(deadline, self._began + timeout)
                self._changed.wait_for(lambda: self._began is None, max(0.0, deadline - time.monotonic()))
            if self._began is not None:
                return f"no answer for {max(timeout, time.monotonic() - self._began):.0f} s"
            return self._problem

    def _run(self) -> None:
        problem: str | None = None
        try:
            self._check()
        except JobServerError as error:
            problem = str(error)
        except BaseException as error:  # noqa: BLE001 - a bug in a backend is a problem like any other
            _log.exception("checking %s", self._name)
            problem = f"{type(error).__name__}: {error}"
        with self._changed:
            self._began, self._ended, self._problem = None, time.monotonic(), problem
            self._changed.notify_all()
