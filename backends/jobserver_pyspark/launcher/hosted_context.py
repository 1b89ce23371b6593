"""A context in the server: a host process, the connection to it, and its reports."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from jobserver_core.data_directory import create_private
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import JobServerError, LaunchError
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec, JobSpec
from jobserver_pyspark.launcher.connections import Arrivals, HostChannel, HostConnections, arrived
from jobserver_pyspark.launcher.descriptors import (
    check_descriptors,
    out_of_descriptors,
    with_descriptor_limit,
)
from jobserver_pyspark.launcher.environments import Unpacking
from jobserver_pyspark.launcher.host_plan import HostPlan, link_jars
from jobserver_pyspark.launcher.host_process import HostProcess, SurvivingHost
from jobserver_pyspark.launcher.hosted_jobs import HostedJobs, reported_error
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers
from jobserver_pyspark.launcher.packages import PackageLease
from jobserver_pyspark.launcher.spare_hosts import SpareHost, fingerprint
from jobserver_pyspark.launcher.spare_pools import SparePools
from jobserver_pyspark.processes import describe_exit, killed_from_outside
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import (
    AcknowledgeJob,
    ContextDied,
    ContextReady,
    ContextResumed,
    ContextStopped,
    HostToServer,
    LogWarning,
    ServerToHost,
    StartContext,
    StopContext,
)

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class LauncherResources:
    """Objects that the contexts of one launcher share. ``unpacked`` has packages and Python environments."""

    connections: HostConnections
    leftovers: Leftovers
    unpacked: DiskCache
    spares: SparePools[SpareHost]


class HostedContext(ContextHandle):
    """Starts a host, watches it from one thread, and ends all its processes.

    ``on_end`` is called last. ``priority`` is the nice value of all its processes. ``survivor`` is the record
    of a context that outlived its server and is taken over instead of started, within ``reattach_timeout``
    seconds.
    """

    def __init__(
        self,
        spec: ContextSpec,
        listener: ContextListener,
        resources: LauncherResources,
        *,
        make_plan: Callable[[Unpacking], HostPlan],
        on_end: Callable[[HostedContext], None],
        priority: int = 0,
        survivor: LeftoverRecord | None = None,
        jobs: Iterable[JobSpec] = (),
        reattach_timeout: float = 0.0,
    ) -> None:
        self._spec = spec
        self._listener = listener
        self._resources = resources
        self._make_plan = make_plan
        self._on_end = on_end
        self._priority = priority
        self._lock = threading.Lock()
        self._listener_lock = threading.Lock()
        self._packages = PackageLease(resources.unpacked)
        self._jobs = HostedJobs(
            spec, listener, self._packages, send=self._send, listener_lock=self._listener_lock
        )
        self._survivor = survivor
        self._reattach_timeout = reattach_timeout
        self._reattachable = survivor is not None
        self._detached = False
        if survivor is not None:
            self._jobs.expect(jobs)
        self._host: HostProcess | SurvivingHost | None = None
        self._channel: HostChannel | None = None
        self._record: LeftoverRecord | None = None
        self._end: ContextEnd | None = None
        self._error: ErrorInfo | None = None
        self._ready = False
        self._preparing = ""
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._supervise, name=f"context {spec.name}", daemon=True)

    def begin(self) -> None:
        """Start the supervisor thread, which starts the context."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until the context's end was reported and its files are removed.

        Returns whether they are.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def starting(self) -> bool:
        """Whether the context is neither ready nor ending."""
        return not self._ready and self._end is None

    @property
    def busy(self) -> bool:
        """Whether jobs run in the context."""
        return self._jobs.busy

    # -- called by the core ------------------------------------------------------------------------

    @property
    def preparing(self) -> str:
        return self._preparing

    def submit(self, job: JobSpec) -> None:
        if self._end is None:
            self._jobs.submit(job)

    def kill_job(self, job_id: str) -> None:
        self._jobs.kill(job_id)

    def acknowledge(self, job_id: str) -> None:
        if self._reattachable:
            self._send(AcknowledgeJob(job_id=job_id))

    def stop(self, timeout: float) -> None:
        """Stop gracefully, or kill after ``timeout`` seconds; leave a detached context alone."""
        with self._lock:
            if self._detached:
                return
            if self._end is None:
                self._end = ContextEnd.STOPPED
            ready = self._ready
        if ready and timeout > 0:
            timer = threading.Timer(timeout, self._destroy)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
            self._send(StopContext())
        else:
            self._destroy()

    def kill(self) -> None:
        """Kill the context, unless it was left to the next server."""
        with self._lock:
            if self._detached:
                return
            if self._end in (None, ContextEnd.STOPPED):
                self._end = ContextEnd.KILLED
        self._destroy()

    def detach(self) -> None:
        """Leave the context to the next server, or kill it if that server could not take it over.

        This does not wait for the listener, whose calls may hang. No call begins after it, and once
        :meth:`join` returns true, none is under way. A context that was left cannot be killed any more.
        """
        with self._lock:
            if self._detached:
                return
            connected = self._channel is not None or self._survivor is not None
            self._detached = self._reattachable and connected and self._end is None
        if not self._detached:
            self.kill()
            return
        self._jobs.close()
        if self._channel is not None:
            self._channel.close()

    def _destroy(self) -> None:
        """Kill the host; the supervising thread notices, and ends the rest."""
        with self._lock:
            if self._host is not None and not self._detached:
                self._host.kill()

    # -- supervision -------------------------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            if self._launch() if self._survivor is None else self._reattach(self._survivor):
                while self._channel is not None:
                    self._handle(self._channel.receive())
        except ChannelClosed as error:
            _log.debug("context %s: %s", self._spec.name, error)
        except Exception as error:  # noqa: BLE001 - the end must be reported to the core after any error
            if isinstance(error, OSError):
                message = out_of_descriptors(error) or f"cannot start the context: {error}"
                _log.warning("context %s: %s", self._spec.name, message)
                error = LaunchError(message=message)
            elif not isinstance(error, (ProtocolError, JobServerError)):
                _log.exception("context %s", self._spec.name)
            self._fail(ErrorInfo.from_exception(error))
            self._destroy()
        finally:
            if self._detached:
                self._leave()
            else:
                self._clean_up()

    def _leave(self) -> None:
        """Release what belongs to this process, and leave the host alone.

        The packages stay leased until this process ends: without leases they could be removed to make room,
        and running jobs may still import from them.
        """
        with self._listener_lock:
            pass  # a call that another thread began has returned
        if self._host is not None:
            self._host.leave()
        self._on_end(self)

    def _reattach(self, survivor: LeftoverRecord) -> bool:
        """Wait for the host of an earlier server; return whether it is connected."""
        self._record = survivor
        with self._lock:
            host = self._host = SurvivingHost(survivor)
            if self._end is not None:
                host.kill()
        connections = self._resources.connections
        arrivals = connections.expect_returning(survivor.marker, str(survivor.secret))
        try:
            channel = self._wait_for_host(host, arrivals)
        finally:
            connections.forget_returning(survivor.marker)
        if channel is None:
            return False
        resumed = channel.receive()
        if not isinstance(resumed, ContextResumed):
            raise ProtocolError(f"the context's host sent {type(resumed).__name__} before ContextResumed")
        with self._lock:
            self._channel = channel
        if self._detached:
            channel.close()
            return False
        _log.info("context %s was taken over", self._spec.name)
        if resumed.ready is not None:
            self._report_ready(resumed.ready)
        self._jobs.resume(resumed.jobs)
        return True

    def _wait_for_host(self, host: SurvivingHost, arrivals: Arrivals) -> HostChannel | None:
        """Return the connection of the host, or None with a reason if it does not come.

        Raises:
            ProtocolError: Its first message is malformed.
        """
        deadline = time.monotonic() + self._reattach_timeout
        while not self._detached:
            if (channel := arrived(arrivals)) is not None:
                return channel
            if not host.alive:
                self._fail(_not_reattached("its host process ended"))
                return None
            if time.monotonic() > deadline:
                self._fail(_not_reattached(f"its host did not connect in {self._reattach_timeout:g} s"))
                self._destroy()
                return None
        return None

    def _launch(self) -> bool:
        """Start a host or take a spare one; return whether it is connected."""
        check_descriptors()
        plan = self._make_plan(self._unpacking)
        self._reattachable = plan.spec.reattachment is not None
        create_private(self._spec.work_dir)
        link_jars(self._spec)
        if self._adopt_spare(plan):
            return True
        # Recorded before the process starts, because the server may be killed at any moment.
        self._remember(plan.record(self._spec.work_dir))
        with self._lock:
            if self._end is not None:
                return False
            self._host = HostProcess(
                plan, work_dir=self._spec.work_dir, log_path=self._spec.log_path, priority=self._priority
            )
        self._remember(self._host.record)
        channel = self._host.connect(self._resources.connections, StartContext(spec=plan.spec))
        self._remember_for_the_next_server(self._host.record)
        with self._lock:
            self._channel = channel
        return True

    @contextlib.contextmanager
    def _unpacking(self, archive: Path) -> Iterator[None]:
        """Note in the context's log that an environment is being unpacked, which may take minutes."""
        text = f"unpacking {archive}, once for all contexts"
        _log.info("context %s: %s", self._spec.name, text)
        with contextlib.suppress(OSError), self._spec.log_path.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
        self._preparing = text
        try:
            yield
        finally:
            self._preparing = ""

    def _remember_for_the_next_server(self, record: LeftoverRecord) -> None:
        if self._reattachable:
            self._remember(attrs.evolve(record, spec=self._spec))

    def _adopt_spare(self, plan: HostPlan) -> bool:
        """Give this context to a spare of the same settings; return False without a living spare."""
        wanted = fingerprint(plan, self._spec.work_dir)
        while self._end is None and (spare := self._resources.spares.take(wanted)) is not None:
            if self._adopt(spare, plan):
                return True
            _log.info("context %s: a spare has died", self._spec.name)
        return False

    def _adopt(self, spare: SpareHost, plan: HostPlan) -> bool:
        own = spare.host.record
        record = attrs.evolve(own, directories=(self._spec.work_dir, *own.directories))
        self._remember(record)
        with self._lock:
            self._host = spare.host
            wanted = self._end is None
        ready = spare.adopt(plan.spec) if wanted else None
        if ready is None:
            with self._lock:
                self._host = None
            spare.end()
            return False
        self._resources.leftovers.forget(spare.id)
        self._remember_for_the_next_server(record)
        with self._lock:
            self._channel = spare.channel
        if self._end is not None:
            self._destroy()
        self._report_ready(ready)
        return True

    def _remember(self, record: LeftoverRecord) -> None:
        self._record = record
        self._resources.leftovers.record(self._spec.id, record)

    def _fail(self, error: ErrorInfo, end: ContextEnd = ContextEnd.FAILED) -> None:
        with self._lock:
            if self._end is None:
                self._end, self._error = end, error

    def _clean_up(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._channel is not None:
            self._channel.close()
        status = self._host.reap() if self._host is not None else None
        with self._lock:
            if self._end is None:
                killed = killed_from_outside(status)
                self._end = ContextEnd.KILLED_OUTSIDE if killed else ContextEnd.FAILED
                self._error = self._unexpected(status)
            asked = self._end in (ContextEnd.STOPPED, ContextEnd.KILLED)
            end, error = self._end, None if asked else self._error
        record = self._record
        ended = record is not None and record.end()
        if record is None:  # nothing was started, so there are only links
            shutil.rmtree(self._spec.work_dir, ignore_errors=True)
        self._jobs.close()
        with self._listener_lock:
            if not self._detached:  # the next server finds no record, and reports the loss
                self._listener.context_ended(end, error and with_descriptor_limit(error))
        self._packages.close()
        if record is not None:
            self._resources.leftovers.remove(self._spec.id, record, ended=ended)
        self._on_end(self)

    def _unexpected(self, status: int | None) -> ErrorInfo:
        log = self._spec.log_tail()
        how = "ended" if isinstance(self._host, SurvivingHost) else describe_exit(status)
        return ErrorInfo(
            message=f"the context's host process {how}",
            error_class="ContextHostLost",
            stack=f"last lines of the context's log:\n{log}" if log else "",
        )

    # -- messages ----------------------------------------------------------------------------------

    def _handle(self, message: HostToServer) -> None:
        match message:
            case ContextReady():
                self._report_ready(message)
            case ContextDied():
                end = ContextEnd.KILLED_OUTSIDE if message.killed_outside else ContextEnd.FAILED
                self._fail(self._with_master_problem(reported_error(message.error)), end)
            case ContextStopped():
                pass  # the connection ends next
            case LogWarning():
                _log.warning("context %s: %s", self._spec.name, message.text)
            case _:
                self._jobs.handle(message)

    def _with_master_problem(self, error: ErrorInfo) -> ErrorInfo:
        """Return the error of a start, beginning with the master if that cannot be reached."""
        problem = "" if self._ready else self._spec.master_problem()
        return attrs.evolve(error, message=f"{problem}; {error.message}") if problem else error

    def _report_ready(self, message: ContextReady) -> None:
        with self._lock:
            if self._end is not None:
                return
            self._ready = True
        with self._listener_lock:
            if self._detached:
                return
            self._listener.context_ready(application_id=message.application_id, url=message.url)

    def _send(self, message: ServerToHost) -> None:
        channel = self._channel
        if channel is None:
            return
        with contextlib.suppress(ChannelClosed):  # the supervisor thread reports the context's end
            channel.send(message)


def _not_reattached(reason: str) -> ErrorInfo:
    return ErrorInfo(
        message=f"the job server ended, and the context could not be taken over: {reason}",
        error_class="ContextNotReattached",
    )
