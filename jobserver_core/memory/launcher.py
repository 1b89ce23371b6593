"""A launcher that runs Python callables on threads of this process: no Spark, no waiting."""

from __future__ import annotations

import difflib
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.config.settings import CONTEXT_KEYS
from jobserver_core.config.units import parse_size
from jobserver_core.data_directory import create_private
from jobserver_core.errors import InvalidSetting
from jobserver_core.memory.inline_jobs import InlineReports, InlineRun, InlineThreads, JobFunction
from jobserver_core.models.arguments import check_callable, check_kind, check_seconds
from jobserver_core.models.contexts import Resources
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec, JobSpec, Launcher

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings


class InlineLauncher(Launcher):
    """Runs registered callables, each on a thread of its own.

    ``functions`` maps class names to callables that take an :class:`InlineJob` and return the result. It is
    converted as that of a Python job on Spark is: values become JSON, and an iterator of bytes is a streamed
    result. Any other name is a class that is not found. ``start_delay`` is the number of seconds that a
    context takes to become ready. The setting ``inline.fail = "reason"`` makes a context fail to start, for
    tests.

    If a callable has an attribute ``validate``, that is called first. A kill ends the callable inside
    :meth:`InlineJob.sleep` and :meth:`InlineJob.check`; if it blocks elsewhere, it ends when it returns, and
    only then is its end reported. A thread cannot be ended by force: a context that is killed waits
    ``kill_grace`` seconds for such callables, then ends without them and ignores their outcome.

    Contexts outlive a server that is closed with ``contexts="detach"``, or abandoned, if the next server gets
    the same launcher object. They wait for it until the launcher is closed. The launcher of
    ``jobserver.launcher.backend = memory`` is the server's own, so its contexts end with the server.
    """

    writes_json = True

    def __init__(
        self,
        functions: Mapping[str, JobFunction] | None = None,
        *,
        start_delay: float = 0.0,
        kill_grace: float = 1.0,
    ) -> None:
        self.functions: dict[str, JobFunction] = {}
        self.kill_grace = kill_grace
        self.start_delay = start_delay
        self.threads = InlineThreads()
        self._lock = threading.Lock()
        self._contexts: set[_InlineContext] = set()
        self._left: set[_InlineContext] = set()
        self._reattaches = True
        check_seconds("start_delay", start_delay, optional=False)
        check_seconds("kill_grace", kill_grace, optional=False)
        check_kind("functions", functions, (Mapping, type(None)), "a mapping of class names to functions")
        for class_name, function in (functions or {}).items():
            self.register(class_name, function)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> InlineLauncher:
        launcher = cls()
        launcher._reattaches = False
        return launcher

    def register(self, class_name: str, function: JobFunction) -> None:
        """Register the callable for jobs of this class name.

        Raises:
            InvalidRequest: It is not a function, or one that is declared with ``async def``.
        """
        check_callable(f"the job {class_name}", function, arguments=1)
        self.functions[class_name] = function

    def validate(self, settings: JsonMapping) -> None:
        """Refuse unknown settings below ``inline``, slips in names, and invalid resources.

        Any other setting is accepted, so that settings for Spark can be tried here.
        """
        for key in settings.keys() - set(CONTEXT_KEYS):
            if near := difflib.get_close_matches(key, CONTEXT_KEYS, n=1, cutoff=0.8):
                raise InvalidSetting(key=key, message="a context has no such setting", nearest=near[0])
        inline = settings.get("inline") or {}
        unknown = [key for key in inline if key != "fail"] if isinstance(inline, Mapping) else [""]
        if unknown:
            key = f"inline.{unknown[0]}".rstrip(".")
            raise InvalidSetting(key=key, message="is not a setting; expected inline.fail")
        self.resources(settings)

    def resources(self, settings: JsonMapping) -> Resources:
        """Return ``num-cpu-cores`` and ``memory-per-node`` of the settings, by default one core."""
        cores, memory = settings.get("num-cpu-cores", 1), settings.get("memory-per-node", 0)
        try:
            wanted = int(cores)
        except (TypeError, ValueError):
            message = f"takes a number of cores, got {cores!r}"
            raise InvalidSetting(key="num-cpu-cores", message=message) from None
        try:
            return Resources(cores=wanted, memory=parse_size(memory))
        except ValueError as error:
            raise InvalidSetting(key="memory-per-node", message=str(error)) from None

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        self.validate(spec.settings)
        context = _InlineContext(self, spec, listener)
        with self._lock:
            self._contexts.add(context)
        context.start()
        return context

    @property
    def reattaches(self) -> bool:
        return self._reattaches

    def survivors(self) -> Sequence[ContextSpec]:
        """Return all living contexts. Only the next server calls this."""
        with self._lock:
            self._left = {context for context in self._contexts if context.lives}
        return [context.spec for context in self._left]

    def reattach(
        self, spec: ContextSpec, jobs: Sequence[JobSpec], listener: ContextListener
    ) -> ContextHandle:
        with self._lock:
            found = next((context for context in self._left if context.spec.id == spec.id), None)
            if found is not None:
                self._left.remove(found)
        if found is None:
            return super().reattach(spec, jobs, listener)
        found.reattach(jobs, listener)
        return found

    def sweep(self) -> None:
        with self._lock:
            left, self._left = self._left, set()
        for context in left:
            context.detach()
            context.kill()

    def detach(self) -> None:
        with self._lock:
            contexts = list(self._contexts)
        for context in contexts:
            context.detach()

    def close(self) -> None:
        with self._lock:
            contexts = list(self._contexts)
        for context in contexts:
            context.kill()
        for context in contexts:
            context.join()
        self.threads.close()

    def forget(self, context: _InlineContext) -> None:
        """Drop a context that has ended."""
        with self._lock:
            self._contexts.discard(context)


