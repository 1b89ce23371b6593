"""What all tests share."""

import gc
import importlib.util
import logging
import os
import signal
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # most tests need no database, and importing SQLAlchemy takes long
    from jobserver_sql.testing import PostgresqlServer

# Quick by default, thorough in full runs; failures are shrunk in both.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=150, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Programs started in the background may ignore Ctrl-C, and those that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["jobserver_pytest"]
pytest.register_assert_rewrite(
    "jobserver_core.testing", "jobserver_http.testing", "master_suite", "several_servers_suite"
)

LONGEST_FIRST = [
    "integration/pyspark/test_torture.py",
    "integration/pyspark/yarn/test_launcher_yarn.py",
    "integration/pyspark/kubernetes/test_launcher_kubernetes.py",
    "integration/pyspark/test_launcher_cluster.py",
]
"""The modules that take more than a minute, the longest first."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep modules and collected tests, which stay until the end, out of every later garbage collection.

    They are far more objects than tests make. Looking through them took a fifth of the in-memory suite.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


IN_MEMORY = "not real and not slow"
"""How the in-memory suite is selected with ``-m``."""


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """Collect nothing for the in-memory suite that it leaves out: that is a third of all its tests."""
    if collector.config.getoption("markexpr") != IN_MEMORY:
        return None
    own = {mark.name for mark in getattr(obj, "pytestmark", [])}
    left_out = any(name in own or collector.get_closest_marker(name) for name in ("real", "slow"))
    return [] if left_out else None


@pytest.hookimpl(trylast=True)  # after tests were deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, then those with most tests.

    A free worker takes the next module, and no other one can help it. So at the end there must be short ones,
    or one worker waits for the other. This needs ``--no-loadscope-reorder``, because many tests are not long.
    """
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    assert all(path.is_file() for path in ranks), "a module of LONGEST_FIRST has another name now"
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), -counts[item.path], item.path))


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
def postgresql_server() -> Iterator["PostgresqlServer"]:
    """A PostgreSQL server for this run, if one can be started."""
    from jobserver_sql import testing

    if problem := testing.missing():
        pytest.skip(f"needs {problem}")
    with testing.PostgresqlServer() as server:
        yield server
