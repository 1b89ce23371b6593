"""Records of contexts, with which the next server takes over or ends those that outlived their server.

A context may have unpacked gigabytes, and removing them takes as long as the disk needs. So the end of a
context only moves its directories aside, and everything that waits for that end goes on. Then they are
removed. If a server ends before that is done, the record remains, and the next server goes on in the
background.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import attrs

from jobserver_core.data_directory import create_private
from jobserver_core.models.serialization import dumps, loads
from jobserver_core.ports import ContextSpec
from jobserver_pyspark import processes
from jobserver_pyspark.launcher.kubernetes import ClusterObjects


@attrs.frozen(kw_only=True)
class LeftoverRecord:
    """The processes and directories to remove when a context has ended.

    Every process of a context carries ``marker`` in its environment. The host is identified by process id and
    start time, because its id may have been reused. A context that can be taken over also has its ``spec``
    and the ``secret`` with which its host and a server prove themselves. ``cluster`` stands for the objects
    of a context on Kubernetes.
    """

    marker: str
    directories: tuple[Path, ...]
    pid: int | None = None
    start_time: int | None = None
    secret: str | None = attrs.field(default=None, repr=False)
    spec: ContextSpec | None = None
    cluster: ClusterObjects | None = None

    @property
    def alive(self) -> bool:
        """Whether the host runs."""
        return self.pid is not None and processes.start_time(self.pid) == self.start_time is not None

    def end(self) -> bool:
        """Kill the processes, remove the objects of the cluster, and move the directories aside.

        Returns whether only what was moved is left. Idempotent.
        """
        return self.end_local() and (self.cluster is None or self.cluster.remove())

    def end_local(self) -> bool:
        """Do what ``end`` does on this machine."""
        if self.pid is not None and self.alive:
            processes.kill_group(self.pid)
        gone = processes.kill_marked(self.marker)
        for directory in self.directories:
            with contextlib.suppress(OSError):  # it is missing or moved; otherwise it is removed where it is
                directory.rename(_aside(directory))
        return gone

    def remove_files(self) -> bool:
        """Remove the directories, wherever they are; return whether none is left."""
        paths = [path for directory in self.directories for path in (directory, _aside(directory))]
        for path in paths:
            with contextlib.suppress(RecursionError):  # before Python 3.13, a tree can be too deep
                shutil.rmtree(path, ignore_errors=True)
        return not any(path.exists() for path in paths)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read. Atomic.

    Raises:
        OSError: It cannot be written; an earlier file of this name is kept.
    """
    temporary = path.with_suffix(".part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _aside(directory: Path) -> Path:
    """Return where to move a directory that is to be removed: beside it, on the same file system."""
    return directory.with_name(f"{directory.name}.ended")


class Leftovers:
    """The records of living contexts, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._removal: threading.Thread | None = None

    def record(self, context_id: str, record: LeftoverRecord) -> None:
        """Store a record, and replace an earlier one of the same context."""
        create_private(self._directory)
        write_private(self._path(context_id), dumps(record))

    def forget(self, context_id: str) -> None:
        """Remove the record of a context that left nothing behind."""
        self._path(context_id).unlink(missing_ok=True)

    def all(self) -> Iterator[LeftoverRecord]:
        """Iterate over the records."""
        yield from filter(None, map(self._read, self._directory.glob("*.json")))

    def sweep(self, kept: Container[str] = ()) -> None:
        """End all recorded leftovers, except those of contexts with an id in ``kept``.

        Their files are removed in the background. What cannot be removed now stays recorded for the next
        time. Clusters come last, and after a failure a cluster is not asked again, because the start of the
        server waits for this.
        """
        ended: dict[str, LeftoverRecord] = {}
        for path in self._directory.glob("*.json"):
            if path.stem in kept:
                continue
            if (record := self._read(path)) is None:
                self.forget(path.stem)
            elif record.end_local():
                ended[path.stem] = record
        clusters = {key: record.cluster for key, record in ended.items() if record.cluster is not None}
        failed = self._remove_from_clusters(clusters)
        if ended:
            self._removal = threading.Thread(
                target=self._remove_all, args=(ended, failed), name="removal of leftovers", daemon=True
            )
            self._removal.start()

    def _remove_all(self, ended: Mapping[str, LeftoverRecord], failed: Container[str]) -> None:
        for context_id, record in ended.items():
            self.remove(context_id, record, ended=context_id not in failed)

    def remove(self, context_id: str, record: LeftoverRecord, *, ended: bool) -> None:
        """Remove the files of a context; forget its record if everything else has ``ended``.

        Takes as long as the disk needs.
        """
        if record.remove_files() and ended:
            self.forget(context_id)

    def join(self, deadline: float) -> None:
        """Wait until the files that a sweep found are removed, or until a time of the monotonic clock."""
        if self._removal is not None:
            self._removal.join(max(0.0, deadline - time.monotonic()))

    def sweep_objects(self, found: Mapping[str, ClusterObjects]) -> None:
        """Remove what contexts of other servers left in clusters, by the ids of these contexts.

        What cannot be removed now is recorded for the next time.
        """
        for context_id, objects in found.items():
            marker = f"{context_id}:none"  # no process of this machine has it
            self.record(context_id, LeftoverRecord(marker=marker, directories=(), cluster=objects))
        for context_id in found.keys() - self._remove_from_clusters(found):
            self.forget(context_id)

    @staticmethod
    def _remove_from_clusters(found: Mapping[str, ClusterObjects]) -> set[str]:
        """Remove what contexts left in clusters; return the ids of those of which something is left."""
        failed: dict[str, tuple[str, str]] = {}
        for context_id, objects in found.items():
            namespace = (objects.url, objects.namespace)
            if namespace in failed.values() or not objects.remove():
                failed[context_id] = namespace
        return set(failed)

    def _path(self, context_id: str) -> Path:
        return self._directory / f"{context_id}.json"

    @staticmethod
    def _read(path: Path) -> LeftoverRecord | None:
        try:
            return loads(path.read_text(encoding="utf-8"), LeftoverRecord)
        except (OSError, ValueError):
            return None  # records are written atomically: this file is not one
