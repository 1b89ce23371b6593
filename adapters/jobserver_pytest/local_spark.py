"""A Spark in the process of the tests, which starts when a job first uses it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from jobserver_pyspark.installation.java import find_java
from jobserver_pyspark.runner.attachment import leave_running

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_CONF = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
}


class LocalSpark:
    """Starts Spark at most once, with two cores of this machine, and stops it at the end of all tests.

    If the process has a SparkContext already, for example that of a project's own fixture, it is used
    and left running.
    """

    def __init__(self, directories: pytest.TempPathFactory) -> None:
        self._directories = directories
        self._base: SparkSession | None = None
        self._owned = False

    def session(self) -> SparkSession:
        """Return a new SparkSession, with temporary views and SQL settings of its own.

        Raises:
            JavaNotFound: No Java can run Spark.
            ModuleNotFoundError: PySpark is not installed.
        """
        if self._base is None or self._base.sparkContext._jsc is None:
            self._base = self._start()
        session = self._base.newSession()
        if self._owned:  # so that workers import what the tests import, whatever put it on the path
            session.sparkContext.environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        session.stop = leave_running  # type: ignore[method-assign] # it is not the job's
        return session

    def close(self) -> None:
        """Stop Spark and end its JVM, if it was started here. Idempotent."""
        base, self._base = self._base, None
        if base is None or not self._owned:
            return
        from pyspark import SparkContext  # noqa: PLC0415 - it is imported by now

        context_class: Any = SparkContext
        base.stop()
        gateway = context_class._gateway
        context_class._gateway = context_class._jvm = None
        gateway.shutdown()
        gateway.proc.stdin.close()  # its JVM ends with this pipe
        gateway.proc.wait()

    def _start(self) -> SparkSession:
        from pyspark import SparkContext  # noqa: PLC0415 - a second, which most tests do not need
        from pyspark.sql import SparkSession  # noqa: PLC0415

        context_class: Any = SparkContext
        builder: Any = SparkSession.builder
        self._owned = context_class._active_spark_context is None
        if not self._owned:
            existing: SparkSession = builder.getOrCreate()
            return existing
        os.environ.setdefault("JAVA_HOME", str(find_java().home))
        warehouse = self._directories.mktemp("warehouse")
        builder = builder.master("local[2]").appName("run_job")
        for key, value in {**_CONF, "spark.sql.warehouse.dir": str(warehouse)}.items():
            builder = builder.config(key, value)
        session: SparkSession = builder.getOrCreate()
        return session


class Lazy:
    """Stands for an object that is created at the first access to one of its attributes.

    ``isinstance`` looks at ``__class__``, so it sees the class of the real object.
    """

    def __init__(self, create: Callable[[], object]) -> None:
        object.__setattr__(self, "_create", create)
        object.__setattr__(self, "_created", None)

    def _real(self) -> Any:
        if object.__getattribute__(self, "_created") is None:
            object.__setattr__(self, "_created", object.__getattribute__(self, "_create")())
        return object.__getattribute__(self, "_created")

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._real())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._real(), name, value)
