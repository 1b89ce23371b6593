"""The host's side of runners and their zygote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver, GatewayServer, KnownReplies
from jobserver_pyspark.host.logs import Output, OutputPump
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.converter import ProtocolError, decode, encode
from jobserver_pyspark.protocol.frames import CHUNK_SIZE, MAX_PACKET, Channel
from jobserver_pyspark.protocol.messages import ContextType, HostToRunner, RunnerToHost, ZygoteToHost

_FORK_TIMEOUT = 30.0
"""Seconds for the zygote to fork, which takes milliseconds unless the machine is out of memory."""
_QUIET_TIMEOUT = 5.0
"""Seconds that the first runner waits for modules to be imported before the context's log says so."""
_EXIT_TIMEOUT = 5.0
"""Seconds for the zygote to end after its connection is closed, so that its exit status is known."""


M = TypeVar("M", bound=RunnerToHost)


class RunnerLost(Exception):
    """A runner could not be created, or has ended too early."""


class RunnerProcess:
    """A runner as the host sees it: a process that runs one job at a time.

    ``exit_status`` is negative for a signal, and None until the process has ended. Only jobs with the same
    ``class_path_key``, the digests of their class path, can use it; that is None before its first job.
    ``newest_thread`` is the ID of the newest thread of the JVM that earlier jobs may have started.
    """

    def __init__(self, number: int, channel: Channel[HostToRunner, RunnerToHost], output: Output) -> None:
        self.tag = f"jobserver-runner-{number}"
        self.class_path_key: tuple[str, ...] | None = None
        self.newest_thread = 0
        self.channel = channel
        self.output = output
        self.idle_write = output.write
        self.pid: int | None = None
        self.gateway_server: GatewayServer | None = None
        self._known = KnownReplies({}, {}, [])
        self._preparing = False
        self.exit_status: int | None = None
        self.forked = threading.Event()
        self.exited = threading.Event()

    def attach(self, driver: Driver) -> None:
        """Connect the runner to the JVM.

        Raises:
            RunnerLost: The runner ended instead.
            Py4JError: The JVM ended instead.
        """
        server = self.gateway_server = driver.gateway_server(self.tag)
        self._known = known = driver.known
        self.channel.send(
            messages.Attach(
                port=server.port,
                secret=server.secret,
                conf=known.conf,
                names=known.names,
                script=tuple(known.script),
            )
        )
        attached = self._expect(messages.Attached)
        known.conf.update(attached.conf)
        known.names.update(attached.names)
        known.script[:] = attached.script or known.script

    def warm_up(self, context_type: ContextType | None = None) -> None:
        """Have the runner start the context's first Python worker, and run some jobs for a type."""
        self.channel.send(messages.WarmUp(context_type=context_type))
        self._expect(messages.WarmedUp)

    def prepare(self, context_type: ContextType) -> None:
        """Let the runner prepare for its first job; its next request waits for that."""
        self._preparing = True
        self.channel.send(messages.Prepare(context_type=context_type))

    def rename_application(self, name: str) -> None:
        """Show this name of the application to the runner's jobs."""
        self.channel.send(messages.RenameApplication(name=name))

    def receive(self) -> RunnerToHost:
        """Return the next message; a reply to :meth:`prepare` is only remembered for later runners."""
        message = self.channel.receive()
        while self._preparing and isinstance(message, messages.Prepared):
            self._preparing = False
            self._known.names.update(message.names)
            message = self.channel.receive()
        return message

    def wait_until_restored(self, timeout: float) -> str | None:
        """Wait until the runner has restored its state; return why it must serve no other job, or None.

        ``timeout`` is in seconds.

        Raises:
            ChannelClosed: The runner ended instead.
        """
        self.channel.settimeout(timeout)
        try:
            reply = self.receive()
        except TimeoutError:
            return f"it did not restore its state within {timeout:g} s"
        self.channel.settimeout(None)
        return reply.unfit if isinstance(reply, messages.Restored) else "it broke the protocol"

    def _expect(self, kind: type[M]) -> M:
        reply = self.receive()
        if isinstance(reply, messages.NotReady):
            raise RunnerLost(reply.message)
        if not isinstance(reply, kind):
            raise ProtocolError(f"a runner replied with {type(reply).__name__} instead of {kind.__name__}")
        return reply

    def kill(self) -> None:
        """Kill the process and its group."""
        if self.pid is not None and not self.exited.is_set():
            processes.kill_group(self.pid)

    def close(self, pump: OutputPump) -> None:
        """Release the host's resources for a runner that has ended."""
        self.channel.close()
        pump.finish(self.output)

    def detach(self) -> None:
        """Release the JVM's resources for a runner that has ended, and interrupt its calls."""
        if self.gateway_server is not None:
            self.gateway_server.shutdown()


