"""A launcher that runs each job, a Python class, in its own process, without Spark.

A job is a class with a method ``run(config)``, which returns a JSON-like value or an iterator of bytes,
and optionally a method ``validate(config)``, which raises ValueError.

How a job ends is decided in one place, after everything of it has ended: the thread of the job waits
for its supervisor, reads both pipes to their end, and only then reports ``job_ended``. So no event can
arrive late, and nothing can still run.

A supervisor is the parent of a job's process. Linux makes it the parent of every orphan among the job's
processes too (``PR_SET_CHILD_SUBREAPER``), whatever session they moved to and whatever they closed. So it
kills its children until it has none, and then ends itself. It does so when the job's process ends, and when
its standard input does: to kill a job, the server closes that pipe, which also happens if the server ends,
however hard. So there is no `sweep`.

Left out, for brevity: a job that kills its supervisor, and systems other than Linux.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from jobserver_core import ErrorInfo, FailureKind, InvalidSetting, TooLarge
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobOutcome,
    JobSpec,
    Launcher,
    ResultSink,
)

_HEAD = struct.Struct("!cI")
"""How each message of a job begins: its kind, and the length of its payload in bytes."""
_PR_SET_CHILD_SUBREAPER = 36
_RUNNING, _JSON, _STREAM, _DATA, _DONE, _FAILED = b"R", b"J", b"S", b"D", b"E", b"F"


class SubprocessLauncher(Launcher):
    """Starts contexts, which start a process for each job.

    The context setting ``process.python`` is the interpreter to use; the default is the server's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contexts: list[_Context] = []

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Raise InvalidSetting for a setting of ``process`` that does not exist."""
        for key in settings.get("process", {}):
            if key != "python":
                raise InvalidSetting(
                    key=f"process.{key}", message="is not a setting; there is process.python"
                )

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        """Start the thread of a context."""
        self.validate(spec.settings)
        context = _Context(spec, listener)
        context.thread.start()
        with self._lock:
            self._contexts = [one for one in self._contexts if one.thread.is_alive()] + [context]
        return context

    def close(self) -> None:
        """Kill every context, and wait for all of them."""
        with self._lock:
            contexts, self._contexts = self._contexts, []
        for context in contexts:
            context.kill()
        for context in contexts:
            context.thread.join()


class _Context(ContextHandle):
    """A context: a thread that starts it, waits for a request to end, and ends it."""

    def __init__(self, spec: ContextSpec, listener: ContextListener) -> None:
        self.spec = spec
        self.python = spec.settings.get("process", {}).get("python", sys.executable)
        self.thread = threading.Thread(target=self._run, name=f"context-{spec.name}")
        self._listener = listener
        self._notifying = threading.Lock()
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._end: ContextEnd | None = None
        self._ending = threading.Event()
        self._deadline = math.inf
        """When, on the monotonic clock, jobs that have not ended are killed."""

    def notify(self, event: Callable[[ContextListener], Any]) -> Any:
        """Report an event. Each job has its own thread, so events take turns here."""
        with self._notifying:
            return event(self._listener)

    def submit(self, job: JobSpec) -> None:
        """Start a job, unless the context ends."""
        with self._lock:
            if self._end is None:
                self._jobs[job.id] = _Job(self, job)
                self._jobs[job.id].thread.start()

    def kill_job(self, job_id: str) -> None:
        """Kill a job's processes; its thread does the rest."""
        with self._lock:
            job = self._jobs.get(job_id)
        if job is not None:
            job.kill()

    def stop(self, timeout: float) -> None:
        """Ask all jobs to end; kill those that have not ended after ``timeout`` seconds."""
        self._request(ContextEnd.STOPPED, time.monotonic() + timeout)

    def kill(self) -> None:
        """Kill all jobs."""
        self._request(ContextEnd.KILLED, 0.0)

    def _request(self, end: ContextEnd, deadline: float) -> None:
        with self._lock:
            self._deadline = min(self._deadline, deadline)
            if self._end is None or end is ContextEnd.KILLED:
                self._end = end
        self._ending.set()

    def forget(self, job_id: str) -> None:
        """Drop a job that has ended."""
        with self._lock:
            self._jobs.pop(job_id, None)

    def _run(self) -> None:
        try:
            self._start()
        except (OSError, subprocess.CalledProcessError) as error:
            self._finish(ContextEnd.FAILED, ErrorInfo(message=str(error), error_class=type(error).__name__))
            return
        if not self._ending.is_set():
            self.notify(lambda to: to.context_ready(application_id=None, url=None))
        self._ending.wait()
        self._end_jobs()
        with self._lock:
            end = self._end or ContextEnd.STOPPED
        self._finish(end, None)

    def _start(self) -> None:
        """Create the directory, and check that the interpreter works."""
        self.spec.work_dir.mkdir(parents=True)
        command = [self.python, "--version"]
        with (
            self.spec.log_path.open("ab") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            while process.poll() is None and not self._ending.wait(0.02):
                pass
            if process.poll() is None:
                process.kill()
            elif process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)

    def _end_jobs(self) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.terminate()
        for job in jobs:
            while job.thread.is_alive():
                if time.monotonic() >= self._deadline:
                    job.kill()
                job.thread.join(0.02)

    def _finish(self, end: ContextEnd, error: ErrorInfo | None) -> None:
        with self._lock:
            self._end = end
        shutil.rmtree(self.spec.work_dir, ignore_errors=True)
        self.notify(lambda to: to.context_ended(end, error))


