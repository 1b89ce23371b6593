"""The launcher port: starts contexts, runs jobs in them, and ends both."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import ClassVar

import attrs

from jobserver_core.errors import LaunchError
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.contexts import Context, Resources, SparePool
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import JobProgress
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.plugins import Backend

_HARMLESS = re.compile(
    r"NativeCodeLoader: |WARN Utils: (Your hostname, |Set SPARK_LOCAL_IP )|"
    r"Using Spark's default log4j profile|Setting default log level to |To adjust logging level use |"
    r"WARNING: Using incubator modules|"
    r"Picked up \w+_OPTIONS: |(?:SLF4J|log4j:WARN)\b"
)
"""Lines that Spark and Java write at every start on many machines, and that are never why a start fails."""
_NO_MASTER = re.compile(r"Failed to connect to master (\S+)$", re.MULTILINE)
"""Matches what Spark logs for each standalone master that it cannot reach."""
_LOG_OF_A_START = 65536
"""How much of a log is searched for that: the stacks of several attempts follow it."""


@attrs.frozen(kw_only=True)
class JobCode:
    """One entry of a class path: a file on this machine whose content never changes.

    ``source`` is the binary or URI that the user named, for use in messages.
    """

    path: Path
    type: BinaryType
    digest: str
    source: str


@attrs.frozen(kw_only=True)
class ContextSpec:
    """A context to start.

    ``settings`` is the merged tree of context settings as in the HTTP API: nested mappings of JSON-like
    values, such as ``settings["spark"]["master"]`` and ``settings["num-cpu-cores"]``. ``class_path`` (the
    resolved ``dependent-jar-uris`` and ``cp`` of the settings) precedes that of every job. The launcher
    appends the driver's output to ``log_path``, which may exist already. It can keep files in ``work_dir``;
    it creates that directory, and removes it before it reports the end. ``data_dir`` contains the data files.
    """

    id: str
    name: str
    settings: JsonMapping = attrs.field(factory=dict, hash=False, repr=redacted_repr)
    class_path: tuple[JobCode, ...] = ()
    log_path: Path
    work_dir: Path
    data_dir: Path

    def search_path_of(self, job: JobSpec) -> tuple[JobCode, ...]:
        """Return where the classes of a job are found: the class path of this context, then the job's own."""
        return (*self.class_path, *job.class_path)

    def log_tail(self, size: int = 4096) -> str:
        """Return the last lines of the log, at most ``size`` bytes; empty if there is no log."""
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

    def last_message(self) -> str:
        """Return the last line of the log that says something by itself; empty if there is none.

        Blank and indented lines do not, nor does the line with a colon at its end that introduces them, nor
        do warnings that Spark writes at every start.
        """
        lines = [line.rstrip() for line in self.log_tail().splitlines() if line[:1].strip()]
        telling = (line for line in reversed(lines) if not line.endswith(":") and not _HARMLESS.search(line))
        return next(telling, "")

    def master_problem(self) -> str:
        """Return that Spark cannot connect to its master, if the log says so; empty otherwise.

        If there are several masters, it needs only one of them.
        """
        failed = dict.fromkeys(_NO_MASTER.findall(self.log_tail(_LOG_OF_A_START)))
        spark = self.settings.get("spark")
        master = str(spark.get("master") or "") if isinstance(spark, Mapping) else ""
        wanted = master.removeprefix("spark://").split(",") if master.startswith("spark://") else []
        if not failed or any(one not in failed for one in wanted):
            return ""
        address = f"spark://{','.join(wanted or failed)}"
        return f"Spark cannot connect to its master {address}; start it, or correct spark.master"


@attrs.frozen(kw_only=True)
class JobSpec:
    """A job to run in a context.

    ``config`` is a JSON object as a string. ``class_path`` is the job's own, in the order of the request, and
    not empty. If two entries have a class with the same name, the first wins. If the last entry is a jar, the
    job is a JVM job, otherwise a Python job. The launcher appends the job's standard output, standard error
    and log messages to ``log_path`` while it runs.
    """

    id: str
    class_name: str
    class_path: tuple[JobCode, ...]
    config: str = attrs.field(repr=False)
    log_path: Path


