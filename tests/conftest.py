"""What all tests share."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("jobserver_core.testing")

from jobserver_sql import testing  # noqa: E402 - after the line above


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[testing.PostgresqlServer]:
    """A PostgreSQL server for this run, if one can be started."""
    if problem := testing.missing():
        pytest.skip(f"needs {problem}")
    with testing.PostgresqlServer() as server:
        yield server
