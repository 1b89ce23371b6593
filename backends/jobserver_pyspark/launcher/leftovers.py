"""Records of contexts, with which the next server takes over or ends those that outlived their server."""

from __future__ import annotations

import os
import shutil
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
        """Kill the processes and remove everything else; return whether nothing is left. Idempotent."""
        return self.end_local() and (self.cluster is None or self.cluster.remove())

    def end_local(self) -> bool:
        """Do what ``end`` does on this machine; return whether nothing is left on it. Idempotent."""
        if self.pid is not None and self.alive:
            processes.kill_group(self.pid)
        gone = processes.kill_marked(self.marker)
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        return gone and not any(directory.exists() for directory in self.directories)


class Leftovers:
    """The records of living contexts, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def record(self, context_id: str, record: LeftoverRecord) -> None:
        """Store a record, and replace an earlier one of the same context."""
        create_private(self._directory)
        path = self._path(context_id)
        temporary = path.with_suffix(".part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:  # has the secret
                file.write(dumps(record))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def forget(self, context_id: str) -> None:
        """Remove the record of a context that left nothing behind."""
        self._path(context_id).unlink(missing_ok=True)

    def all(self) -> Iterator[LeftoverRecord]:
        """Iterate over the records."""
        for path in self._directory.glob("*.json"):
            record = self._read(path)
            if record is not None:
                yield record

    def sweep(self, kept: Container[str] = ()) -> None:
        """Remove all recorded leftovers, except those of contexts with an id in ``kept``.

        Those that cannot be removed now stay recorded for the next time. Clusters come last, and after a
        failure a cluster is not asked again, because the start of the server waits for this.
        """
        in_clusters: dict[Path, ClusterObjects] = {}
        for path in self._directory.glob("*.json"):
            if path.stem in kept:
                continue
            record = self._read(path)
            if record is not None and not record.end_local():
                continue
            if record is not None and record.cluster is not None:
                in_clusters[path] = record.cluster
            else:
                path.unlink(missing_ok=True)
        self._remove_from_clusters(in_clusters)

    def sweep_objects(self, found: Mapping[str, ClusterObjects]) -> None:
        """Remove what contexts of other servers left in clusters, by the ids of these contexts.

        What cannot be removed now is recorded for the next time.
        """
        for context_id, objects in found.items():
            marker = f"{context_id}:none"  # no process of this machine has it
            self.record(context_id, LeftoverRecord(marker=marker, directories=(), cluster=objects))
        self._remove_from_clusters({self._path(context_id): each for context_id, each in found.items()})

    @staticmethod
    def _remove_from_clusters(found: Mapping[Path, ClusterObjects]) -> None:
        failed: set[tuple[str, str]] = set()
        for path, objects in found.items():
            place = (objects.url, objects.namespace)
            if place not in failed and objects.remove():
                path.unlink(missing_ok=True)
            else:
                failed.add(place)

    def _path(self, context_id: str) -> Path:
        return self._directory / f"{context_id}.json"

    @staticmethod
    def _read(path: Path) -> LeftoverRecord | None:
        try:
            return loads(path.read_text(encoding="utf-8"), LeftoverRecord)
        except (OSError, ValueError):
            return None  # records are written atomically: this file is not one
