"""Leftovers of contexts whose server is killed: that server records them, the next one removes them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import attrs

from jobserver_pyspark import processes
from jobserver_pyspark.protocol.converter import JsonObject

__all__ = ["ContextRecord", "Leftovers"]


@attrs.frozen(kw_only=True)
class ContextRecord:
    """The processes and directories to remove when a context has ended.

    Every process of a context carries ``marker`` in its environment. The host is identified by process id and
    start time, because its id may have been reused.
    """

    marker: str
    directories: tuple[Path, ...]
    pid: int | None = None
    start_time: int | None = None

    def end(self) -> bool:
        """Kill the processes and remove the directories; return whether nothing is left. Idempotent."""
        if self.pid is not None and processes.start_time(self.pid) == self.start_time is not None:
            processes.kill_group(self.pid)
        gone = processes.kill_marked([self.marker])
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        return gone and not any(directory.exists() for directory in self.directories)


class Leftovers:
    """The records of living contexts, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def record(self, context_id: str, record: ContextRecord) -> None:
        """Store a record, and replace an earlier one of the same context."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(context_id)
        temporary = path.with_suffix(".part")
        fields = attrs.asdict(record) | {"directories": [str(directory) for directory in record.directories]}
        temporary.write_text(json.dumps(fields), encoding="utf-8")
        os.replace(temporary, path)

    def forget(self, context_id: str) -> None:
        """Remove the record of a context that left nothing behind."""
        self._path(context_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove all recorded leftovers. Those that cannot be removed now stay recorded for the next time."""
        for path in self._directory.glob("*.json"):
            record = self._read(path)
            if record is None or record.end():
                path.unlink(missing_ok=True)

    def _path(self, context_id: str) -> Path:
        return self._directory / f"{context_id}.json"

    @staticmethod
    def _read(path: Path) -> ContextRecord | None:
        try:
            fields: JsonObject = json.loads(path.read_text(encoding="utf-8"))
            directories = tuple(Path(directory) for directory in fields.pop("directories"))
            return ContextRecord(directories=directories, **fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None  # records are written atomically: this file is not one
