"""Python jobs: each alone in a runner, from the request to the last of its processes.

Where runners come from. A job takes, in this order: an idle runner that has served its class path, a spare
one that has served none, a new one. A runner that finished a job cleanly puts its state back and becomes
idle; any other end of a job ends the runner with all that the job started. The end of a clean job is reported
before its runner is made fit again, so that nobody waits for that.

Invariant: an idle runner holds nothing of a job, neither output in its pipe nor Spark jobs under its tag.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobserver_pyspark import processes
from jobserver_pyspark.host.class_paths import ClassPaths
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.logs import BoundedLog, OutputPump
from jobserver_pyspark.host.orphans import end_orphans
from jobserver_pyspark.host.progress import ProgressBoard, SparkTag
from jobserver_pyspark.host.reports import Telling
from jobserver_pyspark.host.runners import Runner, RunnerLost, Zygote
from jobserver_pyspark.host.worker_pools import WorkerPools
from jobserver_pyspark.protocol.failures import bounded_fields, describe
from jobserver_pyspark.protocol.frames import ChannelClosed, FrameError

__all__ = ["PythonJobs"]

_KINDS = frozenset({"raised", "validation", "class-not-found", "wrong-type", "loading", "result"})
_ATTEMPTS = 3
_MAX_THREADS = 10_000
_EXIT_TIMEOUT = 10.0
_IDLE_TIMEOUT = 8.0
_LULL_TIMEOUT = 0.5
_MAX_IDLE = 16
"""Runners that wait for another job of their class path; each costs some 30 MB."""


class _Job:
    """One running job. ``killed`` and ``refused`` say why its process was ended before its time."""

    def __init__(self, request: dict[str, Any], log: BoundedLog) -> None:
        self.id: str = request["job_id"]
        self.request = request
        self.log = log
        self.runner: Runner | None = None
        self.running = False
        self.told: dict[str, Any] | None = None
        self.killed = False
        self.refused: str | None = None
        self.queries: list[str] = []
        self.pool: str | None = None
        self.accepted = False
        self.attempts = 0
        self.begun = processes.boot_ticks()
        self.lock = threading.Lock()
        self.class_path = tuple(part["digest"] for part in (*request["packages"], *request["jars"]))
        self.fresh = False
        self.started = 0
        self.reusable = False
        self.used_spark = True


class PythonJobs:
    """Runs Python jobs, and tells the server of them. Any thread may submit and kill."""

    def __init__(
        self,
        order: dict[str, Any],
        *,
        driver: Driver,
        zygote: Zygote,
        pump: OutputPump,
        telling: Telling,
        board: ProgressBoard,
        jars: JobJars,
    ) -> None:
        self._order = order
        self._driver = driver
        self._zygote = zygote
        self._pump = pump
        self._telling = telling
        self._class_paths = ClassPaths(driver, order)
        self._pools = WorkerPools(driver.process.pid)
        self._jobs: dict[str, _Job] = {}
        self._spares: list[Runner] = []
        self._idle: list[Runner] = []
        self._fresh_only: set[tuple[str, ...]] = set()  # class paths, each with a class
        self._reuse: bool = order["reuse"] and order["flavour"] != "custom"
        self._lock = threading.Lock()
        # A thread that ran a job has a connection to the JVM, which the next job need not wait for.
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="job")
        self._properties = driver.jvm.java.lang.System.getProperties()
        self._need = threading.Semaphore(0)
        self._closing = False
        self.session_ready = threading.Event()
        self._board = board
        self._jars = jars

    # -- spare runners -----------------------------------------------------------------------------

    def start_spares(self) -> None:
        """Make the first spare runner, warm the first Python worker, and keep spares ready from now on."""
        first = self._attached()
        with self._lock:
            self._spares.append(first)
        threading.Thread(target=self._keep_spares, args=(first,), name="spare runners", daemon=True).start()

    def _attached(self) -> Runner:
        runner = self._zygote.fork()
        try:
            runner.attach(self._driver)
        except BaseException:
            runner.kill()
            raise
        return runner

    def _keep_spares(self, first: Runner) -> None:
        self._warm(first)
        self.session_ready.wait()
        while not self._closing:
            while len(self._spares) < self._order["spare_runners"] and not self._driver.over:
                try:
                    runner = self._attached()
                    runner.prepare(self._order["flavour"])
                except Exception as error:  # noqa: BLE001 - jobs make their own runner, and tell why they cannot
                    self._note(f"a spare runner could not be made: {describe(error)}")
                    break
                with self._lock:
                    self._spares.append(runner)
            self._need.acquire()
            self._wait_for_a_lull()

    def _wait_for_a_lull(self) -> None:
        """While there is a spare left, let jobs that have just begun have the cores for themselves."""
        deadline = time.monotonic() + _LULL_TIMEOUT
        while self._spares and self.busy and time.monotonic() < deadline:
            time.sleep(0.01)

    def _warm(self, first: Runner) -> None:
        """Start the Python worker in a spare, unless a job has taken that already."""
        with self._lock:
            if first not in self._spares:
                return
            self._spares.remove(first)
        try:
            first.warm()
        except (ChannelClosed, RunnerLost, FrameError) as error:
            self._note(f"the first Python worker did not start: {describe(error)}")
            first.kill()
            return
        with self._lock:
            self._spares.append(first)

    def _take_runner(self, job: _Job) -> Runner:
        """Return an idle runner of the job's class path, a spare, or a new one."""
        with self._lock:
            dead = [runner for runner in (*self._spares, *self._idle) if runner.exited.is_set()]
            self._spares = [spare for spare in self._spares if spare not in dead]
            self._idle = [runner for runner in self._idle if runner not in dead]
            fit = [] if job.fresh else [r for r in self._idle if r.class_path == job.class_path]
            if fit:
                self._idle.remove(fit[-1])  # the one whose memory is still in the processor's caches
            spare = self._spares.pop(0) if self._spares and not fit else None
        if not fit:
            self._need.release()
        for runner in dead:
            self._discard(runner)
        return fit[-1] if fit else spare or self._attached()

    def _discard(self, runner: Runner) -> None:
        """End a runner that has no job, and let go of what is held for it."""
        runner.kill()
        runner.exited.wait(_EXIT_TIMEOUT)
        runner.close(self._pump)
        with contextlib.suppress(Exception):  # the JVM may have ended
            runner.detach()

    # -- jobs --------------------------------------------------------------------------------------

    def submit(self, request: dict[str, Any], payload: bytes) -> None:
        """Run a job on a thread of its own."""
        job = _Job(request, BoundedLog(Path(request["log_path"]), self._order["log_limit"]))
        with self._lock:
            self._jobs[job.id] = job
        self._threads.submit(self._run, job, payload)

    def kill(self, job_id: str) -> bool:
        """End a job, unless it has told its end already; return whether it is a Python job that runs."""
        job = self._jobs.get(job_id)
        if job is None:
            return False
        with job.lock:
            if job.told is None:
                job.killed = True
        if job.killed and job.runner is not None:
            job.runner.kill()
        return True

    def refuse(self, job_id: str, message: str) -> None:
        """End a job whose result the server does not take."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        with job.lock:
            if job.told is None:
                job.refused = message
        if job.refused is not None and job.runner is not None:
            job.runner.kill()

    def close(self) -> None:
        """End every job and spare; nothing is told of them."""
        self._closing = True
        with self._lock:
            runners = [*self._spares, *self._idle, *(job.runner for job in self._jobs.values() if job.runner)]
        for runner in runners:
            runner.kill()

    def _note(self, text: str) -> None:
        """Tell what went wrong beside the jobs, without a stack; while the context ends that is no news."""
        if not self._closing and not self._driver.over:
            self._telling.note(" ".join(text.splitlines()[:2]))

    def running(self) -> dict[str, SparkTag]:
        """Return the jobs whose code runs, and the tags that their Spark jobs carry."""
        return {
            job.id: SparkTag(job.runner.tag, job.started)
            for job in list(self._jobs.values())
            if job.running and not job.told and job.runner
        }

    @property
    def busy(self) -> bool:
        """Whether any job runs."""
        return bool(self._jobs)

    def _run(self, job: _Job, payload: bytes) -> None:
        try:
            outcome = self._perform(job, payload)
        except Exception as error:  # noqa: BLE001 - whatever it is, this job cannot run
            outcome = _failed("crashed", f"no process could be made for the job: {describe(error)}")
        with self._lock:
            del self._jobs[job.id]
        job.log.close()
        self._telling.ended(job.id, outcome)
        if job.reusable and job.runner is not None:
            self._recycle(job, job.runner)
        elif job.told == {} and job.runner is not None:
            with self._cleaning(job):  # nobody waits for that
                self._driver.cancel(job.runner.tag)  # what was on its way to the JVM when the process ended
                job.runner.detach()

    def _perform(self, job: _Job, payload: bytes) -> dict[str, Any]:
        """Run the job in a runner; in another one when that died while it waited, or must be a fresh one."""
        job.fresh = (*job.class_path, job.request["class_name"]) in self._fresh_only
        while True:
            runner = self._take_runner(job)
            runner.output.write = job.log.write
            self._serve(job, runner, payload)
            if job.reusable:
                self._pump.drain(runner.output)
            else:
                self._end(job, runner)
            self._pools.end(job.pool)
            job.pool = None
            job.attempts += 1
            if job.accepted or job.killed or job.told is not None or job.attempts >= _ATTEMPTS:
                return self._outcome(job, runner)

    def _recycle(self, job: _Job, runner: Runner) -> None:
        """Keep a runner for the next job of its class path, once it is fit for it."""
        reason: object = "its process ended"
        with self._cleaning(job):
            if job.used_spark:
                self._driver.cancel(runner.tag)  # before its next job's Spark jobs carry the same tag
                self._abandon(job.id)
            header, _ = runner.channel.receive()
            reason = header.get("reason") if header["kind"] in ("fit", "unfit") else "it broke the protocol"
        runner.output.write = runner.idle_write
        if reason is not None:
            runner.idle_write(f"the process of job {job.id} serves no other job: {reason}\n".encode())
        with self._lock:
            if reason is None and not self._closing:
                self._idle.append(runner)
            surplus = self._idle[:-_MAX_IDLE]
            self._idle = self._idle[-_MAX_IDLE:]
        for one in (*surplus, *([runner] if reason is not None else [])):
            self._discard(one)

    def _serve(self, job: _Job, runner: Runner, payload: bytes) -> None:
        """Give the runner its job, and pass on what it tells until it tells its end, or ends."""
        with job.lock:
            job.runner = runner
            if job.killed:
                return
        try:
            self._jars.add(job.request["jars"])
            fields = self._class_paths.of(job.request["packages"])
            job.pool = fields["pool"]
            runner.class_path = job.class_path
            job.started = int(time.time() * 1000)
            self._pools.begin(job.pool)
            configuration = b'{"context":%s,"job":%s}' % (
                self._order["settings"].encode(),
                payload,
            )
            runner.channel.send(
                "job",
                configuration,
                job_id=job.id,
                class_name=job.request["class_name"],
                flavour=self._order["flavour"],
                data_dir=self._order["data_dir"],
                reuse=self._reuse and not job.fresh,
                **fields,
            )
            while job.told is None:
                self._take(job, *runner.channel.receive())
        except (ChannelClosed, FrameError) as error:
            if isinstance(error, FrameError):
                job.log.write(f"the job's process broke the protocol: {error}\n".encode())
            runner.exited.wait(_EXIT_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - the class path could not be shipped
            with job.lock:
                job.told = _failed("loading", describe(error))

    def _take(self, job: _Job, header: dict[str, Any], payload: bytes) -> None:
        kind = header["kind"]
        if kind == "running" and not job.running:
            job.running = True
            self._telling.running(job.id)
        elif kind == "result" and job.running and job.refused is None:
            self._telling.result(job.id, payload, stream=header.get("stream") is True)
        elif kind == "accepted":
            job.accepted = True
        elif kind == "query":
            job.queries.append(str(header.get("id")))
        elif kind == "needs-fresh-process":
            job.accepted, job.fresh = False, True
            self._fresh_only.add((*job.class_path, job.request["class_name"]))
            raise ChannelClosed("the job wants a process that has served none")
        elif kind == "ended":
            failure = header.get("failure")
            told = {} if failure is None and job.running else _failed_as_told(failure, header.get("error"))
            with job.lock:
                if not job.killed and job.refused is None:
                    job.told = told
                    job.used_spark = header.get("used") is not False
                    clean = header.get("clean") is True and not job.queries
                    job.reusable = told == {} and clean and self._reuse and not job.fresh
            if job.told is None:
                raise ChannelClosed("the job was ended from outside")

    def _end(self, job: _Job, runner: Runner) -> None:
        """End the process, what it started, and its Spark jobs; wait until its cores are free."""
        runner.kill()
        finished = job.told == {}
        if finished:  # while the process ends
            with self._cleaning(job):
                self._let_go(job, runner)
        runner.exited.wait(_EXIT_TIMEOUT)
        with self._cleaning(job):
            if not finished:
                runner.detach()  # first: a call that is still starting something in the JVM is interrupted
            self._driver.stop_queries(runner.tag)
            self._driver.stop_streaming(runner.tag)
            if not finished:
                self._let_go(job, runner)
        others = [other.begun for other in list(self._jobs.values()) if other is not job]
        end_orphans(job.begun, others, of_tasks=True)
        runner.close(self._pump)

    def _let_go(self, job: _Job, runner: Runner) -> None:
        """Cancel what the job left in Spark, and let nobody wait for what it did not get to make."""
        if job.told == {}:
            self._driver.cancel(runner.tag)  # of its threads, at most
        else:
            self._cancel_and_wait(runner.tag)
        self._abandon(job.id)

    @contextlib.contextmanager
    def _cleaning(self, job: _Job) -> Iterator[None]:
        """Tell what goes wrong inside."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the JVM may answer in many ways
            self._note(f"after job {job.id}: {describe(error)}")

    def _cancel_and_wait(self, tag: str) -> None:
        """Cancel a runner's Spark jobs, and wait until none of their tasks holds a core any more."""
        stages = self._board.running_stages(tag)
        self._driver.cancel(tag)
        deadline = time.monotonic() + _IDLE_TIMEOUT
        while self._board.busy(stages) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _abandon(self, job_id: str) -> None:
        """Let nobody wait for named objects that the job did not get to make."""
        creators = self._properties.get("jobserver.namedObjects.creators")
        if creators is not None and not creators.isEmpty():
            from jobserver_pyspark.runner.named_objects import abandon  # noqa: PLC0415 - few jobs have named objects

            abandon(self._driver.jvm, job_id)

    def _outcome(self, job: _Job, runner: Runner) -> dict[str, Any]:
        if job.told is not None:
            return job.told
        if job.refused is not None:
            return _failed("result", job.refused)
        if job.killed:
            return {"killed": True}
        return _failed("crashed", _crash(runner.exit_status), stack=job.log.tail())


def _failed(kind: str, message: str, *, stack: str = "") -> dict[str, Any]:
    return {"failure": kind, "error": {"message": message, "error_class": "", "stack": stack}}


def _failed_as_told(kind: Any, error: Any) -> dict[str, Any]:
    return {"failure": kind if kind in _KINDS else "crashed", "error": bounded_fields(error)}


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
