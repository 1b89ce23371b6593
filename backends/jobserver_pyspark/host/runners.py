"""The host's side of runners: forked by the zygote, attached ahead of need, and ended for good."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver, GatewayServer
from jobserver_pyspark.host.logs import Output, OutputPump
from jobserver_pyspark.protocol.frames import CHUNK_SIZE, Channel

__all__ = ["Runner", "RunnerLost", "Zygote"]

_FORK_TIMEOUT = 30.0


class RunnerLost(Exception):
    """A runner could not be made, or ended before its time."""


class Runner:
    """One process, for one job at a time. ``exit_status`` is negative for a signal, and None until it ended.

    ``class_path`` tells which jobs it may serve: None while it has served none.
    """

    def __init__(self, number: int, channel: Channel, output: Output) -> None:
        self.tag = f"jobserver-runner-{number}"
        self.class_path: tuple[str, ...] | None = None
        self.channel = channel
        self.output = output
        self.idle_write = output.write
        self.pid: int | None = None
        self.gateway_server: GatewayServer | None = None
        self.exit_status: int | None = None
        self.forked = threading.Event()
        self.exited = threading.Event()

    def attach(self, driver: Driver) -> None:
        """Connect the runner to the JVM. Raises RunnerLost, or what the JVM's end looks like."""
        self.gateway_server = driver.gateway_server(self.tag)
        self.channel.send("attach", port=self.gateway_server.port, secret=self.gateway_server.secret)
        self._expect("attached")

    def warm(self) -> None:
        """Have the runner start the context's first Python worker."""
        self.channel.send("warm")
        self._expect("warmed")

    def prepare(self, flavour: str) -> None:
        """Have the runner do ahead what every job would have to wait for; its next request waits for that."""
        self.channel.send("prepare", flavour=flavour)

    def _expect(self, kind: str) -> None:
        header, _ = self.channel.receive()
        if header["kind"] == "failed":
            raise RunnerLost(str(header.get("message")))
        if header["kind"] != kind:
            raise RunnerLost(f"a runner answered {header['kind']}, not {kind}")

    def kill(self) -> None:
        """End the process and its group at once, whatever it is doing."""
        if self.pid is not None and not self.exited.is_set():
            processes.kill_group(self.pid)

    def close(self, pump: OutputPump) -> None:
        """Let go of what the host holds for an ended runner."""
        self.channel.close()
        pump.finish(self.output)

    def detach(self) -> None:
        """Let go of what the JVM holds for an ended runner, and end what it does for it."""
        if self.gateway_server is not None:
            self.gateway_server.shutdown()


class Zygote:
    """The process that forks runners; see :mod:`jobserver_pyspark.runner.zygote`.

    Started by the host's main thread. ``on_loss`` is called when it ends by itself.
    """

    def __init__(self, pump: OutputPump, log: Callable[[bytes], None], on_loss: Callable[[], None]) -> None:
        self._pump = pump
        self._log = log
        self._on_loss = on_loss
        self._requests = threading.Lock()
        self._runners: dict[int, Runner] = {}
        self._count = 0
        self._closing = False
        self._lost = False
        self._imported = threading.Event()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = self._start(theirs)
        threading.Thread(target=self._listen, name="zygote reports", daemon=True).start()

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        with control:
            process = subprocess.Popen(  # noqa: S603 - the command is the launcher's own
                [
                    sys.executable,
                    "-m",
                    "jobserver_pyspark.runner.zygote",
                    str(os.getpid()),
                    str(control.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=[control.fileno()],
            )
        os.close(writer)
        self._output = self._pump.add(reader, self._log)
        return process

    def write_log_to(self, log: Callable[[bytes], None]) -> None:
        """Have what the zygote and idle runners say go to another log from now on."""
        self._log = log
        self._output.write = log

    def fork(self) -> Runner:
        """Return a new runner that waits to be attached. Raises RunnerLost."""
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        with self._requests:
            self._count += 1
            number = self._count
            runner = Runner(number, Channel(ours, max_payload=CHUNK_SIZE), self._pump.add(reader, self._log))
            self._runners[number] = runner
            request = json.dumps({"runner": number}).encode()
            try:
                socket.send_fds(self._control, [request], [theirs.fileno(), writer])
            except OSError as error:
                raise RunnerLost(f"the process that makes runners is gone: {error}") from error
            finally:
                theirs.close()
                os.close(writer)
        if not runner.forked.wait(_FORK_TIMEOUT) or runner.pid is None:
            raise RunnerLost("the process that makes runners does not answer")
        return runner

    @property
    def lives(self) -> bool:
        """Whether it can be heard; when it cannot, that is known before any runner's end is."""
        return not self._lost

    def _listen(self) -> None:
        while True:
            try:
                message = self._control.recv(65536)
            except OSError:
                message = b""
            if not message:
                break
            self._take_report(json.loads(message))
        self._lost = True
        for runner in list(self._runners.values()):
            runner.forked.set()
            runner.exited.set()
        if not self._closing:
            self._on_loss()

    def _take_report(self, report: dict[str, Any]) -> None:
        if report["kind"] == "imported":
            self._imported.set()
            return
        runner = self._runners[report["runner"]]
        if report["kind"] == "forked":
            runner.pid = report["pid"]
            runner.forked.set()
        else:
            del self._runners[report["runner"]]
            runner.exit_status = report["status"]
            runner.forked.set()
            runner.exited.set()

    def close(self) -> None:
        """End the zygote and every runner."""
        self._closing = True
        for runner in list(self._runners.values()):
            runner.kill()
        processes.kill(self.process.pid)