class ZygoteProcess:
    """The zygote as the host sees it; see :mod:`jobserver_pyspark.runner.zygote`.

    Started by the host's main thread. It imports the modules ``preload`` before it forks. ``on_loss`` is
    called with the reason when it ends by itself, or one of them cannot be imported. ``lives`` says whether
    it is connected. If it is not, this changes before any runner's end is known.
    """

    def __init__(
        self,
        pump: OutputPump,
        log: Callable[[bytes], None],
        on_loss: Callable[[str], None],
        preload: Sequence[str] = (),
    ) -> None:
        self._pump = pump
        self._log = log
        self._on_loss = on_loss
        self._requests = threading.Lock()
        self._runners: dict[int, RunnerProcess] = {}
        self._count = 0
        self._closing = False
        self.lives = True
        self._importing: str | None = None
        self._preloaded = threading.Event()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = self._start(theirs)
        if preload:
            self._control.send(encode(messages.Preload(modules=tuple(preload)))[0])
        else:
            self._preloaded.set()
        threading.Thread(target=self._listen, name="zygote messages", daemon=True).start()

    def _start(self, control: socket.socket) -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        with control:
            module = "jobserver_pyspark.runner.zygote"
            process = subprocess.Popen(  # noqa: S603 - the command is the launcher's own
                [sys.executable, "-m", module, str(os.getpid()), str(control.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                pass_fds=[control.fileno()],
            )
        os.close(writer)
        self._output = self._pump.add(reader, self._log)
        return process

    def write_log_to(self, log: Callable[[bytes], None]) -> None:
        """Write the output of the zygote and of idle runners to another log from now on."""
        self._log = log
        self._output.write = log

    def fork(self) -> RunnerProcess:
        """Return a new runner that waits to be attached.

        Raises:
            RunnerLost: The zygote ended instead.
        """
        if not self._preloaded.wait(_QUIET_TIMEOUT):  # it may last as long as the start of the context
            self._log(f"python.preload: waiting for the import of {self._importing!r}\n".encode())
            self._preloaded.wait()
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        channel = Channel[HostToRunner, RunnerToHost](ours, RunnerToHost, max_payload=CHUNK_SIZE)
        with self._requests:
            self._count += 1
            runner = RunnerProcess(self._count, channel, self._pump.add(reader, self._log))
            self._runners[self._count] = runner
            request, _ = encode(messages.ForkRunner(runner=self._count))
            try:
                socket.send_fds(self._control, [request], [theirs.fileno(), writer])
            except OSError as error:
                raise RunnerLost(f"the zygote, which forks runners, is gone: {error}") from error
            finally:
                theirs.close()
                os.close(writer)
        if not runner.forked.wait(_FORK_TIMEOUT) or runner.pid is None:
            raise RunnerLost("the zygote, which forks runners, does not reply")
        return runner

    def _listen(self) -> None:
        reason = None
        try:
            while packet := self._control.recv(MAX_PACKET):
                self._handle(decode(ZygoteToHost, packet))
        except OSError:
            pass
        except (ProtocolError, RunnerLost) as error:
            reason = str(error)
        self.lives = False
        for runner in list(self._runners.values()):
            runner.forked.set()
            runner.exited.set()
        if not self._closing:
            self._pump.drain(self._output)
            self._on_loss(reason or self._reason_of_end())
        self._preloaded.set()  # only now, so that no thread reports something less exact

    def _reason_of_end(self) -> str:
        if self._importing is None:
            return "the zygote, which forks the processes of jobs, ended"
        try:
            how = processes.describe_exit(self.process.wait(_EXIT_TIMEOUT))
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        return f"python.preload: the process that imports {self._importing!r} {how}"

    def _handle(self, message: ZygoteToHost) -> None:
        match message:
            case messages.Importing():
                self._importing = message.module
            case messages.Preloaded():
                if message.problem is not None:
                    raise RunnerLost(message.problem)
                self._importing = None
                self._preloaded.set()
            case messages.RunnerForked():
                runner = self._runners[message.runner]
                runner.pid = message.pid
                runner.forked.set()
            case messages.RunnerExited():
                runner = self._runners.pop(message.runner)
                runner.exit_status = message.status
                runner.forked.set()
                runner.exited.set()

    def close(self) -> None:
        """Kill the zygote and every runner."""
        self._closing = True
        for runner in list(self._runners.values()):
            runner.kill()
        processes.kill(self.process.pid)
