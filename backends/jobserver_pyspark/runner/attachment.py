"""PySpark's objects in a job's process, attached to the context's JVM."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobserver_pyspark.processes import POOL_VARIABLE
from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.protocol.messages import ContextType
from jobserver_pyspark.runner.job_class import WRONG_TYPE

_Attributes = dict[str, object]
_REHEARSALS = 3
_REFLECTION = "r\n"
"""The beginning of py4j's commands that ask what a name stands for."""
_CLASS_OR_METHOD = ("yc", "ym")
_PACKAGE = "yp"
"""The beginnings of their answers."""
_ROOTS = ("java", "scala", "org", "org.apache", "org.apache.spark")
_LASTING_PACKAGES = ("java.", "scala.", "org.apache.spark.")
_IMPORT = "j\n"
"""The beginning of py4j's commands that import names."""
_VIEW_CHANGES = ("j\ni\nrj\n", "j\nr\nrj\n")
"""The beginnings of those that change what names stand for in the view that all code of a process shares."""
_SPARK = "org.apache.spark."
"""What PySpark's own imports begin with, for example those of streaming queries."""
_RELEASE = "m\nd\n"
"""The beginning of py4j's command that releases an object in the JVM."""


class Attachment:
    """A connection to the context's JVM, and the SparkContext and session made from it.

    ``port`` and ``secret`` are those of a gateway server that the JVM runs for this process alone: its
    threads carry this process's job group, its objects are released with it, and its callbacks reach this
    process.

    PySpark asks the JVM about 150 questions here, and most answers are the same for all runners of a context:
    the application's ``conf``, and what the names of Spark's classes stand for (``names``). The first runners
    collect them, and the others get them in advance, which saves most of the time of an attachment.
    """

    def __init__(self, port: int, secret: str, conf: Mapping[str, str], names: Mapping[str, str]) -> None:
        from pyspark import SparkConf, SparkContext  # noqa: PLC0415 - the zygote has imported it

        java_gateway: Any = importlib.import_module("pyspark.java_gateway")
        _avoid_numpy()
        os.environ["PYSPARK_GATEWAY_PORT"] = str(port)
        os.environ["PYSPARK_GATEWAY_SECRET"] = secret
        try:
            self.gateway = java_gateway.launch_gateway()
        finally:
            del os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]
        self._commands = Commands(self.gateway._gateway_client, names)
        jvm = self.gateway.jvm
        spark = jvm.org.apache.spark
        spark_context = spark.SparkContext.getOrCreate()
        self.java_context = spark.api.java.JavaSparkContext.fromSparkContext(spark_context)
        live_conf = SparkConf(_jvm=jvm, _jconf=self.java_context.sc().conf())
        with _known_conf(conf) as self.conf:
            self.context = SparkContext(gateway=self.gateway, jsc=self.java_context, conf=live_conf)
        self.context.stop = leave_running  # type: ignore[method-assign] # the context is not the job's
        self._session: Any = None
        self._on_query: Callable[[str], None] = _ignore
        self._initial = _InitialState(self.context, self.java_context.sc())
        self.keep_application()

    @property
    def session(self) -> Any:
        """The context's session, which all its jobs share."""
        if self._session is None:
            from pyspark.sql import SparkSession  # noqa: PLC0415

            with self._commands.uncounted():
                self._session = SparkSession(self.context)
            self._session.stop = leave_running
            SparkSession._instantiatedSession = self._session
            self._initial.add(self._session)
        return self._session

    @property
    def commands(self) -> int:
        """The number of commands sent to the JVM; if it did not change, the JVM was not used."""
        return self._commands.count

    def new_names(self) -> dict[str, str]:
        """Return the answers about names that were not known in advance and not returned before."""
        return self._commands.new_names()

    def report_queries(self, report: Callable[[str], None]) -> None:
        """Call ``report`` with the id of each streaming query that this process starts."""
        if self._on_query is _ignore:
            self._watch_queries()
        self._on_query = report

    def _watch_queries(self) -> None:
        from pyspark.sql.streaming.readwriter import DataStreamWriter  # noqa: PLC0415

        writer_class: Any = DataStreamWriter
        original = writer_class._sq

        def started(writer: Any, query: Any) -> Any:
            self._on_query(str(query.id()))
            return original(writer, query)

        writer_class._sq = started

    def restore(self, *, used: bool) -> str | None:
        """Restore PySpark's objects after a job; ``used`` says whether the job called the JVM.

        Returns None, or the reason why this is impossible.
        """
        if self._commands.foreign_import is not None:
            return f"the job imported names into its view of the JVM: {self._commands.foreign_import}"
        self._initial.restore_objects()
        if used:
            self._initial.restore_thread(self.gateway.jvm, self._session)
        return None

    def keep_application(self) -> None:
        """Prevent a job that stops its StreamingContext from stopping the application, PySpark's default."""
        from pyspark.streaming import StreamingContext  # noqa: PLC0415 - the zygote has imported it

        streaming_class: Any = StreamingContext
        original = streaming_class.stop

        def stop(streaming: Any, stopSparkContext: bool = True, stopGraceFully: bool = False) -> None:  # noqa: N803
            original(streaming, False, stopGraceFully)

        streaming_class.stop = stop

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

    def job_context(self, context_type: ContextType, job: Any) -> Any:
        """Return the context for a job's methods.

        Raises JobFailure for a job that does not fit the type of the context.
        """
        if context_type == "spark":
            return self.context
        if context_type in ("session", "any"):
            return self.session
        if context_type in ("sql", "hive"):
            return sql_context(self.context, self.session, hive=context_type == "hive")
        if context_type == "custom" and callable(getattr(job, "build_context", None)):
            made = self._built_by(job)
            if made is not None:
                return made
            raise JobFailure("wrong-type", WRONG_TYPE, stack="build_context returned None")
        raise JobFailure(
            "wrong-type", WRONG_TYPE, stack=f"a Python job cannot run in a {context_type} context"
        )

    def _built_by(self, job: Any) -> Any:
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
            made = job.build_context(self.gateway, self.java_context, here._conf)
        finally:
            spark_context._ensure_initialized = check
            spark_context._active_spark_context = spark_context._active_spark_context or here
        self._adopt(spark_context._active_spark_context)
        return made

    def _adopt(self, context: Any) -> None:
        """Use a SparkContext that a job created; its tasks get the same class path as ours."""
        if context is not self.context:
            context.environment.update(self.context.environment)
            context._python_includes = self.context._python_includes
            self.context, self._session = context, None

    def use_class_path(self, includes: Sequence[str], pool: str | None) -> None:
        """Set the class path of this process's tasks, and the Python workers that serve no other one."""
        self.context._python_includes = [*includes, *(self.context._python_includes or [])]
        if pool is not None:
            self.context.environment[POOL_VARIABLE] = pool


