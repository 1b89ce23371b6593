"""The server as process 1 of a container: here, of a PID namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import CONFIG

from command_line import wheel
from conditions import WAIT, wait_until
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """The command that runs its arguments as process 1 of a new namespace."""
    if shutil.which("unshare") is None:
        pytest.skip("needs the program unshare, of util-linux")
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        command.insert(1, "--map-root-user")
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"needs PID namespaces: {probe.stderr.strip()}")
    return command


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str | None:
    """The state of a process, None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return None


def zombies(init: int) -> list[int]:
    return [child for child in children(init) if state(child) == "Z"]


def run(namespace: list[str], body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that became an init first; ``gone(name)`` in it waits until no such process is left."""
    head = """
        import os, pathlib, signal, subprocess, sys, time
        from jobserver_cli.server_process import become_init
        assert os.getpid() == 1
        become_init()
        assert (os.getpid(), os.getppid()) == (2, 1)

        def ps():
            found = []
            for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
                try:
                    text = path.read_text()
                except OSError:
                    continue
                found.append(text[text.index("(") + 1 : text.rindex(")")])
            return found

        def gone(name):
            deadline = time.monotonic() + 20
            while name in ps():
                assert time.monotonic() < deadline, ps()
                time.sleep(0.01)
    """
    program = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.run(
        [*namespace, sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )


def test_processes_whose_parent_has_exited_leave_no_zombies(namespace: list[str]) -> None:
    done = run(
        namespace,
        """
        for _ in range(20):
            subprocess.run(["sh", "-c", "sleep 0.05 & sleep 0.05 &"], check=True)
        gone("sleep")
        print("reaped")
        """,
    )
    assert (done.stdout, done.returncode) == ("reaped\n", 0), done.stderr


def test_exit_statuses_are_left_to_the_code_that_waits_for_them(namespace: list[str]) -> None:
    done = run(
        namespace,
        """
        for number in range(30):
            subprocess.run(["sh", "-c", "true & true &"], check=True)
            assert subprocess.run(["sh", "-c", f"exit {number}"]).returncode == number
        sys.exit(5)
        """,
    )
    assert done.returncode == 5, done.stderr


def test_a_server_that_is_killed_is_shown_by_the_exit_status(namespace: list[str]) -> None:
    done = run(namespace, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr


def test_outside_of_a_container_nothing_is_forked() -> None:
    program = "import os; from jobserver_cli.server_process import become_init; before = os.getpid(); "
    program += "become_init(); print(os.getpid() == before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


class Container:
    """``jobserver serve`` as process 1 of a namespace, which is ``init`` outside of it."""

    def __init__(self, namespace: list[str], arguments: list[str], environment: dict[str, str]) -> None:
        self.log = Path(environment["TMPDIR"]) / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*namespace, sys.executable, "-m", "jobserver_cli", "serve", *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log.read_text()
        [self.init] = children(self.process.pid)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def container(
    namespace: list[str], environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Container]:
    config = tmp_path / "server.conf"
    config.write_text(request.param)
    options = ["--config", str(config), "--data-dir", str(tmp_path / "data"), "--port", "0"]
    one = Container(namespace, options, environment)
    yield one
    one.close()


@pytest.mark.parametrize("container", [CONFIG], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_process_1_drains_the_server_once(
    container: Container, number: int, tmp_path: Path
) -> None:
    with httpx.Client(base_url=container.url, timeout=WAIT) as client:
        body, kind = wheel(tmp_path).read_bytes(), {"Content-Type": "application/python-wheel"}
        assert client.post("/binaries/words", content=body, headers=kind).status_code == 201
        query = {"cp": "words", "mainClass": "words.Sleep", "context": "warm"}
        job = client.post("/jobs", params=query).json()["jobId"]
        os.kill(container.init, number)
        while client.get("/readyz").status_code != 503:
            time.sleep(0.02)
        assert client.get(f"/jobs/{job}").json()["status"] == "RUNNING", "one signal does not hurry"
        client.delete(f"/jobs/{job}")
    assert container.process.wait(WAIT) == 0
    assert "stopped" in container.log.read_text()


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("container", ['spark.master = "local[1]"'], indirect=True)
def test_jobs_with_contexts_of_their_own_leave_no_zombie(container: Container, tmp_path: Path) -> None:
    with httpx.Client(base_url=container.url, timeout=240) as client:
        body = build_example_wheel(tmp_path).read_bytes()
        kind = {"Content-Type": "application/python-wheel"}
        assert client.post("/binaries/words", content=body, headers=kind).status_code == 201
        query = {"appName": "words", "classPath": CLASS_NAME, "sync": "true", "timeout": "200"}
        for _ in range(2):
            assert client.post("/jobs", params=query, content="input.string = a b a").status_code == 200
        client.post("/contexts/killed")
        assert client.delete("/contexts/killed", params={"force": "true"}).status_code == 200
        wait_until(lambda: client.get("/contexts").json() == [])
        wait_until(lambda: not zombies(container.init), lambda: zombies(container.init))
    os.kill(container.init, signal.SIGTERM)
    assert container.process.wait(60) == 0
