"""The data directory of a server, and what is where in it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from jobserver_core.errors import DataDirLocked, StorageError

__all__ = ["DataDirectory", "lock_data_dir"]


class DataDirectory:
    """The data directory of a server. Its subdirectories are created when they are first needed.

    The data directory itself is created at once. If it is removed or replaced later, nothing is written to
    what is there instead: uploads, jobs and contexts fail with StorageError until the original is back.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._subdirectories: dict[str, Path] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._identity = self._identify()
        except OSError as error:
            raise StorageError(message=f"data directory {root}: {error.strerror or error}") from error

    def verify(self) -> None:
        """Raise StorageError unless the data directory is the one that the server started with."""
        try:
            found = self._identify()
        except OSError as error:
            raise self._lost(f"is gone ({error.strerror})") from error
        if found != self._identity:
            raise self._lost("was replaced")

    def work_dir(self, context_id: str) -> Path:
        """Return the directory for the launcher's files of a context."""
        return self.root / "contexts" / context_id

    def context_log(self, context_id: str) -> Path:
        """Return the file of a context's driver output."""
        return self.context_logs / f"{context_id}.log"

    def job_log(self, job_id: str) -> Path:
        """Return the file of a job's output."""
        return self.job_logs / f"{job_id}.log"

    @property
    def job_logs(self) -> Path:
        """The directory of the jobs' logs."""
        return self._subdirectory("logs/jobs")

    @property
    def context_logs(self) -> Path:
        """The directory of the contexts' logs."""
        return self._subdirectory("logs/contexts")

    @property
    def data_files(self) -> Path:
        """The directory of the data files."""
        return self._subdirectory("data")

    def _subdirectory(self, name: str) -> Path:
        self.verify()
        directory = self._subdirectories.get(name)
        if directory is None:
            directory = self._subdirectories[name] = self.root / name
        try:
            if not os.path.isdir(directory):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(message=f"cannot create {directory}: {error.strerror or error}") from error
        return directory

    def _identify(self) -> tuple[int, int]:
        status = os.stat(self.root)
        return status.st_dev, status.st_ino

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            message=f"the data directory {self.root} {what} while the server was running: "
            "put the original back, or restart the server"
        )


def lock_data_dir(path: Path, until: ExitStack) -> Path:
    """Create the data directory, private to this user, and keep other servers out of it.

    The lock belongs to the operating system, so it ends with the process however that ends. Returns the
    absolute path.

    Raises:
        DataDirLocked: Another server uses the directory; names its process.
        StorageError: The directory cannot be created or written to.
    """
    import fcntl  # noqa: PLC0415 - not on every platform that can embed the in-memory server

    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = until.enter_context((path / "server.lock").open("a+"))
    except OSError as error:
        raise StorageError(message=f"data directory {path}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        raise DataDirLocked(path=str(path), holder=f" (process {holder})" if holder else "") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return path.resolve()
