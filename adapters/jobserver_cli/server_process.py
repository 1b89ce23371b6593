"""Preparing the server's process: its log, file descriptors, and the duties of process 1 in a container.

The problem: when the parent of a process exits, the process becomes a child of process 1 and stays a zombie
until process 1 waits for it. Contexts leave such orphans behind, because a host that is killed cannot wait
for its JVM. The server itself cannot wait for *any* child: it would consume exit statuses that other parts of
the process wait for, such as those of its own hosts.

The idea: process 1 forks before it does anything else. The child becomes the server. The parent only reaps
children and forwards signals, and exits with the server's exit status. When process 1 exits, the kernel kills
everything else in the container. ``docker run --init`` does the same with a separate program.

The invariant: the fork happens before the first thread is started and while all signals are blocked, so that
no signal is lost in between. Signals from a terminal reach the whole process group, including the server;
they are not forwarded, because the server would count one Ctrl-C as two.

Not handled: programs that embed a job server and are process 1 themselves. They need ``--init``.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
from enum import Enum
from types import ModuleType

from jobserver_cli.exits import CommandFailed, ExitCode

_log = logging.getLogger(__name__)

LIBRARY_LOGGERS = ("uvicorn", "httpx", "httpcore", "httpx2", "httpcore2", "alembic", "asyncio")
"""Loggers whose messages below WARNING help only with debugging."""

UNLIMITED = 1024 * 1024
"""Used when the hard limit is unlimited: the most that Linux allows unless ``fs.nr_open`` was raised."""

_YOUNG_OBJECTS = 20_000
"""How many new objects start a garbage collection. Python's default of 700 is for small programs."""

_FROM_KERNEL = 128
"""``SI_KERNEL``: the signal was sent by a terminal or by the kernel itself."""
_UNBLOCKED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""Signals that cannot be waited for, or that report a fault of process 1 itself."""
_JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class LogLevel(str, Enum):
    """The values of the option ``--log-level``."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logging(level: LogLevel) -> None:
    """Send the log of this process to stderr."""
    number = logging.getLevelName(level.value.upper())
    logging.basicConfig(level=number, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    if level is not LogLevel.DEBUG:
        for name in LIBRARY_LOGGERS:
            logging.getLogger(name).setLevel(max(number, logging.WARNING))


def become_init() -> None:
    """Call :func:`fork_and_reap` if this is process 1; otherwise do nothing."""
    if os.getpid() == 1:
        fork_and_reap()


def fork_and_reap() -> None:
    """Fork, and return in the child. The parent reaps children and forwards signals until it exits."""
    handled: set[int] = {int(number) for number in signal.valid_signals() - _UNBLOCKED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_attend(child, handled))


def _attend(child: int, handled: set[int]) -> int:
    """Reap children and forward signals until the child exits; return the exit status to use."""
    while True:
        info = signal.sigwaitinfo(handled)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        elif info.si_signo not in _JOB_CONTROL and info.si_code != _FROM_KERNEL:
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Wait for all children that have exited; return the exit status of ``child`` if it is one of them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def raise_descriptor_limit() -> int:
    """Raise the soft limit of this process to its hard limit; return the resulting soft limit.

    The usual soft limit of 1024 exists for programs that use ``select``, and is too low for a server with
    many connections. Contexts are started with a separate, moderate limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # serve with the limit that we have
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    _log.info("the limit of open file descriptors is %d", limit)
    return limit


def collect_garbage_rarely() -> None:
    """Let Python look for unreachable cycles less often, which saves a tenth of a second at the start."""
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def keep_from_collector() -> None:
    """Exclude all present objects from later garbage collections: modules and services live until the end.

    Call it before there are objects that do not, such as contexts and jobs.
    """
    gc.collect()
    gc.freeze()


def front_end() -> ModuleType:
    """Return the package that serves HTTP.

    Raises:
        CommandFailed: It is not installed. The advice names the extra to install.
    """
    try:
        import jobserver_http  # noqa: PLC0415 - the extra may be missing
    except ImportError as error:
        raise CommandFailed(
            f"cannot load the HTTP front-end: {error}",
            ExitCode.NOT_READY,
            "Install it with: pip install 'jobserver-core[http]'",
        ) from error
    return jobserver_http


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the base URL of an address that a server listens on."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
