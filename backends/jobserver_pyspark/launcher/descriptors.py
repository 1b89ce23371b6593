"""File descriptors that contexts need, and errors if too few are available.

The JVM of a context opens each of Spark's jars, some 300, before it does anything. The limit of a process is
``RLIMIT_NOFILE``: JVMs raise its soft value to the hard one by themselves, so the hard one counts for them.
The server itself needs a few for each context, and one for each connection.
"""

from __future__ import annotations

import errno
import resource

import attrs

from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo

MIN_DESCRIPTORS = 512
"""The minimum limit of each process of a context; with a lower one its JVM cannot start."""
HOW_TO_RAISE = (
    "raise it to 65536 or so with `ulimit -Hn`, LimitNOFILE= of systemd, or `--ulimit nofile=` of Docker"
)
_SIGN = "Too many open files"


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
    if error.errno == errno.ENFILE:
        return "this machine has no file descriptors left for any process: raise the sysctl fs.file-max"
    return None


def with_descriptor_limit(error: ErrorInfo) -> ErrorInfo:
    """Add the limit to the error of a context whose processes ran out of descriptors."""
    if _SIGN not in error.message and _SIGN not in error.stack:
        return error
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return attrs.evolve(
        error,
        message=f"{error.message} (the context ran out of file descriptors: each of its processes may have "
        f"{hard} open, RLIMIT_NOFILE; {HOW_TO_RAISE})",
    )
