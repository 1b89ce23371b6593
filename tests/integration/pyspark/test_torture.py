"""Two minutes of torture of real servers; ``benchmarks/torture_spark.py`` runs long ones, with Spark."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from torture_fleet import Fleet
from torture_spark import SparkTorture

from jobserver_sql.testing import PostgresqlServer, missing

pytestmark = [
    pytest.mark.real,
    pytest.mark.postgresql,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=f"needs {missing()}"),
]

LEASE = 12.0
"""Seconds: a server that is slow to renew its lease on a busy machine must not look dead."""


SEEDS = (1, 2)
SECONDS = 60.0


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_whatever_dies(seed: int) -> None:
    with (
        TemporaryDirectory(prefix="torture-") as directory,
        PostgresqlServer(durable=True) as postgresql,  # which loses nothing when it crashes
        Fleet(Path(directory), postgresql, None, "torture", lease=LEASE) as fleet,
    ):
        history = SparkTorture(seed, fleet)
        history.start()
        history.round(SECONDS)
        history.end()
        assert history.counts["accepted"]
        assert history.counts["servers declared dead"]
