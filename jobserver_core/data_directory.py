"""The data directory of a server, and what is where in it."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from jobserver_core.errors import DataDirLocked, InvalidSetting, StorageError

_log = logging.getLogger(__name__)

_SERVER_ID = "server.id"
_JOB_LOGS, _CONTEXT_LOGS, _CONTEXTS, _DATA_FILES = "logs/jobs", "logs/contexts", "contexts", "data"
_PRIVATE = 0o700
"""Only the server's user may enter: records, logs and results of all users are inside."""
DATA_DIR_ADVICE = (
    "choose another one with --data-dir (jobserver.data-dir), or give this user write permission"
)


class DataDirectory:
    """The data directory of a server, with its subdirectories, which are private to this user.

    All are created at once. If the data directory is removed or replaced later, nothing is written to what
    is there instead: uploads, jobs and contexts fail with StorageError until the original is back. A
    subdirectory that is removed later is created again for a new file, in the original data directory only.

    ``data_files`` is another place for data files, which several servers may share. It must exist, and is
    never created: a directory that is not mounted would be taken for an empty one. If it is unmounted later,
    data files fail with StorageError until it is mounted again: files in the empty directory that is there
    instead would seem stored, and be hidden later.

    ``check_open`` raises if the server has closed: a temporary data directory is gone then.
    """

    def __init__(
        self,
        root: Path,
        data_files: Path | None = None,
        check_open: Callable[[], object] = lambda: None,
    ) -> None:
        self.root = root
        self._data_files = data_files
        self._mounted_at = None if data_files is None else _mount_point(data_files)
        self.check_open = check_open
        self.shares_data_files = data_files is not None
        """Whether other servers may keep their data files in the same place."""
        try:
            create_private(root)
            self._identity = self._identify()
        except OSError as error:
            raise _unusable(root, error) from error
        for name in (_JOB_LOGS, _CONTEXT_LOGS, _CONTEXTS, _DATA_FILES):
            self._ensure(name)

    def server_id(self, new: Callable[[], str]) -> str:
        """Return the id of the servers of this data directory, which the first of them gets from ``new``."""
        path = self.root / _SERVER_ID
        try:
            if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
                return known
            server_id = new()
            written = path.with_suffix(".new")
            written.write_text(f"{server_id}\n", encoding="utf-8")
            written.replace(path)
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(message=f"cannot read or write the server's id in {path}: {error}") from error
        return server_id

    def verify(self) -> None:
        """Check that the data directory is the one that the server started with.

        Raises:
            StorageError: It is not.
            ServerClosed: It is not, because the server has closed.
        """
        try:
            found = self._identify()
        except OSError as error:
            raise self._lost(f"is gone ({error.strerror})") from error
        if found != self._identity:
            raise self._lost("was replaced")

    def work_dir(self, context_id: str) -> Path:
        """Return the directory for the launcher's files of a context."""
        return self._ensure(_CONTEXTS) / context_id

    def context_log(self, context_id: str) -> Path:
        """Return the file of a context's driver output."""
        return self._ensure(_CONTEXT_LOGS) / f"{context_id}.log"

    def job_log(self, job_id: str) -> Path:
        """Return the file of a job's output."""
        return self._ensure(_JOB_LOGS) / f"{job_id}.log"

    @property
    def job_logs(self) -> Path:
        """The directory of the jobs' logs."""
        return self._verified(_JOB_LOGS)

    @property
    def context_logs(self) -> Path:
        """The directory of the contexts' logs."""
        return self._verified(_CONTEXT_LOGS)

    @property
    def data_files(self) -> Path:
        """The directory of the data files.

        Raises:
            StorageError: It is configured, and is missing.
        """
        if self._data_files is None:
            return self._verified(_DATA_FILES)
        if not self._data_files.is_dir():
            problem = "is not a directory" if self._data_files.exists() else "does not exist"
            raise StorageError(
                message=f"the directory of the data files, {self._data_files}, {problem} "
                "(jobserver.data-files.directory); create it, or mount it"
            )
        if _mount_point(self._data_files) != self._mounted_at:
            raise StorageError(
                message=f"the directory of the data files, {self._data_files}, is no longer on the file "
                f"system that was mounted at {self._mounted_at} (jobserver.data-files.directory); mount it "
                "again, or restart the server"
            )
        return self._data_files

    def check_data_files(self) -> None:
        """Check that a data file can be written.

        Raises:
            StorageError: It cannot.
        """
        try:
            with tempfile.TemporaryFile(dir=self.create_data_files(), prefix=".check-") as file:
                file.write(b"\0")
        except OSError as error:
            directory = self._data_files or self.root / _DATA_FILES
            raise StorageError(
                message=f"cannot write to the directory of the data files, {directory}: "
                f"{error.strerror or error}"
            ) from error

    def create_data_files(self) -> Path:
        """Return the directory of the data files, for a new one."""
        return self._ensure(_DATA_FILES) if self._data_files is None else self.data_files

    def _verified(self, name: str) -> Path:
        self.verify()
        return self.root / name

    def _ensure(self, name: str) -> Path:
        directory = self._verified(name)
        if not directory.is_dir():
            self._create(name)
        return directory

    def _create(self, name: str) -> None:
        """Create a subdirectory, by a descriptor: the data directory may be removed or replaced meanwhile."""
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise self._lost(f"is gone ({error.strerror})") from error
        try:
            status = os.fstat(root)
            if (status.st_dev, status.st_ino) != self._identity:
                raise self._lost("was replaced")
            for path in (*reversed(Path(name).parents[:-1]), Path(name)):
                with suppress(FileExistsError):
                    os.mkdir(path, _PRIVATE, dir_fd=root)
        except OSError as error:
            message = f"cannot create {self.root / name}: {error.strerror or error}"
            raise StorageError(message=message) from error
        finally:
            os.close(root)

    def _identify(self) -> tuple[int, int]:
        status = os.stat(self.root)
        return status.st_dev, status.st_ino

    def _lost(self, what: str) -> StorageError:
        self.check_open()
        return StorageError(
            message=f"the data directory {self.root} {what} while the server was running: "
            "put the original back, or restart the server"
        )


