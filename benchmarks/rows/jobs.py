"""Rows about jobs in a context that is up: latency, jobs a second, and what adds to them."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable

from rows.bench import WORDS, Bench
from rows.figures import back_to_back, milliseconds, ratio, show, timed
from rows.processes import cpu_of
from rows.server import Client, throughput

EMBEDDED = """
import sys, time
from pathlib import Path
from jobserver_core import BinaryType, JobRequest, JobServer, Settings
directory, wheel, jar = sys.argv[1:4]
settings = Settings.from_mapping({"spark": {"master": "local[2]"}, "jobserver": {"data-dir": directory}})
with JobServer.from_settings(settings) as server:
    server.upload("py", BinaryType.WHEEL, Path(wheel).read_bytes())
    server.upload("jvm", BinaryType.JAR, Path(jar).read_bytes())
    server.create_context("warm").result(120)
    for label, path, name in (("Python", "py", "bench_jobs.Nothing"), ("JVM", "jvm", "bench.Nothing")):
        times = []
        for _ in range(330):
            begun = time.perf_counter()
            server.submit(JobRequest(class_name=name, class_path=path, context="warm")).result(timeout=60)
            times.append(time.perf_counter() - begun)
        print(label, *times[30:])
"""


def no_op(bench: Bench) -> None:
    """No-ops over HTTP: latency, jobs a second, CPU by process."""
    with bench.server(jvm=True) as server:
        client = Client(server.port)
        health = back_to_back(lambda: client.call("GET", "/healthz"), 200)
        show("GET /healthz", milliseconds(health))
        for label, app, main_class, goal in (
            ("Python", "py", "bench_jobs.Nothing", "3 ms, p99 10 ms"),
            ("JVM", "jvm", "bench.Nothing", "4 ms"),
        ):

            def job(one: Client, app: str = app, main_class: str = main_class) -> object:
                return one.run(app, main_class, "warm")

            times = back_to_back(lambda job=job: job(client), bench.jobs)
            show(
                f"no-op, {label}",
                milliseconds(times),
                goal,
                baseline="GET /healthz",
                ratio=ratio(times, health),
            )
            throughput(server.port, job, bench.jobs // 2)
            before = cpu_of(server.process.pid)
            rate = throughput(server.port, job, bench.jobs * 4)
            spent = {k: v - before.get(k, 0.0) for k, v in cpu_of(server.process.pid).items()}
            each = {kind: 1000 * used / bench.jobs / 4 for kind, used in spent.items() if used > 0.01}
            show(f"no-ops a second, 16 clients, {label}", f"{rate:.0f}/s", "500/s")
            show(
                f"CPU of each of these, {label}",
                f"{sum(each.values()):.1f} ms",
                "4 ms",
                baseline=", ".join(f"{kind} {used:.1f}" for kind, used in each.items()),
            )


def embedded(bench: Bench) -> None:
    """No-ops without HTTP, in a program that embeds the server."""
    directory = tempfile.mkdtemp(dir=bench.directory)
    for line in bench.output_of(EMBEDDED, directory, bench.wheel, bench.jar()):
        label, *times = line.split()
        goal = "2 ms" if label == "Python" else "3 ms"
        show(
            f"no-op, {label}, embedded",
            milliseconds([float(each) for each in times]),
            goal,
            baseline=bench.function_call(),
        )


def fresh(bench: Bench) -> None:
    """No-ops in fresh Python processes, against processes that are reused."""
    with bench.server(context="python.process=fresh") as server:
        client = Client(server.port)
        client.call("POST", "/contexts/reused")

        def job(one: Client, context: str = "warm") -> object:
            return one.run("py", "bench_jobs.Nothing", context)

        for _ in range(30):
            job(client)
            job(client, "reused")
        ours, theirs = [], []
        for _ in range(40):
            time.sleep(0.5)  # until a spare process is ready
            theirs.append(timed(lambda: job(client, "reused")))
            ours.append(timed(lambda: job(client)))
        show(
            "no-op, Python, fresh process with a spare ready",
            milliseconds(ours),
            "8 ms",
            baseline=f"reused process {milliseconds(theirs)}",
            ratio=ratio(ours, theirs),
        )
        throughput(server.port, job, 100)
        show("no-ops a second, fresh processes", f"{throughput(server.port, job, 200):.0f}/s", "100/s")


def preload(bench: Bench) -> None:
    """A job that imports pandas, and the start of its context, against contexts that have preloaded it."""
    ways = {"without": "", "with": "&python.preload=pandas"}
    fresh: dict[str, list[float]] = {way: [] for way in ways}
    started: dict[str, list[float]] = {way: [] for way in ways}
    first: dict[str, list[float]] = {way: [] for way in ways}
    with bench.server(warm=False) as server:
        client = Client(server.port)

        def job(context: str) -> float:
            return timed(lambda: client.run("py", "bench_jobs.Pandas", context))

        for way, setting in ways.items():
            client.call("POST", f"/contexts/fresh-{way}?python.process=fresh{setting}")
        for _ in range(20):
            for way in ways:
                time.sleep(0.5)  # until a spare process is ready
                fresh[way].append(job(f"fresh-{way}"))
        for way in ways:
            client.call("DELETE", f"/contexts/fresh-{way}")
        for number in range(6):
            for way, setting in ways.items():
                path = f"/contexts/{way}-{number}"
                started[way].append(timed(lambda: client.call("POST", f"{path}?{setting}")))  # noqa: B023
                first[way].append(job(f"{way}-{number}"))
                client.call("DELETE", path)
    for name, figures in (
        ("job that imports pandas, fresh process, preloaded", fresh),
        ("first job of a context that imports pandas, preloaded", first),
        ("context start to ready, pandas preloaded", started),
    ):
        ours, theirs = (figures[way][1:] for way in ("with", "without"))  # the first one reads the disk
        show(
            name,
            milliseconds(ours),
            baseline=f"not preloaded {milliseconds(theirs)}",
            ratio=ratio(ours, theirs),
        )


def words(bench: Bench) -> None:
    """The seed's word count against stock PySpark."""
    with bench.server(jvm=True) as server, bench.warm_stock() as stock:
        client = Client(server.port)
        calls: dict[str, Callable[[], object]] = {
            "Python": lambda: client.run("py", "bench_jobs.WordCount", "warm", WORDS),
            "JVM": lambda: client.run("jvm", "bench.WordCount", "warm", WORDS),
        }
        for label, call in calls.items():
            ours, theirs = [], []
            for number in range(60):
                pair = (timed(call), stock())
                if number >= 20:
                    ours.append(pair[0])
                    theirs.append(pair[1])
            show(
                f"word count, {label}",
                milliseconds(ours),
                "0.65 x" if label == "Python" else "0.7 x",
                baseline=f"warm stock session {milliseconds(theirs)}",
                ratio=ratio(ours, theirs),
            )


