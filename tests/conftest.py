"""What all tests share."""

import importlib.util
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

# Quick by default, thorough in full runs; failures are shrunk in both.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=150, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Programs started in the background may ignore Ctrl-C, and those that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["jobserver_pytest"]
pytest.register_assert_rewrite("jobserver_core.testing", "master_suite", "several_servers_suite")

from jobserver_sql import testing  # noqa: E402 - after the line above


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Remove the log handlers of a command, because its stream is closed after the test."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Prepare the cache of all tests on Spark, as ``jobserver prepare`` does; it is kept for the next run.

    Contexts then start in half the time, and no test compiles what another one has compiled. This is not a
    fixture, because it would take its time from the timeout of the first test.
    """
    on_spark = any(item.get_closest_marker("spark") for item in session.items)
    if session.config.option.collectonly or not on_spark or importlib.util.find_spec("pyspark") is None:
        return
    from jobserver_core.errors import LaunchError
    from jobserver_pyspark import PySparkLauncher

    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache")
    with TemporaryDirectory(prefix="js") as directory, closing(PySparkLauncher(Path(directory))) as launcher:
        try:
            launcher.prepare()
        except LaunchError as error:
            warnings.warn(f"tests on Spark are slower, as the machine is not prepared: {error}", stacklevel=1)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[testing.PostgresqlServer]:
    """A PostgreSQL server for this run, if one can be started."""
    if problem := testing.missing():
        pytest.skip(f"needs {problem}")
    with testing.PostgresqlServer() as server:
        yield server
