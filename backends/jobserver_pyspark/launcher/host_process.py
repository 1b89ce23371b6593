"""The process of a context host: start it, connect to it, and end it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import attrs

from jobserver_core.data_directory import create_private
from jobserver_pyspark import processes
from jobserver_pyspark.launcher.connections import HostChannel, HostConnections, arrived
from jobserver_pyspark.launcher.host_plan import HostPlan, properties_file
from jobserver_pyspark.launcher.kubernetes import TEMPLATE_FILE
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, write_private
from jobserver_pyspark.protocol.converter import encode
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import Connect, StartContext, StartSpare

_EXIT_TIMEOUT = 10.0
"""Seconds for a host to end by itself after its context has ended; then it is killed."""
_PAUSE = 0.02
"""Seconds between two checks whether a host that is no child of this process has ended."""


class HostProcess:
    """One host. The constructor creates its directories and starts its process.

    ``work_dir`` becomes its working directory. Output of the host and its JVM before they have their own log
    is appended to ``log_path``. ``priority`` is the nice value of all its processes.
    """

    def __init__(self, plan: HostPlan, *, work_dir: Path, log_path: Path, priority: int = 0) -> None:
        self._plan = plan
        tmp_dir = plan.spec.tmp_dir
        self._work_dir = work_dir
        for directory in (work_dir / "local", log_path.parent):
            create_private(directory)
        tmp_dir.mkdir(mode=0o700, exist_ok=tmp_dir.parent == work_dir)
        if plan.spec.submitted:
            write_private(tmp_dir / "spark.properties", properties_file(plan.spec.conf))
        if plan.pod_template is not None:
            write_private(Path(plan.spec.conf[TEMPLATE_FILE]), plan.pod_template)
        self._process = self._spawn(work_dir, log_path)
        self._plan = attrs.evolve(plan, locks=())  # they are the host's now
        self.secret: str | None = None
        """What identifies the host to later servers, once it is connected."""
        if priority:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, priority)  # before it starts anything itself

    def _spawn(self, work_dir: Path, log_path: Path) -> subprocess.Popen[bytes]:
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - the command is the launcher's own
                self._plan.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=work_dir,
                env=self._plan.environment,
                start_new_session=True,
                pass_fds=[lock.descriptor for lock in self._plan.locks],
            )
        finally:
            os.close(log)

    @property
    def record(self) -> LeftoverRecord:
        """The processes and directories to remove when this host has ended."""
        pid = self._process.pid
        return attrs.evolve(
            self._plan.record(self._work_dir),
            pid=pid,
            start_time=processes.start_time(pid),
            secret=self.secret,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def connect(self, connections: HostConnections, first: StartContext | StartSpare) -> HostChannel:
        """Return the connection of the host after ``first`` was sent to it.

        Raises:
            ChannelClosed: The host ended instead.
            ProtocolError: The host speaks another version of the protocol.
        """
        self.secret, arrivals = connections.expect()
        try:
            address, port = connections.address
            line, _ = encode(Connect(host=address, port=port, token=self.secret))
            assert self._process.stdin is not None  # it stays open: its end means that the server has ended
            try:
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            while (channel := arrived(arrivals)) is None:
                if not self.alive:
                    raise ChannelClosed("the host ended before it had connected")
        finally:
            connections.forget(self.secret)
        channel.send(first)
        return channel

    def kill(self) -> None:
        """Kill the host; the processes that it started end with its context's record."""
        if self._process.returncode is None:
            processes.kill_group(self._process.pid)

    def reap(self) -> int:
        """Wait until the host has ended, kill it after some seconds, and return its exit status."""
        try:
            self._process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._close_input()
        return int(self._process.returncode)

    def leave(self) -> None:
        """Leave the host to the next server. If this process lives longer, it still has to reap the host."""
        self._close_input()
        threading.Thread(target=self._process.wait, name="host left", daemon=True).start()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended before it had read its input
            self._process.stdin.close()


class SurvivingHost:
    """The host of a context that outlived its server: not a child of this process, or not known as one."""

    def __init__(self, record: LeftoverRecord) -> None:
        self._record = record

    @property
    def alive(self) -> bool:
        return self._record.alive

    def kill(self) -> None:
        """Kill the host; the processes that it started end with its context's record."""
        if self.alive and self._record.pid is not None:
            processes.kill_group(self._record.pid)

    def reap(self) -> None:
        """Wait until the host has ended, and kill it after some seconds. Its exit status is unknown."""
        deadline = time.monotonic() + _EXIT_TIMEOUT
        while self.alive:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(_PAUSE)

    def leave(self) -> None:
        """Leave the host to the next server."""
