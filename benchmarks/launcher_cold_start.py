"""How long until a fresh context has answered its first job, against a fresh PySpark session.

Prints medians over some rounds, in which both take turns, and the ratios.
Run: ``python benchmarks/launcher_cold_start.py``
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher_bench import Bench

STOCK = """
import sys, time
begun = float(sys.argv[1])
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
dict(spark.sparkContext.parallelize("a b c a b see".split()).countByValue())
print("RDD", time.time() - begun, flush=True)
spark.range(1000).count()
print("SQL", time.time() - begun, flush=True)
spark.stop()
"""


def stock() -> dict[str, float]:
    begun = time.time()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, str(begun)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return {
        line.split()[0]: float(line.split()[1])
        for line in done.stdout.splitlines()
        if line[:3] in ("RDD", "SQL")
    }


def ours(bench: Bench) -> dict[str, float]:
    begun = time.time()
    context = bench.start()
    ready = time.time() - begun
    context.run("WordCount")
    rdd = time.time() - begun
    context.run("Range")
    sql = time.time() - begun
    context.stop()
    return {"ready": ready, "RDD": rdd, "SQL": sql}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory)) as bench:
        bench.prepare()
        rows = [(stock(), ours(bench)) for _ in range(rounds)]
    theirs, own = ([row[i] for row in rows] for i in (0, 1))
    print(f"medians of {rounds}, in seconds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"context ready: {statistics.median(row['ready'] for row in own):.2f}")
    for name in ("RDD", "SQL"):
        a, b = (statistics.median(row[name] for row in side) for side in (theirs, own))
        print(f"{name}: PySpark {a:6.2f}   launcher {b:6.2f}   ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
