"""The job of the torture without Spark: the launcher ``torture`` runs it on a thread of the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def _work(job: InlineJob) -> Any:
    number = job.config["number"]
    record = os.open(Path(job.config["runs"]) / job.id, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(record, f"{os.getpid()}\n".encode())
    os.close(record)
    match job.config["kind"]:
        case "fail":
            raise ValueError(f"number {number}")
        case "tasks":
            job.sleep(0.6)
            return 4 * number + 6
        case "large":
            return f"{number} " * 40_000
        case "stream":
            return _stream(number)
        case "gated":
            while not os.path.exists(job.config["gate"]):
                job.sleep(0.05)
        case _:
            job.sleep(job.config["seconds"])
    return number


def _stream(number: int) -> Iterator[bytes]:
    for _ in range(20):
        yield f"{number} ".encode() * 10_000
        time.sleep(0.02)
