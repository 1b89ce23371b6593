"""The launcher port: what starts contexts, runs jobs in them, and can end both."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs

from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.ports.backend import Backend

__all__ = [
    "ContextEnd",
    "ContextHandle",
    "ContextListener",
    "ContextSpec",
    "JobCode",
    "JobOutcome",
    "JobSpec",
    "Launcher",
    "ResultSink",
]


@attrs.frozen(kw_only=True)
class JobCode:
    """One entry of a class path as a file on this machine; its content never changes.

    ``source`` is what was asked for (a binary's name or a URI), for messages.
    """

    path: Path
    type: BinaryType
    digest: str
    source: str


@attrs.frozen(kw_only=True)
class ContextSpec:
    """A context to start.

    ``settings`` is the merged tree of context settings as in the HTTP contract (nested mappings of
    JSON-like values; ``settings["spark"]["master"]``, ``settings["num-cpu-cores"]``). ``class_path``
    goes before that of every job (``dependent-jar-uris`` and ``cp`` of the settings, resolved).
    The launcher appends the driver's output to ``log_path``, and may keep files in ``work_dir``,
    which it creates, and removes when the context has ended. ``data_dir`` holds the data files.
    """

    id: str
    name: str
    settings: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=redacted_repr)
    class_path: tuple[JobCode, ...] = ()
    log_path: Path
    work_dir: Path
    data_dir: Path

    def class_path_of(self, job: JobSpec) -> tuple[JobCode, ...]:
        """Return what a job of this context sees: the context's class path, then its own."""
        return (*self.class_path, *job.class_path)

    def log_tail(self, size: int = 4096) -> str:
        """Return the end of the log, at most ``size`` bytes, without a line that it begins within.

        Empty when there is no log.
        """
        try:
            with self.log_path.open("rb") as file:
                start = max(0, file.seek(0, os.SEEK_END) - size)
                file.seek(start)
                data = file.read(size)
        except OSError:
            return ""
        if start:
            data = data[data.find(b"\n") + 1 :]
        return data.decode(errors="replace").strip()


@attrs.frozen(kw_only=True)
class JobSpec:
    """A job to run in a context.

    ``config`` is a JSON object as text. ``class_path`` is in the order of the request and not
    empty; the job is a JVM job when its last entry is a jar, else a Python job. What the job
    prints and logs is appended to ``log_path`` while it runs.
    """

    id: str
    class_name: str
    class_path: tuple[JobCode, ...]
    config: str = attrs.field(repr=False)
    log_path: Path


@attrs.frozen(kw_only=True)
class JobOutcome:
    """How a job ended: by a result (``error`` is None), a failure, or because it was killed.

    ``killed`` is only ever true after :meth:`ContextHandle.kill_job`; its error is ignored.
    """

    error: ErrorInfo | None = None
    failure: FailureKind | None = None
    killed: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.killed and (self.error is None) != (self.failure is None):
            raise ValueError("a failed job has an error and its kind, a finished one has neither")


class ContextEnd(str, Enum):
    """Why a context ended."""

    STOPPED = "stopped"
    """It stopped in good order. Before it was ready, and without a request to stop, that is a failure."""
    KILLED = "killed"
    """:meth:`ContextHandle.kill` ended it."""
    FAILED = "failed"
    """It could not start, or died by itself."""
    KILLED_OUTSIDE = "killed-outside"
    """Somebody else killed its process or its application, as far as that can be told."""


class ResultSink(ABC):
    """Where a launcher writes one job's result, in pieces, from one thread."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Take the next bytes; may block while storage is slow.

        Raises TooLarge over the limit of the configuration: the launcher then ends the job
        with FailureKind.RESULT and the error's message.
        """


class ContextListener(ABC):
    """What a launcher tells about one context, implemented by core.

    Calls for one context never overlap and come in the order of what happened, from any
    thread; they return quickly, but for storing. Storage that fails is no error here: what cannot be
    stored is kept and stored later, in order. For a job: ``job_running`` at most once, then
    any number of ``job_progress``, then for a success exactly one ``open_result`` (its sink
    written to the end), then exactly one ``job_ended``. ``context_ended`` comes exactly once and last;
    jobs that were running then need no ``job_ended`` of their own, core ends them.
    """

    @abstractmethod
    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Tell that jobs can be submitted; at most once."""

    @abstractmethod
    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """Tell that nothing of the context is left: no process, no file in ``work_dir``.

        ``error`` has the real reason of a failure, the last lines of the log included.
        """

    @abstractmethod
    def job_running(self, job_id: str) -> None:
        """Tell that the job's validation passed and its code runs."""

    @abstractmethod
    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Tell how far a running job is; only when that changed, and not more than twice a second."""

    @abstractmethod
    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Return the sink for the job's result: JSON text in UTF-8, or raw bytes of a streamed one."""

    @abstractmethod
    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Tell how the job ended; nothing of it runs any more, and its resources are free."""


class ContextHandle(ABC):
    """A context that a launcher started. No method waits for Spark; what follows is told by events."""

    @abstractmethod
    def submit(self, job: JobSpec) -> None:
        """Run a job beside those that run already; core bounds how many. Only after ``context_ready``.

        A job that cannot be run (bad code, no such class) is told by ``job_ended``, not raised. In a
        context that has ended this does nothing, since ``context_ended`` says it all.
        """

    @abstractmethod
    def kill_job(self, job_id: str) -> None:
        """End a job whatever it is doing: busy loops, sleeps, native code, tasks on executors.

        The rest of the context is not disturbed. ``job_ended`` follows within seconds: killed,
        or its outcome when it was faster. A job that is not running is ignored. Where a job cannot be
        ended alone (a busy thread in a shared JVM), nothing follows until it ends or the context does.
        """

    @abstractmethod
    def stop(self, timeout: float) -> None:
        """Stop the context gracefully; after ``timeout`` seconds end it by force all the same.

        Running jobs are cancelled. ``context_ended`` follows with STOPPED. Allowed at any time, also while
        it starts; repeating is allowed.
        """

    @abstractmethod
    def kill(self) -> None:
        """End the context at once, by force; ``context_ended`` follows with KILLED within seconds.

        Allowed at any time, also while it starts or stops.
        """


class Launcher(Backend):
    """Starts contexts. One launcher serves one job server.

    Everything that a context starts ends with it, and with the server: also when either is
    killed with SIGKILL. What outlived a server all the same is ended by :meth:`sweep`.
    """

    kind = "launcher"

    def check(self) -> None:
        """Raise LaunchError with advice when this launcher cannot work on this machine.

        Cheap enough for a readiness probe. The default finds nothing wrong.
        """
        return

    def validate(self, settings: Mapping[str, Any]) -> None:
        """Raise InvalidSetting for settings with which no context can ever start.

        ``settings`` is the same tree as in :class:`ContextSpec`. Core calls this before it records a context,
        so that a mistake is refused instead of leaving a failed context behind. Quick, and without side
        effects; may be called at any time before :meth:`close`. What takes longer to find out is reported by
        :meth:`start_context`. The default accepts everything.
        """
        return

    @abstractmethod
    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        """Begin to start a context and return at once; ``context_ready`` or ``context_ended`` follows.

        Core kills one that is not ready in time, and tells why by the last lines of its ``log_path``.
        Raises InvalidSetting for settings that can never work. A start-up failure leaves nothing running.
        """

    def sweep(self) -> None:
        """End what contexts of an earlier, crashed server left behind; called once before any start."""
        return

    @abstractmethod
    def close(self) -> None:
        """Kill every context that is left, and let go of threads and processes; repeating is allowed."""
