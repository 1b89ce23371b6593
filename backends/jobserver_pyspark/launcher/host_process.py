"""A context host as a process: started, told what to do, connected to, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
from pathlib import Path
from typing import Any

from jobserver_pyspark import processes
from jobserver_pyspark.launcher.connections import Connections
from jobserver_pyspark.launcher.leftovers import ContextRecord
from jobserver_pyspark.launcher.order import HostOrder, properties_file
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed

__all__ = ["HostProcess"]

_LAST_WORDS = 10.0


class HostProcess:
    """One host. Its folders are made, and its process started, by the constructor.

    ``work_dir`` becomes its current folder; what it and its JVM say before they have their own log is
    appended to ``log_path``. ``priority`` is the nice value of all that it starts.
    """

    def __init__(self, order: HostOrder, *, work_dir: Path, log_path: Path, priority: int = 0) -> None:
        self._order = order
        self.folders = (work_dir, order.tmp_dir)
        for folder in (work_dir / "local", log_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        order.tmp_dir.mkdir(mode=0o700, exist_ok=order.tmp_dir.parent == work_dir)
        if order.order["submitted"]:
            _write_private(order.tmp_dir / "spark.properties", properties_file(order.order["conf"]))
        self._process = self._spawn(work_dir, log_path)
        if priority:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, priority)  # before it starts anything itself

    def _spawn(self, work_dir: Path, log_path: Path) -> subprocess.Popen[bytes]:
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - the command is the launcher's own
                self._order.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=work_dir,
                env=self._order.environment,
                start_new_session=True,
            )
        finally:
            os.close(log)

    @property
    def record(self) -> ContextRecord:
        """What has to go when this host is over."""
        pid = self._process.pid
        return ContextRecord(
            marker=self._order.marker,
            folders=self.folders,
            pid=pid,
            start_time=processes.start_time(pid),
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def connect(self, connections: Connections) -> Channel:
        """Tell the host what to do, and return its connection. Raises ChannelClosed when it ends instead.

        Its input stays open: that it closes tells the host that this server is gone.
        """
        token, arrivals = connections.expect()
        try:
            told = {**self._order.order, "token": token, "address": list(connections.address)}
            self._write(json.dumps(told).encode() + b"\n")
            return self._await(arrivals)
        finally:
            connections.forget(token)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def _await(self, arrivals: queue.Queue[Channel]) -> Channel:
        while True:
            try:
                return arrivals.get(timeout=0.1)
            except queue.Empty:
                if not self.alive:
                    raise ChannelClosed("the host ended before it had connected") from None

    def kill(self) -> None:
        """End the host at once; what it started is ended by whoever notices."""
        if self._process.returncode is None:
            processes.kill_group(self._process.pid)

    def reap(self) -> int:
        """Wait for the host's end, by force if need be, and return its exit status."""
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended before it was told what to do
                self._process.stdin.close()
        return int(self._process.returncode)


def shape(order: HostOrder, work_dir: Path) -> str:
    """Return what of an order its process and JVM are made with: equal texts, interchangeable hosts."""
    jvm: dict[str, Any] = order.order["jvm"]
    parts = [order.command, order.environment, jvm["command"], jvm["environment"]]
    text = json.dumps(parts, sort_keys=True).replace(order.marker, "{marker}")
    return text.replace(str(order.tmp_dir), "{tmp}").replace(str(work_dir), "{work}")


def _write_private(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(text)
