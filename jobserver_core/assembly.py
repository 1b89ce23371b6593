"""Put the services together, and start and stop them in the right order."""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.binaries.class_paths import ClassPaths
from jobserver_core.binaries.data_files import DataFileService
from jobserver_core.binaries.pins import BlobPins
from jobserver_core.binaries.uploads import BinaryService
from jobserver_core.callbacks.service import CallbackService
from jobserver_core.data_directory import DataDirectory
from jobserver_core.errors import JobServerError
from jobserver_core.events import EventBus
from jobserver_core.forks import remove_with
from jobserver_core.models.arguments import digest_of
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.failures import ErrorInfo
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
from jobserver_core.ports.checked import checked
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.contexts import ContextService
from jobserver_core.running.fetching import FetchService
from jobserver_core.running.health import Health
from jobserver_core.running.intake import Intake
from jobserver_core.running.jobs import JobConfigs, JobService
from jobserver_core.running.jobs_without_room import JobsWithoutRoom
from jobserver_core.running.logs import LogService
from jobserver_core.running.notices import Notices, Topic
from jobserver_core.running.outbox import Syncer
from jobserver_core.running.records import Records
from jobserver_core.running.recovery import Recovery
from jobserver_core.running.requests import Requests
from jobserver_core.running.result_storage import ResultStore
from jobserver_core.running.retention import BlobSweep, RecordSweep, Sweeper
from jobserver_core.running.servers import Membership
from jobserver_core.running.storage import StorageService
from jobserver_core.running.submissions import SubmissionService
from jobserver_core.running.supervision import Supervisor
from jobserver_core.running.user_thread import UserThread
from jobserver_core.shutdown import FORCE, RELEASE, Admission, Steps, log_own_wait

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)

STORAGE = ("metadata", "blobs", "data-files")
"""The parts that store what jobs and their callers write."""
BRIEF_STEP = 1.0
"""Seconds that a shutdown waits for each brief step, such as the end of a takeover."""


