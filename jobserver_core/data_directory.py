"""The data directory of a server, and what is where in it."""

from __future__ import annotations

from pathlib import Path

from jobserver_core.errors import StorageError

__all__ = ["DataDirectory"]


class DataDirectory:
    """The data directory of a server. Its subdirectories are created when they are first needed.

    The data directory itself is created at once. If it is removed or replaced later, nothing is written to
    what is there instead: uploads, jobs and contexts fail with StorageError until the original is back.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
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
        directory = self.root / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(message=f"cannot create {directory}: {error.strerror or error}") from error
        return directory

    def _identify(self) -> tuple[int, int]:
        status = self.root.stat()
        return status.st_dev, status.st_ino

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            message=f"the data directory {self.root} {what} while the server was running: "
            "put the original back, or restart the server"
        )
