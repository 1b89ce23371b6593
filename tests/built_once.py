"""What is built once, although several processes and several runs use it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["built_once"]

_CACHE = Path(__file__).parents[1] / ".cache" / "tests"
_UNUSED = 30 * 24 * 3600.0
"""Seconds after which what no run has used is removed."""


def built_once(name: str, inputs: Iterable[str], build: Callable[[Path], None]) -> Path:
    """Return a directory that ``build`` has filled, here, in another process, or in an earlier run.

    ``inputs`` is everything that the result depends on. Nothing may change the directory afterwards.
    """
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    directory = _CACHE / f"{name}-{digest[:16]}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = directory / ".built"
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)  # what an interrupted run left
            directory.mkdir()
            build(directory)
        done.touch()
        os.utime(lock.name)
    _remove_unused()
    return directory


def _remove_unused() -> None:
    for lock in _CACHE.glob("*.lock"):
        if time.time() - lock.stat().st_mtime > _UNUSED:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
