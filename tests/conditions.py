"""Waiting for a condition, with a deadline that a busy machine does not miss."""

from __future__ import annotations

from jobserver_core.testing.contract import wait_until

__all__ = ["SPARK_WAIT", "WAIT", "wait_until"]

WAIT = 60.0
"""Seconds to wait for anything without Spark: a deadline, and never the time that something takes."""
SPARK_WAIT = 280.0
"""Seconds to wait for a command that starts Spark, or compiles for it."""
