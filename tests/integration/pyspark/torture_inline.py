"""The torture without Spark: the launcher ``torture`` runs its jobs on threads of the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torture_jobs import Engine, work

from jobserver_core.memory import InlineJob, InlineLauncher

__all__ = ["TortureLauncher", "plugin_environment"]


class TortureLauncher(InlineLauncher):
    """Knows the class of :mod:`torture_jobs`."""

    @classmethod
    def from_settings(cls, settings: Any, data_dir: Path) -> TortureLauncher:
        return cls({"torture_jobs.Work": _work}, start_delay=1.0)


def plugin_environment(directory: Path) -> Mapping[str, str]:
    """Install the launcher as a plug-in below a directory, and return the variables that servers need."""
    info = directory / "plugin" / "torture_launcher-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torture-launcher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jobserver.launcher]\ntorture = torture_inline:TortureLauncher\n")
    return {"PYTHONPATH": os.pathsep.join([str(info.parent), str(Path(__file__).parent)])}


class _Thread(Engine):
    """Computes on the thread of a job."""

    def __init__(self, job: InlineJob) -> None:
        self._job = job

    def count(self, number: int) -> int:
        return len(range(number))

    def sum_slowly(self, values: range) -> int:
        self._job.sleep(0.6)
        return sum(values)

    def sleep(self, seconds: float) -> None:
        self._job.sleep(seconds)


def _work(job: InlineJob) -> Any:
    return work(_Thread(job), job.id, job.config)