class _InlineContext(ContextHandle):
    """One context: a thread that waits for its end, and one for each job that runs."""

    def __init__(self, launcher: InlineLauncher, spec: ContextSpec, listener: ContextListener) -> None:
        self._launcher = launcher
        self.spec = spec
        self._listener = InlineReports(listener)
        self._lock = threading.Lock()
        self._jobs: dict[str, InlineRun] = {}
        self._ending: tuple[ContextEnd, float] | None = None
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"context-{spec.name}", daemon=True)

    def start(self) -> None:
        """Start the context's thread."""
        self._thread.start()

    @property
    def lives(self) -> bool:
        """Whether the context is not about to end."""
        with self._lock:
            return self._ending is None

    def detach(self) -> None:
        """Report nothing more."""
        self._listener.detach()

    def reattach(self, jobs: Sequence[JobSpec], listener: ContextListener) -> None:
        """Report to another listener, which knows these jobs."""
        wanted = {job.id for job in jobs}
        self._listener.detach()
        with self._lock:
            unwanted = [run for job_id, run in self._jobs.items() if job_id not in wanted]
            begun = set(self._jobs) | self._listener.kept
        for job_id in begun - wanted:
            self._listener.ignore(job_id)
        for run in unwanted:
            run.kill()
        self._listener.attach(listener)
        for job in jobs:
            if job.id not in begun:
                self.submit(job)

    def join(self) -> None:
        """Wait until the context has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def submit(self, job: JobSpec) -> None:
        with self._lock:
            if self._ending is not None:
                return
            run = InlineRun(self._launcher.functions, self.spec, job, self._listener, self._forget)
            self._jobs[job.id] = run
        self._launcher.threads.run(run.run)

    def acknowledge(self, job_id: str) -> None:
        self._listener.forget(job_id)

    def kill_job(self, job_id: str) -> None:
        with self._lock:
            run = self._jobs.get(job_id)
        if run is not None:
            run.kill()

    def stop(self, timeout: float) -> None:
        self._end(ContextEnd.STOPPED, timeout)

    def kill(self) -> None:
        """Cancel the jobs and end, waiting for them only briefly."""
        self._end(ContextEnd.KILLED, self._launcher.kill_grace)

    def _end(self, end: ContextEnd, timeout: float) -> None:
        with self._lock:
            if self._ending is None or end is ContextEnd.KILLED:
                self._ending = (end, timeout)
        self._wanted.set()

    def _run(self) -> None:
        failure = self._prepare()
        if failure is not None:
            self._finish(ContextEnd.FAILED, failure)
            return
        if not self._wanted.wait(self._launcher.start_delay):
            self._listener.context_ready(application_id=f"inline-{self.spec.id}")
        self._wanted.wait()
        self._cancel_jobs()
        end = self._ending[0] if self._ending else ContextEnd.STOPPED
        self._finish(end, None)

    def _prepare(self) -> ErrorInfo | None:
        inline = self.spec.settings.get("inline") or {}
        reason = inline.get("fail") if isinstance(inline, Mapping) else None
        if reason:
            return ErrorInfo(message=str(reason), error_class="InlineFailure")
        create_private(self.spec.work_dir)
        create_private(self.spec.log_path.parent)
        with self.spec.log_path.open("a", encoding="utf-8") as log:
            log.write(f"context {self.spec.name} runs inline\n")
        return None

    def _cancel_jobs(self) -> None:
        with self._lock:
            runs = list(self._jobs.values())
        for run in runs:
            run.kill()
        began = time.monotonic()
        for run in runs:
            while not run.over.is_set() and time.monotonic() < began + self._timeout():
                run.over.wait(0.05)

    def _timeout(self) -> float:
        """How long to wait for the jobs; a kill shortens it, also while the context stops."""
        with self._lock:
            return self._ending[1] if self._ending else 0.0

    def _finish(self, end: ContextEnd, error: ErrorInfo | None) -> None:
        with self._lock:
            self._ending = self._ending or (end, 0.0)
        shutil.rmtree(self.spec.work_dir, ignore_errors=True)
        self._listener.close(end, error)
        self._launcher.forget(self)

    def _forget(self, job_id: str) -> None:
        with self._lock:
            self._jobs.pop(job_id, None)
