"""The word count of the tutorial three ways: with spark-submit, as an ad-hoc job, and in a warm context.

    python benchmarks/against_spark_submit.py [--rounds 5]

spark-submit is that of the installed PySpark, with a script of the same code, timed until the process has
ended. The server is a real one, over HTTP, with its defaults. Both use Spark on ``local[2]`` and take turns.
Prints medians in seconds, and ratios to spark-submit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pyspark

from jobserver_core import JobServer, load_settings
from jobserver_http import running
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel

SCRIPT = """
from pyspark.sql import SparkSession

spark = SparkSession.builder.getOrCreate()
print(dict(spark.sparkContext.parallelize("a b c a b see".split()).countByValue()))
spark.stop()
"""
WORDS = 'input.string = "a b c a b see"'
EXPECTED = {"a": 2, "b": 2, "c": 1, "see": 1}


def submit_script(script: Path) -> None:
    program = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    command = [str(program), "--master", "local[2]", "--conf", "spark.ui.enabled=false", str(script)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "'see': 1" in done.stdout, done.stdout


def submit_job(client: httpx.Client, **context: str) -> None:
    query = {"cp": "words", "mainClass": CLASS_NAME, "sync": "true", "timeout": 120, **context}
    response = client.post("/jobs", params=query, content=WORDS)
    assert response.json()["result"] == EXPECTED, response.text


def seconds(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "words.py"
        script.write_text(SCRIPT)
        settings = load_settings(
            overrides={
                "jobserver.data-dir": f"{directory}/data",
                "spark.master": "local[2]",
                "jobserver.http.port": 0,
            }
        )
        with JobServer.from_settings(settings) as server, running(server) as address:
            client = httpx.Client(base_url=address, timeout=180)
            wheel = build_example_wheel(Path(directory)).read_bytes()
            client.post(
                "/binaries/words", content=wheel, headers={"Content-Type": "application/python-wheel"}
            )
            client.post("/contexts/warm").raise_for_status()
            for _ in range(20):
                submit_job(client, context="warm")
            ways: dict[str, Callable[[], None]] = {
                "spark-submit": lambda: submit_script(script),
                "ad-hoc job": lambda: submit_job(client),
                "job in a warm context": lambda: submit_job(client, context="warm"),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    times[name].append(seconds(way))
    baseline = statistics.median(times["spark-submit"])
    print(f"medians of {rounds}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:22} {median:7.3f} s   ratio {median / baseline:.3f}")


if __name__ == "__main__":
    main()
