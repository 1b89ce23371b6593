"""What jobs import beside their own package, for tests with several masters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher_world import Context, code_of

from jobserver_core.ports import JobCode
from jobserver_pyspark.demo import build_wheel

__all__ = ["Wheel", "check_a_large_package_is_shipped_once", "check_packed_environment", "see"]

Wheel = Callable[[str, str], JobCode]
"""Builds a version of a small library, ``rates``, with one value."""


def see(context: Context, *packages: JobCode, module: str = "rates", pandas: bool = False) -> dict[str, Any]:
    """What driver, RDD tasks and functions in SQL see of a module; with ``pandas``, its functions as well."""
    config = {"module": module, "pandas": pandas}
    job = context.submit("dependencies.Sees", config, packages=packages)
    seen: dict[str, Any] = context.end_of(job, timeout=120.0).value
    return seen


def check_packed_environment(context: Context, rates: Wheel) -> None:
    """Driver and executors run in an environment packed as ``packed``; packages of a job come before it."""
    seen = see(context)
    assert seen["values"] == ["of the environment"] * 3
    driver, *executors = map(Path, seen["prefixes"])
    assert driver.name.startswith("environment-")
    assert {executor.name for executor in executors} == {"packed"}
    for version in ("1.0", "2.0", "1.0"):
        assert see(context, rates(version, f"of {version}"))["values"] == [f"of {version}"] * 3


def check_a_large_package_is_shipped_once(context: Context, directory: Path) -> None:
    """Each executor fetches a package of 50 MB once, however many jobs use it."""
    package = directory / "bulk"
    package.mkdir()
    (package / "data.bin").write_bytes(os.urandom(50 * 2**20))
    (package / "__init__.py").write_text("VALUE = 'large'\n")
    bulk = code_of(build_wheel(package, directory, version="1.0"))
    for _ in range(3):
        assert see(context, bulk, module="bulk")["values"] == ["large"] * 3
    fetched = context.run("dependencies.Fetches", {"file": f"{bulk.digest}.zip"}).value
    assert set(fetched.values()) == {1}, fetched
