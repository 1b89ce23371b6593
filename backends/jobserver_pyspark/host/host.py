"""The context host: owns the context's JVM and runners, and does what its server says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from jobserver_pyspark import processes
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.job_jars import JobJars
from jobserver_pyspark.host.jvm_jobs import HostedJvmJobs
from jobserver_pyspark.host.logs import BoundedLog, OutputPump
from jobserver_pyspark.host.progress import ProgressBoard, ProgressTeller
from jobserver_pyspark.host.python_jobs import PythonJobs
from jobserver_pyspark.host.reports import Telling
from jobserver_pyspark.host.runners import Zygote
from jobserver_pyspark.protocol.failures import Failure, describe
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed, FrameError

__all__ = ["Host"]

_PROGRESS_INTERVAL = 0.5
_STOPPED_INTERVAL = 1.0
_JVM_END = 2.0
_LOG_SIZE = 64 * 1024
_KILLED = re.compile(r"Master removed our application: KILLED|Application \S+ has been killed|state: KILLED")
"""What Spark's driver says when its master, or YARN, ended the application since somebody asked for that."""


class Host:
    """One context. Made and served by the process's main thread, which the JVM and the zygote live by."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._ending = threading.Lock()
        self._stopping = False
        self._folders = [order["tmp_dir"]]
        self._log = BoundedLog(Path(order["log_path"]), order["log_limit"])
        self._pump = OutputPump()
        self._driver = Driver(order, self._log, self._pump)
        self._zygote = Zygote(self._pump, self._log.write, self._on_zygote_loss)
        self._server = Channel(socket.create_connection(tuple(order["address"]), timeout=30))
        self._server.settimeout(None)
        self._telling = Telling(self._server, self._lives)
        self._jobs: PythonJobs | None = None
        self._jars = JobJars(self._driver, order)
        self._jvm_jobs = HostedJvmJobs(order, self._driver, self._telling, self._jars)
        self._progress: ProgressTeller | None = None

    def serve(self) -> NoReturn:
        """Start the context, and serve the server until it says stop, or is gone."""
        threading.Thread(target=self._watch_server, name="server watch", daemon=True).start()
        self._server.send("hello", token=self._order["token"])
        try:
            if self._order.get("spare"):
                self._adopt(*self._server.receive())
            threading.Thread(target=self._start, name="start", daemon=True).start()
            while True:
                self._take(*self._server.receive())
        except (ChannelClosed, FrameError):
            self._end(clean=True)

    def _adopt(self, header: dict[str, Any], payload: bytes) -> None:
        """Become the host of a context: what a spare host is told once it is wanted."""
        if header["kind"] != "adopt":
            raise FrameError(f"a spare host was told {header['kind']} before it had a context")
        begun = Path(self._order["log_path"]).read_bytes()
        self._folders.append(self._order["work_dir"])
        fixed = {name: self._order[name] for name in ("marker", "token", "address", "jvm", "tmp_dir")}
        self._order.update({**json.loads(payload), **fixed})
        self._log = BoundedLog(Path(self._order["log_path"]), self._order["log_limit"])
        self._log.write(begun)
        self._driver.write_log_to(self._log)
        self._zygote.write_log_to(self._log.write)
        self._jvm_jobs = HostedJvmJobs(self._order, self._driver, self._telling, self._jars)

    def _watch_server(self) -> None:
        """End with the server: its death closes this process's input."""
        while os.read(0, 4096):
            pass
        self._end(clean=True)

    def _take(self, request: dict[str, Any], payload: bytes) -> None:
        kind = request["kind"]
        if kind == "stop":
            threading.Thread(target=self._stop, name="stop", daemon=True).start()
        elif self._jobs is None:
            return
        elif kind == "submit":
            jobs = self._jobs if request["python"] else self._jvm_jobs
            jobs.submit(request, payload)
        elif kind == "kill_job":
            threading.Thread(target=self._kill_job, args=(request["job_id"],), daemon=True).start()
        elif kind == "refuse":
            for jobs in (self._jobs, self._jvm_jobs):
                jobs.refuse(request["job_id"], request["message"])

    def _kill_job(self, job_id: str) -> None:
        try:
            if self._jobs is not None:
                self._jobs.kill(job_id)
            self._jvm_jobs.kill(job_id)
        except Exception as error:  # noqa: BLE001 - the JVM is gone, which its own watch tells
            print(f"job {job_id} cannot be killed: {describe(error)}", file=sys.stderr)

    # -- start -------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self._driver.connect()
            threading.Thread(target=self._watch_jvm, name="JVM watch", daemon=True).start()
            self._driver.start_spark()
            board = ProgressBoard(self._driver.jvm, self._driver.context)
            self._progress = ProgressTeller(board, self._telling)
            jobs = PythonJobs(
                self._order,
                driver=self._driver,
                zygote=self._zygote,
                pump=self._pump,
                telling=self._telling,
                board=board,
                jars=self._jars,
            )
            self._start_beside_each_other(jobs)
            self._jobs = jobs
            self._server.send("ready", application_id=self._driver.application_id, url=self._driver.url)
        except ChannelClosed:
            return  # the main thread ends everything
        except Failure as failure:
            self._fail(failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, the context cannot start
            self._fail(Failure.of("context-init", error))
        threading.Thread(target=self._warm_session, name="session", daemon=True).start()
        threading.Thread(target=self._tell_progress, name="progress", daemon=True).start()
        self._watch_application()

    def _start_beside_each_other(self, jobs: PythonJobs) -> None:
        """Make the session and the first runner at the same time."""
        failures: list[BaseException] = []

        def make_runner() -> None:
            try:
                jobs.start_spares()
            except BaseException as error:  # noqa: BLE001 - told by the other thread
                failures.append(error)

        beside = threading.Thread(target=make_runner, name="first runner")
        beside.start()
        if self._order["session"]:
            self._driver.start_session()
        beside.join()
        jobs.session_ready.set()
        if failures:
            raise Failure.of("context-init", failures[0])

    def _warm_session(self) -> None:
        try:
            self._driver.warm_session()
        except Exception as error:  # noqa: BLE001 - the first job that uses it is told the same
            if not self._stopping:
                print(f"the session is not ready: {describe(error)}", file=sys.stderr)

    # -- watching ----------------------------------------------------------------------------------

    def _watch_jvm(self) -> None:
        status = self._driver.process.wait()
        if not self._stopping:
            time.sleep(0.1)  # the last words of the JVM
            what = f"signal {-status}" if status < 0 else f"exit status {status}"
            self._fail(
                Failure("context-lost", f"the driver's JVM ended by itself ({what})", stack=self._log.tail())
            )

    def _lives(self) -> bool:
        """Whether the context goes on: a dead JVM or zygote may not have been noticed by its watch yet."""
        return not self._stopping and self._zygote.lives and not self._driver.over

    def _watch_application(self) -> None:
        while not self._stopping:
            time.sleep(_STOPPED_INTERVAL)
            processes.kill_leaderless()  # Python workers whose daemon died would hold their cores for ever
            try:
                stopped = self._driver.stopped
            except Exception:  # noqa: BLE001 - the JVM is gone, which its own watch tells
                return
            if stopped and not self._stopping:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._driver.process.wait(_JVM_END)
                    return  # the whole JVM ended, which its own watch tells
                self._end_with_application()

    def _end_with_application(self) -> NoReturn:
        """Tell that the application is over: who ended it is in its cluster's last words, if anywhere."""
        log = self._log.tail(_LOG_SIZE)
        if found := _KILLED.search(log):
            message = f"the Spark application was killed from outside ({found[0]})"
        else:
            message = "the Spark application ended by itself"
        error = Failure("context-lost", message, stack=self._log.tail()).error
        self._end(last="failed", error=error, outside=found is not None)

    def _tell_progress(self) -> None:
        while not self._stopping:
            time.sleep(_PROGRESS_INTERVAL)
            try:
                if self._jobs is not None and self._progress is not None:
                    self._progress.tell({**self._jobs.running(), **self._jvm_jobs.running()})
            except Exception as error:  # noqa: BLE001 - progress is not worth a context
                if not self._stopping and not self._driver.over:
                    print(f"progress cannot be told: {describe(error)}", file=sys.stderr)

    def _on_zygote_loss(self) -> None:
        if not self._stopping:
            self._fail(
                Failure("context-lost", "the process that makes job processes ended", stack=self._log.tail())
            )

    # -- end ---------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Stop gracefully; the server ends this process by force when that takes too long."""
        self._stopping = True
        if self._jobs is not None:
            self._jobs.close()
        self._zygote.close()  # with every runner, also one that is just being made
        try:
            if self._driver.jvm is not None:
                self._jvm_jobs.close()
                self._driver.stop()
                self._driver.process.wait()
        except Exception as error:  # noqa: BLE001 - it ends all the same
            print(f"the application did not stop cleanly: {describe(error)}", file=sys.stderr)
        self._end(last="stopped")

    def _fail(self, failure: Failure) -> NoReturn:
        self._end(last="failed", error=failure.error)

    def _end(self, *, clean: bool = False, last: str | None = None, **fields: Any) -> NoReturn:
        """End all of this context, say the last word, and end. ``clean``: nobody else removes files."""
        self._ending.acquire()
        self._stopping = True
        self._zygote.close()
        self._driver.kill()
        if last is not None:
            try:
                self._server.send(last, **fields)
            except (ChannelClosed, FrameError):
                clean = True
        processes.kill_marked([self._order["marker"]])
        processes.reap_children()
        if clean:
            for folder in (self._order["work_dir"], *self._folders):
                shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
