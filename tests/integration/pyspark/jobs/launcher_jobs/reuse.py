"""Jobs that leave something behind, and look for leftovers of earlier jobs."""

import os
import threading
import time

from sparkjobserver.api import SparkJob

COUNT = 0


class Accepting(SparkJob):
    def validate(self, context, runtime, config):
        return config


class Look(Accepting):
    """Returns its process ID and the leftovers it finds there."""

    def run_job(self, context, runtime, data):
        global COUNT  # noqa: PLW0603 - the next job must not see this
        COUNT += 1
        spark = context.sparkContext
        return {
            "pid": os.getpid(),
            "count": COUNT,
            "leak": os.environ.get("LEAK"),
            "description": spark.getLocalProperty("spark.job.description"),
            "own": spark.getLocalProperty("own"),
            "tag": spark.getLocalProperty("spark.jobGroup.id"),
            "attribute": getattr(spark, "leak", None),
            "active": context.getActiveSession() is not None,
        }


class Leak(Accepting):
    """Leaves changes that can be undone."""

    def run_job(self, context, runtime, data):
        spark = context.sparkContext
        os.environ["LEAK"] = "1"
        spark.setJobGroup("leak", "leak")
        spark.setLocalProperty("own", "leak")
        spark.leak = "leak"
        spark.parallelize([1]).count()
        return os.getpid()


class ImportNames(Accepting):
    """Imports names into the view of the JVM that all code of its process shares."""

    def run_job(self, context, runtime, data):
        from py4j.java_gateway import java_import

        java_import(context.sparkContext._jvm, "java.util.concurrent.*")
        return os.getpid()


class LeaveThread(Accepting):
    """Leaves a thread that writes on for ever."""

    def run_job(self, context, runtime, data):
        writing = threading.Event()

        def write():
            while True:
                with open(data.get("file"), "a") as file:
                    file.write("x")
                writing.set()
                time.sleep(0.01)

        threading.Thread(target=write, daemon=True).start()
        writing.wait(60)
        return os.getpid()


class Fresh(Accepting):
    """Wants a process that no job has used."""

    fresh_process = True

    def run_job(self, context, runtime, data):
        return os.getpid()


class Accumulate(Accepting):
    """Sums up with an accumulator, after a late update for one of an earlier job of its process."""

    def run_job(self, context, runtime, data):
        from pyspark.accumulators import INT_ACCUMULATOR_PARAM, _deserialize_accumulator

        spark = context.sparkContext
        if data.get("pid", None) == os.getpid():
            spark.parallelize([data.get("id")]).foreach(
                lambda number: _deserialize_accumulator(number, 0, INT_ACCUMULATOR_PARAM).add(1)
            )
        total = spark.accumulator(0)
        spark.parallelize(range(4)).foreach(total.add)
        return {"pid": os.getpid(), "id": total.aid, "sum": total.value}


class Profile(Accepting):
    """Profiles a function in SQL; returns the number of profiles."""

    def run_job(self, context, runtime, data):
        from pyspark.sql.functions import udf

        context.conf.set("spark.sql.pyspark.udf.profiler", "perf")
        try:
            context.range(2).select(udf(lambda number: number + 1, "long")("id")).collect()
        finally:
            context.conf.unset("spark.sql.pyspark.udf.profiler")
        context.profile.dump(data.get("directory"), type="perf")
        return {"pid": os.getpid(), "profiles": len(os.listdir(data.get("directory")))}


class Talk(Accepting):
    def run_job(self, context, runtime, data):
        for number in range(data.get("lines")):
            print(data.get("word"), number)
        return os.getpid()


class Count(Accepting):
    """Runs the given number of Spark tasks, then keeps running for a while."""

    def run_job(self, context, runtime, data):
        context.sparkContext.parallelize(range(data.get("tasks")), data.get("tasks")).count()
        time.sleep(data.get("seconds"))
        return os.getpid()
