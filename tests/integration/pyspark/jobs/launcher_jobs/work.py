"""Jobs that use Spark or their arguments."""

import importlib.resources
import logging
import sys
import time

import launcher_jobs
from sparkjobserver.api import SparkJob


class Accepting(SparkJob):
    def validate(self, context, runtime, config):
        return config


class WordCount(Accepting):
    def run_job(self, context, runtime, data):
        spark = getattr(context, "sparkContext", context)
        return dict(spark.parallelize(data.get("input.string").split()).countByValue())


class Tell(Accepting):
    """What a job is given, as text."""

    def run_job(self, context, runtime, data):
        return {
            "context": type(context).__name__,
            "job_id": runtime.jobId,
            "setting": runtime.contextConfig.get("spark.my.setting", None),
            "merged": data.get("spark.my.setting", None),
            "own": data.get("own", None),
            "config": type(data).__name__,
        }


class Conf(Accepting):
    """SparkConf and Hadoop values of the context."""

    def run_job(self, context, runtime, data):
        spark = getattr(context, "sparkContext", context)
        hadoop = spark._jsc.hadoopConfiguration()
        conf = {key: spark.getConf().get(key, None) for key in data.get("keys")}
        return conf | {key: hadoop.get(key) for key in data.get("hadoop", [])}


class Sql(Accepting):
    def run_job(self, context, runtime, data):
        return [row.asDict() for row in context.sql(data.get("query")).collect()]


class Version(Accepting):
    """The package's version as the driver sees it, and as each of its tasks does."""

    def run_job(self, context, runtime, data):
        def seen(_number):
            return executor_version()

        spark = getattr(context, "sparkContext", context)
        for _ in range(data.get("rounds", 1)):
            on_executors = set(spark.parallelize(range(4), 4).map(seen).collect())
            assert len(on_executors) == 1, on_executors
        return {"driver": launcher_jobs.VERSION, "executors": on_executors.pop()}


def executor_version():
    return launcher_jobs.VERSION


class UdfVersion(Accepting):
    """The same in a Python function that SQL calls."""

    def run_job(self, context, runtime, data):
        from pyspark.sql.functions import udf

        seen = udf(lambda _id: executor_version())
        rows = context.range(4).select(seen("id").alias("version")).distinct().collect()
        return [row.version for row in rows]


class DataFile(Accepting):
    """A file of the package, read where the package was unpacked."""

    def run_job(self, context, runtime, data):
        def read(_number=0):
            return importlib.resources.files("launcher_jobs").joinpath("data.txt").read_text().strip()

        spark = getattr(context, "sparkContext", context)
        return [read(), *spark.parallelize(range(2), 2).map(read).collect()]


class Upload(Accepting):
    """A data file that was uploaded to the server."""

    def run_job(self, context, runtime, data):
        return runtime.data_file(data.get("name")).read_text()


class Talk(Accepting):
    def run_job(self, context, runtime, data):
        print("said on stdout")
        print("said on stderr", file=sys.stderr)
        logging.getLogger("talk").info("said by logging")
        import subprocess

        subprocess.run(["echo", "said by a child"], check=True)


class TalkAndWait(Accepting):
    def run_job(self, context, runtime, data):
        print("said before the wait")
        time.sleep(600)


class Chatter(Accepting):
    def run_job(self, context, runtime, data):
        for number in range(data.get("lines")):
            print(f"line {number} " + "x" * 80)


class Stages(Accepting):
    """Three stages, slow enough to be seen."""

    def run_job(self, context, runtime, data):
        def slow(value):
            time.sleep(0.6)
            return value, 1

        spark = getattr(context, "sparkContext", context)
        return spark.parallelize(range(6), 6).map(slow).reduceByKey(lambda a, b: a + b).count()


class StagesWhileASessionEnds(Stages):
    """The stages, and during them the end of a clone of the session: Spark makes such for cached frames."""

    def run_job(self, context, runtime, data):
        from concurrent.futures import ThreadPoolExecutor

        spark = context.sparkContext
        artifacts = context._jsparkSession.cloneSession().artifactManager()

        def count():
            spark.setJobGroup("count", "the stages")
            return super(StagesWhileASessionEnds, self).run_job(context, runtime, data)

        with ThreadPoolExecutor(1) as pool:
            counted = pool.submit(count)
            while not counted.done() and not spark.statusTracker().getJobIdsForGroup("count"):
                time.sleep(0.02)
            artifacts.close()
            return counted.result()


