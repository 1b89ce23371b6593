"""PySpark's objects in a job's process, attached to the JVM of the context."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from jobserver_pyspark.processes import POOL_VARIABLE
from jobserver_pyspark.protocol.failures import Failure

__all__ = ["Attachment"]

_WRONG_TYPE = "Invalid job type for this context"


class Attachment:
    """A connection to the context's JVM, and the SparkContext and session made from it.

    ``port`` and ``secret`` are of a gateway server that the JVM runs for this process alone: its
    threads carry this process's job group, its objects go away with it, and callbacks
    find their way back.
    """

    def __init__(self, port: int, secret: str) -> None:
        from pyspark import SparkConf, SparkContext  # noqa: PLC0415 - the zygote has imported it

        java_gateway: Any = importlib.import_module("pyspark.java_gateway")
        _spare_numpy()
        os.environ["PYSPARK_GATEWAY_PORT"] = str(port)
        os.environ["PYSPARK_GATEWAY_SECRET"] = secret
        try:
            self.gateway = java_gateway.launch_gateway()
        finally:
            del os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]
        jvm = self.gateway.jvm
        spark = jvm.org.apache.spark
        spark_context = spark.SparkContext.getOrCreate()
        self.java_context = spark.api.java.JavaSparkContext.fromSparkContext(spark_context)
        conf = SparkConf(_jvm=jvm, _jconf=self.java_context.sc().conf())
        self.context = SparkContext(gateway=self.gateway, jsc=self.java_context, conf=conf)
        self.context.stop = _leave_running  # type: ignore[method-assign] # the context is not the job's
        self._session: Any = None

    @property
    def session(self) -> Any:
        """The context's one session, which its jobs share."""
        if self._session is None:
            from pyspark.sql import SparkSession  # noqa: PLC0415

            self._session = SparkSession(self.context)
            self._session.stop = _leave_running
            SparkSession._instantiatedSession = self._session
        return self._session

    def tell_queries(self, tell: Callable[[str], None]) -> None:
        """Have the id of each streaming query that this process starts told, so that it can be ended."""
        from pyspark.sql.streaming.readwriter import DataStreamWriter  # noqa: PLC0415

        writer_class: Any = DataStreamWriter
        original = writer_class._sq

        def started(writer: Any, query: Any) -> Any:
            tell(str(query.id()))
            return original(writer, query)

        writer_class._sq = started

    def warm(self) -> None:
        """Start the first Python worker, so that the first job need not wait for it."""
        self.context.parallelize([0], 1).map(bool).count()

    def prepare(self, flavour: str) -> None:
        """Do ahead what the first Spark job of a process does once: look up classes, pickle a function.

        No Spark job is run; an RDD is only described to the JVM.
        """
        _ = self.context.parallelize([0], 1).map(lambda number: (number, 1)).reduceByKey(max, 1)._jrdd
        if flavour not in ("spark", "custom"):
            _ = self.session.range(1)

    def job_context(self, flavour: str, job: Any) -> Any:
        """Return what a job's methods get as their context, as the context's factory says.

        Raises Failure for a job that does not fit the factory.
        """
        if flavour == "spark":
            return self.context
        if flavour in ("session", "any"):
            return self.session
        if flavour in ("sql", "hive"):
            return _sql_context(self.context, self.session, hive=flavour == "hive")
        if flavour == "custom" and callable(getattr(job, "build_context", None)):
            made = self._built_by(job)
            if made is not None:
                return made
            raise Failure("wrong-type", _WRONG_TYPE, stack="build_context returned None")
        raise Failure("wrong-type", _WRONG_TYPE, stack=f"a Python job cannot run in a {flavour} context")

    def _built_by(self, job: Any) -> Any:
        """What the job builds; a SparkContext of its own class takes the place of the one that is here."""
        from pyspark import SparkContext  # noqa: PLC0415

        here = self.context
        spark_context: Any = SparkContext
        check = spark_context._ensure_initialized

        def make_way(instance: Any = None, **others: Any) -> None:
            if instance is not None:
                # Also when it cannot be made, and would stop what it is made of.
                instance.stop = _leave_running
                if spark_context._active_spark_context is here:
                    spark_context._active_spark_context = None
            check(instance, **others)

        spark_context._ensure_initialized = make_way
        try:
            made = job.build_context(self.gateway, self.java_context, here._conf)
        finally:
            spark_context._ensure_initialized = check
            spark_context._active_spark_context = spark_context._active_spark_context or here
        self._adopt(spark_context._active_spark_context)
        return made

    def _adopt(self, context: Any) -> None:
        """Take a SparkContext that a job made; its tasks see the job's code as those of ours did."""
        if context is not self.context:
            context.environment.update(self.context.environment)
            context._python_includes = self.context._python_includes
            self.context, self._session = context, None

    def use_class_path(self, includes: list[str], pool: str | None) -> None:
        """Give this process's tasks a class path, and Python workers that serve no other one."""
        self.context._python_includes = [*includes, *(self.context._python_includes or [])]
        if pool is not None:
            self.context.environment[POOL_VARIABLE] = pool


def _leave_running() -> None:
    print("stop() does nothing in a job: the context belongs to the job server", file=sys.stderr)


def _sql_context(context: Any, session: Any, *, hive: bool) -> Any:
    import warnings  # noqa: PLC0415

    from pyspark.sql import HiveContext, SQLContext  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what such contexts promise
        if not hive:
            return SQLContext(context, session)
        try:
            return HiveContext(context, session)
        except TypeError:  # Spark 3.5 makes its own session when it is given none
            return HiveContext(context)


def _spare_numpy() -> None:
    """Keep PySpark from importing numpy and pandas, a third of a second, to convert what is not theirs."""
    from pyspark.sql import types  # noqa: PLC0415

    for name in ("NumpyScalarConverter", "NumpyArrayConverter"):
        converter = getattr(types, name, None)
        if converter is not None and not hasattr(converter, "asked"):
            converter.asked = converter.can_convert
            converter.can_convert = lambda self, obj: "numpy" in sys.modules and self.asked(obj)
