"""Exit handlers of one job, which run when the job ends and not when its process ends.

A runner serves many jobs, and each expects its own exit handlers to run at its end. Handlers that job code
registers run then. Handlers that a library registers while it is imported run at the end of the process,
since the library stays that long. One that a library registers later, in the middle of a job, could belong
to either: then :attr:`ExitHandlers.unclear` is set, all handlers run at the end of the job, and the process
ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

Handler = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]


class ExitHandlers:
    """Replaces :func:`atexit.register`, so that the handlers of one job can be run alone."""

    def __init__(self) -> None:
        weakref.finalize(self, _nothing).detach()  # makes weakref register its only handler now
        self._handlers: list[tuple[str | None, Handler]] = []
        self.unclear = False
        atexit.register = self._register
        atexit.unregister = self._unregister
        self._native_run: Callable[[], None] = atexit._run_exitfuncs
        atexit._run_exitfuncs = lambda: self.run(lambda _name: True, everything=True)

    def run(self, is_of_job: Callable[[str | None], bool], *, everything: bool) -> None:
        """Run the handlers, newest first; print their exceptions, as at the end of a process."""
        for name, handler in reversed(self._handlers[:]):
            if everything or is_of_job(name):
                if (name, handler) in self._handlers:
                    self._handlers.remove((name, handler))
                _call(handler)
        if everything:
            self._native_run()

    def _register(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if not callable(func):
            raise TypeError("the first argument must be callable")
        caller = _caller()
        name = caller.f_globals.get("__name__") if caller else None
        self._handlers.append((name, (func, args, kwargs)))
        if caller is not None and name in _LIBRARIES_WITH_LATE_HANDLERS:
            return func
        if caller is not None and caller.f_code.co_name != "<module>" and _is_installed(caller):
            self.unclear = True
        return func

    def _unregister(self, func: Callable[..., Any], /) -> None:
        self._handlers = [entry for entry in self._handlers if entry[1][0] != func]


_LIBRARIES_WITH_LATE_HANDLERS = frozenset({"logging", "weakref", "concurrent.futures.thread"})


def _call(handler: Handler) -> None:
    func, args, kwargs = handler
    try:
        func(*args, **kwargs)
    except SystemExit:
        pass
    except BaseException:  # noqa: BLE001 - the other handlers still run
        with suppress(Exception):  # the job may have closed its output
            traceback.print_exc()


def _caller() -> FrameType | None:
    """Return the frame that called ``atexit.register``."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame


def _is_installed(frame: FrameType) -> bool:
    roots = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    return os.path.realpath(frame.f_code.co_filename).startswith(roots)


def _nothing() -> None:
    pass
