"""The zygote: a process that has imported PySpark and only forks runners.

It has no gateway and no Python threads, so that a fork of it is a healthy process, ready in milliseconds.
It inherits a socket of sequenced packets, over which the host requests forks and the zygote announces which
runners were forked and which have exited. It kills the remaining processes of a dead runner. Before the first
fork, it imports the modules of ``python.preload``, while the JVM starts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import warnings
from typing import NoReturn

from jobserver_pyspark import processes
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.converter import decode, encode, prepare
from jobserver_pyspark.protocol.frames import MAX_PACKET
from jobserver_pyspark.protocol.messages import HostToRunner, HostToZygote, RunnerToHost, ZygoteToHost
from jobserver_pyspark.runner import config_trees

_IMPORTS = (
    "pyspark",
    "pyspark.sql",
    "pyspark.sql.functions",
    "pyspark.sql.types",
    "pyspark.streaming",
    "pyhocon",
    "jobserver_pyspark.runner.runner",
)
_KILL_TIMEOUT = 5.0
"""Seconds to kill what a runner has left, in which the zygote forks nothing."""
_KILL_PAUSE = 0.002
"""Seconds between two rounds of kills: the kernel ends a process in about that time."""


class Zygote:
    """Forks runners on request, and reaps them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._runners: dict[int, int] = {}
        self._wake_reader, self._wake_writer = os.pipe()
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        self._notice_children()

    def _notice_children(self) -> None:
        """Let the end of a child wake :meth:`serve`."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve requests until the host closes the connection, or a module cannot be imported."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._wake_reader], [], [])
            if self._wake_reader in ready:
                os.read(self._wake_reader, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._take_request():
                return

    def _take_request(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, MAX_PACKET, 2)
        if not message:
            return False
        request = decode(HostToZygote, message)
        if isinstance(request, messages.Preload):
            return self._preload(request)
        assert isinstance(request, messages.ForkRunner)
        # Python 3.12 warns about a fork with native threads; those of libraries survive it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._become_runner(*fds)
        for fd in fds:
            os.close(fd)
        self._runners[pid] = request.runner
        self._send(messages.RunnerForked(runner=request.runner, pid=pid))
        return True

    def _preload(self, request: messages.Preload) -> bool:
        """Import modules until one cannot be; return whether all could."""
        from jobserver_pyspark.runner.preload import preload  # noqa: PLC0415 - few contexts need it

        problem = None
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # it is ours, and a text file
        for name in request.modules:
            self._send(messages.Importing(module=name))
            if problem := preload(name):
                break
        self._notice_children()  # a module may have changed that
        _freeze()
        self._send(messages.Preloaded(problem=problem))
        return problem is None

    def _become_runner(self, control: int, output: int) -> NoReturn:
        try:
            parent = os.getppid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._wake_reader, self._wake_writer, self._control.detach()):
                os.close(fd)
            from jobserver_pyspark.runner.runner import main as run  # noqa: PLC0415 - imported already

            run(parent, control, output)
        finally:
            os._exit(70)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            runner = self._runners.pop(pid, None)
            if runner is not None:
                self._kill_orphans()
                self._send(messages.RunnerExited(runner=runner, status=os.waitstatus_to_exitcode(status)))

    def _kill_orphans(self) -> None:
        """Kill the remaining processes of a dead runner; each is now a child of this process.

        The children of a killed process become children of this one, even if they created their own session
        or group. So this is repeated until none is left: then the job is over.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT
        while orphans := [child for child in processes.children(os.getpid()) if child not in self._runners]:
            for child in orphans:
                processes.kill(child)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, os.WNOHANG)
            if time.monotonic() > deadline:
                return  # a process hangs in the kernel: the end of the context tries again
            time.sleep(_KILL_PAUSE)

    def _send(self, message: ZygoteToHost) -> None:
        packet, _ = encode(message)
        self._control.send(packet)


def _freeze() -> None:
    """Keep garbage collections from writing to what runners share with this process."""
    gc.collect()
    gc.freeze()


def main(parent: int, control: int) -> None:
    """Become a zygote: import the modules that jobs need, and serve the host."""
    processes.die_with_parent(parent)
    processes.adopt_orphans()
    config_trees.add_fallback()
    connection = socket.socket(fileno=control)
    for name in _IMPORTS:
        importlib.import_module(name)
    prepare(HostToRunner, RunnerToHost)
    _freeze()
    Zygote(connection).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
