"""Storage usage by kind of data, for operators."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_core.data_directory import DataDirectory
from jobserver_core.models.storage import StorageUsage
from jobserver_core.ports import BlobStore, MetadataStore

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_LIMITS = {
    "jobs": ("jobserver.jobs.retention", "jobserver.jobs.max-kept"),
    "results": ("jobserver.jobs.max-result-storage",),
    "contexts": ("jobserver.jobs.retention",),
    "deliveries": ("jobserver.jobs.retention",),
    "logs": ("jobserver.jobs.retention", "jobserver.jobs.max-log-storage"),
    "binaries": ("jobserver.binaries.versions", "jobserver.binaries.retention"),
    "data-files": ("jobserver.data-files.retention", "jobserver.data-files.max-storage"),
    "caches": ("jobserver.fetcher.cache-size",),
}
"""The settings that limit each kind of data."""


@attrs.frozen(kw_only=True, eq=False)
class StorageService:
    """Counts what the stores and the data directory contain. Every call counts again, which can be slow."""

    _metadata: MetadataStore
    _blobs: BlobStore
    _data_directory: DataDirectory
    _settings: Settings

    def usage(self) -> list[StorageUsage]:
        """Return the storage that each kind of data uses."""
        from jobserver_core.config.loading import describe  # noqa: PLC0415 - keeps the import of core light

        records, directory = self._metadata.usage(), self._data_directory
        found: dict[str, tuple[int, int | None]] = {
            "jobs": (records.jobs, None),
            "results": (records.results, records.result_bytes),
            "contexts": (records.contexts, None),
            "deliveries": (records.deliveries, None),
            "binaries": (records.binaries, records.binary_bytes),
            "blobs": self._blobs.usage(),
            "logs": _files_below(directory.job_logs, directory.context_logs),
            "data-files": _files_below(directory.data_files),
            "caches": _files_below(directory.root / "cache", directory.root / "pyspark"),
            "database": _files_of(directory.root),
        }
        values = {setting.key: setting.value for setting in describe(self._settings)}
        return [
            StorageUsage(
                kind=kind,
                count=count,
                size=size,
                limits={key: _shown(values[key]) for key in _LIMITS.get(kind, ())},
            )
            for kind, (count, size) in found.items()
        ]


def _shown(value: object) -> str | int | None:
    return value if value is None or isinstance(value, int) else str(value)


def _files_below(*directories: Path) -> tuple[int, int]:
    """Return the number and the bytes of the files below some directories, without following links."""
    return _total(
        os.path.join(parent, name)
        for directory in directories
        for parent, _, names in os.walk(directory)
        for name in names
    )


def _files_of(directory: Path) -> tuple[int, int]:
    """Return the number and the bytes of the files in a directory itself."""
    return _total(entry.path for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False))


def _total(paths: Iterable[str]) -> tuple[int, int]:
    count = size = 0
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            size += os.lstat(path).st_size
            count += 1
    return count, size
