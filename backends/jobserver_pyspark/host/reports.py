"""A host's reports to its server: sent at once, and kept until the server has stored the job's end."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jobserver_pyspark.protocol.frames import CHUNK_SIZE, Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import (
    ErrorReport,
    HostSpec,
    HostToServer,
    JobEnded,
    JobProgressed,
    JobRunning,
    LogWarning,
    ResultChunk,
    ServerToHost,
)

__all__ = ["JobReports", "ServerChannel"]

ServerChannel = Channel[HostToServer, ServerToHost]

_LOSS_TIMEOUT = 30.0
_MAX_WARNING = 2000
_MEMORY = 64 * 1024
"""The number of bytes of a result that are kept in memory; a larger one is kept in a file."""


class _KeptJob:
    """The reports about one job, in a form that can be sent again.

    ``channel`` is the connection on which all of them have been sent. ``limit`` is the size at which the
    server refuses a result, so no more of it is kept; 0 is none. ``lock`` is held while a report is added and
    sent, so that no report overtakes those that are sent again.
    """

    def __init__(self, job_id: str, channel: ServerChannel, directory: Path, limit: int) -> None:
        self.lock = threading.Lock()
        self.channel = channel
        self._id = job_id
        self._directory = directory
        self._limit = limit
        self._running: JobRunning | None = None
        self._progress: JobProgressed | None = None
        self._ended: JobEnded | None = None
        self._stream: bool | None = None
        self._size = 0
        self._failure: str | None = None
        self._file: tempfile.SpooledTemporaryFile[bytes] | None = None

    def add(self, message: HostToServer) -> None:
        match message:
            case JobRunning():
                self._running = message
            case JobProgressed():
                self._progress = message
            case ResultChunk():
                self._keep(message)
            case JobEnded():
                self._ended = message

    def _keep(self, chunk: ResultChunk) -> None:
        """Keep a chunk. If the disk fails, the result can only be sent to the present server."""
        self._stream = chunk.stream
        try:
            self._write(chunk)
        except OSError as error:
            self._failure = f"the result could not be kept for the next server: {error.strerror or error}"

    def _write(self, chunk: ResultChunk) -> None:
        if self._failure is None and (not self._limit or self._size <= self._limit):
            if self._file is None:
                self._directory.mkdir(exist_ok=True)
                self._file = tempfile.SpooledTemporaryFile(_MEMORY, dir=str(self._directory))  # noqa: SIM115
            self._file.seek(0, os.SEEK_END)  # it may have been read
            self._file.write(chunk.data)
            self._size += len(chunk.data)

    def all(self) -> Iterator[HostToServer]:
        """Iterate over the reports in their order."""
        yield from (message for message in (self._running, self._progress) if message is not None)
        if self._file is not None and self._stream is not None:
            self._file.seek(0)
            first = True
            while (data := self._file.read(CHUNK_SIZE)) or first:
                yield ResultChunk(job_id=self._id, stream=self._stream, data=data)
                first = False
        if self._ended is not None and self._failure is not None:
            error = ErrorReport(message=self._failure)
            yield JobEnded(job_id=self._id, failure="result", error=error)
        elif self._ended is not None:
            yield self._ended

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class JobReports:
    """Reports events of jobs to the server.

    If the context does not outlive its server, nothing is kept, and nothing is sent once the server has
    ended: the host's main thread notices that too, and ends everything. ``context_lives`` is called before a
    failure is reported: if a job fails because the context is ending, the failure belongs to the context.
    """

    def __init__(self, server: ServerChannel, spec: HostSpec, context_lives: Callable[[], bool]) -> None:
        self._server = server
        self._spec = spec
        self._context_lives = context_lives
        self._lock = threading.Lock()
        self._kept: dict[str, _KeptJob] = {}

    def adopt(self, spec: HostSpec) -> None:
        """Report for another context, as a spare host."""
        self._spec = spec

    def begin(self, job_id: str) -> None:
        """Keep the reports about a job that has arrived."""
        if self._spec.reattachment is not None:
            directory = self._spec.work_dir / "results"
            with self._lock:
                self._kept[job_id] = _KeptJob(job_id, self._server, directory, self._spec.result_limit)

    def acknowledge(self, job_id: str) -> None:
        """Forget a job whose end the server has stored."""
        with self._lock:
            kept = self._kept.pop(job_id, None)
        if kept is not None:
            with kept.lock:
                kept.close()

    @property
    def kept(self) -> tuple[str, ...]:
        """The jobs that arrived and are not acknowledged."""
        with self._lock:
            return tuple(self._kept)

    def resume(self, server: ServerChannel) -> None:
        """Send all that is kept to a later server, on another thread, and new reports after it."""
        with self._lock:
            self._server = server
            kept = list(self._kept.values())
        threading.Thread(target=self._send_again, args=(kept, server), name="reports", daemon=True).start()

    def _send_again(self, kept: list[_KeptJob], server: ServerChannel) -> None:
        with contextlib.suppress(ChannelClosed):  # the main thread dials again, and repeats this
            for job in kept:
                with job.lock:
                    for message in job.all():
                        server.send(message)
                    job.channel = server

    def send(self, message: HostToServer) -> None:
        """Send a message other than the end of a job."""
        kept = self._kept_job(message)
        if kept is None:
            self._try_to_send(message)
            return
        with kept.lock:
            kept.add(message)
            if kept.channel is self._server:
                self._try_to_send(message)

    def _kept_job(self, message: HostToServer) -> _KeptJob | None:
        if isinstance(message, JobRunning | JobProgressed | ResultChunk | JobEnded):
            with self._lock:
                return self._kept.get(message.job_id)
        return None

    def _try_to_send(self, message: HostToServer) -> None:
        with contextlib.suppress(ChannelClosed):
            self._server.send(message)

    def send_last(self, message: HostToServer) -> bool:
        """Send the last message of all; return False if the server has ended."""
        try:
            self._server.send(message)
        except ChannelClosed:
            return False
        return True

    def end(self, outcome: JobEnded) -> None:
        """Send the outcome of a job."""
        if outcome.failure is not None and not self._context_lives():
            time.sleep(_LOSS_TIMEOUT)  # the context, and with it this process, ends long before
        self.send(outcome)

    def warn(self, text: str) -> None:
        """Send a line for the server's log."""
        self.send(LogWarning(text=text[:_MAX_WARNING]))
