"""Data files: kept as plain files, since jobs open them by their path."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from jobserver_core.binaries.uploads import chunks_of
from jobserver_core.environment import Environment
from jobserver_core.errors import DataFileNotFound, StorageError, TooLarge
from jobserver_core.models.data_files import DataFile
from jobserver_core.models.names import check_data_prefix

__all__ = ["DataFileService", "DataUpload"]

_ENDING = ".dat"
_UNFINISHED = ".upload-"


class DataUpload:
    """A data file in the making: :meth:`write` pieces, then :meth:`finish`.

    Use it in a ``with`` block: leaving without :meth:`finish` drops what was written. Used by
    one thread at a time.
    """

    def __init__(self, environment: Environment, prefix: str) -> None:
        self._environment = environment
        self._prefix = prefix
        self._size = 0
        with self._storing():
            descriptor, temporary = tempfile.mkstemp(dir=environment.folders.data, prefix=_UNFINISHED)
            self._temporary = Path(temporary)
            self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises TooLarge over the configured ``upload-size``, StorageError."""
        limit = self._environment.settings.limits.upload_size
        self._size += len(data)
        if self._size > limit:
            self.discard()
            raise TooLarge(what="data file", limit=limit)
        with self._storing():
            self._file.write(data)

    def finish(self) -> DataFile:
        """Give the file its name; all of it, or nothing. Raises StorageError."""
        with self, self._storing():
            self._file.flush()
            os.fsync(self._file.fileno())
            return _described(self._place())

    def discard(self) -> None:
        """Drop what was written; after :meth:`finish`, or repeated, this does nothing."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _place(self) -> Path:
        """Give the file its name; a link fails where a name is taken, so no upload replaces another."""
        folder = self._environment.folders.data
        stamp = self._environment.clock.now().isoformat(timespec="milliseconds").replace(":", "_")
        for number in range(1000):
            suffix = f"-{number}" if number else ""
            path = folder / f"{self._prefix}-{stamp}{suffix}{_ENDING}"
            try:
                path.hardlink_to(self._temporary)
            except FileExistsError:
                continue
            return path
        raise StorageError(message=f"data file {self._prefix}: too many uploads at {stamp}")

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(message=f"data file {self._prefix}: {error.strerror or error}") from error

    def __enter__(self) -> DataUpload:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.discard()


class DataFileService:
    """The use cases of data files. The folder's content is the truth; nothing else is recorded."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def begin(self, prefix: str) -> DataUpload:
        """Return an upload to write to. Raises InvalidName, StorageError, ServerClosed."""
        self._environment.admission.check()
        return DataUpload(self._environment, check_data_prefix(prefix))

    def add(self, prefix: str, data: bytes | BinaryIO | Iterable[bytes]) -> DataFile:
        """Store a file as ``<prefix>-<time>.dat``; all of it, or nothing."""
        with self.begin(prefix) as upload:
            for chunk in chunks_of(data):
                upload.write(chunk)
            return upload.finish()

    def all(self) -> list[DataFile]:
        """Return the data files, sorted by path."""
        files = []
        for path in sorted(self._environment.folders.data.glob(f"[!.]*{_ENDING}")):
            with contextlib.suppress(FileNotFoundError):  # somebody else removed it meanwhile
                files.append(_described(path))
        return files

    def delete(self, name: str) -> None:
        """Remove a file by its full path or its plain name. Raises DataFileNotFound."""
        known = {str(file.path): file.path for file in self.all()}
        known |= {path.name: path for path in known.values()}
        if name not in known:
            raise DataFileNotFound(name=name)
        known[name].unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what uploads of an earlier, crashed server left; called before any upload begins."""
        for path in self._environment.folders.data.glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)

    def reset(self) -> None:
        """Remove every data file. Raises ServerClosed: jobs that wait for the next start may need them."""
        self._environment.admission.check()
        for file in self.all():
            file.path.unlink(missing_ok=True)


def _described(path: Path) -> DataFile:
    status = path.stat()
    created = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return DataFile(path=path, size=status.st_size, created_at=created)
