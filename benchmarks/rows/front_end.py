"""Rows about the server without Spark: its core, many clients, large transfers, many stored jobs."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from metadata_pages import fill

from jobserver_sql import SqlMetadataStore
from rows.bench import Bench
from rows.figures import milliseconds, ratio, show, timed
from rows.processes import cpu_of, peak, reset_peak, resident, threads_of
from rows.server import Client, static_server

CORE = """
import sys, threading, time
from pathlib import Path
from jobserver_core import BinaryType, JobRequest, JobServer
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryFetcher, MemoryMetadataStore
from jobserver_sql import SqlMetadataStore
kind, directory, wheel = sys.argv[1:4]
store = MemoryMetadataStore() if kind == "memory" else SqlMetadataStore(f"sqlite:///{directory}/core.db")
server = JobServer(metadata=store, blobs=MemoryBlobStore(), fetcher=MemoryFetcher(),
    launcher=InlineLauncher({"a.Nothing": lambda _job: None}))
with server:
    server.upload("a", BinaryType.WHEEL, Path(wheel).read_bytes())
    server.create_context("warm").result(10)
    def one():
        server.submit(JobRequest(class_name="a.Nothing", class_path="a", context="warm")).result(timeout=60)
    for _ in range(200): one()
    left = iter(range(4000))
    def work():
        for _ in left: one()
    threads = [threading.Thread(target=work) for _ in range(16)]
    begun = time.perf_counter()
    [t.start() for t in threads]; [t.join() for t in threads]
    print(4000 / (time.perf_counter() - begun))
"""


def core(bench: Bench) -> None:
    """The core alone, without HTTP and Spark."""
    for kind, goal in (("memory", "3000/s"), ("sqlite", "1500/s")):
        (rate,) = bench.output_of(CORE, kind, tempfile.mkdtemp(dir=bench.directory), bench.wheel)
        show(f"core alone, {kind}, 16 threads", f"{float(rate):.0f}/s", goal, baseline=bench.function_call())


def waiters(bench: Bench) -> None:
    """A thousand synchronous clients that wait for jobs."""
    with bench.inline_server() as (port, process, directory):
        client = Client(port)
        client.call("POST", "/contexts/slots")
        client.run("x", "b.Nothing", "slots")
        before = (threads_of(process.pid), resident(process.pid))
        query = "/jobs?appName=x&classPath=b.Gated&context=slots&sync=true&timeout=120"
        waiting = [Client(port) for _ in range(1000)]
        for each in waiting:
            each.send("POST", query)
        while len(cast("list[object]", client.call("GET", "/jobs?limit=10000&context=slots"))) <= 1000:
            time.sleep(0.2)
        threads, memory = threads_of(process.pid) - before[0], resident(process.pid) - before[1]
        beside = timed(lambda: client.call("GET", "/healthz"))
        (directory / "gate").touch()
        for each in waiting:
            each.receive("POST", query)
        show(
            "1,000 synchronous waiters",
            f"+{threads} threads, +{memory} MB",
            "no thread each, +60 MB",
            baseline=f"GET /healthz beside them {1000 * beside:.1f} ms",
        )


def transfers(bench: Bench, megabytes: int = 1000) -> None:
    """A large upload against hashing and copying the file, and a large result against a static file."""
    source = bench.directory / "large.zip"
    with zipfile.ZipFile(source, "w") as archive, archive.open("data.bin", "w", force_zip64=True) as member:
        block = os.urandom(10**6)
        for _ in range(megabytes):
            member.write(block)
    with bench.inline_server() as (port, process, directory):
        client = Client(port)
        client.call("POST", "/contexts/slots")
        before = reset_peak(process.pid)
        taken = timed(lambda: client.upload("/binaries/large", source))
        more = peak(process.pid) - before
        copy = f"sha256sum {source} && cp {source} {directory / 'copy'} && sync {directory / 'copy'}"
        theirs = timed(lambda: subprocess.run(copy, shell=True, check=True, stdout=subprocess.DEVNULL))
        show(
            f"{megabytes} MB upload",
            f"{taken:.1f} s, +{more} MB",
            "1.2 x, +32 MB",
            baseline=f"sha256sum and cp {theirs:.1f} s",
            ratio=f"{taken / theirs:.2f} x",
        )
        query = "/jobs?appName=x&classPath=b.Numbers&context=slots"
        accepted = cast("dict[str, str]", client.call("POST", query, b"megabytes = %d" % megabytes))
        job = f"/jobs/{accepted['jobId']}"
        while cast("dict[str, str]", client.call("GET", f"{job}?result=false"))["status"] != "FINISHED":
            time.sleep(0.1)
        before = reset_peak(process.pid)
        taken = timed(lambda: client.drain(f"{job}/result", megabytes * 10**6))
        more = peak(process.pid) - before
        with static_server(directory / "copy") as other:
            theirs = timed(lambda: other.drain("/", megabytes * 10**6))
        show(
            f"{megabytes} MB streamed result",
            f"{taken:.1f} s, +{more} MB",
            "3 x, +32 MB",
            baseline=f"static file {theirs:.1f} s",
            ratio=f"{taken / theirs:.2f} x",
        )


def stored_jobs(bench: Bench, stored: int = 1_000_000) -> None:
    """Requests with a million stored jobs against the same with a thousand.

    The CPU of the servers is compared too, because it depends less on what else the machine does.
    """
    directories = {count: _filled(bench, count) for count in (1000, stored)}
    with ExitStack() as stack:
        clients: dict[int, Client] = {}
        servers: dict[int, int] = {}
        for count, directory in directories.items():
            port, process, _ = stack.enter_context(bench.inline_server(directory))
            clients[count], servers[count] = Client(port), process.pid
            clients[count].call("POST", "/contexts/slots")
        calls: dict[str, Callable[[Client], object]] = {
            "GET": lambda client: client.call("GET", "/jobs"),
            "POST": lambda client: client.run("x", "b.Nothing", "slots"),
        }
        for name, call in calls.items():
            times: dict[int, list[float]] = {count: [] for count in clients}
            before: dict[int, float] = {}
            for number in range(220):
                if number == 20:
                    before = {count: cpu_of(pid)["server"] for count, pid in servers.items()}
                for count, client in clients.items():
                    spent = timed(lambda one=client, call=call: call(one))
                    if number >= 20:
                        times[count].append(spent)
            cpu = {count: (cpu_of(pid)["server"] - before[count]) / 200 for count, pid in servers.items()}
            shown = [
                f"{milliseconds(times[count])}, {1000 * cpu[count]:.1f} ms of CPU" for count in (1000, stored)
            ]
            show(
                f"{name} /jobs, {stored:,} stored jobs",
                shown[1],
                "1.2 x",
                baseline=f"1,000 stored jobs {shown[0]}",
                ratio=f"{ratio(times[stored], times[1000])}, CPU {cpu[stored] / cpu[1000]:.2f} x",
            )


def _filled(bench: Bench, count: int) -> Path:
    """Return the directory of a database with this many jobs."""
    directory = Path(tempfile.mkdtemp(dir=bench.directory))
    store = SqlMetadataStore(f"sqlite:///{directory / 'metadata.db'}")
    fill(store, count)
    store.close()
    return directory
