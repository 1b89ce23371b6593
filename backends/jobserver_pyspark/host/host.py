"""The context host: owns the context's JVM and runners, and serves the server's requests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.jvm_jobs import JvmJobs
from jobserver_pyspark.host.logs import BoundedLog, OutputPump
from jobserver_pyspark.host.progress import ProgressBoard
from jobserver_pyspark.host.python_jobs import PythonJobs
from jobserver_pyspark.host.redial import open_channel, redial
from jobserver_pyspark.host.reports import JobReports, ServerChannel
from jobserver_pyspark.host.runners import ZygoteProcess
from jobserver_pyspark.processes import describe_exit, killed_from_outside
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.failures import ContextFailure, describe, details_of
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import ErrorDetails, HostSpec, HostToServer, ServerToHost

_CONNECT_TIMEOUT = 30.0
"""Seconds to reach the server, which listens on this machine but may be overloaded."""
_PROGRESS_INTERVAL = 1.0
"""Seconds between two reports of progress: each costs a call to the JVM."""
_IDLE_WAIT = 2.0
"""Seconds between two checks for late Spark jobs and lost workers while no job runs."""
_JVM_END_TIMEOUT = 2.0
"""Seconds for the JVM to follow its application: if it does, its own watch knows the reason better."""
_LOG_SIZE = 64 * 1024
"""Bytes at the end of the log in which a reason for the end of the application is searched."""
_OUT_OF_MEMORY = re.compile(r"^Terminating due to java\.lang\.OutOfMemoryError: (.+)$", re.MULTILINE)
"""What a JVM prints before it ends because of ``-XX:+ExitOnOutOfMemoryError``."""
_KILLED = re.compile(r"Master removed our application: KILLED|Application \S+ has been killed|state: KILLED")
"""The log line of Spark's driver when its master, or YARN, ended the application on request."""


def run(connect: messages.Connect) -> NoReturn:
    """Connect to the server, and serve it until the process ends. Call this on the main thread."""
    server = open_channel((connect.host, connect.port), _CONNECT_TIMEOUT)
    server.send(messages.Hello(protocol=messages.PROTOCOL_VERSION, token=connect.token))
    try:
        first = server.receive()
        if not isinstance(first, messages.StartContext | messages.StartSpare):
            raise ProtocolError(f"the server sent {type(first).__name__} before it started a context")
    except ChannelClosed:
        sys.exit(0)  # the server has ended, or uses another version of the protocol and reports that
    except ProtocolError as error:
        server.send(messages.ContextDied(error=details_of(error)))
        sys.exit(1)
    Host(server, first.spec, secret=connect.token, spare=isinstance(first, messages.StartSpare)).serve()


