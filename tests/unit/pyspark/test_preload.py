"""Importing modules in the zygote: what each of them may do, and what is reported of one that may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conditions import WAIT, wait_until
from jobserver_pyspark.host.logs import OutputPump
from jobserver_pyspark.host.runners import RunnerProcess, ZygoteProcess

pytestmark = pytest.mark.real

HARNESS = """
import json, os, sys
from jobserver_pyspark import processes
from jobserver_pyspark.runner.preload import preload

report = os.dup(1)
problem = preload("tried")
for child in processes.children(os.getpid()):
    processes.kill(child)
os.write(report, json.dumps(problem).encode())
os._exit(0)
"""


def problem_of(directory: Path, source: str) -> Any:
    """Return what is wrong with a module that has this source."""
    (directory / "tried.py").write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-c", HARNESS],
        env={**os.environ, "PYTHONPATH": str(directory)},
        stdout=subprocess.PIPE,
        timeout=WAIT,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import nosuchthing", "cannot import 'tried': No module named 'nosuchthing'"),
        ("import sys; sys.stderr.close()", "the import of 'tried' closes a standard stream, which jobs need"),
        (
            "import sys; sys.stderr.close(); 1 / 0",
            "cannot import 'tried': ZeroDivisionError: division by zero",
        ),
        ("1 / 0", "cannot import 'tried': ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('enough')", "cannot import 'tried': SystemExit: enough"),
        (
            """
            import threading, time
            threading.Thread(target=time.sleep, args=(60,), daemon=True, name="poll").start()
            """,
            "the import of 'tried' leaves the thread 'poll' running, "
            "which the processes of jobs would not have",
        ),
        (
            "import subprocess; child = subprocess.Popen(['sleep', '60'])",
            "the import of 'tried' leaves the process 'sleep' running, "
            "which the processes of jobs would not have",
        ),
    ],
)
def test_a_module_that_jobs_cannot_start_from_is_refused(tmp_path: Path, source: str, problem: str) -> None:
    assert problem_of(tmp_path, source) == f"python.preload: {problem}"


@pytest.mark.parametrize(
    "source",
    [
        "import os, sys; os.environ['SET'] = '1'; sys.stdout = None",
        "import threading; threading.Thread(target=print).start()",
        "import subprocess; child = subprocess.Popen(['true'])",
    ],
    ids=["changes its process", "starts a thread that ends", "starts a process that ends"],
)
def test_a_module_whose_threads_and_processes_end_is_accepted(tmp_path: Path, source: str) -> None:
    assert problem_of(tmp_path, source) is None


class World:
    """A zygote as a context has it, but for the JVM."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = bytearray()
        self.losses: list[str] = []
        self._lost = threading.Event()
        self.pump = OutputPump()
        self.zygote: ZygoteProcess | None = None

    def start(self, preload: Sequence[str], **sources: str) -> ZygoteProcess:
        for name, source in sources.items():
            (self.directory / f"{name}.py").write_text(textwrap.dedent(source))
        self.zygote = ZygoteProcess(self.pump, self.log.extend, self._lose, preload)
        return self.zygote

    def _lose(self, reason: str) -> None:
        self.losses.append(reason)
        self._lost.set()

    def loss(self) -> str:
        assert self._lost.wait(WAIT)
        return self.losses[0]

    def ended(self, runner: RunnerProcess) -> int | None:
        """Kill a runner, and return its exit status."""
        runner.kill()
        assert runner.exited.wait(WAIT)
        runner.close(self.pump)
        return runner.exit_status

    @property
    def lives(self) -> bool:
        return self.zygote is not None and self.zygote.lives

    def close(self) -> None:
        if self.zygote is not None:
            self.zygote.close()
            self.zygote.process.wait(WAIT)
            wait_until(lambda: not self.lives)
            self.zygote._control.close()
        self.pump.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = World(tmp_path)
    yield made
    made.close()


def test_the_zygote_forks_after_imports_that_change_what_it_needs(world: World) -> None:
    source = """
        import io, signal, sys
        print("imported with", "noise")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        sys.stdout = io.StringIO()
    """
    zygote = world.start(["noisy", "colorsys"], noisy=source)
    assert [world.ended(zygote.fork()) for _ in range(2)] == [-9, -9]
    output = [line for line in world.log.splitlines() if not line.startswith(b"python.preload: waiting")]
    assert output == [b"imported with noise"]  # on a busy machine, the log says what a runner waits for
    assert world.losses == []


def test_a_name_that_nothing_has_is_reported_with_the_nearest_one_and_the_traceback(world: World) -> None:
    world.start(["colorsys", "neer"], near="")
    assert (
        world.loss() == "python.preload: cannot import 'neer': No module named 'neer'; did you mean 'near'?"
    )
    assert b"ModuleNotFoundError: No module named 'neer'" in world.log


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("import os; os._exit(3)", "ended by itself (exit status 3)"),
        ("import os; os.kill(os.getpid(), 11)", "ended by itself (signal 11)"),
    ],
)
def test_an_import_that_ends_the_process_is_the_reason_of_its_end(
    world: World, source: str, how: str
) -> None:
    world.start(["crash"], crash=source)
    assert world.loss() == f"python.preload: the process that imports 'crash' {how}"


def test_the_log_names_a_module_that_takes_long_when_a_runner_waits_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobserver_pyspark.host.runners._QUIET_TIMEOUT", 0.05)
    gate = world.directory / "gate"
    source = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    zygote = world.start(["slow"], slow=source)
    wait_until(lambda: zygote._importing == "slow")
    forked: list[RunnerProcess] = []
    waiting = threading.Thread(target=lambda: forked.append(zygote.fork()))
    waiting.start()
    wait_until(lambda: world.log == b"python.preload: waiting for the import of 'slow'\n")
    assert forked == []
    gate.touch()
    waiting.join(WAIT)
    assert [world.ended(runner) for runner in forked] == [-9]
