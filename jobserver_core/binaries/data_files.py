"""Data files: kept as plain files, since jobs open them by their path."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from jobserver_core.binaries.uploads import ChunkedUpload
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import DataFileNotFound, StorageError
from jobserver_core.models.arguments import chunks_of
from jobserver_core.models.binaries import DataFile
from jobserver_core.models.validation import data_file_name
from jobserver_core.ports import Clock

__all__ = ["DataFileService", "DataUpload"]

_UNFINISHED = ".upload-"


class DataUpload(ChunkedUpload[DataFile]):
    """A data file that is being uploaded: :meth:`write` chunks, then :meth:`finish`.

    Use it in a ``with`` block: leaving the block without :meth:`finish` discards the written bytes. Only one
    thread at a time may use it.
    """

    def __init__(
        self,
        name: tuple[str, str],
        limit: int,
        data_directory: DataDirectory,
        clock: Clock,
        unfinished: str,
    ) -> None:
        super().__init__("data file", limit)
        self._prefix, self._ending = name
        self._data_directory = data_directory
        self._clock = clock
        with self._storing():
            descriptor, temporary = tempfile.mkstemp(
                dir=data_directory.create_data_files(), prefix=unfinished
            )
            self._temporary = Path(temporary)
            self._file = os.fdopen(descriptor, "wb")

    def _store(self, data: bytes) -> None:
        with self._storing():
            self._file.write(data)

    def finish(self) -> DataFile:
        """Publish the complete file under its name, or nothing.

        Raises:
            StorageError: The disk failed.
        """
        with self, self._storing():
            self._file.flush()
            os.fsync(self._file.fileno())
            return _described(self._publish())

    def discard(self) -> None:
        """Discard the written bytes. Idempotent; does nothing after :meth:`finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _publish(self) -> Path:
        """Publish the file with a link, which fails if the name is taken, so no upload replaces another."""
        directory = self._data_directory.data_files
        stamp = self._clock.now().isoformat(timespec="milliseconds").replace(":", "_")
        for number in range(1000):
            suffix = f"-{number}" if number else ""
            path = directory / f"{self._prefix}-{stamp}{suffix}{self._ending}"
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


class DataFileService:
    """The use cases of data files, with the errors of JobServer. ``max_size`` limits an upload, in bytes.

    The directory is the only record of the files. Several servers may share it: unfinished uploads have the
    id of their server in their names.
    """

    def __init__(self, data_directory: DataDirectory, clock: Clock, max_size: int, server_id: str) -> None:
        self._data_directory = data_directory
        self._clock = clock
        self._max_size = max_size
        self._unfinished = f"{_UNFINISHED}{server_id}-"

    def begin(self, prefix: str, ending: str | None = None) -> DataUpload:
        """Return an upload to write to."""
        name = data_file_name(prefix, ending)
        return DataUpload(name, self._max_size, self._data_directory, self._clock, self._unfinished)

    def add(
        self, prefix: str, data: bytes | BinaryIO | Iterable[bytes], ending: str | None = None
    ) -> DataFile:
        """Store a file as ``<prefix>-<time><ending>``, completely or not at all."""
        with self.begin(prefix, ending) as upload:
            for chunk in chunks_of(data):
                upload.write(chunk)
            return upload.finish()

    def all(self) -> list[DataFile]:
        """Return the data files, sorted by path."""
        files = []
        for path in sorted(self._data_directory.data_files.glob("[!.]*")):
            with contextlib.suppress(FileNotFoundError):  # removed by another thread
                files.append(_described(path))
        return files

    def delete(self, name: str | os.PathLike[str]) -> None:
        """Remove a file by its full path or its plain name."""
        name = str(name)
        known = {str(file.path): file.path for file in self.all()}
        known |= {path.name: path for path in known.values()}
        if name not in known:
            raise DataFileNotFound(name=name)
        known[name].unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove unfinished uploads of an earlier run of this server; call it before any upload begins."""
        shared = self._data_directory.shares_data_files
        for path in self._data_directory.data_files.glob(f"{self._unfinished if shared else _UNFINISHED}*"):
            path.unlink(missing_ok=True)

    def reset(self) -> None:
        """Remove every data file."""
        for file in self.all():
            file.path.unlink(missing_ok=True)


def _described(path: Path) -> DataFile:
    status = path.stat()
    created = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return DataFile(path=path, size=status.st_size, created_at=created)