class _InitialState:
    """The state of PySpark's objects and of this process's JVM thread before the first job."""

    def __init__(self, context: Any, spark_context: Any) -> None:
        self._context = context
        self._includes = list(context._python_includes or [])
        self._environment = dict(context.environment)
        self._spark_context = spark_context
        self._properties = spark_context.getLocalProperties().clone()
        self._attributes: dict[int, tuple[Any, _Attributes]] = {}
        self.add(context)

    def add(self, owner: Any) -> None:
        """Remember the present attributes of an object that jobs get."""
        self._attributes[id(owner)] = (owner, dict(vars(owner)))

    def restore_objects(self) -> None:
        """Restore the objects in this process."""
        for owner, saved in self._attributes.values():
            _restore_attributes(owner, saved)
        self._context._python_includes = [*self._includes]
        self._context.environment.clear()
        self._context.environment.update(self._environment)
        accumulators: Any = importlib.import_module("pyspark.accumulators")
        accumulators._accumulatorRegistry.clear()

    def restore_thread(self, jvm: Any, session: Any) -> None:
        """Restore the JVM thread that serves this process's main thread."""
        self._spark_context.setLocalProperties(self._properties.clone())
        if session is None:
            jvm.org.apache.spark.sql.SparkSession.clearActiveSession()
        else:
            jvm.org.apache.spark.sql.SparkSession.setActiveSession(session._jsparkSession)


def _restore_attributes(owner: Any, saved: _Attributes) -> None:
    """Restore methods and objects that a job replaced; counters continue."""
    names = vars(owner)
    for added in names.keys() - saved.keys():
        del names[added]
    for name, value in saved.items():
        if names.get(name) is not value and not isinstance(value, int):
            names[name] = value


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


class Commands:
    """The commands that are sent to the JVM: counted, except for the release of garbage.

    Most questions about names are not sent. py4j asks the JVM what a name such as ``PythonRDD`` stands for
    each time that PySpark uses it, and the JVM searches its whole class path for it in every imported
    package, which takes longer than most calls. So an answer is remembered if it cannot change: that the name
    is a class, a method of one, or a package of Java or Spark. The loaders of added jars ask their parents
    first, so a class that was found stays the same. A name that stands for nothing is asked again, because a
    jar with it may come, and so is the value of a field. When a job imports names, which may change what a
    short one stands for, all is forgotten. ``foreign_import`` is the name of such an import, unless it is one
    of Spark's: it lasts as long as the connection.
    """

    def __init__(self, client: Any, names: Mapping[str, str]) -> None:
        self._send = client.send_command
        self._names = dict(names)
        self._new: dict[str, str] = {}
        self.count = 0
        self.foreign_import: str | None = None
        client.send_command = self

    def __call__(self, command: str, *args: Any, **options: Any) -> Any:
        """Return the JVM's answer."""
        if command in self._names:
            return self._names[command]
        if command.startswith(_IMPORT):
            self._names.clear()
        if command.startswith(_VIEW_CHANGES) and not (name := command.split("\n", 4)[3]).startswith(_SPARK):
            self.foreign_import = name
        if not command.startswith(_RELEASE):
            self.count += 1
        answer = self._send(command, *args, **options)
        if command.startswith(_REFLECTION) and _is_final(command, answer):
            self._names[command] = self._new[command] = answer
        return answer

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count no command inside the block."""
        before = self.count
        try:
            yield
        finally:
            self.count = before

    def new_names(self) -> dict[str, str]:
        """Return the remembered answers that were neither given in advance nor returned before."""
        new, self._new = self._new, {}
        return new


def _is_final(command: str, answer: str) -> bool:
    """Whether the JVM would always give this answer about a name."""
    if answer.startswith(_PACKAGE):
        name = command.split("\n", 3)[2]
        return name in _ROOTS or (name.startswith(_LASTING_PACKAGES) and name.rpartition(".")[2].islower())
    return answer.startswith(_CLASS_OR_METHOD)


def _ignore(_query_id: str) -> None:
    pass


def leave_running() -> None:
    """Say that a job does not stop its context; the ``stop`` of what jobs get."""
    print("stop() does nothing in a job: the context belongs to the job server", file=sys.stderr)


def sql_context(context: Any, session: Any, *, hive: bool) -> Any:
    """Return the ``SQLContext`` or ``HiveContext`` that jobs of these types of context get."""
    import warnings  # noqa: PLC0415

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
