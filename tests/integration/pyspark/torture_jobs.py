"""The job of the torture. It leaves a line for each of its runs, and its result is known in advance."""

import os
import time
from pathlib import Path

from sparkjobserver.api import SparkJob


class Work(SparkJob):
    """Does what ``kind`` of its configuration says."""

    def validate(self, context, runtime, config):
        return config

    def run_job(self, context, runtime, data):
        record = os.open(Path(data.get("runs")) / runtime.jobId, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(record, f"{os.getpid()}\n".encode())
        os.close(record)
        return getattr(self, data.get("kind"))(context, data, data.get("number"))

    def rows(self, context, data, number):
        return context.range(number, numPartitions=2).count()

    def tasks(self, context, data, number):
        def slowly(value):
            time.sleep(0.3)
            return value

        return context.sparkContext.parallelize(range(number, number + 4), 4).map(slowly).sum()

    def sleep(self, context, data, number):
        time.sleep(data.get("seconds"))
        return number

    def large(self, context, data, number):
        return f"{number} " * 40_000

    def stream(self, context, data, number):
        def parts():
            for _ in range(20):
                yield f"{number} ".encode() * 10_000
                time.sleep(0.05)

        return parts()

    def fail(self, context, data, number):
        raise ValueError(f"number {number}")

    def gated(self, context, data, number):
        while not os.path.exists(data.get("gate")):
            time.sleep(0.05)
        return number