class Users(Accepting):
    """Whom Spark, Hadoop on two threads, and SQL take the application for."""

    def run_job(self, context, runtime, data):
        from concurrent.futures import ThreadPoolExecutor

        spark = getattr(context, "sparkContext", context)
        group_information = spark._jvm.org.apache.hadoop.security.UserGroupInformation

        def current():
            return group_information.getCurrentUser().getShortUserName()

        with ThreadPoolExecutor(1) as pool:
            on_another_thread = pool.submit(current).result()
        real = group_information.getCurrentUser().getRealUser()
        return {
            "spark": spark.sparkUser(),
            "hadoop": [current(), on_another_thread],
            "real": real and real.getShortUserName(),
            "sql": context.sql("select current_user() as name").first().name,
            "counted": spark.parallelize(range(3), 2).map(lambda n: n).count(),
        }


class Timeouts(Accepting):
    """After how many seconds Spark and YARN miss a machine by default."""

    def run_job(self, context, runtime, data):
        spark = getattr(context, "sparkContext", context)
        config = spark._jvm.org.apache.spark.internal.config
        network, worker = (getattr(getattr(config, name), "MODULE$") for name in ("Network$", "Worker$"))
        yarn = spark._jvm.org.apache.hadoop.yarn.conf.YarnConfiguration(spark._jsc.hadoopConfiguration())
        monitors = [f"yarn.{name}.liveness-monitor.expiry-interval-ms" for name in ("nm", "am")]
        return {
            "spark.network.timeout": int(network.NETWORK_TIMEOUT().defaultValueString().rstrip("s")),
            "spark.worker.timeout": int(worker.WORKER_TIMEOUT().defaultValueString()),
            **{monitor: int(yarn.get(monitor)) // 1000 for monitor in monitors},
        }


class CallsJar(Accepting):
    """Calls a class of a jar in its class path, on two threads, in SQL tasks, and in tasks of an RDD."""

    def run_job(self, context, runtime, data):
        from concurrent.futures import ThreadPoolExecutor

        def called():
            return context.sparkContext._jvm.launcherjobs.Twice().call(21)

        with ThreadPoolExecutor(1) as pool:
            on_another_thread = pool.submit(called).result()
        context.udf.registerJavaFunction("twice", "launcherjobs.Twice", "long")
        rows = context.range(0, 4, 1, 2).selectExpr("twice(id) as twice")
        return {
            "driver": [called(), on_another_thread],
            "sql": [row.twice for row in rows.collect()],
            "rdd": rows.rdd.map(lambda row: row.twice).collect(),
        }


class Environment(Accepting):
    def run_job(self, context, runtime, data):
        import os

        spark = getattr(context, "sparkContext", context)
        on_executors = spark.parallelize([0], 1).map(lambda _: dict(os.environ)).first()
        opened = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                opened[name] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
        return {"job": dict(os.environ), "executor": on_executors, "files": opened}


class Stop(Accepting):
    """Ends as scripts do."""

    def run_job(self, context, runtime, data):
        context.stop()
        return context.range(3).count()


class Custom(Accepting):
    """Makes its context itself."""

    def build_context(self, gateway, jvm_context, spark_conf):
        from pyspark import SparkContext

        made = SparkContext.getOrCreate()
        made.built_for = spark_conf.get("spark.app.name")
        return made

    def run_job(self, context, runtime, data):
        return context.built_for


class CustomClass(Accepting):
    """Wraps its context in its own class, as the old server's example does."""

    def build_context(self, gateway, jvm_context, spark_conf):
        from pyspark import SparkContext

        class Counting(SparkContext):
            def __init__(self):
                self.wrapped = jvm_context
                SparkContext.__init__(self, gateway=gateway, jsc=jvm_context, conf=spark_conf)

            def version_below(self):
                return self.wrapped.version()

        return Counting()

    def run_job(self, context, runtime, data):
        from pyspark.sql import SparkSession

        counted = context.parallelize([Shared(n) for n in range(3)]).map(lambda each: each.number).sum()
        session = SparkSession.builder.getOrCreate()
        context.stop()
        return [type(context).__name__, context.version_below(), counted, session.range(4).count()]


class Shared:
    """A class of the package, which tasks must find."""

    def __init__(self, number):
        self.number = number
