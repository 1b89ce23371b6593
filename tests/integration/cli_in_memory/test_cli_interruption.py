"""Ctrl-C interrupts at once, but never where it would do harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from command_line import CommandLine, wheel
from jobserver_cli.exits import ExitCode
from jobserver_cli.interruption import (
    interrupt_delayed,
    run_on_thread,
    signals_ignored,
    sigterm_as_interrupt,
)
from jobserver_core import BinaryType, JobServer
from jobserver_http import running


def ctrl_c(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_run_on_thread_passes_on_results_and_exceptions() -> None:
    def fail() -> None:
        raise LookupError("no")

    assert run_on_thread(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(LookupError, match="no"):
        run_on_thread(fail)
    with pytest.raises(SystemExit):
        run_on_thread(lambda: exec("raise SystemExit(3)"))


def test_ctrl_c_ends_the_wait_for_a_call_and_never_reaches_the_call() -> None:
    release, ended = threading.Event(), threading.Event()
    reached = []

    def call() -> None:
        try:
            ctrl_c()
            release.wait(10)
        except BaseException as error:  # no exception at all may arrive
            reached.append(error)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_on_thread(call)
    assert not ended.is_set()
    release.set()
    assert ended.wait(10)
    assert reached == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_kept_comes_when_the_block_is_done(number: signal.Signals) -> None:
    done = []

    def start() -> None:
        with interrupt_delayed():
            ctrl_c(number)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_critical_work_is_ignored(number: signal.Signals) -> None:
    with signals_ignored():
        ctrl_c(number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_can_act_like_ctrl_c_and_is_restored_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with sigterm_as_interrupt():
            ctrl_c(signal.SIGTERM)
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("way", ["--sync", "--follow"])
def test_ctrl_c_in_a_wait_names_the_running_job_and_how_to_get_its_result(
    server: JobServer, way: str
) -> None:
    command = ["submit", "words.Sleep", "--cp", "words", "-c", "warm", way]
    with subprocess.Popen(
        [sys.executable, "-m", "jobserver_cli", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        shown = [next(line for line in process.stderr if "job " in line)]
        process.send_signal(signal.SIGINT)
        shown += process.stderr.readlines()
        assert process.wait(60) == ExitCode.INTERRUPTED
    [job] = server.jobs().jobs
    assert not job.state.final
    assert f"job {job.id} continues" in "".join(shown)
    assert f"jobserver result {job.id} --wait" in "".join(shown)
    assert f"jobserver kill {job.id}" in "".join(shown)
    assert "Traceback" not in "".join(shown)


def test_the_error_names_the_job_when_the_server_ends_during_a_wait(
    server: JobServer, jobserver: CommandLine, tmp_path: Path
) -> None:
    with ExitStack() as serving:
        jobserver.environment.setenv("JOBSERVER_URL", serving.enter_context(running(server)))
        server.upload("words", BinaryType.WHEEL, wheel(tmp_path).read_bytes())
        server.create_context("warm").result(10)
        command = ["submit", "words.Sleep", "--cp", "words", "-c", "warm", "--sync"]
        with subprocess.Popen(
            [sys.executable, "-m", "jobserver_cli", *command], stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            shown = [next(line for line in process.stderr if "waiting for job" in line)]
            [job] = server.jobs().jobs
            serving.close()
            shown += process.stderr.readlines()
            assert process.wait(60) != ExitCode.OK
    assert job.id in "".join(shown[1:])