def configuration(bench: Bench) -> None:
    """A large configuration against an empty one."""
    large = json.dumps({f"key{i}": {"a": i, "b": f"text {i}", "c": [1, 2, 3]} for i in range(1940)})
    with bench.server() as server:
        client = Client(server.port)
        empty = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm"), 100)
        full = back_to_back(lambda: client.run("py", "bench_jobs.Nothing", "warm", large), 100)
        more = 1000 * (statistics.median(full) - statistics.median(empty))
        show(
            f"{len(large) // 1000} kB of JSON configuration",
            milliseconds(full),
            "+4 ms",
            baseline=f"empty {milliseconds(empty)}",
            ratio=f"+{more:.1f} ms",
        )


def class_paths(bench: Bench) -> None:
    """The first job of a class path that the context has not seen."""
    with bench.server() as server:
        client = Client(server.port)
        client.run("py", "bench_jobs.Nothing", "warm")
        first, again = [], []
        for number in range(8):
            name = f"other{number}"
            client.call(
                "POST", f"/binaries/{name}", bench.make_wheel(name).read_bytes(), "application/python-wheel"
            )
            time.sleep(0.5)
            first.append(timed(lambda n=name: client.run(n, f"{n}.Nothing", "warm")))
            again.append(timed(lambda n=name: client.run(n, f"{n}.Nothing", "warm")))
        more = 1000 * (statistics.median(first) - statistics.median(again))
        show(
            "first job of a new class path",
            milliseconds(first),
            "+50 ms",
            baseline=f"again {milliseconds(again)}",
            ratio=f"+{more:.0f} ms",
        )
