"""The examples of the client, against a server behind a real socket."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conditions import wait_until
from jobserver_client import Client
from jobserver_core import (
    BinaryType,
    JobFailed,
    JobKilled,
    JobQuery,
    JobServer,
    JobState,
    ResultTimeout,
    Settings,
)
from jobserver_core.memory import InlineJob, InlineLauncher
from jobserver_http import running
from serving import archive

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def sales(job: InlineJob) -> dict[str, Any]:
    job.print(f"looking at {job.config['day']}")
    if job.config["day"] == "holiday":
        raise ValueError("no sales on a holiday")
    return {"day": job.config["day"], "sold": 3}


def endless(job: InlineJob) -> None:
    job.sleep(3600)


@pytest.fixture
def served() -> Iterator[tuple[JobServer, str]]:
    settings = Settings.from_mapping({"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}}})
    launcher = InlineLauncher(
        {"reports.Sales": sales, "reports.Endless": endless, "reports.Silent": lambda _job: 1}
    )
    server = JobServer.in_memory(launcher=launcher, settings=settings)
    with running(server) as url:
        yield server, url


def test_the_script_uploads_once_and_writes_the_result(served: tuple[JobServer, str], tmp_path: Path) -> None:
    server, url = served
    wheel = tmp_path / "reports-1.0-py3-none-any.whl"
    wheel.write_bytes(archive())

    def script(target: str, class_name: str = "reports.Sales") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, EXAMPLES / "client" / "run_report.py", url, wheel, class_name, target]
        command.append(f"day = {Path(target).stem}")
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    done = script("monday.json")
    assert (done.returncode, "looking at monday" in done.stderr) == (0, True), done.stderr
    assert json.loads((tmp_path / "monday.json").read_text()) == {"day": "monday", "sold": 3}
    failed = script("holiday.json")
    assert (failed.returncode, "no sales on a holiday" in failed.stderr) == (1, True)
    assert "Traceback" not in failed.stderr
    silent = script("tuesday.json", "reports.Silent")
    assert (silent.returncode, (tmp_path / "tuesday.json").read_text()) == (0, "1"), silent.stderr
    assert len(server.binary_versions("reports")) == 1


def a_try(number: int = 1) -> dict[str, Any]:
    """What Airflow passes to an operator."""
    task = SimpleNamespace(dag_id="daily", run_id="r1", task_id="sales", map_index=-1, try_number=number)
    return {"ti": task}


@pytest.fixture
def operator(served: tuple[JobServer, str]) -> Any:
    """Create operators that talk to the server."""
    names = runpy.run_path(str(EXAMPLES / "airflow" / "jobserver_operator.py"))
    served[0].upload("reports", BinaryType.WHEEL, archive())

    def create(class_name: str = "reports.Sales", **rest: Any) -> Any:
        return names["JobServerOperator"](
            task_id="sales",
            class_name=class_name,
            class_path="reports",
            connect=lambda _conn_id: Client(served[1]),
            **rest,
        )

    return create


def test_the_operator_returns_the_result_and_a_rerun_of_a_try_finds_its_job(
    served: tuple[JobServer, str], operator: Any
) -> None:
    assert operator(config={"day": "monday"}).execute(a_try()) == {"day": "monday", "sold": 3}
    assert operator(config={"day": "monday"}).execute(a_try()) == {"day": "monday", "sold": 3}
    assert len(served[0].jobs(JobQuery()).jobs) == 1
    operator(config={"day": "monday"}).execute(a_try(2))
    assert len(served[0].jobs(JobQuery()).jobs) == 2


def test_a_failed_job_fails_the_task(operator: Any) -> None:
    with pytest.raises(JobFailed, match="no sales on a holiday"):
        operator(config={"day": "holiday"}).execute(a_try())


def test_a_task_that_is_ended_kills_its_job(served: tuple[JobServer, str], operator: Any) -> None:
    task = operator("reports.Endless")
    ended: list[BaseException] = []

    def execute() -> None:
        try:
            task.execute(a_try())
        except JobKilled as error:
            ended.append(error)

    waiting = threading.Thread(target=execute)
    waiting.start()
    wait_until(lambda: task.job_id is not None)
    task.on_kill()
    waiting.join(60)
    assert len(ended) == 1
    task.on_kill()  # the job has ended
    assert served[0].job(task.job_id).state is JobState.KILLED


def test_a_task_that_takes_too_long_kills_its_job(served: tuple[JobServer, str], operator: Any) -> None:
    task = operator("reports.Endless", timeout=0.1)
    with pytest.raises(ResultTimeout):
        task.execute(a_try())
    assert served[0].job(task.job_id).state is JobState.KILLED


@pytest.fixture
def operator_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run the operator's module with an Airflow that has only these modules; return its names."""

    def run(**sources: str) -> dict[str, Any]:
        for name, source in {"exceptions": "class AirflowException(Exception): pass", **sources}.items():
            file = tmp_path.joinpath("airflow", *name.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return runpy.run_path(str(EXAMPLES / "airflow" / "jobserver_operator.py"))

    yield run
    for name in [name for name in sys.modules if name.split(".")[0] == "airflow"]:
        del sys.modules[name]


HOOK, OPERATOR = "class BaseHook: pass\n", "class BaseOperator: pass\n"


@pytest.mark.parametrize(
    ("sources", "homes"),
    [
        ({"sdk": HOOK + OPERATOR}, ["airflow.sdk", "airflow.sdk"]),
        ({"hooks.base": HOOK, "models": OPERATOR}, ["airflow.hooks.base", "airflow.models"]),
    ],
)
def test_the_operator_uses_the_classes_of_airflow_3_and_2(
    operator_with: Callable[..., dict[str, Any]], sources: dict[str, str], homes: list[str]
) -> None:
    names = operator_with(**sources)
    bases = [names[name].__base__.__module__ for name in ("JobServerHook", "JobServerOperator")]
    assert bases == homes
    assert names["AirflowException"].__module__ == "airflow.exceptions"


def test_an_airflow_without_these_classes_is_an_error(operator_with: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"airflow\.hooks"):
        operator_with()


def test_the_hook_connects_as_the_connection_of_airflow_says(served: tuple[JobServer, str]) -> None:
    hook = runpy.run_path(str(EXAMPLES / "airflow" / "jobserver_operator.py"))["JobServerHook"]
    host, port = served[1].removeprefix("http://").split(":")

    class Connected(hook):  # type: ignore[misc, valid-type]
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            assert conn_id == "jobserver"
            return SimpleNamespace(schema="http", host=host, port=int(port), login=None, password=None)

    with Connected().get_conn() as client:
        assert client.is_ready()
