"""Named objects, which the Python and JVM jobs of one context share.

They live in a plain ``java.util.concurrent.ConcurrentHashMap`` among the *system properties* of the context's
JVM, under the key ``jobserver.namedObjects``: reachable through any gateway connection to that JVM, with no
compiled code at all.

The map's layout, which ``NamedObjectTable.scala`` shares::

    name (str) -> CompletableFuture[ java.util.HashMap ]

A future that is not done is an object that is being created: its readers wait. The map in it has

============= ==========================================================================================
``kind``      ``dataframe``, ``rdd``, ``python-rdd``, ``broadcast``, ``object``
``value``     the JVM object that Python can use: a ``Dataset``, a ``JavaRDD`` of plain Java values; for
              ``python-rdd`` one of pickled lists (``AutoBatchedSerializer(CPickleSerializer())``)
``object``    what a JVM job gets: its ``NamedDataFrame``, ``NamedRDD``, …; absent when Python made the entry
``source``    for ``rdd`` and ``python-rdd``: the ``JavaRDD`` that the job itself had, cached or not
``job``       the id of the job that made it
``classPath`` the class path of the JVM job that made it; absent for Python
============= ==========================================================================================

A second map, ``jobserver.namedObjects.creators``, has the futures of objects that are being created, under
the id of the job, a blank, and the name. A job puts its future there *before* it puts it into the first map:
if the job is killed at any moment, :func:`abandon` finds what its readers wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from jobserver_core.errors import LaunchError
from jobserver_pyspark.java_objects import JavaObject

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

TABLE_KEY = "jobserver.namedObjects"
CREATORS_KEY = "jobserver.namedObjects.creators"


class NamedObjectTimeout(LaunchError):
    """Another job is making the object and did not finish in time."""


class UnsupportedNamedObject(LaunchError):
    """Not an object that jobs can share through a JVM."""


@attrs.define
class NamedObjects:
    """The named objects of a context, as one Python job sees them.

    ``session`` is the job's PySpark ``SparkSession``, attached to the context's JVM. DataFrames, RDDs and
    objects of the JVM (``py4j`` proxies) can be shared. ``timeout`` is in seconds.
    """

    session: SparkSession
    job_id: str
    timeout: float = 60.0

    def get(self, name: str) -> Any | None:
        """Return the object of this name, or None. Waits for one that is being made."""
        future = self._existing(name)
        return None if future is None else self._from_entry(self._await(name, future))

    def get_or_else_create(self, name: str, make: Callable[[], T]) -> T:
        """Return the object of this name; if there is none, make it with ``make``, once for all callers."""
        other = self._existing(name)
        if other is None:
            with self._creating(name) as mine:
                other = self._table().putIfAbsent(name, mine)
                if other is None:
                    return self._fill(name, mine, make)
        existing: T = self._from_entry(self._await(name, other))
        return existing

    def update(self, name: str, make: T | Callable[[], T]) -> T:
        """Replace the object of this name with ``make``, or with its return value if it is callable."""
        with self._creating(name) as mine:
            self._table().put(name, mine)
            return self._fill(name, mine, make if callable(make) else lambda: make)

    def forget(self, name: str) -> None:
        """Forget the name, and leave the object unchanged."""
        self._table().remove(name)

    def destroy(self, name: str) -> None:
        """Forget the name and free the object's resources in the cluster."""
        future = self._table().remove(name)
        if future is not None and _made(future):
            entry = future.get()
            if entry["kind"] != "object":
                entry["value"].unpersist(False)
            if entry["kind"] in {"rdd", "python-rdd"}:
                entry["source"].unpersist(False)

    def get_names(self) -> list[str]:
        table = self._table()
        return sorted(name for name in table.keySet().toArray() if (f := table.get(name)) and _made(f))

    def _existing(self, name: str) -> JavaObject | None:
        """Return the future of this name, if there is one.

        The last call of a killed job may arrive after :func:`abandon`, so a cancelled future can be there.
        """
        future: JavaObject | None = self._table().get(name)
        if future is not None and future.isCancelled():
            self._table().remove(name, future)
            return None
        return future

    @contextmanager
    def _creating(self, name: str) -> Iterator[JavaObject]:
        """Yield a new future, which :func:`abandon` cancels if this job ends within the block."""
        future = self._jvm().java.util.concurrent.CompletableFuture()
        key = _creator_key(self.job_id, name)
        self._creators().put(key, future)
        try:
            yield future
        finally:
            self._creators().remove(key, future)

    def _fill(self, name: str, future: JavaObject, make: Callable[[], T]) -> T:
        try:
            made = make()
            future.complete(self._to_entry(made))
        except BaseException:
            self._table().remove(name, future)
            concurrent = self._jvm().java.util.concurrent
            error = concurrent.CancellationException(f"named object {name} could not be created")
            future.completeExceptionally(error)
            raise
        return made

    def _await(self, name: str, future: JavaObject) -> Any:
        unit = self._jvm().java.util.concurrent.TimeUnit.MILLISECONDS
        from py4j.protocol import Py4JJavaError  # noqa: PLC0415 - nothing of PySpark before a job wants it

        try:
            return future.get(int(self.timeout * 1000), unit)
        except Py4JJavaError as error:
            if error.java_exception.getClass().getSimpleName() != "TimeoutException":
                raise
            message = f"named object {name!r} was not created within {self.timeout:g} seconds"
            raise NamedObjectTimeout(message=message) from error

    def _to_entry(self, made: Any) -> JavaObject:
        kind = kind_of(made)
        fields = {"kind": kind, "value": made, "job": self.job_id}
        if kind == "dataframe":
            fields["value"] = made._jdf
        elif kind == "python-rdd":
            # One known form for every job, independent of this RDD's own serializer.
            fields |= {"value": made._pickled()._jrdd, "source": made._jrdd}
        entry: JavaObject = self._jvm().java.util.HashMap()
        for key, content in fields.items():
            entry.put(key, content)
        return entry

    def _from_entry(self, entry: Any) -> Any:
        from pyspark import RDD  # noqa: PLC0415 - nothing of PySpark before a job wants it
        from pyspark.serializers import AutoBatchedSerializer, CPickleSerializer  # noqa: PLC0415
        from pyspark.sql import DataFrame  # noqa: PLC0415

        kind, value = entry["kind"], entry["value"]
        if kind == "dataframe":
            return DataFrame(value, self.session)
        if kind not in {"rdd", "python-rdd"}:
            return value
        if kind == "rdd":
            value = self._jvm().org.apache.spark.api.python.SerDeUtil.javaToPython(value)
        batched: Any = AutoBatchedSerializer  # PySpark leaves it untyped
        return RDD(value, self.session.sparkContext, batched(CPickleSerializer()))

    def _jvm(self) -> JavaObject:
        jvm: JavaObject | None = self.session.sparkContext._jvm
        assert jvm is not None  # the context is attached
        return jvm

    def _table(self) -> JavaObject:
        return _shared_map(self._jvm(), TABLE_KEY)

    def _creators(self) -> JavaObject:
        return _shared_map(self._jvm(), CREATORS_KEY)


