"""Jobs for contexts that import modules ahead of need."""

import importlib
import sys

from launcher_jobs.work import Accepting


class Loaded(Accepting):
    """Which of some modules the process has imported before the job does."""

    def run_job(self, context, runtime, data):
        return [name for name in data.get("modules") if name in sys.modules]


class Value(Accepting):
    """The value in a module."""

    def run_job(self, context, runtime, data):
        return importlib.import_module(data.get("module")).VALUE


class Computes(Accepting):
    """Results of libraries with native threads, a random number, and which had been imported before."""

    def run_job(self, context, runtime, data):
        before = [name for name in ("numpy", "pandas", "pyarrow.compute") if name in sys.modules]
        import numpy
        import pandas
        import pyarrow.compute

        matrix = numpy.ones((700, 700))
        column = pyarrow.array(range(100_000))
        table = pyarrow.table({"key": pyarrow.compute.bit_wise_and(column, 1), "value": column})
        grouped = table.group_by("key").aggregate([("value", "sum")]).sort_by("key")
        frame = pandas.DataFrame({"key": [0, 1, 0], "value": [1.0, 2.0, 3.0]})
        return {
            "before": before,
            "random": numpy.random.random(),
            "dot": float((matrix @ matrix).sum()),
            "arrow": grouped["value_sum"].to_pylist(),
            "pandas": frame.groupby("key")["value"].sum().tolist(),
        }
