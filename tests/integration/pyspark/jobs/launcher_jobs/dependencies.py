"""Jobs that import what did not come with their own package."""

import importlib
import re
import sys
from pathlib import Path

from launcher_jobs.work import Accepting


def seen(name):
    """What this process sees of a module: a value in it, and the interpreter's environment."""
    return [importlib.import_module(name).VALUE, sys.prefix]


class Sees(Accepting):
    """A module as the driver, RDD tasks and functions in SQL see it."""

    def run_job(self, context, runtime, data):
        from pyspark.sql.functions import udf

        name = data.get("module")
        tasks = context.sparkContext.parallelize(range(4), 4).map(lambda _: tuple(seen(name))).distinct()
        value = udf(lambda _: seen(name)[0])
        rows = context.range(4).select(value("id").alias("value")).distinct().collect()
        on_executors = tasks.collect()
        [value] = {value for value, _ in on_executors}
        driver, here = seen(name)
        return {
            "values": [driver, value, *(row.value for row in rows)],
            "prefixes": [here, *(prefix for _, prefix in on_executors)],
        }


class Fetches(Accepting):
    """How often each executor has fetched a file, from the log in its directory."""

    def run_job(self, context, runtime, data):
        pattern = rf"Fetching spark://\S+/{data.get('file')} to "

        def fetched(_number):
            return str(Path.cwd()), len(re.findall(pattern, Path("stderr").read_text()))

        return dict(context.sparkContext.parallelize(range(8), 8).map(fetched).collect())
