"""Jobs that call code of a jar, which starts threads in the JVM."""

import os
import time

from launcher_jobs.work import Accepting


class Starts(Accepting):
    """Starts threads of a kind in the JVM, and then ends or stays."""

    def run_job(self, context, runtime, data):
        jvm = context.sparkContext._jvm
        print("process", os.getpid(), flush=True)
        jvm.launcherjobs.Remains(data["path"], data.get("gate", "")).start(data["kind"])
        if data["stay"]:
            time.sleep(600)


class StartsAfterSparksThreads(Starts):
    """The same, after Spark has started the threads of its own pools for this job."""

    def run_job(self, context, runtime, data):
        return super().run_job(context, runtime, {**data, "joined": _joined(context)})


class Joins(Accepting):
    """Joins tables with a broadcast and a shuffle."""

    def run_job(self, context, runtime, data):
        return _joined(context)


def _joined(context):
    from pyspark.sql.functions import broadcast

    rows = context.range(100).repartition(3)
    return rows.join(broadcast(context.range(50)), "id").groupBy("id").count().count()


class UsesStaticPool(Accepting):
    def run_job(self, context, runtime, data):
        return context.sparkContext._jvm.launcherjobs.Remains.useStatic()


class Threads(Accepting):
    """The names of the threads of the JVM."""

    def run_job(self, context, runtime, data):
        stacks = context.sparkContext._jvm.java.lang.Thread.getAllStackTraces()
        return sorted(thread.getName() for thread in stacks)
