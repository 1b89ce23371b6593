"""What Spark's own settings change for small jobs: each against the launcher's defaults.

    python benchmarks/spark_settings.py [--minutes 4] [--only ROW ...]

Each row starts two new contexts, one with its settings and one without, and they run the same Python jobs in
turns: one that counts words, one with a shuffle, and a SQL query. Both contexts are new, because the JVM
compiles code while it runs: one that has run more jobs is faster. The figures are ratios of medians: below 1
is faster. The first row changes nothing, so its ratios show how much of a difference is chance. The rows
share the time that is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher_bench import Bench, BenchContext
from rows.figures import timed

JOBS = {"RDD": "WordCount", "shuffle": "Shuffle", "SQL": "Sums"}
WARM_UP = 8
MIN_ROUNDS = 5

LOW_LATENCY = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.default.parallelism": "1",
}
"""The settings that help small jobs, for a context with two cores."""

ROWS: dict[str, Mapping[str, str]] = {
    "nothing": {},
    **{f"{key}={value}": {key: value} for key, value in LOW_LATENCY.items()},
    **{
        f"{key}={value}": {key: value}
        for key, value in (
            ("spark.shuffle.compress", "false"),
            ("spark.cleaner.referenceTracking", "false"),
            ("spark.sql.codegen.wholeStage", "false"),
            ("spark.scheduler.mode", "FAIR"),
            ("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1"),
            ("spark.ui.enabled", "true"),
            ("spark.python.unix.domain.socket.enabled", "false"),
        )
    },
    "the first three together": LOW_LATENCY,
}


@contextmanager
def started(bench: Bench, settings: Mapping[str, str]) -> Iterator[tuple[BenchContext, float]]:
    """Start a context; yield it, and how many seconds its start took."""
    made: list[BenchContext] = []
    took = timed(lambda: made.append(bench.start(settings)))
    try:
        yield made[0], took
    finally:
        made[0].stop()


def measure(bench: Bench, settings: Mapping[str, str], seconds: float) -> tuple[list[str], int]:
    """Return the cells of a row, and the number of rounds that fitted in the time."""
    deadline = time.monotonic() + seconds
    ours: dict[str, list[float]] = {job: [] for job in JOBS}
    usual: dict[str, list[float]] = {job: [] for job in JOBS}
    with started(bench, {}) as (base, usual_start), started(bench, settings) as (changed, start):
        calls: tuple[tuple[Callable[[str], object], dict[str, list[float]]], ...] = (
            (base.run, usual),
            (changed.run, ours),
        )
        rounds = 0
        while rounds < WARM_UP + MIN_ROUNDS or time.monotonic() < deadline:
            for job, name in JOBS.items():
                for run, times in calls[:: 1 if rounds % 2 else -1]:
                    times[job].append(timed(lambda run=run, name=name: run(name)))  # type: ignore[misc]
            rounds += 1
    cells = [f"{start / usual_start:.2f}"]
    for job in JOBS:
        own, theirs = (statistics.median(times[job][WARM_UP:]) for times in (ours, usual))
        cells.append(f"{own / theirs:.2f}" if settings else f"{own / theirs:.2f} ({1000 * theirs:.0f} ms)")
    return cells, rounds - WARM_UP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--only", nargs="*", choices=[*ROWS], default=[*ROWS])
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory)) as bench:
        bench.prepare()
        deadline = time.monotonic() + 60 * options.minutes
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; times against those of the defaults\n")
        print("| setting | start | RDD | shuffle | SQL |\n| --- | --- | --- | --- | --- |", flush=True)
        for number, row in enumerate(options.only):
            seconds = (deadline - time.monotonic()) / (len(options.only) - number)
            try:
                cells, rounds = measure(bench, ROWS[row], seconds)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - one row must not cost the others
                print(f"{row}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                failed.append(row)
                continue
            label = f"`{row}`" if "=" in row else row
            print(f"| {label} | {' | '.join(cells)} |", flush=True)
            print(f"{row}: {rounds} rounds", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