class _Job:
    """A job: its supervisor, a thread that waits for that, and two threads that read the job's pipes."""

    def __init__(self, context: _Context, spec: JobSpec) -> None:
        self._context = context
        self._spec = spec
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._outcome: JobOutcome | None = None
        self.thread = threading.Thread(target=self._run, name=f"job-{spec.id}")

    def kill(self) -> None:
        """End the job by force, also when its process has not started yet."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                _close(self._process.stdin)

    def terminate(self) -> None:
        """Ask the job to end."""
        with self._lock:
            self._killed = True
            if self._process is not None and self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGTERM)

    def _run(self) -> None:
        try:
            outcome = self._run_process()
        except OSError as error:
            info = ErrorInfo(message=str(error), error_class=type(error).__name__)
            outcome = JobOutcome(error=info, failure=FailureKind.CRASHED)
        self._context.forget(self._spec.id)
        self._context.notify(lambda to: to.job_ended(self._spec.id, outcome))

    def _run_process(self) -> JobOutcome:
        read, write = os.pipe()
        with open(read, "rb") as messages, self._spec.log_path.open("ab", buffering=0) as log:
            try:
                process = self._start(write)
            finally:
                os.close(write)
            assert process.stdout is not None
            readers = [
                threading.Thread(target=_copy, args=(process.stdout, log)),
                threading.Thread(target=self._read, args=(messages,)),
            ]
            for reader in readers:
                reader.start()
            self._wait(process)
            for reader in readers:
                reader.join()
            process.stdout.close()
            _close(process.stdin)
        return self._outcome_of(process)

    def _start(self, write: int) -> subprocess.Popen[bytes]:
        """Start the supervisor, and send it the request."""
        process = subprocess.Popen(
            [self._context.python, __file__, str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            cwd=self._context.spec.work_dir,
            start_new_session=True,
        )
        paths = [str(code.path) for code in self._context.spec.search_path_of(self._spec)]
        request = {"class": self._spec.class_name, "path": paths, "config": self._spec.config}
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        with self._lock:
            self._process = process
            if self._killed:
                _close(process.stdin)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the supervisor, which ends last, before its id can be used again."""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            process.wait()

    def _read(self, messages: IO[bytes]) -> None:
        """Handle the messages of the process, up to the end of the pipe."""
        sink: ResultSink | None = None
        while len(head := messages.read(_HEAD.size)) == _HEAD.size:
            kind, length = _HEAD.unpack(head)
            payload = messages.read(length)
            try:
                sink = self._handle(kind, payload, sink)
            except TooLarge as error:
                info = ErrorInfo(message=str(error), error_class="TooLarge")
                self._outcome = JobOutcome(error=info, failure=FailureKind.RESULT)
                self.kill()
                return

    def _handle(self, kind: bytes, payload: bytes, sink: ResultSink | None) -> ResultSink | None:
        job_id = self._spec.id
        if kind == _RUNNING:
            self._context.notify(lambda to: to.job_running(job_id))
        elif kind in {_JSON, _STREAM}:
            opened: ResultSink = self._context.notify(
                lambda to: to.open_result(job_id, stream=kind == _STREAM)
            )
            return opened
        elif kind == _DATA and sink is not None:
            sink.write(payload)
        elif kind == _DONE:
            self._outcome = JobOutcome()
        elif kind == _FAILED:
            failure, message, name, stack = json.loads(payload)
            info = ErrorInfo(message=message, error_class=name, stack=stack)
            self._outcome = JobOutcome(error=info, failure=FailureKind(failure))
        return sink

    def _outcome_of(self, process: subprocess.Popen[bytes]) -> JobOutcome:
        if self._outcome is not None:
            return self._outcome
        if self._killed:
            return JobOutcome(killed=True)
        message = f"the job's process ended with status {process.returncode}, without an outcome"
        return JobOutcome(
            error=ErrorInfo(message=message, error_class="ProcessEnded"), failure=FailureKind.CRASHED
        )


