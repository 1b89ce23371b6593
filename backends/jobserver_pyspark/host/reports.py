"""A host's reports to its server: sent at once, and kept until the server has stored the job's end."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jobserver_core.results import RESULT_REFUSED
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.frames import CHUNK_SIZE, Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import ErrorDetails, HostSpec, HostToServer, JobReport, ServerToHost

ServerChannel = Channel[HostToServer, ServerToHost]

_LOSS_TIMEOUT = 30.0
"""Seconds that a job's failure waits for the end of a context that is ending."""
_MAX_WARNING = 2000
"""The most characters of a warning; the rest is cut off."""
_MEMORY = 64 * 1024
"""The number of bytes of a result that are kept in memory; a larger one is kept in a file."""


class _KeptJob:
    """The reports about one job, in a form that can be sent again.

    ``channel`` is the connection on which all of them have been sent. ``limit`` is the size in bytes at which
    the server refuses a result, so no more of it is kept; 0 is none. ``lock`` is held while a report is added
    and sent, so that no report overtakes those that are sent again.

    A part of a result must never pass for the whole. If some of it could not be kept, every later server gets
    a failed end in place of a successful one. Only the server that got all chunks when they were new gets the
    real end: ``_incomplete`` says that the one on ``channel`` did not.
    """

    def __init__(self, job_id: str, channel: ServerChannel, directory: Path, limit: int) -> None:
        self.lock = threading.Lock()
        self._channel = channel
        self._incomplete = False
        self._id = job_id
        self._directory = directory
        self._limit = limit
        self._running: messages.JobRunning | None = None
        self._progress: messages.ProgressReport | None = None
        self._ended: messages.JobEnded | None = None
        self._stream: bool | None = None
        self._size = 0
        self._failure: str | None = None
        self._file: tempfile.SpooledTemporaryFile[bytes] | None = None

    def send(self, reports: Iterable[JobReport]) -> None:
        """Keep reports, and send them on the present connection."""
        kept = [self._keep_report(message) for message in reports]
        with contextlib.suppress(ChannelClosed):  # the main thread dials again, and all is sent again
            self._channel.send(*kept)

    def _keep_report(self, message: JobReport) -> JobReport:
        """Keep a report, and return what is sent for it. For a kind without a case, mypy misses a return."""
        match message:
            case messages.JobRunning():
                self._running = message
                return message
            case messages.ProgressReport():
                self._progress = message
                return message
            case messages.ResultChunk():
                self._keep_chunk(message)
                return message
            case messages.JobEnded():
                self._ended = message
                return self._end_of(message) if self._incomplete else message

    def send_again(self, channel: ServerChannel) -> None:
        """Send all reports in their order on a new connection.

        Raises:
            ChannelClosed: The connection broke.
        """
        channel.send(*(message for message in (self._running, self._progress) if message is not None))
        for chunk in self._chunks():
            channel.send(chunk)
        if self._ended is not None:
            channel.send(self._end_of(self._ended))
        self._channel = channel
        self._incomplete = self._failure is not None

    def _keep_chunk(self, chunk: messages.ResultChunk) -> None:
        """Keep a chunk, unless one before it could not be kept."""
        self._stream = chunk.stream
        if self._failure is not None:
            return
        if self._limit and self._size > self._limit:
            # The part stays: a server with the same limit refuses it while the job is still running.
            self._failure = f"no more than {self._limit} bytes of the result were kept for the next server"
            return
        try:
            if self._file is None:
                self._directory.mkdir(exist_ok=True)
                self._file = tempfile.SpooledTemporaryFile(_MEMORY, dir=str(self._directory))  # noqa: SIM115
            self._file.seek(0, os.SEEK_END)  # it may have been read
            self._file.write(chunk.data)
            self._size += len(chunk.data)
        except OSError as error:
            self._lose_result(error)

    def _lose_result(self, error: OSError) -> None:
        self._failure = f"the result could not be kept for the next server: {error.strerror or error}"
        self.close()

    def _chunks(self) -> Iterator[messages.ResultChunk]:
        if self._file is None or self._stream is None:
            return
        first = True
        try:
            self._file.seek(0)
            while (data := self._file.read(CHUNK_SIZE)) or first:
                yield messages.ResultChunk(job_id=self._id, stream=self._stream, data=data)
                first = False
        except OSError as error:
            self._lose_result(error)

    def _end_of(self, ended: messages.JobEnded) -> messages.JobEnded:
        """Return the end for a server that has got only what was kept."""
        if self._failure is None or ended.killed or ended.failure is not None:
            return ended
        error = ErrorDetails(message=self._failure, error_class=RESULT_REFUSED)
        return messages.JobEnded(job_id=self._id, failure="result", error=error)

    def close(self) -> None:
        """Free the disk. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it writes what it has buffered, and the disk may be full
                file.close()


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
        """Report for another context, as a spare."""
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
                    if server is not self._server:
                        return  # a later server has got the reports, or gets them next
                    job.send_again(server)

    def send(self, *reports: JobReport) -> None:
        """Send reports about one job, and keep them for the next server."""
        with self._lock:
            kept = self._kept.get(reports[0].job_id)
        if kept is not None:
            with kept.lock:
                kept.send(reports)
        else:
            self.send_once(*reports)

    def send_once(self, *reports: HostToServer) -> None:
        """Send reports that no later server needs."""
        with contextlib.suppress(ChannelClosed):
            self._server.send(*reports)

    def send_last(self, message: HostToServer) -> bool:
        """Send the last message of all; return False if the server has ended."""
        try:
            self._server.send(message)
        except ChannelClosed:
            return False
        return True

    def end(self, outcome: messages.JobEnded, before: Iterable[JobReport] = ()) -> None:
        """Send the outcome of a job, and the reports ``before`` it that were not sent yet."""
        if outcome.failure is not None and not self._context_lives():
            time.sleep(_LOSS_TIMEOUT)  # the context, and with it this process, ends long before
        self.send(*before, outcome)

    def warn(self, text: str) -> None:
        """Send a line for the server's log."""
        self.send_once(messages.LogWarning(text=text[:_MAX_WARNING]))
