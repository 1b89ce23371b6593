"""A pytest plugin to test jobs, and services that submit jobs.

It is loaded only where a project asks for it: ``pytest_plugins = ["jobserver_pytest"]`` in the top
``conftest.py``, or ``pytest -p jobserver_pytest``. Nothing of Spark is imported or started until a test uses
it, and no fixture needs an uploaded archive.

- `run_job` runs the class of a job alone, in the process and the thread of the test.
- `job_server` is a server in memory, whose jobs are Python functions.
- `callback_sink` receives the callbacks of both servers.
- `manual_clock` is the clock of `job_server`, in a test that asks for it.
- `spark_job_server` is a server on real Spark, shared by all tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobserver_core import Settings
from jobserver_core.memory import MemoryTransport
from jobserver_core.testing.clock import ManualClock
from jobserver_core.testing.server import InMemoryJobServer
from jobserver_pytest.job_runner import JobRunner
from jobserver_pytest.local_spark import LocalSpark
from jobserver_pytest.runtime import FakeNamedObjects, FakeRuntime
from jobserver_pytest.spark_server import SCHEMES, CallbackRelay, SparkJobServer

__all__ = [
    "FakeNamedObjects",
    "FakeRuntime",
    "InMemoryJobServer",
    "JobRunner",
    "LocalSpark",
    "SparkJobServer",
    "callback_sink",
    "job_server",
    "job_server_settings",
    "manual_clock",
    "run_job",
    "spark_job_server",
    "spark_job_server_settings",
]


@pytest.fixture(scope="session")
def _local_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSpark]:
    spark = LocalSpark(tmp_path_factory)
    yield spark
    spark.close()


@pytest.fixture
def run_job(_local_spark: LocalSpark) -> JobRunner:
    """Run the class of a job alone, and return its result as a client would get it: see `JobRunner`.

    ::

        def test_words_are_counted(run_job):
            assert run_job(WordCount, 'input.string = "a b a"') == {"a": 2, "b": 1}
    """
    return JobRunner(_local_spark)


@pytest.fixture
def manual_clock() -> ManualClock:
    """The clock of `job_server`, which moves only with ``manual_clock.advance(seconds)``.

    In a test that does not ask for it, the server has the clock of the system.
    """
    return ManualClock()


@pytest.fixture
def callback_sink() -> MemoryTransport:
    """Receive the callbacks of `job_server` and `spark_job_server` without a network.

    ``callback_sink.bodies(1)`` waits for a callback, ``callback_sink.answer(url, 503)`` plans a response, and
    ``callback_sink.pass_on("call:billing", function)`` lets a function receive those of a ``call:`` URL.
    """
    return MemoryTransport(schemes=SCHEMES)


@pytest.fixture
def job_server_settings() -> Settings:
    """The settings of `job_server`: the defaults. Override this fixture to change them."""
    return Settings()


@pytest.fixture
def job_server(
    request: pytest.FixtureRequest, job_server_settings: Settings, callback_sink: MemoryTransport
) -> Iterator[InMemoryJobServer]:
    """A new server in memory. Its jobs are Python functions, which the test defines.

    ::

        def test_sales_are_reported(job_server):
            job_server.define("reports.Sales", lambda job: {"sold": 3})
            assert my_service(job_server).report("monday") == "3 sold"
    """
    on_manual_clock = "manual_clock" in request.fixturenames
    with InMemoryJobServer.in_memory(
        settings=job_server_settings,
        transports=[callback_sink],
        clock=request.getfixturevalue("manual_clock") if on_manual_clock else None,
    ) as server:
        yield server


@pytest.fixture(scope="session")
def spark_job_server_settings() -> Settings:
    """The settings of `spark_job_server`: two cores of this machine, and five minutes to start a context.

    Override this fixture to change them.
    """
    return Settings.from_mapping(
        {"spark": {"master": "local[2]"}, "jobserver": {"contexts": {"creation-timeout": "5 minutes"}}}
    )


@pytest.fixture(scope="session")
def _spark_job_server(
    spark_job_server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SparkJobServer, CallbackRelay]]:
    relay = CallbackRelay()
    directory = tmp_path_factory.mktemp("spark-job-server")
    with SparkJobServer.create(spark_job_server_settings, directory, relay) as server:
        yield server, relay


@pytest.fixture
def spark_job_server(
    _spark_job_server: tuple[SparkJobServer, CallbackRelay], callback_sink: MemoryTransport
) -> Iterator[SparkJobServer]:
    """A server that runs jobs on real Spark, as in production. All tests of a session share it.

    ::

        def test_the_job_runs_on_a_server(spark_job_server):
            assert spark_job_server.run(WordCount, 'input.string = "a a"') == {"a": 2}
    """
    server, relay = _spark_job_server
    with relay.to(callback_sink):
        yield server
