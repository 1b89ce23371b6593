"""Putting the services together, and their order of starting and stopping."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.binaries.data_files import DataFileService
from jobserver_core.binaries.uploads import BinaryService, chunks_of
from jobserver_core.callbacks.service import CallbackService
from jobserver_core.environment import Environment, Folders
from jobserver_core.errors import JobServerError
from jobserver_core.events import EventBus
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery
from jobserver_core.ports import (
    BlobStore,
    Clock,
    Fetcher,
    Ids,
    Launcher,
    MetadataStore,
    SteadyClock,
    Transport,
)
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService
from jobserver_core.running.health import Health
from jobserver_core.running.jobs import JobService
from jobserver_core.running.recovery import Recovery
from jobserver_core.running.retention import Sweeper
from jobserver_core.shutdown import FORCE, RELEASE, Steps

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["STORAGE", "Services"]

_log = logging.getLogger(__name__)

STORAGE = ("metadata", "blobs")
"""The parts without which nothing can be recorded."""


@attrs.frozen(kw_only=True, eq=False)
class Services:
    """Every use case of a job server."""

    environment: Environment
    binaries: BinaryService
    fetching: FetchService
    contexts: ContextService
    jobs: JobService
    data_files: DataFileService
    recovery: Recovery
    sweeper: Sweeper
    health: Health
    transports: Sequence[Transport]
    resources: ExitStack

    @classmethod
    def assemble(
        cls,
        *,
        metadata: MetadataStore,
        blobs: BlobStore,
        fetcher: Fetcher,
        launcher: Launcher,
        transports: Sequence[Transport],
        settings: Settings,
        clock: Clock,
        ids: Ids,
        data_dir: Path | None,
        resources: ExitStack,
    ) -> Services:
        """Make the services over these ports; without a data folder a temporary one is made."""
        if data_dir is None:
            data_dir = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="jobserver-")))
        clock = SteadyClock(clock)
        bus = EventBus()
        callbacks = CallbackService(
            metadata=metadata,
            blobs=blobs,
            transports=transports,
            clock=clock,
            ids=ids,
            settings=settings.callbacks,
            publish=bus.publish,
        )
        environment = Environment(
            metadata=metadata,
            blobs=blobs,
            fetcher=fetcher,
            launcher=launcher,
            clock=clock,
            ids=ids,
            settings=settings,
            folders=Folders(data_dir),
            bus=bus,
            callbacks=callbacks,
            server_id=ids.new(),
        )
        class_paths = ClassPaths(environment)
        fetching = FetchService(fetcher, clock, settings.fetcher)
        contexts = ContextService(environment, class_paths, fetching)
        jobs = JobService(environment, class_paths, fetching, contexts)
        data_files = DataFileService(environment)
        return cls(
            environment=environment,
            binaries=BinaryService(environment),
            fetching=fetching,
            contexts=contexts,
            jobs=jobs,
            data_files=data_files,
            recovery=Recovery(environment, jobs),
            sweeper=Sweeper(environment, data_files, contexts.lent_digests),
            health=_health_of(environment),
            transports=transports,
            resources=resources,
        )

    def start(self) -> None:
        """Settle the past before anything new begins; then run what is to run."""
        self._continue_time()
        self.environment.launcher.sweep()
        self.data_files.sweep()
        again = self.recovery.settle()
        self.environment.callbacks.start()
        self._upload_configured()
        self.contexts.start_configured()
        self.recovery.restart(again)
        self.sweeper.start()

    def drain(self) -> None:
        """Take nothing new and begin nothing more; jobs that have begun go on."""
        self.environment.admission.close()
        self.fetching.close()
        self.contexts.drain()

    def close(self, timeout: float) -> None:
        """End within ``timeout`` seconds, in the order in which nothing has to report to what has gone.

        Killing and releasing have their fixed times also when less is given. Repeating is allowed.
        """
        self.drain()
        env = self.environment
        grace = max(0.0, timeout - FORCE - RELEASE)
        if grace:
            # A little less, so that contexts which are ended by force for it are still seen to end.
            Steps(grace).run("contexts", lambda: self.contexts.stop_all(grace * 0.9))
        force = Steps(FORCE)
        force.run("contexts that have not stopped", lambda: self.contexts.kill_all(FORCE / 2))
        force.run("the launcher", env.launcher.close)
        release = Steps(RELEASE)
        release.run("the sweep", self.sweeper.close)
        release.run("callbacks", lambda: env.callbacks.close(RELEASE / 2))
        for transport in self.transports:
            release.run(f"{type(transport).__name__}", transport.close)
        release.run("the clock", env.clock.close)
        release.run("the fetcher", env.fetcher.close)
        release.run("the metadata store", env.metadata.close)
        release.run("the blob store", env.blobs.close)
        release.run("temporary files and locks", self.resources.close)

    def _continue_time(self) -> None:
        """Let new records be newer than those of earlier runs, should the clock have been set back since."""
        metadata = self.environment.metadata
        newest = [job.submitted_at for job in metadata.jobs(JobQuery(limit=1)).jobs]
        newest += [context.started_at for context in metadata.contexts(ContextQuery(limit=1))]
        newest += [binary.uploaded_at for binary in metadata.binaries()]
        if newest:
            self.environment.clock.continue_after(max(newest))

    def _upload_configured(self) -> None:
        """Upload the binaries of the configuration whose content is not the newest already."""
        for name, location in self.environment.settings.job_binary_paths.items():
            path = Path(location)
            kind = BinaryType.from_file_name(path.name) or BinaryType.JAR
            try:
                if not self._uploaded_already(name, path):
                    with path.open("rb") as file:
                        self.binaries.upload(name, kind, file)
            except (JobServerError, OSError) as error:
                _log.error("binary %s of the configuration could not be uploaded: %s", name, error)

    def _uploaded_already(self, name: str, path: Path) -> bool:
        newest = self.environment.metadata.binary(name)
        if newest is None or newest.size != path.stat().st_size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in chunks_of(file):
                digest.update(chunk)
        return digest.hexdigest() == newest.digest


def _health_of(environment: Environment) -> Health:
    def check_blobs() -> None:
        environment.folders.verify()  # or the check would make a blob directory in another data directory
        environment.blobs.check()

    return Health(
        {
            "metadata": environment.metadata.check,
            "blobs": check_blobs,
            "launcher": environment.launcher.check,
        }
    )