def abandon(jvm: JavaObject, job_id: str) -> None:
    """Wake the waiters for objects that a job was creating when it ended or was killed.

    For the context host, with the gateway's ``jvm``, after each job.
    """
    creators, table = _shared_map(jvm, CREATORS_KEY), _shared_map(jvm, TABLE_KEY)
    prefix = _creator_key(job_id, "")
    for key in list(creators.keySet().toArray()):
        future = creators.remove(key) if key.startswith(prefix) else None
        if future is not None and future.cancel(True):
            table.remove(key.removeprefix(prefix), future)


def _creator_key(job_id: str, name: str) -> str:
    return f"{job_id} {name}"


def _shared_map(jvm: JavaObject, key: str) -> JavaObject:
    # `putIfAbsent` on the properties is atomic, as their table is locked by itself.
    properties = jvm.java.lang.System.getProperties()
    properties.putIfAbsent(key, jvm.java.util.concurrent.ConcurrentHashMap())
    found: JavaObject = properties.get(key)
    return found


def _made(future: JavaObject) -> bool:
    return bool(future.isDone()) and not future.isCompletedExceptionally()


def kind_of(made: object) -> Literal["dataframe", "python-rdd", "object"]:
    """Return the kind of an object that jobs can share.

    Raises:
        UnsupportedNamedObject: Jobs cannot share it.
    """
    from py4j.java_gateway import JavaObject  # noqa: PLC0415 - nothing of PySpark before a job wants it
    from pyspark import RDD  # noqa: PLC0415
    from pyspark.sql import DataFrame  # noqa: PLC0415

    if isinstance(made, DataFrame):
        return "dataframe"
    if isinstance(made, RDD):
        return "python-rdd"
    if isinstance(made, JavaObject):
        return "object"
    kind = type(made).__name__
    raise UnsupportedNamedObject(
        message=f"a named object must be a DataFrame, an RDD or an object of the JVM, not {kind}"
    )
