"""Spares as processes: hosts that have started an application and wait for their context."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from jobserver_core.errors import JobServerError
from jobserver_core.ports import ContextSpec
from jobserver_core.repeats import Repeats
from jobserver_pyspark import processes
from jobserver_pyspark.launcher.connections import HostChannel, HostConnections
from jobserver_pyspark.launcher.context_settings import ContextSettings
from jobserver_pyspark.launcher.host_plan import HostPlan
from jobserver_pyspark.launcher.host_process import HostProcess
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers
from jobserver_pyspark.launcher.spare_pools import Pool, Spare, SpareFailed, SpareStarter
from jobserver_pyspark.protocol.converter import ProtocolError, encode
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import (
    AdoptContext,
    ContextDied,
    ContextReady,
    HostSpec,
    LogWarning,
    SpareReady,
    StartSpare,
)

_START_TIMEOUT = 300.0
"""Seconds for a spare to start, at low priority and on a machine that is busy with jobs."""
_ADOPTION_TIMEOUT = 10.0
"""Seconds for a spare to take a context; a user waits, so a new host is started if it does not."""
_LOW_PRIORITY = 5
"""The nice value while a spare starts: below running jobs, but not so far that it never becomes ready."""
_APP_NAME = "spark.app.name"
_NO_PATH = Path()
_ARCHIVE_OPTIONS = ("-XX:SharedArchiveFile=", "-Xlog:cds")
_log = logging.getLogger(__name__)
_repeats = Repeats(_log)


class SpareHost(Spare):
    """A host that has started an application, and the connection to it."""

    def __init__(
        self,
        pool: str,
        fingerprint: str,
        *,
        spare_id: str,
        host: HostProcess,
        channel: HostChannel,
        leftovers: Leftovers,
    ) -> None:
        super().__init__(pool, fingerprint)
        self.id = spare_id
        self.host = host
        self.channel = channel
        self._leftovers = leftovers

    @property
    def alive(self) -> bool:
        """Whether the host runs; it ends when its application, its JVM or its zygote does."""
        return self.host.alive

    def adopt(self, spec: HostSpec) -> ContextReady | None:
        """Give the spare a context; return None if its application has ended or does not reply."""
        self.channel.settimeout(_ADOPTION_TIMEOUT)
        try:
            self.channel.send(AdoptContext(spec=spec))
            while isinstance(reply := self.channel.receive(), LogWarning):
                _log.warning("spare context %s: %s", self.id, reply.text)
        except (ChannelClosed, ProtocolError, TimeoutError):
            return None
        self.channel.settimeout(None)
        return reply if isinstance(reply, ContextReady) else None

    def kill(self) -> None:
        self.host.kill()

    def end(self) -> None:
        self.channel.close()
        _discard(self.id, self.host.record, self.host, self._leftovers)


def _discard(spare_id: str, record: LeftoverRecord, host: HostProcess | None, leftovers: Leftovers) -> None:
    if host is not None:
        host.kill()
        host.reap()
    leftovers.remove(spare_id, record, ended=record.end())


class SpareHosts(SpareStarter[SpareHost]):
    """Starts spare hosts, in directories of their own below ``directory``.

    While a host starts, it has a low priority, if the system allows that to be undone.
    """

    def __init__(
        self,
        directory: Path,
        connections: HostConnections,
        leftovers: Leftovers,
        make_plan: Callable[[ContextSpec, ContextSettings], HostPlan],
    ) -> None:
        self._directory = directory
        self._connections = connections
        self._leftovers = leftovers
        self._make_plan = make_plan
        self._lock = threading.Lock()
        self._closed = False
        self._starting: HostProcess | None = None
        self._priority = _LOW_PRIORITY if processes.can_restore_priority() else 0

    def fingerprint(self, pool: Pool) -> str | None:
        """Return the fingerprint of a spare that would be started now, or None if the pool can have none."""
        spec = self._spec(pool)
        try:
            return fingerprint(self._make_plan(spec, pool.settings), spec.work_dir)
        except (JobServerError, OSError) as error:
            _repeats.warning(pool.name, "the pool %s can have no spare context: %s", pool.name, error)
            return None

    def _spec(self, pool: Pool) -> ContextSpec:
        spare_id = str(uuid4())
        directory = self._directory / spare_id
        return ContextSpec(
            id=spare_id,
            name=f"spare of pool {pool.name}",
            log_path=directory / "log",
            work_dir=directory,
            data_dir=directory / "data",
        )

    def start(self, pool: Pool) -> SpareHost:
        """Start a host, and return it when its application is ready.

        Raises:
            SpareFailed: It did not become ready.
        """
        spec = self._spec(pool)
        try:
            plan = self._make_plan(spec, pool.settings)
        except (JobServerError, OSError) as error:
            raise SpareFailed(str(error)) from error
        # Recorded before the process starts, because the server may be killed at any moment.
        try:
            return self._launch(pool, spec, plan, plan.record(spec.work_dir))
        except (OSError, ChannelClosed, ProtocolError, TimeoutError) as error:
            raise SpareFailed(str(error)) from error
        finally:
            self._starting = None

    def _launch(self, pool: Pool, spec: ContextSpec, plan: HostPlan, record: LeftoverRecord) -> SpareHost:
        """Start a host and its application; leave nothing behind if that fails."""
        with contextlib.ExitStack() as failed:
            failed.callback(lambda: _discard(spec.id, record, self._starting, self._leftovers))
            self._leftovers.record(spec.id, record)
            host = self._spawn(spec, plan)
            self._leftovers.record(spec.id, host.record)
            channel = host.connect(self._connections, StartSpare(spec=plan.spec))
            failed.callback(channel.close)
            channel.settimeout(_START_TIMEOUT)
            _await_ready(channel)
            channel.settimeout(None)
            if self._priority:
                processes.set_priority(plan.spec.marker, os.getpriority(os.PRIO_PROCESS, 0))
            spare = SpareHost(
                pool.name,
                fingerprint(plan, spec.work_dir),
                spare_id=spec.id,
                host=host,
                channel=channel,
                leftovers=self._leftovers,
            )
            failed.pop_all()
        return spare

    def _spawn(self, spec: ContextSpec, plan: HostPlan) -> HostProcess:
        with self._lock:
            if self._closed:
                raise SpareFailed("the launcher is closed")
            host = HostProcess(plan, work_dir=spec.work_dir, log_path=spec.log_path, priority=self._priority)
            self._starting = host
        return host

    def close(self) -> None:
        """End the host that is being started; the thread that starts it removes what is left."""
        with self._lock:
            self._closed = True
            starting = self._starting
        if starting is not None:
            starting.kill()


def _await_ready(channel: HostChannel) -> None:
    while not isinstance(message := channel.receive(), SpareReady):
        if isinstance(message, ContextDied):
            raise SpareFailed(message.error.message)
        if not isinstance(message, LogWarning):
            raise ProtocolError(f"a spare sent {type(message).__name__} before SpareReady")


def fingerprint(plan: HostPlan, work_dir: Path) -> str:
    """Return everything that cannot change after the start of a host.

    Name, log, directories and the settings that only jobs read can change, and it does not matter from which
    archive a JVM has read its classes.
    """
    spec, jvm = plan.spec, plan.spec.jvm
    fixed = dataclasses.replace(
        spec,
        jvm=dataclasses.replace(
            jvm, command=tuple(part for part in jvm.command if not part.startswith(_ARCHIVE_OPTIONS))
        ),
        conf={key: value for key, value in spec.conf.items() if key != _APP_NAME},
        settings="",
        log_path=_NO_PATH,
        data_dir=_NO_PATH,
        reattachment=None,
        spare_runners=0,
    )
    header, _ = encode(StartSpare(spec=fixed))
    text = json.dumps([plan.command, plan.environment, plan.pod_template, header.decode()], sort_keys=True)
    context_id, _, _ = spec.marker.partition(":")
    own = {spec.marker: "marker", str(spec.tmp_dir): "tmp", str(work_dir): "work", context_id: "id"}
    for value, name in own.items():  # a directory may contain the id
        text = text.replace(value, f"{{{name}}}")
    return text
