"""PySpark's objects in a job's process, attached to the context's JVM."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from jobserver_pyspark.java_objects import JavaGateway, JavaObject
from jobserver_pyspark.processes import WORKER_POOL_VARIABLE
from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.protocol.messages import Attach, ContextType
from jobserver_pyspark.runner.jvm_commands import Commands

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession, SQLContext

_REHEARSALS = 3
"""How many small Spark jobs of each kind a spare runs: the JVM compiles the first ones as they run."""


def mute_query_errors() -> None:
    """Keep PySpark from logging each error of a query, with the whole stack of the JVM, before it is raised.

    PySpark does that since version 4, even for an error that the job handles.
    """
    try:
        from pyspark.logger import PySparkLogger  # noqa: PLC0415 - PySpark 3 has none
    except ImportError:
        return
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)


class Attachment:
    """A connection to the context's JVM, and the SparkContext and session made from it.

    The JVM runs a gateway server for this process alone: its threads carry this process's job group, its
    objects are released with it, and its callbacks reach this process. ``on_query`` is called with the id of
    each streaming query that this process starts. If the count of ``commands`` does not change, the JVM is
    not used.

    PySpark asks the JVM about 150 questions here, and most replies are the same for all runners of a context:
    the application's ``conf``, and what the names of Spark's classes stand for (``names``). The first runners
    collect them, and the others get them in advance, which saves most of the time of an attachment. The
    commands that are left are the same too (``script``), so the others send them together.
    """

    def __init__(self, request: Attach, on_query: Callable[[str], None]) -> None:
        from pyspark import SparkConf, SparkContext  # noqa: PLC0415 - the zygote has imported it

        _avoid_numpy()
        self.gateway, imports = _gateway(request.port, request.secret)
        self.commands = Commands(self.gateway._gateway_client, request.names)
        with self.commands.scripted(request.script) as self.script:
            for import_names in imports:
                import_names()
            jvm = self.gateway.jvm
            spark = jvm.org.apache.spark
            spark_context = spark.SparkContext.getOrCreate()
            self.java_context = spark.api.java.JavaSparkContext.fromSparkContext(spark_context)
            live_conf = SparkConf(_jvm=jvm, _jconf=self.java_context.sc().conf())
            with _known_conf(request.conf) as self.conf:
                self.context = SparkContext(gateway=self.gateway, jsc=self.java_context, conf=live_conf)
            _connect_accumulators(self.context)
            self._initial = _InitialState(self.context, self.java_context.sc())
        self.context.stop = leave_running  # type: ignore[method-assign] # the context is not the job's
        self._session: SparkSession | None = None
        _keep_application()
        _report_queries(on_query)

    @property
    def session(self) -> SparkSession:
        """The context's session, which all its jobs share."""
        if self._session is None:
            from pyspark.sql import SparkSession  # noqa: PLC0415

            with self.commands.uncounted():
                self._session = SparkSession(self.context)
            self._session.stop = leave_running  # type: ignore[method-assign] # as for the context
            SparkSession._instantiatedSession = self._session
            self._initial.add(self._session)
        return self._session

    def restore(self, *, used: bool) -> str | None:
        """Restore PySpark's objects after a job; ``used`` says whether the job called the JVM.

        Returns None, or the reason why this is impossible.
        """
        if self.commands.foreign_import is not None:
            return f"the job imported names into its view of the JVM: {self.commands.foreign_import}"
        self._initial.restore_objects()
        if used:
            self._initial.restore_thread(self.gateway.jvm, self._session)
        return None

    def warm_up(self, context_type: ContextType | None) -> None:
        """Start the first Python worker; with a type of context, run what jobs of that type do first."""
        self.context.parallelize([0], 1).map(bool).count()
        for _ in range(_REHEARSALS if context_type else 0):
            numbers = self.context.parallelize(range(4)).map(lambda number: (number % 2, 1))
            numbers.countByKey()
            numbers.reduceByKey(max).collect()
            if context_type not in ("spark", "custom", "streaming"):
                self.session.range(4).groupBy("id").count().collect()

    def prepare(self, context_type: ContextType) -> None:
        """Prepare for the first Spark job of a process: look up classes, pickle a function.

        No Spark job runs; an RDD is only described to the JVM.
        """
        _ = self.context.parallelize([0], 1).map(lambda number: (number, 1)).reduceByKey(max, 1)._jrdd
        if context_type not in ("spark", "custom"):
            _ = self.session.range(1)

    def rename_application(self, name: str) -> None:
        """Use another name of the application from now on."""
        self.context.appName = name
        self._initial.add(self.context)

    def job_context(self, context_type: ContextType, job: object) -> object:
        """Return the context for a job's methods.

        Raises:
            JobFailure: The job does not fit the type of the context.
        """
        if context_type == "spark":
            return self.context
        if context_type in ("session", "any"):
            return self.session
        if context_type in ("sql", "hive"):
            return sql_context(self.context, self.session, hive=context_type == "hive")
        build = getattr(job, "build_context", None)
        if context_type == "custom" and callable(build):
            made = self._build(build)
            if made is not None:
                return made
            message = (
                f"build_context of {type(job).__qualname__} returned None; the context-factory here is "
                "custom, or a class of the user's own, so each Python job must return its own context there"
            )
            raise JobFailure("wrong-type", message)
        raise JobFailure("wrong-type", f"a Python job cannot run in a {context_type} context")

    def _build(self, build: Callable[..., object]) -> object:
        """Return the context that the job builds; its own SparkContext replaces the one of this process."""
        from pyspark import SparkContext  # noqa: PLC0415

        here = self.context
        spark_context: Any = SparkContext
        check = spark_context._ensure_initialized

        def make_way(instance: Any = None, **others: Any) -> None:
            if instance is not None:
                # Also if it cannot be created: PySpark would then stop the context that it is created from.
                instance.stop = leave_running
                if spark_context._active_spark_context is here:
                    spark_context._active_spark_context = None
            check(instance, **others)

        spark_context._ensure_initialized = make_way
        try:
            made = build(self.gateway, self.java_context, here._conf)
        finally:
            spark_context._ensure_initialized = check
            spark_context._active_spark_context = spark_context._active_spark_context or here
        context = spark_context._active_spark_context
        if context is not here:  # the job created it; its tasks get the same class path as ours
            context.environment.update(here.environment)
            context._python_includes = here._python_includes
            _connect_accumulators(context)
            self.context, self._session = context, None
        return made

    def use_class_path(self, includes: Sequence[str], worker_pool: str | None) -> None:
        """Set the class path of this process's tasks, and the worker pool, which serves no other one."""
        self.context._python_includes = [*includes, *(self.context._python_includes or [])]
        if worker_pool is not None:
            self.context.environment[WORKER_POOL_VARIABLE] = worker_pool


