"""Random histories of a whole job server over a SQLite file, with crashes in between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

from histories import JobServerHistory
from jobserver_core.ports import MetadataStore
from jobserver_sql import SqlMetadataStore


class SqliteHistory(JobServerHistory):
    """The store is a file. A crash leaves it unchanged, and the next server reopens it."""

    def open_metadata(self) -> MetadataStore:
        if not hasattr(self, "directory"):
            self.directory = Path(tempfile.mkdtemp(prefix="jobserver-history-"))
        else:
            self.metadata.close()
        return SqlMetadataStore(
            f"sqlite:///{self.directory / 'metadata.db'}", synchronous="normal", lock_timeout=60
        )

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


TestSqliteHistory = SqliteHistory.TestCase
TestSqliteHistory.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
