"""The examples, run as a reader would run them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from documents import Block, Reader, blocks, new_user
from jobserver_core import Settings, errors
from jobserver_core.memory import InlineJob
from jobserver_core.testing.server import InMemoryJobServer, empty_wheel
from jobserver_http import running
from jobserver_pyspark.demo import CLASS_NAME, build_wheel
from serving import WAIT, count
from spark_server import spark_server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT = 580.0


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command, which must succeed, and return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sales(job: InlineJob) -> dict[str, Any]:
    if job.config["day"] == "holiday":
        raise ValueError("no sales on a holiday")
    return {"day": job.config["day"], "sold": 3}


def test_a_service_embeds_the_library(job_server: InMemoryJobServer) -> None:
    job_server.create_context("warm").result(WAIT)
    job_server.define("reports.Sales", sales)
    names = runpy.run_path(str(EXAMPLES / "embedded" / "service.py"))
    reports = names["Reports"](job_server, empty_wheel())

    monday = reports.request("Sales", "monday")
    assert reports.request("Sales", "monday") == monday
    assert asyncio.run(reports.outcome(monday)) == {"day": "monday", "sold": 3}

    holiday = reports.request("Sales", "holiday")
    with pytest.raises(errors.JobFailed, match="no sales on a holiday"):
        asyncio.run(reports.outcome(holiday))
    assert {job.context_name for job in job_server.jobs().jobs} == {"warm"}
    assert reports.failed() == [f"{holiday}: no sales on a holiday"]


EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=200).execute()
nbformat.write(notebook, sys.argv[2])
"""


class TestNotebook:
    @pytest.fixture
    def job_server_settings(self) -> Settings:
        return Settings.from_mapping({"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}}})

    @pytest.mark.real
    def test_it_submits_jobs_and_shows_a_table(self, job_server: InMemoryJobServer, tmp_path: Path) -> None:
        job_server.define(CLASS_NAME, count)
        with running(job_server) as url:
            source, executed = EXAMPLES / "notebook" / "jobs.ipynb", tmp_path / "executed.ipynb"
            run(sys.executable, "-c", EXECUTE, source, executed, cwd=tmp_path, JOBSERVER_URL=url)
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
        [table] = [output["data"]["text/plain"] for cell in cells[5:6] for output in cell["outputs"]]
        assert [line.split() for line in "".join(table).splitlines()] == [
            ["question", "answer"],
            ["be", "2", "1"],
            ["not", "1", "0"],
            ["or", "1", "0"],
            ["to", "2", "1"],
        ]


def declared(pyproject: Path) -> str:
    """Return the entry points of a project, in the format of installed distributions."""
    text = pyproject.read_text(encoding="utf-8")
    groups = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n((?:.+\n)+)', text)
    return "\n".join(f"[{group}]\n{lines.replace(chr(34), '')}" for group, lines in groups)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples and the wheel that several of them use, as in a clone of the repository."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(
        EXAMPLES, root / "examples", ignore=shutil.ignore_patterns("__pycache__", "dist", "target")
    )
    (root / "dist").mkdir()
    build_wheel(EXAMPLES / "python_project" / "wordcount", root / "dist", version="1.0")
    info = root / "site" / "example_backends-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(declared(EXAMPLES / "backends" / "pyproject.toml"))
    return root


@pytest.fixture(scope="module")
def user(clone: Path) -> Iterator[dict[str, str]]:
    with new_user() as environment:
        paths = os.pathsep.join(map(str, [clone / "site", clone / "examples" / "backends"]))
        yield {**environment, "PYTHONPATH": paths, "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def serving(user: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that the examples need before one begins."""
    with spark_server(tmp_path_factory.mktemp("server"), user) as url:
        yield url


PROGRAMS = {"java_job": "mvn", "scala_job": "sbt"}
WITHOUT_SPARK = ["backends", "embedded"]
ALONE = ["fastapi_mount", "flask_service", "migration"]
"""The examples that start a server of their own."""
ON_A_SERVER = ["client", "java_job", "python_project", "scala_job"]
BY_HAND = ["airflow", "notebook"]
"""Their packages are not all installed here; other tests run their code."""


def follow(readme: Path, environment: dict[str, str], url: str = "") -> int | None:
    reader = Reader(environment, readme.parent, url=url)
    try:
        for block in blocks(readme):
            if block.note == "runs before the service":
                upload_to_the_default_server(readme.parent, environment, block)
            else:
                reader.read(block)
                assert "Fatal Python error" not in reader.printed
    finally:
        ended = reader.stop()
    return ended


def upload_to_the_default_server(directory: Path, environment: dict[str, str], block: Block) -> None:
    before = Reader(environment, directory)
    try:
        before.read(Block("sh", "jobserver serve\n", "runs in the background"))
        before.read(block)
    finally:
        assert before.stop() == 0


@pytest.mark.spark
@pytest.mark.timeout(600)  # two Sparks start on a machine that may be busy
@pytest.mark.parametrize("name", ON_A_SERVER)
def test_an_example_works_on_a_server_as_its_readme_says(
    name: str, clone: Path, user: dict[str, str], serving: str
) -> None:
    program = PROGRAMS.get(name, "jobserver")
    if program != "jobserver" and shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    follow(clone / "examples" / name / "README.md", user, serving)


@pytest.mark.real
@pytest.mark.parametrize("name", WITHOUT_SPARK)
def test_an_example_without_spark_works_as_its_readme_says(
    name: str, clone: Path, user: dict[str, str]
) -> None:
    assert follow(clone / "examples" / name / "README.md", user) in (None, 0)


@pytest.mark.spark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ALONE)
def test_an_example_works_as_its_readme_says(name: str, clone: Path, user: dict[str, str]) -> None:
    assert follow(clone / "examples" / name / "README.md", user) in (None, 0)


def test_every_example_has_a_readme_that_is_followed_and_listed() -> None:
    projects = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert projects == {*WITHOUT_SPARK, *ALONE, *ON_A_SERVER, *BY_HAND}
    listed = re.findall(r"^\| \[(\w+)\]\(\1/README\.md\) ", (EXAMPLES / "README.md").read_text("utf-8"), re.M)
    assert set(listed) == projects
    for name in {*WITHOUT_SPARK, *ALONE, *ON_A_SERVER}:
        assert any(block.is_run for block in blocks(EXAMPLES / name / "README.md")), name