class Host:
    """One context. The main thread creates and serves it: the JVM and the zygote end with that thread.

    ``secret`` is what identifies the host to its server and to later ones.
    """

    def __init__(self, server: ServerChannel, spec: HostSpec, *, secret: str, spare: bool) -> None:
        # A spare ends with its server.
        self._spec = spec = dataclasses.replace(spec, reattachment=None) if spare else spec
        self._spare = spare
        self._ending = threading.Lock()
        self._stopping = False
        self._directories = [spec.tmp_dir, spec.work_dir]
        self._log = BoundedLog(spec.log_path, spec.log_limit)
        self._pump = OutputPump()
        self._driver = Driver(spec, self._log, self._pump)
        self._zygote = ZygoteProcess(self._pump, self._log.write, self._on_zygote_loss, spec.preload)
        self._server = server
        self._secret = secret
        self._reports = JobReports(server, spec, self._lives)
        self._ready: messages.ContextReady | None = None
        self._attaching = threading.Lock()
        self._jobs: PythonJobs | None = None
        self._jars = JobJars(self._driver, spec)
        self._jvm_jobs = JvmJobs(spec, self._driver, self._reports, self._jars)
        self._job_came = threading.Event()

    def serve(self) -> NoReturn:
        """Start the context, and serve the server until it stops the context or ends."""
        threading.Thread(target=self._watch_server, name="server watch", daemon=True).start()
        try:
            threading.Thread(target=self._start, name="start", daemon=True).start()
            while True:
                self._serve_one_server()
        except ChannelClosed:
            self._end(clean=True)
        except ProtocolError as error:
            self._end(messages.ContextDied(error=details_of(error)))

    def _serve_one_server(self) -> None:
        """Serve a server until it ends, and wait for the next one.

        Raises:
            ChannelClosed: No other server came.
        """
        try:
            while True:
                self._handle(self._server.receive())
        except ChannelClosed:
            reattachment = self._spec.reattachment
            if reattachment is None or self._stopping:
                raise
        self._server.close()
        _log_line("the job server has ended; this context waits for the next one")
        channel = redial(reattachment, self._spec.marker, self._secret)
        if channel is None:
            _log_line(f"no job server connected within {reattachment.timeout_ms} ms; this context is ending")
            raise ChannelClosed("no server took this context over")
        with self._attaching, contextlib.suppress(ChannelClosed):  # if that server has ended too, dial again
            self._server = channel
            channel.send(messages.ContextResumed(ready=self._ready, jobs=self._reports.kept))
            self._reports.resume(channel)

    def _adopt(self, message: messages.AdoptContext) -> None:
        """Become the host of a context, as a spare."""
        jobs = self._jobs
        if not self._spare or jobs is None:
            raise ProtocolError("the server sent AdoptContext to a host that is not a spare, or not ready")
        if self._driver.over:
            self._lose("the Spark application of the spare has ended")
        own = self._spec
        output = own.log_path.read_bytes()
        spec = dataclasses.replace(message.spec, marker=own.marker, jvm=own.jvm, tmp_dir=own.tmp_dir)
        self._spec, self._spare = spec, False
        self._reports.adopt(spec)
        self._directories.append(spec.work_dir)
        log, self._log = self._log, BoundedLog(spec.log_path, spec.log_limit)
        self._log.write(output)
        _print_to(spec.log_path)
        self._driver.adopt(spec, self._log)
        self._zygote.write_log_to(self._log.write)
        self._jars = JobJars(self._driver, spec)
        self._jvm_jobs = JvmJobs(spec, self._driver, self._reports, self._jars)
        jobs.adopt(spec, self._jars, self._jvm_jobs, self._log.write)
        log.close()
        self._report_ready()

    def _report_ready(self) -> None:
        with self._attaching:
            self._ready = messages.ContextReady(
                application_id=self._driver.application_id, url=self._driver.url
            )
            self._reports.send_once(self._ready)

    def _watch_server(self) -> None:
        """End with the server: its death closes this process's input.

        The connection closes too, and that is enough for a context that waits for the next server.
        """
        while os.read(0, 4096):
            pass
        if self._spec.reattachment is None:
            self._end(clean=True)

    def _handle(self, message: ServerToHost) -> None:
        match message:
            case messages.StopContext():
                threading.Thread(target=self._stop, name="stop", daemon=True).start()
            case messages.AdoptContext():
                self._adopt(message)
            case messages.AcknowledgeJob():
                self._reports.acknowledge(message.job_id)
            case _ if self._jobs is None or self._ready is None:
                raise ProtocolError(f"the server sent {type(message).__name__} before ContextReady")
            case messages.SubmitJob():
                self._job_came.set()
                self._reports.begin(message.job_id)
                (self._jobs if message.python else self._jvm_jobs).submit(message)
            case messages.KillJob():
                threading.Thread(target=self._kill_job, args=(message.job_id,), daemon=True).start()
            case messages.RefuseResult():
                for jobs in (self._jobs, self._jvm_jobs):
                    jobs.refuse(message.job_id, message.message)
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__} to a host that runs a context")

    def _kill_job(self, job_id: str) -> None:
        try:
            if self._jobs is not None:
                self._jobs.kill(job_id)
            self._jvm_jobs.kill(job_id)
        except Exception as error:  # noqa: BLE001 - the JVM is gone; its watch reports that
            _log_line(f"job {job_id} cannot be killed: {describe(error)}")

    # -- start -------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self._driver.connect()
            threading.Thread(target=self._watch_jvm, name="JVM watch", daemon=True).start()
            self._driver.check_factory()
            self._driver.start_spark()
            board = ProgressBoard(self._driver.jvm, self._driver.context, self._reports)
            jobs = PythonJobs(
                self._spec,
                driver=self._driver,
                zygote=self._zygote,
                pump=self._pump,
                reports=self._reports,
                board=board,
                jars=self._jars,
                jvm_jobs=self._jvm_jobs,
                spare=self._spare,
            )
            self._start_session_and_runner(jobs)
            self._jobs = jobs
            if self._spare:
                self._warm_session()
                jobs.runners.warm_up()
                self._reports.send_once(messages.SpareReady())
            else:
                self._report_ready()
        except ContextFailure as failure:
            self._end(messages.ContextDied(error=failure.error))
        except Exception as error:  # noqa: BLE001 - any error means that the context cannot start
            self._end(messages.ContextDied(error=details_of(error)))
        threading.Thread(target=self._warm_session, name="session", daemon=True).start()
        threading.Thread(target=self._observe, args=(jobs, board), name="observer", daemon=True).start()
        self._watch_application()

    def _start_session_and_runner(self, jobs: PythonJobs) -> None:
        """Create the session and the first runner at the same time."""
        first_runner = ThreadPoolExecutor(1, "first runner").submit(jobs.runners.start)
        if self._spec.session:
            self._driver.start_session()
        first_runner.result()
        jobs.runners.session_ready.set()

    def _warm_session(self) -> None:
        try:
            self._driver.warm_session()
        except Exception as error:  # noqa: BLE001 - the first job that uses it fails likewise
            if not self._stopping:
                _log_line(f"the session is not ready: {describe(error)}")

    # -- watching ----------------------------------------------------------------------------------

    def _watch_jvm(self) -> None:
        status = self._driver.process.wait()
        if not self._stopping:
            time.sleep(0.1)  # the last output of the JVM is still in the pipe
            how = describe_exit(status)
            if found := _OUT_OF_MEMORY.findall(self._log.tail()):
                how = f"ran out of memory ({found[-1]}); give the context more with memory-per-node"
            self._lose(f"the driver's JVM {how}", killed_outside=killed_from_outside(status))

    def _lives(self) -> bool:
        """Whether the context is alive: a watch may not have noticed a dead JVM or zygote yet."""
        return not self._stopping and self._zygote.lives and not self._driver.over

    def _watch_application(self) -> None:
        try:
            self._driver.wait_until_stopped()
        except Exception:  # noqa: BLE001 - the JVM is gone; its watch reports that
            return
        if not self._stopping:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._driver.process.wait(_JVM_END_TIMEOUT)
                return  # the JVM itself ended; its watch reports that
            self._end_with_application()

    def _end_with_application(self) -> NoReturn:
        """Report that the application ended; YARN or the last log lines may say that it was killed."""
        if status := self._driver.yarn_failure():
            reason = f"YARN ended the application as {status.final}: {status.diagnostics}"
            self._lose(reason, killed_outside=status.final == "KILLED")
        if found := _KILLED.search(self._log.tail(_LOG_SIZE)):
            self._lose(f"the Spark application was killed from outside ({found[0]})", killed_outside=True)
        caller = self._driver.stopped_by()
        if caller is None:
            self._lose("the SparkContext was stopped, by a job or by Spark itself")
        self._lose(f"a job stopped the SparkContext, which belongs to its context, in {caller}")

    def _observe(self, jobs: PythonJobs, board: ProgressBoard) -> None:
        """Report the progress of jobs while any runs, and end late Spark jobs and lost Python workers."""
        busy = False
        while not self._stopping:
            if busy or self._job_came.wait(_IDLE_WAIT):
                self._job_came.clear()
                time.sleep(_PROGRESS_INTERVAL)
                busy = jobs.busy or self._jvm_jobs.busy
            try:
                jobs.cancel_late()
                board.report({**jobs.running(), **self._jvm_jobs.running()})
            except Exception as error:  # noqa: BLE001 - failing to read progress must not end the context
                if not self._stopping and not self._driver.over:
                    _log_line(f"progress cannot be read: {describe(error)}")
            processes.kill_leaderless()  # their daemon died, and they would hold their cores forever

    def _on_zygote_loss(self, reason: str) -> None:
        if not self._stopping:
            self._lose(reason)

    # -- end ---------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Stop gracefully; the server kills this process when that takes too long."""
        self._stopping = True
        if self._jobs is not None:
            self._jobs.close()
        self._zygote.close()  # with every runner, even one that is starting
        try:
            if self._driver.jvm is not None:
                self._jvm_jobs.close()
                self._driver.stop()
                self._driver.process.wait()
        except Exception as error:  # noqa: BLE001 - the context ends anyway
            _log_line(f"the application did not stop cleanly: {describe(error)}")
        self._end(messages.ContextStopped())

    def _lose(self, message: str, *, killed_outside: bool = False) -> NoReturn:
        error = ErrorDetails(message=message, stack=self._log.tail())
        self._end(messages.ContextDied(error=error, killed_outside=killed_outside))

    def _end(self, last: HostToServer | None = None, *, clean: bool = False) -> NoReturn:
        """End everything of this context, send the last message, exit. ``clean`` removes its files too."""
        self._ending.acquire()  # never released: the first caller exits
        self._stopping = True
        self._zygote.close()
        self._driver.kill()
        if last is not None and not self._reports.send_last(last):
            clean = True  # the server has ended and cannot remove them
        processes.kill_marked(self._spec.marker)
        processes.kill_unmarked()
        processes.reap_children()
        if clean:
            for directory in self._directories:
                shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)


def _print_to(log_path: Path) -> None:
    """Append what this process prints to another log from now on."""
    with contextlib.suppress(OSError):
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for output in (1, 2):
            os.dup2(log, output)
        os.close(log)


def _log_line(text: str) -> None:
    """Print a line to the context's log. A full disk must not end the context."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)
