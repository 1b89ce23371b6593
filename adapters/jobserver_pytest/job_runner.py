"""Runs the class of a job alone, as a server would run it, but in the process of the test.

The steps and the rules are those of the process that runs jobs on a server, and so is the code: parsing the
configuration, merging it with the context's settings, validation, and the conversion of the result to JSON.
What is missing is everything around: processes, the network, storage, limits on time and size. The job
runs on the thread of the test, so debuggers, ``monkeypatch``, ``capsys`` and coverage work.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, TracebackType
from typing import TYPE_CHECKING

from jobserver_core import ErrorInfo, JobFailed, JobServerError, Settings, results
from jobserver_core.config.trees import as_objects
from jobserver_core.models.arguments import check_config, check_kind, check_settings
from jobserver_core.models.failures import FailureKind
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject, dumps, loads
from jobserver_core.results import UnusableResult
from jobserver_core.running.jobs import JobConfigs
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.protocol.messages import ContextType
from jobserver_pyspark.runner import config_trees
from jobserver_pyspark.runner.attachment import leave_running, sql_context
from jobserver_pyspark.runner.job_class import JobObject, new_job, raised, validate
from jobserver_pytest.local_spark import Lazy, LocalSpark
from jobserver_pytest.runtime import FakeNamedObjects, FakeRuntime

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_OWN_DIRECTORIES = tuple(
    f"{Path(file).parent}{os.sep}" for file in (__file__, config_trees.__file__, results.__file__)
)
"""Frames of files in these directories are those of the plugin and of the process that runs jobs."""


class JobRunner:
    """Runs job classes, as if they ran in one context: they share a session and :attr:`named_objects`.

    Call it with a class. Spark starts when a job first uses it. A job that does not use Spark needs none, not
    even PySpark. Each test has a new session and no named objects; it finds tables and cached data of others.
    """

    def __init__(self, spark: LocalSpark) -> None:
        self.named_objects = FakeNamedObjects()
        self._spark = spark
        self._session: SparkSession | None = None
        self._numbers = itertools.count(1)

    def __call__(
        self,
        job_class: type,
        config: str | JsonMapping = "",
        *,
        context: object = None,
        context_settings: JsonMapping | None = None,
        data_files: Mapping[str, Path] | None = None,
    ) -> Json:
        """Validate the configuration, run the job, and return its result as a client would get it.

        The result went through JSON: tuples have become lists, dates have become strings, and so on.
        A streamed result is returned as bytes.

        Args:
            job_class: The class, which needs ``validate`` and ``run_job``.
            config: HOCON, JSON or a mapping, as in a request.
            context: What the job gets as its first argument, for example a session of your own or a fake. By
                default the type of the context decides, as on a server.
            context_settings: The settings of the context. ``context-factory`` is its type; the others
                are in the configuration and in ``runtime.contextConfig``, but do not configure Spark.
            data_files: What ``runtime.data_file`` returns, by name.

        Raises:
            JobFailed: The job refused its configuration, raised an exception, which is the cause of this
                one, or its result has no JSON form. ``failure`` is the kind.
            InvalidConfig: The configuration is not HOCON or a mapping, or exceeds a limit.
            InvalidRequest: ``context_settings`` or ``data_files`` is not a mapping.
            InvalidSetting: No context could be created with these settings.
        """
        __tracebackhide__ = True
        check_config(config)
        check_settings({} if context_settings is None else context_settings, "context_settings")
        check_kind("data_files", data_files, (Mapping, NoneType), "a mapping of names to paths")
        try:
            return self._run(job_class, config, context, dict(context_settings or {}), dict(data_files or {}))
        except JobServerError as error:
            raise error.with_traceback(None)  # noqa: B904 - it is the same error, with the test's frames alone

    def _run(
        self,
        job_class: type,
        config: str | JsonMapping,
        context: object,
        settings: JsonObject,
        data_files: dict[str, Path],
    ) -> Json:
        job_id = f"test-{next(self._numbers)}"
        context_type = read_settings(settings, default_master="local[2]").context_type
        written = dumps(as_objects(settings), allow_nan=True)
        parsed = JobConfigs(Settings().limits, {}).to_json(config)
        try:
            job = new_job(job_class, getattr(job_class, "__qualname__", repr(job_class)))
            given = self._context(context_type) if context is None else context
            runtime = FakeRuntime(job_id, self.named_objects, config_trees.read(written), data_files)
            tree = config_trees.laid_over(config_trees.read(parsed), config_trees.read(written))
            return _result(job, given, runtime, tree)
        except JobFailure as failure:
            report = failure.error
            info = ErrorInfo(message=report.message, error_class=report.error_class, stack=report.stack)
            error = JobFailed(job_id=job_id, error=info, failure=FailureKind(failure.kind))
            raise error from _without_own_frames(failure.__cause__)
        finally:
            if self._session is not None:  # it may be the project's own Spark, which the project stops
                vars(self._session.sparkContext).pop("stop", None)

    def _context(self, context_type: ContextType) -> object:
        if context_type in ("any", "session"):
            return Lazy(self._own_session)
        if context_type == "spark":
            return Lazy(lambda: self._own_session().sparkContext)
        if context_type in ("sql", "hive"):
            session = self._own_session()
            return sql_context(session.sparkContext, session, hive=context_type == "hive")
        raise JobFailure(
            "wrong-type",
            f"run_job provides no {context_type} context; pass one: run_job(…, context=…)",
        )

    def _own_session(self) -> SparkSession:
        if self._session is None:
            self._session = self._spark.session()
        self._session.sparkContext.stop = leave_running  # type: ignore[method-assign] # it is shared
        return self._session


def _without_own_frames(error: BaseException | None) -> BaseException | None:
    """Leave those frames in the traceback of a job's exception that its author has to see."""
    if error is None:
        return None
    steps, step = [], error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    trace: TracebackType | None = None
    for step in reversed(steps):
        if not step.tb_frame.f_code.co_filename.startswith(_OWN_DIRECTORIES):
            trace = TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return error if trace is None else error.with_traceback(trace)


def _result(job: JobObject, context: object, runtime: FakeRuntime, config: JsonObject) -> Json:
    """Return the result as a client reads it: decoded JSON, or the bytes of a streamed result."""
    data = validate(job, context, runtime, config)
    try:
        stream, chunks = results.opened(results.await_value(job.run_job(context, runtime, data)))
        content = b"".join(chunks)
    except UnusableResult as error:
        raise JobFailure.of_result(job, error) from error
    except BaseException as error:
        raise raised(error, config) from error
    return content if stream else loads(content.decode())
