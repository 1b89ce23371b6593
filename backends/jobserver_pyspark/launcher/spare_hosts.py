"""Hosts that are started in advance: a process with a JVM that waits for its context."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from jobserver_core.errors import JobServerError
from jobserver_core.ports import ContextSpec
from jobserver_pyspark.launcher.connections import Connections, HostChannel
from jobserver_pyspark.launcher.host_plan import HostPlan
from jobserver_pyspark.launcher.host_process import HostProcess, shape
from jobserver_pyspark.launcher.leftovers import Leftovers
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.frames import ChannelClosed

__all__ = ["SpareHost", "SpareHosts"]

_log = logging.getLogger(__name__)


class SpareHost:
    """A host that is connected, and waits for a context."""

    def __init__(self, spare_id: str, host: HostProcess, channel: HostChannel, made_for: str) -> None:
        self.id = spare_id
        self.host = host
        self.channel = channel
        self.made_for = made_for


class SpareHosts:
    """Keeps ``count`` spare hosts of the shape that the newest context had.

    A host fits a context when interpreter, environment, class path and options of the JVM are the same;
    everything else is sent to it when it is taken. The preparations of Spark's own submission cannot be sent
    later, so contexts that need them have no spares.
    """

    def __init__(self, directory: Path, count: int, connections: Connections, leftovers: Leftovers) -> None:
        self._directory = directory
        self._count = count
        self._connections = connections
        self._leftovers = leftovers
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        self._spares: list[SpareHost] = []
        self._making: HostProcess | None = None
        self._closed = False

    @property
    def ready(self) -> int:
        """The number of spares that are ready."""
        with self._lock:
            return sum(spare.host.alive for spare in self._spares)

    def take(self, plan: HostPlan, work_dir: Path) -> SpareHost | None:
        """Return a spare that fits, which the caller then owns, or None."""
        wanted = shape(plan, work_dir)
        with self._lock:
            fitting = [spare for spare in self._spares if spare.made_for == wanted and spare.host.alive]
            if not fitting:
                return None
            self._spares.remove(fitting[0])
            return fitting[0]

    def refill(self, make_plan: Callable[[ContextSpec], HostPlan]) -> None:
        """Start spares as ``make_plan`` describes in the background, and end others."""
        if self._count > 0 and not self._closed:
            threading.Thread(target=self._fill, args=(make_plan,), name="spare hosts", daemon=True).start()

    def _fill(self, make_plan: Callable[[ContextSpec], HostPlan]) -> None:
        with self._filling:
            try:
                while not self._closed and (spec := self._missing(make_plan)) is not None:
                    self._add(spec, make_plan(spec))
            except (OSError, JobServerError, ChannelClosed, ProtocolError) as error:
                _log.warning("a spare host could not be started: %s", error)

    def _missing(self, make_plan: Callable[[ContextSpec], HostPlan]) -> ContextSpec | None:
        """Return the spec of the next spare, or None if there are enough; end spares of other shapes."""
        spec = self._spec()
        plan = make_plan(spec)
        wanted = shape(plan, spec.work_dir)
        count = 0 if plan.spec.submitted else self._count
        with self._lock:
            unfit = [s for s in self._spares if s.made_for != wanted or not s.host.alive]
            self._spares = [s for s in self._spares if s not in unfit]
            enough = len(self._spares) >= count
        for spare in unfit:
            self._end(spare)
        return None if enough else spec

    def _spec(self) -> ContextSpec:
        spare_id = str(uuid4())
        directory = self._directory / spare_id
        return ContextSpec(
            id=spare_id,
            name="spare",
            log_path=directory / "log",
            work_dir=directory,
            data_dir=directory / "data",
        )

    def _add(self, spec: ContextSpec, plan: HostPlan) -> None:
        host = self._start(spec, plan)
        try:
            channel = host.connect(self._connections, spare=True)
        except (ChannelClosed, ProtocolError):
            self._discard(spec.id, host)
            raise
        finally:
            self._making = None
        spare = SpareHost(spec.id, host, channel, shape(plan, spec.work_dir))
        with self._lock:
            if not self._closed:
                self._spares.append(spare)
                return
        self._end(spare)

    def _start(self, spec: ContextSpec, plan: HostPlan) -> HostProcess:
        with self._lock:
            if self._closed:
                raise ChannelClosed("the launcher is closed")
            host = HostProcess(plan, work_dir=spec.work_dir, log_path=spec.log_path)
            self._making = host
        self._leftovers.record(spec.id, host.record)
        return host

    def _end(self, spare: SpareHost) -> None:
        spare.channel.close()
        self._discard(spare.id, spare.host)

    def _discard(self, spare_id: str, host: HostProcess) -> None:
        record = host.record
        host.kill()
        host.reap()
        if record.end():
            self._leftovers.forget(spare_id)
        shutil.rmtree(self._directory / spare_id, ignore_errors=True)

    def close(self, deadline: float) -> None:
        """End every spare and start no more, waiting until ``deadline`` on the monotonic clock at most."""
        with self._lock:
            self._closed = True
            spares, self._spares = self._spares, []
            making = self._making
        for host in [*(spare.host for spare in spares), *([making] if making else [])]:
            host.kill()
        for spare in spares:
            self._end(spare)
        # The thread that starts a spare also ends it.
        if self._filling.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._filling.release()
