"""The guide for users of Livy: its calls work, and its settings and states exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_core import ContextState, JobServer, JobState, load_settings
from jobserver_core.memory import InlineLauncher
from jobserver_core.plugins import load
from jobserver_core.ports import Launcher
from jobserver_core.running.context_settings import check_settings, effective_settings
from jobserver_http import running
from serving import WAIT, a_server, archive, count, sleep

pytestmark = pytest.mark.real

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "migrate-from-livy.md"
TEXT = GUIDE.read_text(encoding="utf-8")
VALUES = {
    "idle-timeout": "10 minutes",
    "max-lifetime": "1 day",
    "spark.archives": "hdfs://cluster/environment.tar.gz",
    "spark.executor.memory": "2g",
    "spark.files": "hdfs://cluster/file",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[JobServer, str, Path]]:
    """A server with the jobs of the guide, its URL, and a directory with the guide's wheel."""
    directory = tmp_path_factory.mktemp("livy")
    (directory / "dist").mkdir()
    (directory / "dist" / "words-1.0-py3-none-any.whl").write_bytes(archive())
    server = a_server(launcher=InlineLauncher({"words.Count": count, "words.Endless": sleep}))
    with running(server) as url:
        yield server, url, directory


def ran(script: str, url: str, directory: Path) -> list[str]:
    """Run the commands of a block, and return the response of each call."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("needs curl")
    log = directory / "responses"
    log.write_text("")
    wrapper = directory / "bin" / "curl"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(
        f"#!/bin/bash\nset -euo pipefail\n"
        f'{program} -sS --fail-with-body "$@" | tee -a {log}\necho "@end@" >> {log}\n'
    )
    wrapper.chmod(0o755)
    path = os.pathsep.join([str(wrapper.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("localhost:8090", url.removeprefix("http://"))],
        env={**os.environ, "PATH": path},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text().split("@end@\n")[:-1]


def test_the_calls_of_the_guide_work_one_after_the_other(site: tuple[JobServer, str, Path]) -> None:
    server, url, directory = site
    context, run, wait, cancel, batch = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)

    _, record = ran(context, url, directory)
    assert json.loads(record)["state"] == "RUNNING"
    _, finished = ran(run, url, directory)
    assert json.loads(finished)["result"] == {"a": 2, "b": 1}

    _, events, record, result = ran(wait, url, directory)
    assert "FINISHED" in events
    assert json.loads(record)["status"] == "FINISHED"
    assert json.loads(result) == {"a": 2, "b": 1}

    accepted, _, _, _, _ = ran(cancel, url, directory)
    killed = json.loads(accepted)["jobId"]
    wait_until(lambda: server.job(killed).state is JobState.KILLED, "the job is killed")
    wait_until(lambda: server.context("reports").state is ContextState.FINISHED, "the context has stopped")

    _, _, _, jobs = ran(batch, url, directory)
    assert len(json.loads(jobs)) == 4


def test_every_setting_that_replaces_a_field_is_one_of_a_context(tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="needs the extra pyspark")
    table = TEXT.partition("## Fields of a session")[2].partition("\n## ")[0]
    names = set(
        re.findall(
            r"`((?:spark\.[\w.]+)|context-factory|dependent-jar-uris|idle-timeout|max-lifetime)`", table
        )
    )
    assert len(names) == 13
    settings = load_settings(overrides={"jobserver.data-dir": tmp_path})
    with closing(load(Launcher, "pyspark", settings, tmp_path)) as launcher:
        for name in names:
            value = VALUES.get(name, "2g" if name.endswith("memory") else "2")
            if name == "context-factory":
                value = "SessionContextFactory"
            check_settings(effective_settings(settings.spark, {name: value}), launcher)


def test_every_state_of_the_guide_exists_and_none_is_left_out() -> None:
    table = TEXT.partition("## States")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in table.strip().splitlines()[2:]]
    contexts = {state for row in rows for state in re.findall(r"`([A-Z]+)`", row[1])}
    jobs = {state for row in rows for state in re.findall(r"`([A-Z]+)`", row[4])}
    assert contexts == {state.value for state in ContextState}
    assert jobs == {state.value for state in JobState} - {"RESTARTING"}
