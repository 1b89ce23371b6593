"""The state of an interpreter that a job can change and Python can read, one capture for each kind.

A capture is called once and returns the function that restores the captured state.
:mod:`jobserver_pyspark.runner.process_state` calls them.
"""

from __future__ import annotations

import builtins
import copyreg
import decimal
import gc
import io
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

Restore = Callable[[], None]


def _environment() -> Restore:
    saved = dict(os.environ)

    def restore() -> None:
        if dict(os.environ) != saved:
            os.environ.clear()
            os.environ.update(saved)
            time.tzset()

    return restore


def _attributes_of(owner: object, *names: str) -> Callable[[], Restore]:
    """Capture attributes by reference, and the contents of those that are lists or dicts."""

    def capture() -> Restore:
        saved = [(name, getattr(owner, name)) for name in names if hasattr(owner, name)]
        contents = [(value, value.copy()) for _, value in saved if isinstance(value, (list, dict))]

        def restore() -> None:
            for value, content in contents:
                if value != content:
                    value.clear()
                    value.extend(content) if isinstance(value, list) else value.update(content)
            for name, value in saved:
                if getattr(owner, name, None) is not value:
                    setattr(owner, name, value)

        return restore

    return capture


def _namespace(name: str) -> Callable[[], Restore]:
    """Capture every name of a module."""

    def capture() -> Restore:
        names = vars(sys.modules[name])
        saved = dict(names)

        def restore() -> None:  # without the built-in functions, which may be missing
            names.update(saved)
            for added in names.keys() - saved.keys():
                del names[added]

        return restore

    return capture


def _stream_settings() -> Restore:
    """Capture the modes of standard output and error; restoring a closed stream raises an error."""
    names = ("encoding", "errors", "line_buffering", "write_through")
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    saved = [{name: getattr(stream, name) for name in names} for stream in streams]

    def restore() -> None:
        for stream, settings in zip(streams, saved, strict=True):
            stream.flush()
            if {name: getattr(stream, name) for name in names} != settings:
                stream.reconfigure(**settings)

    return restore


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (threading.gettrace, threading.settrace),
    (threading.getprofile, threading.setprofile),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (gc.get_threshold, lambda threshold: gc.set_threshold(*threshold)),
    (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    (os.getcwd, os.chdir),
    (_mask, os.umask),
    (lambda: locale.setlocale(locale.LC_ALL), lambda language: locale.setlocale(locale.LC_ALL, language)),
    (lambda: decimal.getcontext().copy(), lambda context: decimal.setcontext(context.copy())),
    (lambda: logging.root.manager.disable, logging.disable),
    (logging.getLogRecordFactory, logging.setLogRecordFactory),
    (logging.getLoggerClass, logging.setLoggerClass),
]
"""The functions that read and write a setting of the process, the interpreter or the standard library."""
if hasattr(sys, "get_int_max_str_digits"):  # since Python 3.10.7
    _SETTINGS.append((sys.get_int_max_str_digits, sys.set_int_max_str_digits))


def _settings() -> Restore:
    saved = [(write, read()) for read, write in _SETTINGS]

    def restore() -> None:
        for write, value in saved:
            write(value)
        gc.set_debug(0)
        logging.captureWarnings(False)

    return restore


def _signals() -> Restore:
    saved = {number: signal.getsignal(number) for number in signal.valid_signals()}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore() -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        signal.set_wakeup_fd(-1)
        for number, handler in saved.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    return restore


def _warning_filters() -> Restore:
    def enter() -> warnings.catch_warnings[None]:
        guard = warnings.catch_warnings()
        guard.__enter__()
        return guard

    guard = enter()

    def restore() -> None:
        nonlocal guard
        guard.__exit__(None, None, None)
        guard = enter()

    return restore


_LoggerState = tuple[int, list[logging.Handler], list[Any], bool, bool]
_NEW_LOGGER: _LoggerState = (logging.NOTSET, [], [], True, False)


def _loggers() -> Restore:
    def state(logger: logging.Logger) -> _LoggerState:
        return logger.level, [*logger.handlers], [*logger.filters], logger.propagate, logger.disabled

    def known() -> dict[str, logging.Logger]:
        found = logging.root.manager.loggerDict.items()
        return {"": logging.root} | {n: one for n, one in found if isinstance(one, logging.Logger)}

    saved = {name: state(logger) for name, logger in known().items()}

    def restore() -> None:
        for name, logger in known().items():
            wanted = saved.get(name, _NEW_LOGGER)
            if state(logger) == wanted:
                continue
            level, handlers, filters, propagate, disabled = wanted
            for handler in [*logger.handlers]:
                if handler not in handlers:
                    logger.removeHandler(handler)
                    handler.close()
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.propagate, logger.disabled = propagate, disabled
            logger.setLevel(level)

    return restore


def seed_random_numbers() -> None:
    """Make the random numbers of this process differ from those of others with the same parent."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None and "numpy.random" in sys.modules:
        numpy.random.seed()


def _numbers() -> Restore:
    """The templates of decimal arithmetic, and random numbers."""
    contexts = (decimal.DefaultContext, decimal.BasicContext, decimal.ExtendedContext)
    saved = [context.copy() for context in contexts]

    def restore() -> None:
        for context, values in zip(contexts, saved, strict=True):
            for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp"):
                setattr(context, name, getattr(values, name))
            context.traps.update(values.traps)
            context.clear_flags()
        seed_random_numbers()

    return restore


def _limits() -> Restore:
    kinds = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
    saved = {kind: resource.getrlimit(kind) for kind in kinds}
    cores = os.sched_getaffinity(0)

    def restore() -> None:
        for kind, limits in saved.items():
            if resource.getrlimit(kind) != limits:
                resource.setrlimit(kind, limits)
        if os.sched_getaffinity(0) != cores:
            os.sched_setaffinity(0, cores)

    return restore


def _optional_libraries() -> Restore:
    """State that modules of the standard library keep for the whole process, if they are imported."""
    defaults = (
        ("urllib.request", "install_opener", None),
        ("asyncio", "set_event_loop", None),
        ("csv", "field_size_limit", 131072),
    )

    def restore() -> None:
        tempfile.tempdir = None
        for module, function, value in defaults:
            if module in sys.modules:
                getattr(sys.modules[module], function)(value)

    return restore


CAPTURES: tuple[Callable[[], Restore], ...] = (
    _namespace(builtins.__name__),
    _environment,
    _attributes_of(sys, "path", "argv", "orig_argv", "meta_path", "path_hooks", "warnoptions", "_xoptions"),
    _attributes_of(sys, "stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__"),
    _attributes_of(
        sys, "excepthook", "displayhook", "unraisablehook", "breakpointhook", "dont_write_bytecode"
    ),
    _attributes_of(threading, "excepthook"),
    _attributes_of(logging, "raiseExceptions", "lastResort", "_levelToName", "_nameToLevel"),
    _attributes_of(copyreg, "dispatch_table"),
    _attributes_of(gc, "callbacks"),
    _namespace("__main__"),
    _stream_settings,
    _settings,
    _signals,
    _loggers,
    _warning_filters,
    _numbers,
    _limits,
    _optional_libraries,
)
