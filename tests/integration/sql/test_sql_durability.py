"""Completed calls of the store are durable, even if the process is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import a_result
from jobserver_sql import SqlMetadataStore

WRITER = """
import sys, threading
import attrs
from jobserver_core.models.lifecycle import JobState
from jobserver_core.testing.builders import a_delivery, a_job, a_result
from jobserver_sql import SqlMetadataStore

store = SqlMetadataStore(sys.argv[1], **({"synchronous": sys.argv[2]} if len(sys.argv) > 2 else {}))
print_lock = threading.Lock()

def say(word, job):
    with print_lock:
        print(word, job.id, flush=True)

def write(name):
    number = 0
    while True:
        number += 1
        job = a_job(id=f"{name}-{number}")
        store.add_job(job, config=f"config of {job.id}")
        say("added", job)
        ended = attrs.evolve(job, state=JobState.FINISHED, has_result=True)
        delivery = a_delivery(job, id=job.id)
        store.advance_job(ended, expected=JobState.STARTED, result=a_result('"x"'), delivery=delivery)
        say("ended", job)

for name in "abc":
    threading.Thread(target=write, args=(name,), daemon=True).start()
threading.Event().wait()
"""


def _said_before_it_was_killed(lines: int, *arguments: str) -> list[list[str]]:
    """Run the writer, kill it with SIGKILL after this many lines, and return its output."""
    command = [sys.executable, "-c", WRITER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            said = [writer.stdout.readline().split() for _ in range(lines)]
        finally:
            os.kill(writer.pid, signal.SIGKILL)
        said += [line.split() for line in writer.stdout if line.endswith("\n")]
    assert all(len(words) == 2 for words in said), said
    return said


def _check(store: SqlMetadataStore, said: list[list[str]]) -> None:
    for _, job_id in said:
        assert store.job_config(job_id) == f"config of {job_id}"
    for job_id in [job_id for word, job_id in said if word == "ended"]:
        job, delivery = store.job(job_id), store.delivery(job_id)
        assert job is not None
        assert delivery is not None
        assert (job.state, store.job_result(job_id)) == (JobState.FINISHED, a_result('"x"'))


@pytest.mark.parametrize(("synchronous", "lines"), [("full", 1), ("full", 40), ("normal", 40)])
def test_a_killed_process_keeps_every_write_that_had_returned(
    sqlite_url: str, synchronous: str, lines: int
) -> None:
    said = _said_before_it_was_killed(lines, sqlite_url, synchronous)
    with closing(SqlMetadataStore(sqlite_url)) as store:
        _check(store, said)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ended = "SELECT count(*) FROM jobs j WHERE state = 'FINISHED'"
        halves = f"{ended} AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.job_id = j.id)"
        assert connection.execute(halves).fetchone() == (0,)


@pytest.mark.postgresql
def test_a_killed_process_loses_nothing_in_postgresql(postgresql_url: str) -> None:
    said = _said_before_it_was_killed(60, postgresql_url)
    with closing(SqlMetadataStore(postgresql_url)) as store:
        _check(store, said)


def test_commits_are_synced_to_the_disk_by_default(sqlite_url: str) -> None:
    levels: list[tuple[dict[str, Any], int]] = [
        ({}, 2),
        ({"synchronous": "full"}, 2),
        ({"synchronous": "normal"}, 1),
    ]
    for options, level in levels:
        with (
            closing(SqlMetadataStore(sqlite_url, **options)) as store,
            store._database.read() as connection,
        ):
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
