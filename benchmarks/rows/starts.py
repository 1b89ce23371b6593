"""Rows about starts of servers and contexts, and about what they cost while idle."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from rows.bench import WORDS, Bench
from rows.figures import RowError, ratio, seconds, show, timed
from rows.processes import processes_of, resident, switches
from rows.server import Client, Server


def healthy(bench: Bench) -> None:
    """From the start of a server to its first response."""
    ours, theirs = [], []
    # As in an installation, modules are compiled already: the first start, which does that, does not count.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(bench.directory / "bytecode")
    for _ in range(6):
        directory = Path(tempfile.mkdtemp(dir=bench.directory))
        begun = time.perf_counter()
        server = Server(directory)
        ours.append(time.perf_counter() - begun)
        server.close()
        command = [sys.executable, "-c", "import starlette.applications, uvicorn"]
        theirs.append(timed(lambda c=command: subprocess.run(c, check=True)))
    more = statistics.median(ours[1:]) - statistics.median(theirs[1:])
    show(
        "server start to healthy",
        seconds(ours[1:]),
        "+0.6 s",
        baseline=f"import starlette, uvicorn {seconds(theirs[1:])}",
        ratio=f"+{more:.2f} s",
    )


def show_against_cold_script(
    bench: Bench, name: str, goal: str, measure: Callable[[int], float], count: int
) -> None:
    """Show what ``measure`` returns for each number below ``count``, in turns with cold PySpark scripts."""
    ours, theirs = [], []
    for number in range(count):
        ours.append(measure(number))
        theirs.append(bench.cold_stock())
    show(name, seconds(ours), goal, baseline=f"cold script {seconds(theirs)}", ratio=ratio(ours, theirs))


def first_result(client: Client, context: str) -> float:
    """Return the seconds from the start of a context to its first result."""

    def start() -> None:
        client.call("POST", f"/contexts/{context}")
        client.run("py", "bench_jobs.WordCount", context, WORDS)

    return timed(start)


def starts(bench: Bench) -> None:
    """A context's start to its first result, against a cold PySpark script."""
    with bench.server() as server:

        def measure(number: int) -> float:
            client = Client(server.port)
            taken = first_result(client, f"c{number}")
            client.call("DELETE", f"/contexts/c{number}")
            return taken

        show_against_cold_script(bench, "context start to first result", "0.5 x", measure, 3)


def first_start(bench: Bench) -> None:
    """The same with an empty cache directory, as on a fresh machine."""

    def measure(_number: int) -> float:
        cache = tempfile.mkdtemp(dir=bench.directory)
        with bench.server(f'jobserver.launcher.options.cache-dir = "{cache}"', warm=False) as server:
            return first_result(Client(server.port), "first")

    show_against_cold_script(bench, "the same, first start on a machine", "0.75 x", measure, 2)


def ad_hoc(bench: Bench) -> None:
    """An ad-hoc job that takes a spare context, against a cold PySpark script."""
    query = "/jobs?appName=py&classPath=bench_jobs.WordCount&sync=true&timeout=120"
    with bench.server("jobserver.contexts.pools { default { size = 1 } }") as server:

        def measure(_number: int) -> float:
            client = Client(server.port)  # an idle one is closed during a slow cold script
            wait_for_spare(client)
            return timed(lambda: client.call("POST", query, WORDS.encode()))

        show_against_cold_script(bench, "ad-hoc job with a spare ready", "0.05 x", measure, 4)


def wait_for_spare(client: Client) -> None:
    deadline = time.monotonic() + 240
    while True:
        (pool,) = cast("list[dict[str, int]]", client.call("GET", "/contexts?spares=true"))
        if pool["ready"]:
            return
        if time.monotonic() > deadline:
            raise RowError("no spare context became ready")
        time.sleep(0.2)


def idle(bench: Bench) -> None:
    """What an idle server and an idle context cost."""
    with bench.server() as server:
        Client(server.port).run("py", "bench_jobs.Nothing", "warm")
        time.sleep(20)
        tree = processes_of(server.process.pid)
        before = {pid: switches(pid) for pid in tree}
        time.sleep(30)
        goals = {"server": "70 MB, 1/s", "host": "2/s", "JVM": "400 MB"}
        for kind, goal in goals.items():
            pids = [pid for pid, its in tree.items() if its == kind]
            wakes = sum(switches(pid) - before[pid] for pid in pids) / 30
            memory = sum(resident(pid) for pid in pids)
            show(f"idle {kind}", f"{memory} MB, {wakes:.1f} wake-ups/s", goal)
