"""The modules of ``python.preload``: the zygote imports them, so that no runner has to.

A runner is a fork of the zygote, and a fork has neither its threads nor its child processes. A module that
leaves some when it is imported would not work in a job, so it is refused. Native threads are not counted:
numpy and Arrow keep some, and start them again after a fork.

Everything else that an import changes is the state from which jobs start. Exceptions are what the zygote and
the runners need themselves: the standard streams are restored here, the signal of children by the zygote.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import pkgutil
import sys
import threading
import time
import traceback
from pathlib import Path

from jobserver_pyspark import processes
from jobserver_pyspark.protocol.failures import describe

_SETTLE_TIMEOUT = 1.0
"""Seconds for threads and processes that an import has started to end by themselves."""
_MAX_PROBLEM = 4096
"""The most characters of a problem, which has to fit into a packet of the zygote."""
_PAUSE = 0.01
"""Seconds between two checks for what an import leaves running."""


def preload(name: str) -> str | None:
    """Import a module; return None, or why jobs cannot start from what that has done."""
    streams = sys.stdin, sys.stdout, sys.stderr
    try:
        importlib.import_module(name)
        problem = _left_behind(name)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, also SystemExit
        with contextlib.suppress(ValueError):  # the module has closed the stream
            traceback.print_exc(file=streams[2])  # into the context's log
        problem = f"cannot import {name!r}: {_reason(name, error)}"
    finally:
        for stream in (sys.stdout, sys.stderr, *streams[1:]):
            with contextlib.suppress(Exception):  # a stream of the module's own may fail
                stream.flush()  # otherwise each fork would write it once more
        sys.stdin, sys.stdout, sys.stderr = streams
    if problem is None and any(stream.closed for stream in streams):
        problem = f"the import of {name!r} closes a standard stream, which jobs need"
    return problem and f"python.preload: {problem}"[:_MAX_PROBLEM]


def _reason(name: str, error: BaseException) -> str:
    if not isinstance(error, ImportError):
        return f"{type(error).__name__}: {describe(error)}"
    top = name.partition(".")[0]
    near = []
    if error.name == top:
        near = difflib.get_close_matches(top, {module.name for module in pkgutil.iter_modules()}, n=1)
    return describe(error) + (f"; did you mean {near[0]!r}?" if near else "")


def _left_behind(name: str) -> str | None:
    """Return what still runs of an import after a moment, as a message, or None."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT
    while left := _running():
        if time.monotonic() > deadline:
            return f"the import of {name!r} leaves {left} running, which the processes of jobs would not have"
        time.sleep(_PAUSE)
    return None


def _running() -> str | None:
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if threads:
        return f"the thread {threads[0]!r}"
    for child in processes.children(os.getpid()):
        if processes.start_time(child) is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                return f"the process {Path(f'/proc/{child}/comm').read_text().strip()!r}"
    return None
