"""Python packages of class paths, unpacked once for each content."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobserver_core.archives import unpack
from jobserver_core.ports import JobCode

__all__ = ["Packages"]


class Packages:
    """Unpacks wheels and eggs into folders named by their digest; they are never changed afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ready(self, codes: Iterable[JobCode]) -> bool:
        """Whether all Python packages among these are unpacked already."""
        return all(self._path(code).is_dir() for code in codes if code.type.python)

    def prepare(self, codes: Iterable[JobCode]) -> list[dict[str, str]]:
        """Unpack what is not yet; return each package's digest and folder.

        Raises NotAnArchive, TooLarge or StorageError.
        """
        return [
            {
                "digest": code.digest,
                "folder": str(unpack(code.path, self._path(code), kind=code.type)),
            }
            for code in codes
            if code.type.python
        ]

    def _path(self, code: JobCode) -> Path:
        return self._folder / f"{code.digest}-{code.type.value.lower()}"