class Services:
    """All use cases of a job server, and the parts that it starts and closes."""

    def __init__(
        self,
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
    ) -> None:
        """Create the services on these ports. The default data directory is a temporary one."""
        if data_dir is None:
            data_dir = Path(tempfile.mkdtemp(prefix="jobserver-"))
            resources.callback(remove_with(self, data_dir))
        self.metadata = metadata = checked(MetadataStore, metadata)
        self.blobs = blobs = checked(BlobStore, blobs)
        self.fetcher = fetcher = checked(Fetcher, fetcher)
        self.launcher = launcher = checked(Launcher, launcher)
        self.transports = transports = [checked(Transport, transport) for transport in transports]
        self.settings, self.resources = settings, resources
        self._closing = threading.RLock()
        self._closed = False
        self.clock = clock = SteadyClock(clock)
        self.admission = admission = Admission()
        self.data_directory = data_directory = DataDirectory(
            data_dir, settings.data_files.directory, admission.check_not_ended
        )
        self.server_id = server_id = data_directory.server_id(ids.new)
        self.address = address = settings.servers.address or socket.gethostname()
        self.bus = bus = EventBus()
        self.user_thread = user_thread = UserThread("jobserver-done-callbacks")
        self.configs = configs = JobConfigs(settings.limits, settings.jobs.default_config)
        self.fetching = fetching = FetchService(fetcher, clock, settings.fetcher, admission, user_thread.run)
        self.data_files = data_files = DataFileService(
            data_directory, clock, settings.limits.upload_size, server_id
        )
        self.syncer = syncer = Syncer(metadata)
        self.pins = pins = BlobPins(metadata, clock, server_id)
        class_paths = ClassPaths(metadata, blobs, pins)
        self.binaries = BinaryService(
            metadata=metadata,
            blobs=blobs,
            pins=pins,
            data_directory=data_directory,
            clock=clock,
            ids=ids,
            max_size=settings.limits.upload_size,
        )
        self.callbacks = callbacks = CallbackService(
            metadata=metadata,
            blobs=blobs,
            transports=transports,
            clock=clock,
            ids=ids,
            settings=settings.callbacks,
            publish=bus.publish,
            server_id=server_id,
        )
        self.membership = membership = Membership(
            metadata=metadata,
            clock=clock,
            server_id=server_id,
            address=address,
            settings=settings.servers,
            reattach_timeout=settings.contexts.reattach_timeout if launcher.reattaches else 0.0,
            on_removed=self._lose_contexts,
            take_over=self._take_over_from_others,
        )
        self.notices = notices = Notices(metadata, clock, has_peers=lambda: membership.has_peers)
        self.requests = requests = Requests(
            metadata=metadata,
            notices=notices,
            clock=clock,
            ids=ids,
            server_id=server_id,
            lease=settings.servers.lease,
        )
        records = Records(
            metadata=metadata,
            clock=clock,
            ids=ids,
            bus=bus,
            callbacks=callbacks,
            syncer=syncer,
            notices=notices,
            call_back=user_thread.run,
            server_id=server_id,
            address=address if metadata.shared else "",
        )
        self.registry = registry = ContextRegistry(
            records=records,
            launcher=launcher,
            class_paths=class_paths,
            data_directory=data_directory,
            clock=clock,
            settings=settings,
            restart=lambda context, jobs: self.supervisor.restart(context, jobs),  # noqa: PLW0108 - made below
            on_retired=lambda context: self.intake.context_ended(context),  # noqa: PLW0108 - made below
        )
        self.contexts = contexts = ContextService(
            registry=registry,
            fetching=fetching,
            metadata=metadata,
            settings=settings,
            requests=requests,
            records=records,
        )
        self.logs = LogService(
            metadata=metadata, records=records, data_directory=data_directory, requests=requests
        )
        self.jobs = jobs = JobService(
            records=records,
            results=ResultStore(
                blobs,
                pins,
                settings.jobs,
                launcher=type(launcher).__name__,
                checks=not launcher.writes_json,
            ),
            configs=configs,
            metadata=metadata,
            data_directory=data_directory,
            clock=clock,
            requests=requests,
            kill_waiting=lambda job_id, user: self.intake.kill(job_id, user),  # noqa: PLW0108 - made below
        )
        self.submissions = SubmissionService(
            metadata=metadata,
            jobs=jobs,
            contexts=registry,
            records=records,
            fetching=fetching,
            class_paths=class_paths,
            configs=configs,
            callbacks=callbacks,
            limits=settings.jobs,
        )
        self.intake = intake = Intake(
            metadata=metadata,
            records=records,
            jobs=jobs,
            registry=registry,
            class_paths=class_paths,
            notices=notices,
            clock=clock,
            restart=lambda jobs: self.recovery.restart(jobs),  # noqa: PLW0108 - made below
        )
        notices.on(Topic.SUBMITTED, intake.scan)
        notices.on(Topic.ENDED, self._notice_ends)
        notices.on(Topic.LEFT, membership.search_now)
        self.supervisor = supervisor = Supervisor(
            registry=registry, jobs=jobs, fetching=fetching, clock=clock
        )
        self.without_room = JobsWithoutRoom(
            metadata=metadata,
            records=records,
            clock=clock,
            notices=notices,
            heirs=membership.heirs,
            restart=lambda jobs: self.recovery.restart(jobs),  # noqa: PLW0108 - made below
        )
        notices.on(Topic.PASSED_ON, membership.search_given)
        self.recovery = Recovery(
            others=membership.others,
            metadata=metadata,
            launcher=launcher,
            records=records,
            jobs=jobs,
            registry=registry,
            contexts=contexts,
            fetching=fetching,
            class_paths=class_paths,
            settings=settings.spark,
            restart_context=lambda context: supervisor.restart(context, ()),
            without_room=self.without_room,
        )
        record_sweep = RecordSweep(
            metadata=metadata,
            clock=clock,
            settings=settings,
            data_directory=data_directory,
            data_files=data_files,
        )
        blob_sweep = BlobSweep(
            metadata=metadata,
            blobs=blobs,
            clock=clock,
            data_directory=data_directory,
            pins=pins,
        )
        self.sweeper = Sweeper(clock, (*record_sweep.sweeps, blob_sweep))
        self.storage = StorageService(
            metadata=metadata, blobs=blobs, data_directory=data_directory, settings=settings
        )
        self.health = _health_of(metadata, blobs, launcher, data_directory)

    def start(self) -> None:
        """Reconcile what an earlier server left behind, and only then start anything new."""
        self._continue_time()
        self.membership.join()
        self.membership.start()
        self.recovery.take_over()
        self.launcher.sweep()
        self.data_files.sweep()
        lost = self.recovery.end_lost()
        self.callbacks.start(self.membership.others)
        self._upload_configured()
        self.supervisor.start()
        # Fetching files may take minutes, but other servers already need answers from this one.
        self.notices.start()
        self.contexts.start_configured()
        self.recovery.restart(lost.jobs)
        self.membership.watch()
        self.sweeper.start()

    def _notice_ends(self, ids: frozenset[str] | None) -> None:
        """Notify those who wait for jobs and contexts of other servers."""
        self.jobs.watch.scan(ids)
        self.contexts.watch.scan(ids)

    def _take_over_from_others(self) -> None:
        if self.admission.open:
            lost = self.recovery.end_lost()
            self.callbacks.take_over(self.membership.others)
            self.contexts.start_configured(lost.names)
            self.recovery.restart(lost.jobs)

    def _lose_contexts(self) -> None:
        """End all contexts here, because other servers have declared this one dead."""
        self.pins.renew()
        reason = ErrorInfo(message="the job server did not renew its lease in time", error_class="LeaseLost")
        for context in self.registry.all():
            try:
                context.lose(reason)
            except Exception:  # noqa: BLE001 - the other contexts must still be ended
                _log.exception("context %s could not be ended", context.record.name)

    def drain(self) -> None:
        """Accept no new work and begin nothing more. Jobs that have begun continue."""
        # First, so that other servers accept no more jobs that this one would not pick up.
        Steps(BRIEF_STEP).run("announcing to other servers that this one drains", self.membership.drain)
        self.fetching.close()
        self.intake.close()
        self.supervisor.close()
        self.registry.drain()
        self.recovery.close()

    def close(self, timeout: float, *, detach: bool) -> None:
        """Shut down within ``timeout`` seconds, in an order in which nothing reports to a closed part.

        With ``detach``, contexts are left to the next server, if the launcher can do that. Killing and
        releasing always get their fixed times, even if ``timeout`` is shorter. Idempotent: a second call
        waits for the first one, but not once more for what hangs.
        """
        with self._closing:
            if not self._closed:
                self._closed = True
                self._close(timeout, detach=detach)

    def _close(self, timeout: float, *, detach: bool) -> None:
        began = time.monotonic()
        self.drain()
        Steps(BRIEF_STEP).run(
            "ending the watch over other servers", lambda: self.membership.stop_watching(BRIEF_STEP)
        )
        detached = False
        if detach and self.launcher.reattaches:
            detached = bool(self.registry.all())
            self._detach_contexts()
        else:
            self._end_contexts(began + timeout - FORCE - RELEASE)
        self._release(detached=detached)
        log_own_wait(time.monotonic() - began)

    def _detach_contexts(self) -> None:
        steps = Steps(FORCE)
        steps.run("detaching the launcher", self.launcher.detach)
        steps.run("detaching contexts", self.registry.detach_all)

    def _end_contexts(self, deadline: float) -> None:
        Steps(BRIEF_STEP).run("handing contexts over to other servers", self._leave_contexts)
        if (seconds := deadline - time.monotonic()) > 0:
            # A little less, so that there is time to see the end of contexts that are then ended by force.
            Steps(seconds).run("stopping contexts", lambda: self.registry.stop_all(seconds * 0.9))
        force = Steps(FORCE)
        force.run("killing contexts that have not stopped", lambda: self.registry.kill_all(FORCE / 2))
        force.run("closing the launcher", self.launcher.close)

    def _leave_contexts(self) -> None:
        if self.registry.all() and self.membership.has_heirs:
            message = f"server {self.address} was stopped"
            self.registry.leave_all(ErrorInfo(message=message, error_class="ServerStopped"))

    def _release(self, *, detached: bool) -> None:
        release = Steps(RELEASE)
        release.run("waking waiters for the disk", self.syncer.close)
        release.run("ending requests to other servers", self.requests.close)
        release.run("closing the notices", self.notices.close)
        release.run("waking waiters for jobs of other servers", self.jobs.watch.close)
        release.run("waking waiters for contexts of other servers", self.contexts.watch.close)
        # Not as a step on another thread: one of these functions may be closing the server.
        if not self.user_thread.close(BRIEF_STEP):
            _log.warning("a function of add_done_callback takes too long; the shutdown goes on without it")
        release.run("ending the sweep", self.sweeper.close)
        release.run("ending callbacks", lambda: self.callbacks.close(RELEASE / 2))
        for transport in self.transports:
            release.run(f"closing {type(transport).__name__}", transport.close)
        release.run("closing the clock", self.clock.close)
        release.run("closing the fetcher", self.fetcher.close)
        release.run("giving up the lease", lambda: self.membership.close(detached=detached))
        release.run("closing the metadata store", self.metadata.close)
        release.run("closing the blob store", self.blobs.close)
        release.run("removing temporary files and locks", self.resources.close)

    def _continue_time(self) -> None:
        """Make new records newer than those of earlier runs, even if the clock has been set back since."""
        newest = [job.submitted_at for job in self.metadata.jobs(JobQuery(limit=1)).jobs]
        newest += [context.started_at for context in self.metadata.contexts(ContextQuery(limit=1))]
        newest += [binary.uploaded_at for binary in self.metadata.binaries()]
        if newest:
            self.clock.continue_after(max(newest))

    def _upload_configured(self) -> None:
        """Upload the configured binaries, unless their newest version already has the same content."""
        for name, location in self.settings.job_binary_paths.items():
            path = Path(location)
            kind = BinaryType.from_file_name(path.name) or BinaryType.JAR
            try:
                if not self._uploaded_already(name, path):
                    with path.open("rb") as file:
                        self.binaries.upload(name, kind, file)
            except (JobServerError, OSError) as error:
                _log.error("the configured binary %s could not be uploaded: %s", name, error)

    def _uploaded_already(self, name: str, path: Path) -> bool:
        newest = self.metadata.binary(name)
        if newest is None or newest.size != path.stat().st_size:
            return False
        with path.open("rb") as file:
            return digest_of(file) == newest.digest


def _health_of(
    metadata: MetadataStore, blobs: BlobStore, launcher: Launcher, data_directory: DataDirectory
) -> Health:
    def check_blobs() -> None:
        data_directory.verify()  # or the check might create a blob directory in a different one
        blobs.check()

    return Health(
        {
            "metadata": metadata.check,
            "blobs": check_blobs,
            "data-files": data_directory.check_data_files,
            "launcher": launcher.check,
        }
    )
