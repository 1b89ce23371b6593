"""Jobs for tests of results."""

import asyncio
import collections
import dataclasses
import datetime
import decimal

from launcher_jobs.work import Accepting
from sparkjobserver.api import ValidationProblem


@dataclasses.dataclass
class Point:
    x: int
    y: float


Pair = collections.namedtuple("Pair", "left right")


class Everything(Accepting):
    def run_job(self, context, runtime, data):
        import numpy
        import pandas
        import pyarrow

        frame = context.createDataFrame([(1, "a"), (2, None)], "n int, s string")
        return {
            "rows": frame.orderBy("n").collect(),
            "tuple": (1, "two", None),
            "set": {3, 1, 2},
            "keys": {1: "one", None: "none", (1, 2): "pair"},
            "dataclass": Point(1, 2.5),
            "namedtuple": Pair(1, 2),
            "decimal": decimal.Decimal("1.10"),
            "date": datetime.date(2026, 1, 2),
            "bytes": b"text",
            "nan": [float("nan"), float("inf"), -float("inf")],
            "numpy": [numpy.int64(1), numpy.float32(0.5), numpy.arange(3), numpy.eye(2)],
            "pandas": pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
            "arrow": pyarrow.table({"a": [1, None]}),
            "big": 2**70,
            "object": Exception("its text"),
        }


class Exact(Accepting):
    def run_job(self, context, runtime, data):
        query = "select 1 a, 'left' b, 2 a, 'right' b"
        return {"decimal": decimal.Decimal("12345678901234567.890"), "twice": context.sql(query).collect()}


class Asynchronous:
    async def validate(self, context, runtime, config):
        await asyncio.sleep(0)
        n = config.get("n")
        return n if n >= 0 else [ValidationProblem("n is negative")]

    async def run_job(self, context, runtime, n):
        return await asyncio.gather(*(self._number(i) for i in range(n)))

    async def _number(self, number):
        await asyncio.sleep(0)
        return number


class AsynchronousElements(Asynchronous):
    async def run_job(self, context, runtime, n):
        for number in range(n):
            yield await self._number(number)


class Large(Accepting):
    """A list with about this many megabytes of JSON; its elements are created on demand."""

    def run_job(self, context, runtime, data):
        return (("x" * 1021 for _ in range(1024)) for _ in range(data.get("megabytes")))


class LargeStream(Accepting):
    def run_job(self, context, runtime, data):
        piece = b"0123456789abcdef" * 65536
        return (piece for _ in range(data.get("megabytes")))


class Mixed(Accepting):
    def run_job(self, context, runtime, data):
        return iter([b"bytes", "text"])


class Lost(Accepting):
    """A mapping two of whose keys are one in JSON."""

    def run_job(self, context, runtime, data):
        return {1: "a", "1": "b"}


class Distributed(Accepting):
    def run_job(self, context, runtime, data):
        return context.range(3)


class Endless(Accepting):
    """Contains itself."""

    def run_job(self, context, runtime, data):
        loop = []
        loop.append(loop)
        return loop


class BreaksOff(Accepting):
    """A streamed result that fails half-way."""

    def run_job(self, context, runtime, data):
        yield b"x" * 1_000_000
        raise OSError("the source ran dry")


class Share(Accepting):
    """Stores a DataFrame and an RDD under names."""

    def run_job(self, context, runtime, data):
        objects = runtime.namedObjects
        objects.update("frame", context.range(5).cache())
        objects.update("rdd", context.sparkContext.parallelize(range(4), 2).map(lambda n: n * n))
        return objects.get_names()


class UseShared(Accepting):
    """Uses an object that another job has stored."""

    def run_job(self, context, runtime, data):
        objects = runtime.namedObjects
        made = objects.get_or_else_create("frame", lambda: 1 / 0)
        found = {"frame": made.count(), "rdd": sorted(objects.get("rdd").collect())}
        objects.forget("rdd")
        objects.destroy("frame")
        return found | {"left": objects.get_names(), "gone": objects.get("frame")}


class ReadNamed(Accepting):
    """Sorts the elements of an RDD that another job has stored, after a function of this package."""

    def run_job(self, context, runtime, data):
        return sorted(runtime.namedObjects.get(data.get("name")).map(same).collect())


def same(element):
    return element


class Forget(Accepting):
    def run_job(self, context, runtime, data):
        runtime.namedObjects.forget(data.get("name"))
        return runtime.namedObjects.get_names()


class CreateSlowly(Accepting):
    """Is killed while it makes a named object."""

    def run_job(self, context, runtime, data):
        import time

        return runtime.namedObjects.get_or_else_create("slow", lambda: time.sleep(600))


class CreateQuickly(Accepting):
    def run_job(self, context, runtime, data):
        return runtime.namedObjects.get_or_else_create("slow", lambda: context.range(7)).count()
