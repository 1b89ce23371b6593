"""What Spark's own settings change for small jobs: each against the launcher's defaults, in turns.

    python benchmarks/spark_settings.py [--rounds 40] [--only SETTING ...]

A PySpark session with the launcher's defaults runs all the time. Settings of SQL are switched on and off in
it. Each of the others has a session of its own, and the two sessions run the same small job in turns: one
that counts words, one with a shuffle, and a SQL query. Only the ratios matter. All of it takes about four
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

SESSION = """
import json, sys, time
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[2]")
for key, value in json.loads(sys.argv[1]).items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
def rdd():
    return dict(spark.sparkContext.parallelize("a b c a b see".split()).countByValue())
def shuffle():
    pairs = spark.sparkContext.parallelize(range(20)).map(lambda n: (n % 3, n))
    return pairs.reduceByKey(max).collect()
def sql():
    return spark.range(100).selectExpr("id % 7 AS k", "id AS v").groupBy("k").sum("v").collect()
jobs = {"RDD": rdd, "shuffle": shuffle, "SQL": sql}
print("ready", flush=True)
for line in sys.stdin:
    job, conf = json.loads(line)
    for key, value in conf.items():
        spark.conf.set(key, value)
    begun = time.perf_counter()
    jobs[job]()
    print(time.perf_counter() - begun, flush=True)
    for key in conf:
        spark.conf.unset(key)
spark.stop()
"""
JOBS = ("RDD", "shuffle", "SQL")
WARM_UP = 15
DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.python.unix.domain.socket.enabled": "true",
    "spark.rdd.compress": "True",
}
SWITCHED = (
    "spark.sql.shuffle.partitions=2",
    "spark.sql.adaptive.enabled=false",
    "spark.sql.codegen.wholeStage=false",
)
"""Settings that a session can change while it runs; they concern SQL alone."""
STARTED = (
    "spark.ui.enabled=true",
    "spark.python.unix.domain.socket.enabled=false",
    "spark.default.parallelism=1",
    "spark.cleaner.referenceTracking=false",
    "spark.shuffle.compress=false",
    "spark.scheduler.mode=FAIR",
    "spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1",
)
"""Settings that are read when the application starts."""


class Session:
    """A PySpark session in a process of its own."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests = requests
        self._answers = answers

    def run(self, job: str, conf: dict[str, str] | None = None) -> float:
        """Run a job, with settings that last as long as it; return how many seconds it took."""
        self._requests.write(json.dumps([job, conf or {}]) + "\n")
        self._requests.flush()
        return float(self._answers.readline())


@contextmanager
def session(**conf: str) -> Iterator[tuple[Session, float]]:
    """Yield a session, and how many seconds its start took."""
    command = [sys.executable, "-W", "ignore", "-c", SESSION, json.dumps({**DEFAULTS, **conf})]
    begun = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            sys.exit(f"no session could be started with {conf}")
        took = time.perf_counter() - begun
        made = Session(process.stdin, process.stdout)
        for _ in range(WARM_UP):
            for job in JOBS:
                made.run(job)
        yield made, took
        process.stdin.close()


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", nargs="*", choices=[*SWITCHED, *STARTED], default=[*SWITCHED, *STARTED])
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ratios to the launcher's defaults\n")
    with session() as (base, start):
        usual = {job: [base.run(job) for _ in range(options.rounds)] for job in JOBS}
        medians = ", ".join(f"{job} {1000 * statistics.median(times):.1f} ms" for job, times in usual.items())
        print(f"defaults: start {start:.1f} s, {medians}\n")
        print("| setting | start | RDD | shuffle | SQL |\n| --- | --- | --- | --- | --- |", flush=True)
        for setting in options.only:
            key, _, value = setting.partition("=")
            if setting in SWITCHED:
                pairs = [(base.run("SQL", {key: value}), base.run("SQL")) for _ in range(options.rounds)]
                other, own = zip(*pairs, strict=True)
                print(f"| `{setting}` | | | | {ratio([*other], [*own])} |", flush=True)
                continue
            with session(**{key: value}) as (changed, took):
                cells = [f"{took / start:.2f}"]
                for job in JOBS:
                    times = [(changed.run(job), base.run(job)) for _ in range(options.rounds)]
                    cells.append(ratio([a for a, _ in times], [b for _, b in times]))
            print(f"| `{setting}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
