"""The PySpark launcher: a process with one JVM per context, and a process per running Python job.

The package is imported in two places. A server imports :class:`PySparkLauncher`. Context hosts and job
processes, which may run in another interpreter that has only PySpark, import ``jobserver_pyspark.host``. So
the launcher is imported on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobserver_pyspark.launcher.launcher import PySparkLauncher

__all__ = ["PySparkLauncher"]


def __getattr__(name: str) -> object:
    if name == "PySparkLauncher":
        from jobserver_pyspark.launcher.launcher import PySparkLauncher  # noqa: PLC0415 - see above

        return PySparkLauncher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