class _InitialState:
    """The state of PySpark's objects and of this process's JVM thread before the first job."""

    def __init__(self, context: SparkContext, spark_context: JavaObject) -> None:
        self._context = context
        self._includes = list(context._python_includes or [])
        self._environment = dict(context.environment)
        self._spark_context = spark_context
        self._properties = spark_context.getLocalProperties().clone()
        self._attributes: dict[int, tuple[object, dict[str, object]]] = {}
        self.add(context)

    def add(self, owner: object) -> None:
        """Remember the present attributes of an object that jobs get."""
        self._attributes[id(owner)] = (owner, dict(vars(owner)))

    def restore_objects(self) -> None:
        """Restore the objects in this process: methods and objects that a job replaced. Counters continue."""
        for owner, saved in self._attributes.values():
            names = vars(owner)
            for added in names.keys() - saved.keys():
                del names[added]
            for name, value in saved.items():
                if names.get(name) is not value and not isinstance(value, int):
                    names[name] = value
        self._context._python_includes = [*self._includes]
        self._context.environment.clear()
        self._context.environment.update(self._environment)
        accumulators: Any = importlib.import_module("pyspark.accumulators")
        for number, accumulator in list(accumulators._accumulatorRegistry.items()):
            if number < 0:  # PySpark's own, for profiles
                accumulator._value = {}
            else:
                accumulators._accumulatorRegistry[number] = _FORGOTTEN

    def restore_thread(self, jvm: JavaObject, session: SparkSession | None) -> None:
        """Restore the JVM thread that serves this process's main thread."""
        self._spark_context.setLocalProperties(self._properties.clone())
        if session is None:
            jvm.org.apache.spark.sql.SparkSession.clearActiveSession()
        else:
            jvm.org.apache.spark.sql.SparkSession.setActiveSession(session._jsparkSession)


