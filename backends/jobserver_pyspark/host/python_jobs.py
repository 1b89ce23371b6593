"""Python jobs: each runs alone in a runner, from the request to the end of its last process.

:mod:`~jobserver_pyspark.host.runner_pool` chooses the runner of a job. A runner that finished a job cleanly
restores its state and becomes idle, or ends if it must not be reused; any other end of a job ends the runner
with all processes of the job. The end of a clean job is reported before its runner restores its state or
ends, so that the caller does not wait for that: the job has left no thread and no process, and nothing of it
runs any more.

Invariant: an idle runner has no output of a job in its pipe and no Spark jobs under its tag.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from jobserver_core.errors import LaunchError
from jobserver_core.results import RESULT_REFUSED
from jobserver_pyspark import processes
from jobserver_pyspark.host.class_paths import TaskClassPaths, WorkerPools
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.job_threads import JobThreads
from jobserver_pyspark.host.jvm_jobs import JvmJobs
from jobserver_pyspark.host.logs import BoundedLog, OutputPump
from jobserver_pyspark.host.orphans import Forked, cut, end_orphans, forked, unassigned_orphans
from jobserver_pyspark.host.progress import ProgressBoard, SparkTag
from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.host.runner_pool import EXIT_TIMEOUT, RunnerPool
from jobserver_pyspark.host.runners import RunnerProcess, ZygoteProcess
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.failures import bounded, describe
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import ErrorDetails, HostSpec, JobFailureKind, JobReport

if TYPE_CHECKING:
    from jobserver_pyspark.jvm import CallThreads

_ATTEMPTS = 3
"""How many runners may end before one accepts the job: a spare may have died unnoticed."""
_CORES_TIMEOUT = 8.0
"""Seconds to wait until the tasks of a failed job have freed their cores."""
_CALLS_WARNING = 30.0
"""Seconds after the kill of a job before the server's log warns that its calls in the JVM go on."""
_LONGEST_PAUSE = 1.0
"""Seconds between two attempts to end what a killed job does in the JVM, after some short ones."""
_COMPILATION_PAUSE = 30.0
"""The same, if each attempt compiles the JVM side again."""
_LATE_CALLS_TIMEOUT = 600.0
"""Seconds after the end of a runner in which Spark jobs that its calls start are found and cancelled.

A call may plan a query for minutes before it runs it.
"""
_RESTORE_TIMEOUT = 30.0
"""Seconds that a runner has to restore its state after a job."""


class _PythonJob:
    """One job, from its request to the end of its last process. The fields follow its life.

    If its runner ends before it has ``accepted`` the job, another one gets it: that is the next attempt. The
    reports in ``unsent`` are sent with the next one. ``lock`` guards the ``outcome``, before it is reported:
    it is what the runner sent, or, if that comes first, what the server asked for, which ends the process
    early, as a breach of the protocol does (``broken``). After a ``clean`` end, nothing of the job
    runs any more; if the runner is also ``reusable``, it serves another job.
    """

    def __init__(self, request: messages.SubmitJob, log: BoundedLog) -> None:
        # What is asked for.
        self.id = request.job_id
        self.request = request
        self.log = log
        self.class_path_key = (*(p.digest for p in request.packages), *(jar.digest for jar in request.jars))
        self.begun = processes.boot_ticks()  # orphans that began earlier are not this job's
        # An attempt.
        self.attempts = 0
        self.fresh = False  # the job needs a runner that has served no other one
        self.runner: RunnerProcess | None = None
        self.worker_pool: str | None = None
        self.started = 0  # in milliseconds; older Spark jobs with the tag of the runner are of earlier jobs
        self.accepted = False
        # While it runs.
        self.running = False  # its validation has passed
        self.unsent: list[JobReport] = []
        self.queries: list[str] = []  # streaming queries, which have to be stopped
        # Its end.
        self.lock = threading.Lock()
        self.broken: str | None = None
        self.outcome: messages.JobEnded | None = None
        self.clean = False
        self.reusable = False
        self.used_spark = True
        # Once it is killed.
        self.threads: CallThreads | None = None  # those that its calls have started
        self.processes: set[tuple[int, int]] = set()  # those that its calls have started: IDs and start times
        self.calls_ended: int | None = None  # in ticks; what the JVM starts later is not this job's

    @property
    def finished(self) -> bool:
        """Whether the outcome is that the job finished."""
        return self.outcome is not None and self.outcome.failure is None and not self.outcome.killed

    @property
    def killed(self) -> bool:
        """Whether the outcome is that the job was killed."""
        return self.outcome is not None and self.outcome.killed

    def set_outcome(self, outcome: messages.JobEnded) -> bool:
        """Set the outcome, unless there is one already; return whether it was set."""
        with self.lock:
            if self.outcome is not None:
                return False
            self.outcome = outcome
            return True


