"""What every service works with: the ports, the settings, and the folders of this server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from jobserver_core.callbacks.service import CallbackService
from jobserver_core.errors import StorageError
from jobserver_core.events import ContextChanged, EventBus, JobChanged, JobProgressed
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.ports import BlobStore, Fetcher, Ids, Launcher, MetadataStore, SteadyClock
from jobserver_core.shutdown import Admission

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["Deposits", "Environment", "Folders"]


class Deposits:
    """Keeps the sweep of unused blobs apart from those who are about to refer to one.

    A deposit is the time between committing a blob and storing the record that refers to it.
    Deposits run beside each other, and may be nested in one thread; a sweep runs alone. It lets
    nobody begin while it waits, and so waits only briefly: a deposit may last as long as a fetch.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._making = 0
        self._sweeping = False
        self._mine = threading.local()

    @contextmanager
    def making(self) -> Iterator[None]:
        """Hold off sweeps while a deposit is made."""
        if getattr(self._mine, "making", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._sweeping)
            self._making += 1
        self._mine.making = True
        try:
            yield
        finally:
            self._mine.making = False
            with self._changed:
                self._making -= 1
                self._changed.notify_all()

    @contextmanager
    def sweeping(self, patience: float) -> Iterator[bool]:
        """Let no deposit begin inside the block.

        Gives False, and lets them begin, when some are still under way after ``patience`` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._sweeping)
            self._sweeping = True
            alone = self._changed.wait_for(lambda: self._making == 0, patience)
            if not alone:
                self._end_sweep()
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._end_sweep()

    def _end_sweep(self) -> None:
        self._sweeping = False
        self._changed.notify_all()


class Folders:
    """The directories of a server below its data directory; made when they are first needed.

    The data directory itself is made at once. If it is removed or replaced later, nothing is written
    to what is there instead: uploads, jobs and contexts are refused with StorageError until the
    original is back.
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

    def _identify(self) -> tuple[int, int]:
        status = self.root.stat()
        return status.st_dev, status.st_ino

    def _lost(self, what: str) -> StorageError:
        return StorageError(
            message=f"the data directory {self.root} {what} while the server was running: "
            "put the original back, or restart the server"
        )

    def work(self, context_id: str) -> Path:
        """Return where the launcher keeps files of a context."""
        return self.root / "contexts" / context_id

    def context_log(self, context_id: str) -> Path:
        """Return the file of a context's driver output."""
        return self._in("logs/contexts") / f"{context_id}.log"

    def job_log(self, job_id: str) -> Path:
        """Return the file of a job's output."""
        return self._in("logs/jobs") / f"{job_id}.log"

    @property
    def job_logs(self) -> Path:
        """The folder of the jobs' logs."""
        return self._in("logs/jobs")

    @property
    def context_logs(self) -> Path:
        """The folder of the contexts' logs."""
        return self._in("logs/contexts")

    @property
    def data(self) -> Path:
        """The folder of the data files."""
        return self._in("data")

    def _in(self, name: str) -> Path:
        self.verify()
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(message=f"cannot make {folder}: {error.strerror or error}") from error
        return folder


@attrs.frozen(kw_only=True, eq=False)
class Environment:
    """The ports and what goes with them; services are given this and nothing else."""

    metadata: MetadataStore
    blobs: BlobStore
    fetcher: Fetcher
    launcher: Launcher
    clock: SteadyClock
    ids: Ids
    settings: Settings
    folders: Folders
    bus: EventBus
    callbacks: CallbackService
    server_id: str
    deposits: Deposits = attrs.field(factory=Deposits)
    admission: Admission = attrs.field(factory=Admission)

    def context_changed(self, context: Context) -> None:
        """Publish a context that was stored."""
        self.bus.publish(ContextChanged(at=self.clock.now(), context=context))

    def job_changed(self, job: Job, delivery: Delivery | None = None) -> None:
        """Publish a job that was stored, and wake the courier for its callback."""
        self.bus.publish(JobChanged(at=self.clock.now(), job=job))
        if delivery is not None:
            self.callbacks.recorded(delivery)

    def job_progressed(self, job: Job) -> None:
        """Publish how far a job is."""
        self.bus.publish(JobProgressed(at=self.clock.now(), job=job))

    def parse(self, text: str | bytes) -> dict[str, Any]:
        """Parse configuration that a user posted. Raises InvalidConfig."""
        from jobserver_core.config import hocon  # noqa: PLC0415 - only servers that are sent HOCON need it

        limits = self.settings.limits
        return hocon.parse_untrusted(text, max_bytes=limits.config_size, max_depth=limits.config_depth)