@attrs.frozen(kw_only=True)
class JobOutcome:
    """How a job ended: with a result (``error`` is None), with a failure, or because it was killed.

    ``killed`` can be true only after :meth:`ContextHandle.kill_job`; ``error`` is then ignored. For
    CLASS_NOT_FOUND, users see an error in words of the library, which names the class and its class path; its
    reason is the ``stack`` of ``error``, if that is a single line. The rest is in the job's record only.
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
    """It stopped in an orderly way. If it was not ready and no stop was requested, that is a failure."""
    KILLED = "killed"
    """:meth:`ContextHandle.kill` ended it."""
    FAILED = "failed"
    """It could not start, or it died by itself."""
    KILLED_OUTSIDE = "killed-outside"
    """As far as the launcher can tell, something else killed its process or its application."""


class ResultSink(ABC):
    """Where a launcher writes one job's result, in chunks, from one thread."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Accept the next bytes. May block while storage is slow.

        Raises:
            InvalidRequest: It is not bytes. The job can then end only with a failure.
            TooLarge: The result exceeds the configured limit. The launcher then ends the job, with
                FailureKind.RESULT and the message of this error.
        """


class ContextListener(ABC):
    """Receives the reports about one context. Implemented by core.

    A launcher calls it from any thread, in the order in which things happen. **Calls for one context never
    overlap**, so a launcher with a thread for each job needs a lock or a queue. Calls return as soon as they
    have stored a record. If storage fails, they do not raise: core keeps the change and stores it later.

    The reports about a job are, in this order:

    1. ``job_running``, once, if its validation passed
    2. any number of ``job_progress``
    3. for a success, exactly one ``open_result``, even if the result is null; its sink gets the whole result
    4. exactly one ``job_ended``, whatever happens, even if the job's process dies

    ``context_ended`` comes exactly once, and last. Jobs that were running then need no ``job_ended``. A
    report about a job that does not run in the context, or that has ended, is logged and ignored.

    After :meth:`Launcher.reattach`, a new listener receives ``context_ready`` once the context is known to be
    alive and ready, even if an earlier listener has received it. It then receives all reports about each job
    again, from the beginning and with the whole result, so it may get ``job_running`` for a job that is
    already recorded as running. A job is never reported again after :meth:`ContextHandle.acknowledge` was
    called for it.
    """

    @abstractmethod
    def context_ready(self, *, application_id: str | None, url: str | None) -> None:
        """Report that jobs can be submitted; at most once."""

    @abstractmethod
    def context_ended(self, end: ContextEnd, error: ErrorInfo | None = None) -> None:
        """Report that nothing of the context is left: no ``work_dir``, and no process, not even of a job.

        ``error`` describes the real reason for a failure, including the last lines of the log.
        """

    @abstractmethod
    def job_running(self, job_id: str) -> None:
        """Report that the job's validation passed and its code runs."""

    @abstractmethod
    def job_progress(self, job_id: str, progress: JobProgress) -> None:
        """Report the progress of a running job when it changes, at most twice a second."""

    @abstractmethod
    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        """Return the sink for the job's result: JSON in UTF-8, or the raw bytes of a streamed result.

        Raises:
            InvalidRequest: The job does not run in this context, its result is open already, or ``stream`` is
                not a bool.
        """

    @abstractmethod
    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Report how the job ended. Nothing of it is running any more, including processes that it started.

        If its process ended without an outcome, report FailureKind.CRASHED with a message that says what is
        known.
        """


class ContextHandle(ABC):
    """A context that a launcher started. No method waits for Spark; results are reported to the listener."""

    @property
    def preparing(self) -> str:
        """What the launcher still does before the context can start, such as ``unpacking env.tar.gz``, or "".

        Users who wait for the context see it. Meanwhile, core does not give up its start, within limits.
        The default is for launchers that prepare nothing.
        """
        return ""

    @abstractmethod
    def submit(self, job: JobSpec) -> None:
        """Run a job alongside the running ones. Core limits their number, and waits for ``context_ready``.

        If the job cannot run (bad code, unknown class), ``job_ended`` reports that, and this raises nothing.
        Does nothing if the context has ended or is ending, because ``context_ended`` is enough.
        """

    @abstractmethod
    def kill_job(self, job_id: str) -> None:
        """End a job, whatever it is doing: busy loops, sleeps, native code, tasks on executors.

        The rest of the context is not disturbed. ``job_ended`` follows within seconds, as killed or with the
        job's own outcome if that came first. Does nothing if the job is not running. If the job cannot be
        ended on its own (a busy thread in a shared JVM), no report follows until it or the context ends.
        """

    def acknowledge(self, job_id: str) -> None:
        """Forget a job whose end is stored. It need not be reported again after a re-attachment.

        Returns at once, and never raises. Does nothing for an unknown job. The default is for launchers whose
        contexts end with the server.
        """
        return

    @abstractmethod
    def stop(self, timeout: float) -> None:
        """Stop the context gracefully, and by force after ``timeout`` seconds.

        Running jobs are cancelled. ``context_ended`` follows with STOPPED. Can be called at any time, even
        while the context starts. Idempotent.
        """

    @abstractmethod
    def kill(self) -> None:
        """End the context at once, by force. ``context_ended`` follows with KILLED within seconds.

        Can be called at any time, even while the context starts or stops. Idempotent.
        """


class Launcher(Backend):
    """Starts contexts. One launcher serves one job server.

    Everything that a context starts ends with it, even if its processes are killed with SIGKILL. A context
    either ends with its server, no matter how the server ends, or outlives it for a limited time in which the
    next server's launcher can take the context over. A launcher of the second kind implements
    :attr:`reattaches`, :meth:`detach`, :meth:`survivors`, :meth:`reattach` and
    :meth:`ContextHandle.acknowledge`.

    When a server starts, it calls :meth:`survivors`, then :meth:`reattach` for each context that it wants to
    keep, and then :meth:`sweep`, which ends everything else that outlived a server.
    """

    kind = "launcher"

    writes_json: ClassVar[bool] = False
    """Whether all results are JSON, whatever jobs return. Otherwise, core checks those up to 1 MiB, and the
    beginning, the end and the encoding of larger ones."""

    @property
    def reattaches(self) -> bool:
        """Whether contexts outlive their server, so that the next one can take them over."""
        return False

    def check(self) -> None:
        """Check that this launcher can work on this machine.

        Cheap enough for a readiness probe. The default does nothing.

        Raises:
            LaunchError: It cannot; the message says how to change that.
        """
        return

    def validate(self, settings: JsonMapping) -> None:
        """Check that a context can start with these settings.

        ``settings`` is the same tree as in :class:`ContextSpec`. Core calls this before it records a context,
        so that a mistake is refused instead of leaving a failed context behind. Must be quick and without
        side effects; may be called at any time before :meth:`close`. Problems that take longer to detect are
        reported after :meth:`start_context`. The default accepts everything.

        Raises:
            InvalidSetting: No context can ever start with them.
        """
        return

    def resources(self, settings: JsonMapping) -> Resources:
        """Return the maximum that a context with these settings asks for. They have passed :meth:`validate`.

        Core adds up what living contexts ask for, and refuses one that would exceed the limits of the
        configuration. The same settings always give the same result. The default asks for nothing, so only
        the number of contexts is limited.
        """
        return Resources()

    @abstractmethod
    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        """Begin to start a context, and return at once; ``context_ready`` or ``context_ended`` follows.

        A failed start leaves nothing running. Core kills a context that is not ready in time, and
        reports the last lines of its ``log_path`` as the reason.

        Raises:
            InvalidSetting: :meth:`validate` refuses the settings.
        """

    def survivors(self) -> Sequence[ContextSpec]:
        """Return the contexts of an earlier server that seem to be alive, with their original specs."""
        return ()

    def reattach(
        self, spec: ContextSpec, jobs: Sequence[JobSpec], listener: ContextListener
    ) -> ContextHandle:
        """Take over one of the :meth:`survivors`, and return at once.

        ``jobs`` are the jobs that were submitted to the context and whose end is not stored. Afterwards, it
        is as if this server had submitted each of them once: running jobs continue, ended ones are reported,
        and those that had not arrived are run now. Any other jobs of the context are ended and not reported.

        ``context_ready`` follows once the context is taken over, if it is ready; the reports about its jobs
        come after that. If the context cannot be taken over in time, it is ended, and ``context_ended``
        follows with FAILED and the reason. The handle can be used at once; calls that cannot be sent yet are
        sent later.

        Raises:
            LaunchError: The context is not among the survivors.
        """
        raise LaunchError(message=f"context {spec.name} ended with its server")

    def spare_pools(self) -> Sequence[SparePool]:
        """Return the pools of contexts that are started in advance for new ones. The default has none."""
        return ()

    def prepare(self) -> None:
        """Do one-time work in advance, such as compiling, so that the first contexts start faster.

        May take minutes. Intended for building an image, while no server is running. Starts nothing that
        outlives the call. The default does nothing.

        Raises:
            LaunchError: This launcher cannot work on this machine, or the preparation failed.
        """
        return

    def sweep(self) -> None:
        """End everything that contexts of an earlier server left behind, except re-attached contexts.

        Called once, before any start.
        """
        return

    def sweep_lost(self, contexts: Sequence[Context]) -> None:
        """Remove what contexts of dead servers left outside their machines, for example in a cluster.

        This server has claimed the contexts. May take as long as a cluster takes to respond, and never
        raises. The default is for launchers whose contexts leave nothing elsewhere.
        """
        return

    def detach(self) -> None:
        """Leave all contexts to the next server, and close the launcher.

        Once this returns, no listener is called any more. The launcher leaves no threads, and no processes
        except those of the contexts. Idempotent. Called only if :attr:`reattaches` is true.
        """
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Kill all contexts, and return once each has reported ``context_ended``. Idempotent.

        The launcher leaves no threads and no processes.
        """
