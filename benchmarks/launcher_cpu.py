"""What a no-op job costs the launcher: its latency, and CPU by process, without HTTP and a database.

    python benchmarks/launcher_cpu.py [--only reused fresh jvm] [--jobs 500] [--clients 1 16]

CPU is that of the launcher in this process (with the client that waits for the jobs), the context's host,
its zygote and runners, and its JVM. It changes less with the load of the machine than the times do, but still
compare only runs that took turns.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher_bench import Bench as LauncherBench
from launcher_bench import BenchContext
from rows.bench import Bench as JobsBench
from rows.figures import milliseconds, timed
from rows.processes import cpu_of

from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import JobCode

KINDS = {"reused": ({}, "Nothing"), "fresh": ({"python": {"process": "fresh"}}, "Nothing")}
JVM = "bench.Nothing"


def in_turns(job: Callable[[], object], count: int, clients: int) -> list[float]:
    """Run jobs from a number of threads; return how long each took."""
    left, times = iter(range(count)), list[float]()

    def work() -> None:
        for _ in left:
            times.append(timed(job))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def measure(label: str, job: Callable[[], object], count: int, clients: int) -> None:
    """Print one row."""
    in_turns(job, max(50, count // 2), clients)
    before, begun = cpu_of(os.getpid()), time.perf_counter()
    times = in_turns(job, count, clients)
    took = time.perf_counter() - begun
    spent = {
        kind: 1000 * (used - before.get(kind, 0.0)) / count for kind, used in cpu_of(os.getpid()).items()
    }
    parts = ", ".join(
        f"{'launcher' if kind == 'server' else kind} {each:.2f}" for kind, each in spent.items()
    )
    rate, total = f"{count / took:.0f}/s", f"{sum(spent.values()):.2f} ms"
    print(f"| {label} | {clients} | {milliseconds(times)} | {rate} | {total}: {parts} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=("reused", "fresh", "jvm"), default=["reused", "fresh", "jvm"]
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| job | clients | latency | jobs | CPU of each |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name, LauncherBench(Path(name)) as bench:
        for kind in options.only:
            context, job = prepared(bench, kind, Path(name) / "jobs")
            for clients in options.clients:
                measure(kind, job, options.jobs, clients)
            context.stop()


def prepared(bench: LauncherBench, kind: str, directory: Path) -> tuple[BenchContext, Callable[[], object]]:
    """Return a context, and the no-op job in it."""
    if kind == "jvm":
        directory.mkdir()
        jar = JobsBench(directory, 0).jar()
        digest = hashlib.sha256(jar.read_bytes()).hexdigest()
        code = JobCode(path=jar, type=BinaryType.JAR, digest=digest, source="bench")
        context = bench.start()
        return context, lambda: context.run(JVM, code)
    settings, job = KINDS[kind]
    context = bench.start(settings)
    return context, lambda: context.run(job)


if __name__ == "__main__":
    main()
