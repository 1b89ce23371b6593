"""How long small jobs take in a warm context, against the same lines in a warm PySpark session.

Both run in turns on the same machine. Run: ``python benchmarks/launcher_warm_floor.py``
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher_bench import Bench
from pyspark.sql import SparkSession


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    words = ["a", "b", "c", "a", "b", "see"]
    lines: dict[str, Callable[[], object]] = {
        "Nothing": lambda: None,
        "WordCount": lambda: dict(spark.sparkContext.parallelize(words).countByValue()),
        "Range": lambda: spark.range(1000).count(),
    }
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory)) as bench:
        context = bench.start()
        print(
            f"medians of {rounds}, in milliseconds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        for name, line in lines.items():
            for _ in range(5):
                line()
                context.run(name)
            theirs, ours = [], []
            for _ in range(rounds):
                theirs.append(seconds(line))
                ours.append(seconds(lambda name=name: context.run(name)))
                time.sleep(0.1)  # as between the requests of one client
            a, b = statistics.median(theirs) * 1000, statistics.median(ours) * 1000
            ratio = f"{b / a:.2f}" if a > 0.1 else "-"
            print(f"{name:10} PySpark {a:7.1f}   job through the launcher {b:7.1f}   ratio {ratio}")
        context.stop()
    spark.stop()


if __name__ == "__main__":
    main()