class _Forgotten:
    """Stands for an accumulator of a job that has ended, and ignores the updates of its late tasks.

    In older versions, such as 3.5, an update of an unknown one ends PySpark's server for those of all jobs.
    """

    def __iadd__(self, _update: object) -> _Forgotten:
        return self


_FORGOTTEN = _Forgotten()


@contextlib.contextmanager
def _known_conf(known: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Let PySpark read a known configuration instead of asking the JVM for each key.

    If it is empty, the result is filled when PySpark reads all of it.
    """
    from pyspark import SparkConf  # noqa: PLC0415 - the zygote has imported it

    conf_class: Any = SparkConf
    conf = dict(known)
    saved = {name: getattr(conf_class, name) for name in ("get", "getAll", "contains")}

    def get_all(asked: Any) -> list[tuple[str, str]]:
        if not known:
            conf.update(saved["getAll"](asked))
        return list(conf.items())

    conf_class.getAll = get_all
    if known:
        conf_class.get = lambda _conf, key, defaultValue=None: conf.get(key, defaultValue)  # noqa: N803
        conf_class.contains = lambda _conf, key: key in conf
    try:
        yield conf
    finally:
        for name, method in saved.items():
            setattr(conf_class, name, method)


def _gateway(port: int, secret: str) -> tuple[JavaGateway, list[Callable[[], None]]]:
    """Return PySpark's gateway to the JVM, and what imports the names that PySpark uses."""
    java_gateway: Any = importlib.import_module("pyspark.java_gateway")
    imports: list[Callable[[], None]] = []
    import_now = java_gateway.java_import
    os.environ["PYSPARK_GATEWAY_PORT"] = str(port)
    os.environ["PYSPARK_GATEWAY_SECRET"] = secret
    java_gateway.java_import = lambda view, name: imports.append(partial(import_now, view, name))
    try:
        return java_gateway.launch_gateway(), imports
    finally:
        java_gateway.java_import = import_now
        del os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]


def _connect_accumulators(context: SparkContext) -> None:
    """Connect the JVM with this process's server for accumulators, by an update without values.

    Spark would connect when the first task ends, on the one thread that schedules the tasks of all jobs, and
    wait for the reply. The server serves only the first connection: if a stranger were connected, all jobs
    would wait. If this process had ended by then, another one could listen on its port.
    """
    context._javaAccumulator.merge(context._javaAccumulator)


def _report_queries(on_query: Callable[[str], None]) -> None:
    from pyspark.sql.streaming.readwriter import DataStreamWriter  # noqa: PLC0415 - imported already

    writer_class: Any = DataStreamWriter
    original = writer_class._sq

    def started(writer: Any, query: Any) -> Any:
        on_query(str(query.id()))
        return original(writer, query)

    writer_class._sq = started


def _keep_application() -> None:
    """Prevent a job that stops its StreamingContext from stopping the application, PySpark's default."""
    from pyspark.streaming import StreamingContext  # noqa: PLC0415 - the zygote has imported it

    streaming_class: Any = StreamingContext
    original = streaming_class.stop

    def stop(streaming: Any, stopSparkContext: bool = True, stopGraceFully: bool = False) -> None:  # noqa: N803
        original(streaming, False, stopGraceFully)

    streaming_class.stop = stop


def leave_running() -> None:
    """Say that a job does not stop its context; the ``stop`` of what jobs get."""
    print("stop() does nothing in a job: the context belongs to the job server", file=sys.stderr)


def sql_context(context: SparkContext, session: SparkSession, *, hive: bool) -> SQLContext:
    """Return the ``SQLContext`` or ``HiveContext`` that jobs of these types of context get."""
    from pyspark.sql import HiveContext, SQLContext  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but such contexts promise it
        if not hive:
            return SQLContext(context, session)
        try:
            return HiveContext(context, session)
        except TypeError:  # Spark 3.5 makes its own session
            return HiveContext(context)


def _avoid_numpy() -> None:
    """Prevent PySpark from importing numpy and pandas (0.3 s) to convert values of other types."""
    from pyspark.sql import types  # noqa: PLC0415

    for name in ("NumpyScalarConverter", "NumpyArrayConverter"):
        converter = getattr(types, name, None)
        if converter is not None and not hasattr(converter, "original"):
            converter.original = converter.can_convert
            converter.can_convert = lambda self, obj: "numpy" in sys.modules and self.original(obj)
