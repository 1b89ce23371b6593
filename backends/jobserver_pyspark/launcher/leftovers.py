"""What contexts leave when their server is killed: recorded while they live, ended by the next server."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs

from jobserver_pyspark import processes

__all__ = ["ContextRecord", "Leftovers"]


@attrs.frozen(kw_only=True)
class ContextRecord:
    """What has to go when a context is over: its processes and its folders.

    Every process of a context carries ``marker`` in its environment. The host is known by process id and
    start time as well, since an id alone may belong to another process by now.
    """

    marker: str
    folders: tuple[Path, ...]
    pid: int | None = None
    start_time: int | None = None

    def end(self) -> bool:
        """Kill the processes and remove the folders; return whether nothing is left. Repeating is allowed."""
        if self.pid is not None and processes.start_time(self.pid) == self.start_time is not None:
            processes.kill_group(self.pid)
        gone = processes.kill_marked([self.marker])
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        return gone and not any(folder.exists() for folder in self.folders)


class Leftovers:
    """The records of living contexts, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record(self, context_id: str, record: ContextRecord) -> None:
        """Keep a record, in place of an earlier one of the same context."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(context_id)
        temporary = path.with_suffix(".part")
        fields = attrs.asdict(record) | {"folders": [str(folder) for folder in record.folders]}
        temporary.write_text(json.dumps(fields), encoding="utf-8")
        os.replace(temporary, path)

    def forget(self, context_id: str) -> None:
        """Drop the record of a context of which nothing is left."""
        self._path(context_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """End whatever is recorded. What cannot be ended now stays recorded for the next time."""
        for path in self._folder.glob("*.json"):
            record = self._read(path)
            if record is None or record.end():
                path.unlink(missing_ok=True)

    def _path(self, context_id: str) -> Path:
        return self._folder / f"{context_id}.json"

    @staticmethod
    def _read(path: Path) -> ContextRecord | None:
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            folders = tuple(Path(folder) for folder in fields.pop("folders"))
            return ContextRecord(folders=folders, **fields)
        except (OSError, ValueError, TypeError, KeyError):
            return None  # half a record was never written: the file is somebody else's
