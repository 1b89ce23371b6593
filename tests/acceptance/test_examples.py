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
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import Settings, errors
from jobserver_core.memory import InlineJob
from jobserver_core.testing.server import InMemoryJobServer, empty_wheel
from jobserver_http import running
from jobserver_pyspark.demo import CLASS_NAME, build_wheel
from serving import count
from spark_server import spark_server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE = 580.0


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command, which must succeed, and return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sales(job: InlineJob) -> dict[str, Any]:
    if job.config["day"] == "holiday":
        raise ValueError("no sales on a holiday")
    return {"day": job.config["day"], "sold": 3}


def test_a_service_embeds_the_library(job_server: InMemoryJobServer) -> None:
    job_server.define("reports.Sales", sales)
    names = runpy.run_path(str(EXAMPLES / "embedded" / "service.py"))
    reports = names["Reports"](job_server, empty_wheel())

    monday = reports.request("Sales", "monday")
    assert reports.request("Sales", "monday") == monday
    assert asyncio.run(reports.outcome(monday)) == {"day": "monday", "sold": 3}

    holiday = reports.request("Sales", "holiday")
    with pytest.raises(errors.JobFailed, match="no sales on a holiday"):
        asyncio.run(reports.outcome(holiday))
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


@pytest.mark.spark
@pytest.mark.timeout(600)  # two Sparks start on a machine that may be busy
def test_the_tests_of_the_python_project_pass(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLES / "python_project", project, ignore=shutil.ignore_patterns("__pycache__"))
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert "6 passed" in said


@pytest.mark.spark
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: the old client needs it")
def test_an_old_client_calls_a_server_with_an_old_configuration(tmp_path: Path) -> None:
    wheel = build_wheel(EXAMPLES / "python_project" / "wordcount", tmp_path, version="1.0")
    config = (EXAMPLES / "migration" / "old.conf").read_text(encoding="utf-8")
    with spark_server(tmp_path, config=config) as url:
        said = run("sh", EXAMPLES / "migration" / "old_client.sh", url, wheel, cwd=tmp_path)
    assert re.search(r'"result": ?{"a": ?2, ?"b": ?1}', said), said
    assert '["py-context"]' in said
