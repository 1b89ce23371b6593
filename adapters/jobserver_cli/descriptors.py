"""The limit of file descriptors of a server process."""

from __future__ import annotations

import contextlib
import logging
import resource

__all__ = ["raise_descriptor_limit"]

_log = logging.getLogger(__name__)

MOST = 1024 * 1024
"""What stands for a hard limit without end: Linux allows no process more unless ``fs.nr_open`` was raised."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of this process to its hard one; return the soft limit that holds now.

    The usual soft limit of 1024 is there for old programs that use ``select``. A server with as many
    connections would be out of descriptors. Contexts are started with a moderate limit of their own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # it stays as it is, which is no reason not to serve
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    held = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    _log.info("this process may have %d file descriptors open", held)
    return held
