"""What Spark's own settings change for small jobs: each against the default, in the same run.

    python benchmarks/spark_settings.py [--rounds 2]

Each setting has a PySpark session of its own, which runs small RDD jobs and a small SQL query. In each round,
every setting is compared with one session of the launcher's defaults. Only the ratios matter. A session
needs about 30 seconds of CPU, so that two rounds of all settings take about six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

SESSION = """
import json, sys, time
from pyspark.sql import SparkSession
begun = time.perf_counter()
builder = SparkSession.builder.master("local[2]").config("spark.log.level", "ERROR")
for key, value in json.loads(sys.argv[1]).items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
def rdd():
    return dict(spark.sparkContext.parallelize("a b c a b see".split()).countByValue())
def shuffle():
    pairs = spark.sparkContext.parallelize(range(20)).map(lambda n: (n % 3, n))
    return pairs.reduceByKey(max).collect()
def sql():
    return spark.range(100).selectExpr("id % 7 AS k", "id AS v").groupBy("k").sum("v").collect()
rdd(); sql()
found = {"start": [time.perf_counter() - begun]}
for name, job in (("rdd", rdd), ("shuffle", shuffle), ("sql", sql)):
    for _ in range(5):
        job()
    found[name] = []
    for _ in range(15):
        begun = time.perf_counter()
        job()
        found[name].append(time.perf_counter() - begun)
print(json.dumps(found))
spark.stop()
"""
OURS = {"spark.ui.enabled": "false", "spark.python.unix.domain.socket.enabled": "true"}
SETTINGS = {
    "spark.ui.enabled=true": {**OURS, "spark.ui.enabled": "true"},
    "spark.python.unix.domain.socket.enabled=false": {
        **OURS,
        "spark.python.unix.domain.socket.enabled": "false",
    },
    "spark.sql.shuffle.partitions=2": {**OURS, "spark.sql.shuffle.partitions": "2"},
    "spark.default.parallelism=1": {**OURS, "spark.default.parallelism": "1"},
    "spark.sql.codegen.wholeStage=false": {**OURS, "spark.sql.codegen.wholeStage": "false"},
    "spark.sql.adaptive.enabled=false": {**OURS, "spark.sql.adaptive.enabled": "false"},
    "spark.cleaner.referenceTracking=false": {**OURS, "spark.cleaner.referenceTracking": "false"},
    "spark.shuffle.compress=false": {**OURS, "spark.shuffle.compress": "false"},
    "spark.scheduler.mode=FAIR": {**OURS, "spark.scheduler.mode": "FAIR"},
}


def measured(conf: dict[str, str]) -> dict[str, float]:
    """Return the median seconds of each kind of job in a new session."""
    command = [sys.executable, "-W", "ignore", "-c", SESSION, json.dumps(conf)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=sorted(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ratios to the launcher's defaults\n")
    print("| setting | start | RDD | RDD with shuffle | SQL |\n| --- | --- | --- | --- | --- |")
    ratios: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for number in range(options.rounds):
        base = measured(OURS)
        print(f"round {number + 1}: {base}", file=sys.stderr, flush=True)
        for name in options.only:
            other = measured(SETTINGS[name])
            ratios[name].append({kind: seconds / base[kind] for kind, seconds in other.items()})
    for name, rounds in ratios.items():
        kinds = ("start", "rdd", "shuffle", "sql")
        cells = [f"{statistics.median(each[kind] for each in rounds):.2f}" for kind in kinds]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
