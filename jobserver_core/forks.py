"""Tell a process from the one that it was forked from.

Threads and the ownership of files do not survive a fork, so what uses them belongs to the process that
created it. Counting forks is cheaper than asking the operating system for the ID of the process.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

from jobserver_core.errors import Conflict

_forks = 0
"""How many forks lie between the first process that imported this module and this one."""


def _count() -> None:
    global _forks  # noqa: PLW0603 - only a new process changes it, before anything else
    _forks += 1


if hasattr(os, "register_at_fork"):  # Windows has neither it nor forks
    os.register_at_fork(after_in_child=_count)


class Origin:
    """The process that created an object."""

    __slots__ = ("_forks",)

    def __init__(self) -> None:
        self._forks = _forks

    @property
    def here(self) -> bool:
        """Whether this is that process, not one that was forked from it."""
        return self._forks == _forks

    def check(self, what: str) -> None:
        """Check that this is that process.

        Raises:
            Conflict: ``what`` was created in another process.
        """
        if self._forks != _forks:
            raise Conflict(message=f"this {what} was created in another process; each process needs its own")


def remove_with(owner: object, directory: Path) -> Callable[[], object]:
    """Remove a temporary directory when its owner is no longer used, or when the process ends.

    Returns a function that removes it now. A forked process, which has a copy of the owner, removes nothing.
    """
    origin = Origin()

    def remove() -> None:
        if origin.here:
            shutil.rmtree(directory, ignore_errors=True)

    return weakref.finalize(owner, remove)
