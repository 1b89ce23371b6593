"""Jobs that wait until a file exists."""

import os
import time

from launcher_jobs.work import Accepting


def wait(data):
    while not os.path.exists(data.get("gate")):
        time.sleep(0.02)


class Count(Accepting):
    def run_job(self, context, runtime, data):
        print("before the restart")
        wait(data)
        print("after the restart")
        return context.range(data.get("rows")).count()


class Stream(Accepting):
    def run_job(self, context, runtime, data):
        yield b"before" * 200_000
        wait(data)
        yield b"after"


class Value(Accepting):
    def run_job(self, context, runtime, data):
        return data.get("value")


class Shuffles(Accepting):
    """A shuffle, then two tasks that wait; each leaves a file beside the gate when it begins."""

    def run_job(self, context, runtime, data):
        gate = data.get("gate")

        def held(index, values):
            with open(f"{gate}-{index}", "w"):
                pass
            wait({"gate": gate})
            return values

        pairs = context.sparkContext.parallelize(range(8), 2).map(lambda n: (n % 4, 1))
        return pairs.reduceByKey(lambda a, b: a + b, 2).mapPartitionsWithIndex(held).count()
