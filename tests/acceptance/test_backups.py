"""The guide to backups: its commands, run on a live server, bring everything back that it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from conditions import wait_until
from jobserver_core import JobServer, JobState, load_settings
from jobserver_core.errors import JobNotFound
from jobserver_core.memory import InlineLauncher
from jobserver_sql.testing import PostgresqlServer, postgresql_programs
from serving import FUNCTIONS, WAIT, a_request, upload

pytestmark = pytest.mark.real

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "back-up.md"
LARGE = "x" * 200_000
"""A result that is stored as a blob."""


@attrs.frozen
class Databases:
    """The URLs of a database and of an empty one to restore into; None is SQLite in the data directory."""

    section: str
    url: str | None = None
    restored: str | None = None


@pytest.fixture(params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.postgresql)])
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    if request.param == "SQLite":
        yield Databases("SQLite")
        return
    postgresql: PostgresqlServer = request.getfixturevalue("postgresql_server")
    names = [postgresql.database(name) for name in ("backed_up", "restored")]
    yield Databases("PostgreSQL", *map(postgresql.url, names))
    for name in names:
        postgresql.drop(name)


def commands(section: str) -> list[str]:
    """Return the commands of a section: how to back up, and how to restore."""
    text = GUIDE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def run(script: str, variables: dict[str, str]) -> None:
    programs = [str(Path(sys.executable).parent), str(postgresql_programs() or ""), os.environ["PATH"]]
    environment = {**os.environ, **variables, "PATH": os.pathsep.join(filter(None, programs))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def started(data: Path, url: str | None) -> JobServer:
    overrides = {
        "jobserver.data-dir": data,
        "jobserver.launcher.backend": "memory",
        "jobserver.jobs.max-jobs-per-context": 1,
        "spark.contexts.warm": {},
    }
    if url is not None:
        overrides["jobserver.metadata.url"] = url
    server = JobServer.from_settings(load_settings(overrides=overrides), launcher=InlineLauncher(FUNCTIONS))
    server.start()
    return server


def variables_of(databases: Databases, directory: Path) -> dict[str, str]:
    """Return the variables of the guide's commands."""
    return {
        "DATA": str(directory / "data"),
        "BACKUP": str(directory / "backup"),
        "NEW_DATA": str(directory / "new"),
        "DATABASE_URL": databases.url or "",
        "NEW_DATABASE_URL": databases.restored or "",
    }


def test_a_backup_of_a_running_server_restores_what_it_had(databases: Databases, tmp_path: Path) -> None:
    back_up, restore = commands(databases.section)
    variables = variables_of(databases, tmp_path)
    with closing(started(tmp_path / "data", databases.url)) as server:
        upload(server)
        data_file = server.add_data_file("numbers", b"1,2,3")
        small = server.submit(a_request("w.Count", "input.string = a b a", context="warm"))
        large = server.submit(a_request("w.Echo", {"value": LARGE}, context="warm"))
        assert (small.result(WAIT), large.result(WAIT)) == ({"a": 2, "b": 1}, LARGE)
        running = server.submit(a_request("w.Sleep", context="warm"))
        wait_until(lambda: server.job(running.id).state is JobState.RUNNING, "the job runs")
        waiting = server.submit(a_request("w.Count", "input.string = c", context="warm"))
        run(back_up, variables)
        (copied,) = (tmp_path / "backup").glob("metadata.*")
        assert not copied.stat().st_mode & 0o077, "other users can read the copy"
        after = server.submit(a_request("w.Count", "input.string = d"))
        assert after.result(WAIT) == {"d": 1}
    run(restore, variables)

    with closing(started(tmp_path / "new", databases.restored)) as server:
        assert server.job_handle(small.id).result(WAIT) == {"a": 2, "b": 1}
        assert server.job_handle(large.id).result(WAIT) == LARGE
        assert server.job_handle(waiting.id).result(WAIT) == {"c": 1}
        assert server.job(running.id).state is JobState.ERROR
        assert [binary.name for binary in server.binaries()] == ["words"]
        [restored] = server.data_files()
        assert restored.path.read_bytes() == b"1,2,3"
        assert restored.path.name == data_file.path.name
        with pytest.raises(JobNotFound):
            server.job(after.id)
        assert server.submit(a_request("w.Count", "input.string = e")).result(WAIT) == {"e": 1}


def test_a_trial_without_the_id_of_the_server_reads_results_and_logs(
    databases: Databases, tmp_path: Path
) -> None:
    back_up, restore = commands(databases.section)
    variables = variables_of(databases, tmp_path)
    with closing(started(tmp_path / "data", databases.url)) as server:
        upload(server)
        done = server.submit(a_request("w.Count", "input.string = a b a", context="warm"))
        done.result(WAIT)
        printing = server.submit(a_request("w.Sleep", context="warm"))
        path = server._services.data_directory.job_log(printing.id)
        wait_until(lambda: path.exists() and path.read_bytes() == b"sleeping\n", "the job has printed")
        driver_log = server.context_log("warm").read_bytes()
        context = server.context("warm").id
        run(back_up, variables)
    run(restore, variables)
    (tmp_path / "new" / "server.id").unlink()
    with closing(started(tmp_path / "new", databases.restored)) as server:
        assert server.job_handle(done.id).result(WAIT) == {"a": 2, "b": 1}
        # A shared database has the lease of the original server, which ends some seconds after the backup.
        wait_until(
            lambda: server.job(printing.id).state is JobState.ERROR, "the job of the original has ended"
        )
        with server.open_job_log(printing.id) as job_log, server.open_context_log(context) as context_log:
            assert (job_log.read(), context_log.read()) == (b"sleeping\n", driver_log)
