"""A server belongs to the process that created it: a forked one cannot use it, and leaves it as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from conditions import WAIT

SCRIPT = """
import json, os, sys, tempfile, threading
from pathlib import Path
from jobserver_core import Conflict, JobRequest, JobServer
from jobserver_core.memory import InlineLauncher, MemoryBlobStore
from jobserver_core.testing.server import empty_wheel

released = threading.Event()
blobs = MemoryBlobStore()
server = JobServer.in_memory(blobs=blobs, launcher=InlineLauncher({"w.Job": lambda job: released.wait(60)}))
server.start()
binary = server.upload("w", "wheel", empty_wheel())
server.create_context("etl").result(60)
request = JobRequest(class_name="w.Job", class_path="w", context="etl")
handle = server.submit(request)
file = blobs.local_path(binary.digest)
path = file.__enter__()
calls = {
    "submit": lambda: server.submit(request),
    "start": server.start,
    "drain": server.drain,
    "begun_jobs": lambda: server.begun_jobs,
    "detaches": lambda: server.detaches,
    "id": lambda: server.id,
    "context": lambda: server.context("etl"),
    "upload": lambda: server.upload("w", "wheel", empty_wheel()),
    "subscribe": lambda: server.subscribe(print),
    "result": lambda: handle.result(60),
}
reader, writer = os.pipe()
child = os.fork()
if not child:
    told = {}
    for name, call in calls.items():
        try:
            told[name] = str(call())
        except Conflict as error:
            told[name] = str(error)
    server.close()
    os.write(writer, json.dumps(told).encode())
    sys.exit()  # with what runs at exit, unlike os._exit
os.close(writer)
status = os.waitpid(child, 0)[1]
with open(reader) as pipe:
    told = json.load(pipe)
state = server.context("etl").state.value
log = Path(server.add_data_file("sales", b"1").path)
released.set()
found = [log.exists(), path.exists()]
print(json.dumps([status, told, state, found, handle.result(60), len(server.jobs().jobs)]))
file.__exit__(None, None, None)
directory = log.parent.parent
server.close()
print(json.dumps([path.exists(), directory.exists()]))
"""


@pytest.fixture(scope="module")
def outcome() -> list[list[Any]]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_call_in_a_forked_process_is_a_conflict(outcome: list[list[Any]]) -> None:
    refused = "this {} was created in another process; each process needs its own"
    told = outcome[0][1]
    assert told.pop("result") == refused.format("handle")
    assert set(told.values()) == {refused.format("job server")}


def test_a_forked_process_that_closes_the_server_and_exits_leaves_it_as_it_is(
    outcome: list[list[Any]],
) -> None:
    (status, _told, state, files, result, jobs), _after = outcome
    assert (status, state, files, result, jobs) == (0, "RUNNING", [True, True], True, 1)


def test_the_process_of_the_server_removes_its_temporary_files(outcome: list[list[Any]]) -> None:
    assert outcome[1] == [False, False]
