"""File descriptors that contexts need, and errors if too few are available.

The JVM of a context opens each of Spark's jars, some 300, before it does anything. The limit of a process is
``RLIMIT_NOFILE``: JVMs raise its soft value to the hard one by themselves, so the hard one counts for them.
The server itself needs a few for each context, and one for each connection.
"""

from __future__ import annotations

import errno
import os
import resource

import attrs

from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo
from jobserver_pyspark.processes import MAX_DESCRIPTORS

MIN_DESCRIPTORS = 512
"""The minimum limit of each process of a context; with a lower one its JVM cannot start."""
HOW_TO_RAISE = (
    "raise it to 65536 or so with `ulimit -Hn`, LimitNOFILE= of systemd, or `--ulimit nofile=` of Docker"
)
_SIGN = os.strerror(errno.EMFILE)
_SIGN_OF_THE_MACHINE = os.strerror(errno.ENFILE)
_OF_THE_MACHINE = "the machine has no file descriptors left for any process: raise the sysctl fs.file-max"


def check_descriptors() -> None:
    """Check that the limit of descriptors is high enough to start a context.

    Raises:
        LaunchError: It is too low.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        raise LaunchError(
            message=f"a context needs at least {MIN_DESCRIPTORS} file descriptors, but the hard limit "
            f"(RLIMIT_NOFILE) of this server and its child processes is {hard}: {HOW_TO_RAISE}"
        )


def out_of_descriptors(error: OSError) -> str | None:
    """Return a message if an error means that no descriptor is left, None for any other error."""
    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"the server has no file descriptor left: it may have {soft} open (RLIMIT_NOFILE, hard limit "
            f"{hard}), and needs some for each context and one for each connection; {HOW_TO_RAISE}"
        )
    return _OF_THE_MACHINE if error.errno == errno.ENFILE else None


def with_descriptor_limit(error: ErrorInfo) -> ErrorInfo:
    """Add the limit to the error of a context, or of a job in it, if a process ran out of descriptors."""
    text = f"{error.message}\n{error.stack}"
    if _SIGN not in text:
        return error
    reason = _OF_THE_MACHINE if _SIGN_OF_THE_MACHINE in text else _limit_of_contexts()
    return attrs.evolve(error, message=f"{error.message} ({reason})")


def _limit_of_contexts() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    start = "a process ran out of file descriptors: on the server's machine, "
    if hard != resource.RLIM_INFINITY and hard <= MAX_DESCRIPTORS:
        return f"{start}each process of a context may have {hard} open, RLIMIT_NOFILE; {HOW_TO_RAISE}"
    return (
        f"{start}each Python process of a context may have {MAX_DESCRIPTORS} open; a job may leave files open"
    )
