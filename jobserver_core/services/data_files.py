"""Data files: kept as plain files, since jobs open them by their path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from jobserver_core.data_files import DataFile
from jobserver_core.errors import DataFileNotFound, StorageError, TooLarge
from jobserver_core.names import check_data_prefix
from jobserver_core.services.binaries import chunks_of
from jobserver_core.services.environment import Environment

__all__ = ["DataFileService"]

_ENDING = ".dat"


class DataFileService:
    """The use cases of data files. The folder's content is the truth; nothing else is recorded."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def add(self, prefix: str, data: bytes | BinaryIO | Iterable[bytes]) -> DataFile:
        """Store a file as ``<prefix>-<time>.dat``; all of it, or nothing."""
        check_data_prefix(prefix)
        folder = self._environment.folders.data
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".upload-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                self._copy(data, file)
            path = self._place(Path(temporary), prefix)
        except OSError as error:
            raise StorageError(message=f"data file {prefix}: {error.strerror or error}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        return _described(path)

    def all(self) -> list[DataFile]:
        """Return the data files, sorted by path."""
        folder = self._environment.folders.data
        return [_described(path) for path in sorted(folder.glob(f"[!.]*{_ENDING}"))]

    def delete(self, name: str) -> None:
        """Remove a file by its full path or its plain name. Raises DataFileNotFound."""
        known = {str(file.path): file.path for file in self.all()}
        known |= {path.name: path for path in known.values()}
        if name not in known:
            raise DataFileNotFound(name=name)
        known[name].unlink(missing_ok=True)

    def reset(self) -> None:
        """Remove every data file."""
        for file in self.all():
            file.path.unlink(missing_ok=True)

    def _copy(self, data: bytes | BinaryIO | Iterable[bytes], file: BinaryIO) -> None:
        limit = self._environment.settings.limits.upload_size
        size = 0
        for chunk in chunks_of(data):
            size += len(chunk)
            if size > limit:
                raise TooLarge(what="data file", limit=limit)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())

    def _place(self, temporary: Path, prefix: str) -> Path:
        """Give the file its name; a link fails where a name is taken, so no upload replaces another."""
        folder = self._environment.folders.data
        stamp = self._environment.clock.now().isoformat(timespec="milliseconds").replace(":", "_")
        for number in range(1000):
            suffix = f"-{number}" if number else ""
            path = folder / f"{prefix}-{stamp}{suffix}{_ENDING}"
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                continue
            return path
        raise StorageError(message=f"data file {prefix}: too many uploads at {stamp}")


def _described(path: Path) -> DataFile:
    status = path.stat()
    created = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return DataFile(path=path, size=status.st_size, created_at=created)
