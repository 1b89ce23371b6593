"""Records of contexts, with which the next server takes over or ends those that outlived their server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import attrs

from jobserver_core.config.trees import as_objects
from jobserver_core.models import json_values
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import ContextSpec, JobCode
from jobserver_pyspark import processes
from jobserver_pyspark.launcher.kubernetes import ClusterObjects
from jobserver_pyspark.protocol.converter import JsonObject

__all__ = ["LeftoverRecord", "Leftovers"]


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
        gone = processes.kill_marked([self.marker])
        for directory in self.directories:
            shutil.rmtree(directory, ignore_errors=True)
        return gone and not any(directory.exists() for directory in self.directories)


class Leftovers:
    """The records of living contexts, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def record(self, context_id: str, record: LeftoverRecord) -> None:
        """Store a record, and replace an earlier one of the same context."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(context_id)
        temporary = path.with_suffix(".part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:  # has the secret
                file.write(json_values.dumps(_fields_of(record), allow_nan=True))
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
            fields: JsonObject = json_values.loads(path.read_text(encoding="utf-8"))
            directories = tuple(Path(directory) for directory in fields.pop("directories"))
            spec, cluster = fields.pop("spec", None), fields.pop("cluster", None)
            return LeftoverRecord(
                directories=directories,
                spec=None if spec is None else _spec_of(spec),
                cluster=None if cluster is None else ClusterObjects(**cluster),
                **fields,
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None  # records are written atomically: this file is not one


def _fields_of(record: LeftoverRecord) -> JsonObject:
    spec = record.spec
    fields: JsonObject = {
        "marker": record.marker,
        "directories": [str(directory) for directory in record.directories],
        "pid": record.pid,
        "start_time": record.start_time,
        "secret": record.secret,
        "cluster": None if record.cluster is None else attrs.asdict(record.cluster),
    }
    if spec is not None:
        fields["spec"] = {
            "id": spec.id,
            "name": spec.name,
            "settings": as_objects(spec.settings),
            "class_path": [_fields_of_code(code) for code in spec.class_path],
            "log_path": str(spec.log_path),
            "work_dir": str(spec.work_dir),
            "data_dir": str(spec.data_dir),
        }
    return fields


def _fields_of_code(code: JobCode) -> JsonObject:
    return {"path": str(code.path), "type": code.type.value, "digest": code.digest, "source": code.source}


def _spec_of(fields: JsonObject) -> ContextSpec:
    return ContextSpec(
        id=fields["id"],
        name=fields["name"],
        settings=fields["settings"],
        class_path=tuple(
            JobCode(
                path=Path(code["path"]),
                type=BinaryType(code["type"]),
                digest=code["digest"],
                source=code["source"],
            )
            for code in fields["class_path"]
        ),
        log_path=Path(fields["log_path"]),
        work_dir=Path(fields["work_dir"]),
        data_dir=Path(fields["data_dir"]),
    )