def _mount_point(path: Path) -> Path:
    """Return where the file system of a path is mounted."""
    real = path.resolve()
    return next(place for place in (real, *real.parents) if place.is_mount() or place == place.parent)


def create_private(directory: Path) -> None:
    """Create a directory and its missing parents, private to this user. Existing ones keep their mode.

    ``mkdir`` gives the mode to the last directory only: its parents would depend on the umask.
    """
    missing = [parent for parent in directory.parents if not parent.exists()]
    for path in (*reversed(missing), directory):
        path.mkdir(mode=_PRIVATE, exist_ok=True)


def lock_data_dir(path: Path, until: ExitStack) -> Path:
    """Create the data directory, private to this user, and keep other servers out of it.

    The lock belongs to the operating system, so it ends with the process however that ends. Returns the
    absolute path. An existing directory that other users can access keeps its mode, because that may be
    intended, as for a volume of Kubernetes that belongs to a group; a warning is logged.

    Raises:
        DataDirLocked: Another server uses the directory; names its process.
        InvalidSetting: It is not a directory, or is in something that is not one.
        StorageError: The directory cannot be created or written to.
    """
    import fcntl  # noqa: PLC0415 - not on every platform that can embed the in-memory server

    try:
        create_private(path)
        file = until.enter_context((path / "server.lock").open("a+"))
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        raise DataDirLocked(path=str(path), holder=f" (process {holder})" if holder else "") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _warn_if_accessible(path)
    return path.resolve()


def _unusable(path: Path, error: OSError) -> InvalidSetting | StorageError:
    """Return the error of a data directory that cannot be created or written to."""
    first = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if not first.is_dir():
        message = f"{first} is not a directory" if first == path else f"{path}: {first} is not a directory"
        return InvalidSetting(key="jobserver.data-dir", message=message)
    return StorageError(message=f"data directory {path}: {error.strerror or error}; {DATA_DIR_ADVICE}")


def server_process(path: Path) -> int | None:
    """Return the id of the process whose server uses a data directory, or None if none is known."""
    import fcntl  # noqa: PLC0415 - see above

    with suppress(OSError, ValueError), (path / "server.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def _warn_if_accessible(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning(
            "other users of this machine can access the data directory %s (mode %04o): unless that is "
            "intended, restrict it with chmod 700",
            path,
            mode,
        )