def _close(pipe: IO[bytes] | None) -> None:
    assert pipe is not None
    with suppress(BrokenPipeError):
        pipe.close()


def _copy(pipe: IO[bytes], log: IO[bytes]) -> None:
    while chunk := os.read(pipe.fileno(), 64 * 1024):
        log.write(chunk)


# -- inside the supervisor --------------------------------------------------------------------------


def _fork() -> int:
    """Start the job's process, and return its id, or zero in that process itself."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is someone to pass it to
    job = os.fork()
    if job:
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(job, number))
    else:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return job


def _supervise(job: int) -> int:
    """Wait until the job or the server ends, end all that the job started, and return the job's status."""
    select.select([0, os.pidfd_open(job)], [], [])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = 0
    with suppress(ChildProcessError):  # none is left
        while True:
            with open("/proc/thread-self/children", encoding="ascii") as children:
                for child in children.read().split():
                    os.kill(int(child), signal.SIGKILL)
            ended, its_status = os.waitpid(-1, os.WNOHANG)
            if ended == job:
                status = os.waitstatus_to_exitcode(its_status)
            elif not ended:
                time.sleep(0.001)
    return status if status >= 0 else 128 - status


# -- inside the job's process -----------------------------------------------------------------------


def _run_job(request: Mapping[str, Any], pipe: IO[bytes]) -> None:
    sys.path[:0] = request["path"]

    def send(kind: bytes, payload: bytes = b"") -> None:
        pipe.write(_HEAD.pack(kind, len(payload)) + payload)
        pipe.flush()

    failure = FailureKind.CLASS_NOT_FOUND
    try:
        job, config = _job_class(request["class"])(), json.loads(request["config"])
        failure = FailureKind.VALIDATION
        if hasattr(job, "validate"):
            job.validate(config)
        failure = FailureKind.RAISED
        send(_RUNNING)
        _send_result(job.run(config), send)
    except Exception as error:  # noqa: BLE001 - whatever the job raises is its error
        described = (failure.value, str(error), type(error).__name__, traceback.format_exc())
        send(_FAILED, json.dumps(described).encode())
    else:
        send(_DONE)


def _job_class(name: str) -> type[Any]:
    module, _, attribute = name.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _send_result(value: Any, send: Callable[..., None]) -> None:
    streamed = isinstance(value, Iterator)
    chunks = value if streamed else iter([json.dumps(value).encode()])
    send(_STREAM if streamed else _JSON)
    for chunk in chunks:
        send(_DATA, chunk)


if __name__ == "__main__":
    line = sys.stdin.buffer.readline()
    with open(int(sys.argv[1]), "wb") as channel:
        if job_process := _fork():
            sys.exit(_supervise(job_process))
        if line:
            _run_job(json.loads(line), channel)
