"""What all tests share."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Quick by default, thorough in full runs; failures are shrunk in both.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=150, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

pytest.register_assert_rewrite("jobserver_core.testing")

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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[testing.PostgresqlServer]:
    """A PostgreSQL server for this run, if one can be started."""
    if problem := testing.missing():
        pytest.skip(f"needs {problem}")
    with testing.PostgresqlServer() as server:
        yield server