class PythonJobs:
    """Runs Python jobs, and reports them to the server. Any thread may submit and kill."""

    def __init__(
        self,
        spec: HostSpec,
        *,
        driver: Driver,
        zygote: ZygoteProcess,
        pump: OutputPump,
        reports: JobReports,
        board: ProgressBoard,
        jars: JobJars,
        jvm_jobs: JvmJobs,
        spare: bool = False,
    ) -> None:
        self._spec = spec
        self._driver = driver
        self._pump = pump
        self._reports = reports
        self._class_paths = TaskClassPaths(driver, spec)
        self._worker_pools = WorkerPools(driver.process.pid)
        self._jobs: dict[str, _PythonJob] = {}
        self._fresh_only: set[tuple[str, ...]] = set()  # class paths, each with a class
        self._ended: dict[str, float] = {}  # tags of runners that ended in the middle of a job, and when
        self._lock = threading.Lock()
        self._threads = JobThreads("job")
        self._properties = driver.jvm.java.lang.System.getProperties()
        self._closing = False
        self._board = board
        self._jars = jars
        self._jvm_jobs = jvm_jobs
        self.runners = RunnerPool(
            spec,
            spares=1 if spare else spec.spare_runners,
            driver=driver,
            zygote=zygote,
            pump=pump,
            busy=lambda: self.busy,
            warn=self._warn,
        )

    def adopt(self, spec: HostSpec, jars: JobJars, jvm_jobs: JvmJobs, log: Callable[[bytes], None]) -> None:
        """Run the jobs of a context, as a spare that has run none; idle runners write to its log."""
        self._spec = spec
        self._jars = jars
        self._jvm_jobs = jvm_jobs
        self._class_paths = TaskClassPaths(self._driver, spec)
        self.runners.adopt(spec, log)

    # -- jobs --------------------------------------------------------------------------------------

    def submit(self, request: messages.SubmitJob) -> None:
        """Run a job on a thread of its own."""
        job = _PythonJob(request, BoundedLog(request.log_path, self._spec.log_limit))
        with self._lock:
            self._jobs[job.id] = job
        self._threads.submit(partial(self._run, job))

    def kill(self, job_id: str) -> None:
        """Kill a job, unless it has ended already or is not a Python job."""
        self._end_early(messages.JobEnded(job_id=job_id, killed=True))

    def refuse(self, job_id: str, message: str) -> None:
        """End a job whose result the server does not accept."""
        self._end_early(_failed(job_id, "result", message, error_class=RESULT_REFUSED))

    def _end_early(self, outcome: messages.JobEnded) -> None:
        job = self._jobs.get(outcome.job_id)
        if job is not None and job.set_outcome(outcome) and job.runner is not None:
            if outcome.killed and (found := forked(self._driver.process.pid, job.begun)):
                self._threads.submit(partial(self._kill_noting, job, job.runner, found))
            else:
                job.runner.kill()

    def _kill_noting(self, job: _PythonJob, runner: RunnerProcess, found: list[Forked]) -> None:
        """Kill a runner, but note before which of these processes its calls have started.

        The threads that forked them end with the runner's connections.
        """
        with self._warning_of_errors(job):
            callers = self._callers(runner.tag)
            job.processes = {(pid, start) for pid, start, thread in found if thread in callers}
        runner.kill()

    def close(self) -> None:
        """Kill every job and every runner, without a report."""
        self._closing = True
        self.runners.close()
        with self._lock:
            runners = [job.runner for job in self._jobs.values() if job.runner]
        for runner in runners:
            runner.kill()

    def _warn(self, text: str) -> None:
        """Report a problem that did not fail a job, without a stack, unless the context is ending."""
        if not self._closing and not self._driver.over:
            self._reports.warn(" ".join(text.splitlines()[:2]))

    def running(self) -> dict[str, SparkTag]:
        """Return the jobs whose code runs, and the tags that their Spark jobs carry."""
        return {
            job.id: SparkTag(job.runner.tag, job.started)
            for job in list(self._jobs.values())
            if job.running and job.outcome is None and job.runner
        }

    def cancel_late(self) -> None:
        """Cancel the Spark jobs that calls in the JVM have started since the end of their runner.

        A job that failed does not wait for its calls, as a killed one does.
        """
        limit = time.monotonic() - _LATE_CALLS_TIMEOUT
        with self._lock:
            self._ended = {tag: at for tag, at in self._ended.items() if at > limit}
            ended = set(self._ended)
        for tag in ended & self._board.running_tags() if ended else ():
            self._driver.cancel(tag)

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def _run(self, job: _PythonJob) -> None:
        try:
            outcome = self._perform(job)
        except Exception as error:  # noqa: BLE001 - any error means that this job cannot run
            outcome = _failed(
                job.id, "crashed", f"no process could be started for the job: {describe(error)}"
            )
        with self._lock:
            del self._jobs[job.id]
        job.log.close()
        self._reports.end(outcome, job.unsent)
        if job.finished and job.runner is not None:
            self._clean_up(job, job.runner)

    def _perform(self, job: _PythonJob) -> messages.JobEnded:
        """Run the job in a runner, or in another one if that died while idle or the job needs a fresh one."""
        job.fresh = (*job.class_path_key, job.request.class_name) in self._fresh_only
        while True:
            runner = self.runners.take(job.class_path_key, fresh=job.fresh)
            runner.output.write = job.log.write
            self._serve(job, runner)
            if job.clean:
                self._pump.drain(runner.output)
            else:
                self._end_runner(job, runner)
            self._worker_pools.end(job.worker_pool)
            job.worker_pool = None
            job.attempts += 1
            if job.outcome is not None:
                return job.outcome
            if job.accepted or job.attempts >= _ATTEMPTS:
                message = job.broken or _crash(runner.exit_status)
                return _failed(job.id, "crashed", message, stack=job.log.tail())

    def _clean_up(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """Clean up after a job that finished, which delays no caller since its end is reported."""
        if job.reusable:
            self._recycle(job, runner)
        elif job.clean and not job.used_spark:
            self.runners.discard(runner)
        else:
            if job.clean:  # so the process still runs
                self._end_runner(job, runner)
            with self._warning_of_errors(job):
                self._driver.cancel(runner.tag)  # Spark jobs that reached the JVM after the process ended
                runner.detach()

    def _recycle(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """Keep a runner for the next job of its class path if it is fit for it."""
        reason: str | None = "its process ended"
        with self._warning_of_errors(job):
            if job.used_spark:
                self._driver.cancel(runner.tag)  # before its next job's Spark jobs carry the same tag
                self._abandon_named_objects(job.id)
            reason = runner.wait_until_restored(_RESTORE_TIMEOUT)
            if self._jvm_jobs.jars:
                runner.newest_thread = self._driver.newest_thread()
        runner.output.write = runner.idle_write
        if reason is None:
            self.runners.keep(runner)
        else:
            if not self._closing:
                line = f"the process of job {job.id} serves no other job: {reason}\n"
                runner.idle_write(line.encode(errors="replace"))
            self.runners.discard(runner)

    def _serve(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """Send the job to the runner, and handle its messages until it sends the outcome, or ends."""
        with job.lock:
            job.runner = runner
            if job.outcome is not None:  # it was killed
                return
        try:
            self._jars.add(job.request.jars)
            for_tasks = self._class_paths.provide(job.request.packages)
            job.worker_pool = for_tasks.worker_pool
            runner.class_path_key = job.class_path_key
            job.started = int(time.time() * 1000)
            self._worker_pools.begin(job.worker_pool)
            runner.channel.send(
                messages.RunJob(
                    job_id=job.id,
                    class_name=job.request.class_name,
                    context_type=self._spec.context_type,
                    sys_path=tuple(package.directory for package in job.request.packages),
                    includes=for_tasks.includes,
                    worker_pool=for_tasks.worker_pool,
                    data_dir=self._spec.data_dir,
                    reuse=self._reuses(job),
                    settings=self._spec.settings,
                    configuration=job.request.config,
                )
            )
            while job.outcome is None:
                self._handle(job, runner, runner.receive())
                # The end of a clean job follows at once, and carries what is still unsent.
                if job.unsent and not job.clean and (job.outcome is not None or not runner.channel.more):
                    self._reports.send(*job.unsent)
                    job.unsent.clear()
        except ChannelClosed:
            runner.exited.wait(EXIT_TIMEOUT)
        except ProtocolError as error:
            job.accepted, job.broken = True, str(error)  # the job has begun, even if its state is unknown
        except Exception as error:  # noqa: BLE001 - the class path could not be shipped
            job.set_outcome(_failed(job.id, "loading", describe(error)))

    def _handle(self, job: _PythonJob, runner: RunnerProcess, message: messages.RunnerToHost) -> None:
        match message:
            case messages.JobAccepted():
                job.accepted = True
            case messages.JobValidated() if not job.running:
                job.running = True
                job.unsent.append(messages.JobRunning(job_id=job.id))
            case messages.RunnerResultChunk() if job.running:
                part = messages.ResultChunk(job_id=job.id, stream=message.stream, data=message.data)
                job.unsent.append(part)
            case messages.QueryStarted():
                job.queries.append(message.query_id)
            case messages.NotReady():
                raise ChannelClosed(message.message)
            case messages.FreshProcessNeeded():
                job.accepted, job.fresh = False, True
                self._fresh_only.add((*job.class_path_key, job.request.class_name))
                runner.kill()  # it does not end by itself
                raise ChannelClosed("the job needs a process that has served no other one")
            case messages.RunFailed():
                error = bounded(message.error)
                job.set_outcome(messages.JobEnded(job_id=job.id, failure=message.failure, error=error))
            case messages.RunFinished() if job.running:
                if job.set_outcome(messages.JobEnded(job_id=job.id)):
                    job.used_spark = message.used_spark
                    job.clean = message.clean and not job.queries
                    job.reusable = job.clean and self._reuses(job)
            case _:
                raise ProtocolError(f"the job's process sent {type(message).__name__} out of turn")

    def _end_runner(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """End the process, its descendants and its Spark jobs; wait until its cores are free.

        If the job was killed, this waits for its tasks and its calls in the JVM, and for the threads and
        processes that these have started, for as long as they last.
        """
        runner.kill()
        if job.finished:  # while the process ends
            with self._warning_of_errors(job):
                self._end_spark_jobs(job, runner)
        runner.exited.wait(EXIT_TIMEOUT)
        with self._warning_of_errors(job):
            if not job.finished:
                with self._lock:
                    self._ended[runner.tag] = time.monotonic()
                runner.detach()  # first, so that interrupted calls in the JVM start nothing else
                if job.killed:
                    self._end_calls(job, runner)
            self._driver.stop_queries(runner.tag)
            self._driver.stop_streaming(runner.tag)
            if not job.finished:
                self._end_spark_jobs(job, runner)
        end_orphans(job.begun, self._begun(job), of_tasks=True)
        runner.close(self._pump)

    def _end_calls(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """End the calls of a killed job in the JVM, its tasks, and all that these have started; wait for it.

        A call may ignore interrupts while it plans a query for minutes. If the job were already reported as
        killed, the tasks of the query would start after that. So the job stays RUNNING, like a JVM job with
        such code. A call or a thread that never ends only does so with the context.
        """
        begun, pause, warned = time.monotonic(), 0.01, False
        while not self._closing:
            longest = _LONGEST_PAUSE
            try:
                left = self._end_calls_once(job, runner)
            except Exception as error:  # noqa: BLE001 - the objects of a job may raise anything when they are read
                if self._driver.over:
                    return
                left = f"what it left in the JVM is unknown ({describe(error)})"
                if isinstance(error, (LaunchError, OSError)):  # the JVM side cannot be compiled or stored
                    longest = _COMPILATION_PAUSE
            if left is None:
                return
            if time.monotonic() - begun > _CALLS_WARNING and not warned:
                warned = True
                self._reports.warn(
                    f"job {job.id} still runs after its kill: its process has ended, but {left}. "
                    "The job ends with that, or with its context"
                )
            time.sleep(pause)
            pause = min(pause * 2, longest)

    def _end_calls_once(self, job: _PythonJob, runner: RunnerProcess) -> str | None:
        """Try once to end them; return what is left, or None.

        Raises:
            LaunchError: The JVM side cannot be compiled.
            OSError: The compiled JVM side cannot be stored.
        """
        calls = self._driver.calls(runner.tag)
        for thread in calls:
            thread.interrupt()  # in each round, because code may ignore an interrupt and then wait again
        try:
            left = self._end_threads(job, runner)  # after the calls, which may start some
            if left is None and calls:
                left = "a call that it made in the JVM ignores interrupts"
            if left is None and job.calls_ended is None:
                job.calls_ended = processes.boot_ticks()
            left = self._end_processes(job) or left  # a call may wait for its process
            if left is None and self._driver.has_tasks(runner.tag):
                left = "tasks that it has started in Spark ignore interrupts"
            return left
        finally:
            self._driver.cancel(runner.tag)

    def _end_threads(self, job: _PythonJob, runner: RunnerProcess) -> str | None:
        """Try once to end the threads that a job's calls have started; return what is left, or None.

        Raises:
            LaunchError: The JVM side cannot be compiled.
            OSError: The compiled JVM side cannot be stored.
        """
        if job.threads is None:
            job.threads = self._jvm_jobs.call_threads(runner.tag, runner.newest_thread)
        left = job.threads.end(self._others(job)) if job.threads is not None else None
        if left is not None:
            self._driver.stop_queries(runner.tag)  # they may start threads, too
            self._driver.stop_streaming(runner.tag)
        return left

    def _end_processes(self, job: _PythonJob) -> str | None:
        """Try once to kill the processes that a job's calls have started; return what is left, or None.

        If another job ran when a process was started, and the thread that forked it does not show whose it
        is, it is neither killed nor ignored.
        """
        left = None
        others = [*self._begun(job), *self._jvm_jobs.begun]
        found = forked(self._driver.process.pid, job.begun)
        callers = {name for tag in self._others(job) for name in self._callers(tag)} if found else set()
        for pid, start, thread in found:
            own = (pid, start) in job.processes
            if not own and thread in callers:
                continue
            if own or not any(other <= start for other in others):
                processes.kill_tree(pid)
                left = f"process {pid}, which it has started in the JVM, does not end"
            elif job.calls_ended is None or start <= job.calls_ended:
                left = f"process {pid} of the JVM may be its own or that of another job"
        end_orphans(job.begun, others, of_tasks=False)
        if job.calls_ended is not None and (orphans := unassigned_orphans(job.begun, job.calls_ended)):
            left = f"process {orphans[0]}, whose parent has ended, may be its own or that of another job"
        return left

    def _callers(self, tag: str) -> set[str]:
        """Return the names of the threads of the JVM that serve a runner, as Linux shows them."""
        return {cut(thread.getName()) for thread in self._driver.calls(tag)}

    def _begun(self, job: _PythonJob) -> list[int]:
        """Return when the other Python jobs began."""
        return [other.begun for other in list(self._jobs.values()) if other is not job]

    def _others(self, job: _PythonJob) -> list[str]:
        """Return the tags that threads of other running jobs carry."""
        return [
            *(
                other.runner.tag
                for other in list(self._jobs.values())
                if other is not job and other.outcome is None and other.runner
            ),
            *self._jvm_jobs.running(),
        ]

    def _end_spark_jobs(self, job: _PythonJob, runner: RunnerProcess) -> None:
        """Cancel what the job left in Spark, and wake waiters for its unfinished named objects.

        If it failed, wait for a while until none of its tasks holds a core. A killed job has waited already.
        """
        self._driver.cancel(runner.tag)
        deadline = time.monotonic() + _CORES_TIMEOUT
        if not (job.finished or job.killed):
            while self._driver.has_tasks(runner.tag) and time.monotonic() < deadline:
                time.sleep(0.02)
        self._abandon_named_objects(job.id)

    @contextlib.contextmanager
    def _warning_of_errors(self, job: _PythonJob) -> Iterator[None]:
        """Report errors inside the block, and continue."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the JVM may fail in many ways
            self._warn(f"after job {job.id}: {describe(error)}")

    def _abandon_named_objects(self, job_id: str) -> None:
        """Wake waiters for named objects that the job will not create."""
        creators = self._properties.get("jobserver.namedObjects.creators")
        if creators is not None and not creators.isEmpty():
            from jobserver_pyspark.runner.named_objects import abandon  # noqa: PLC0415 - few jobs have named objects

            abandon(self._driver.jvm, job_id)

    def _reuses(self, job: _PythonJob) -> bool:
        return self._spec.reuse and self._spec.context_type != "custom" and not job.fresh


def _failed(
    job_id: str, kind: JobFailureKind, message: str, *, error_class: str = "", stack: str = ""
) -> messages.JobEnded:
    error = bounded(ErrorDetails(message=message, error_class=error_class, stack=stack))
    return messages.JobEnded(job_id=job_id, failure=kind, error=error)


def _crash(status: int | None) -> str:
    if status is None:
        return "the job's process is gone"
    if status >= 0:
        return f"the job's process ended by itself with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "; the system may have run out of memory" if -status == signal.SIGKILL else ""
    return f"the job's process was ended by {name}{hint}"
