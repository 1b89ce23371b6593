"""The examples, run as a reader would run them."""

from __future__ import annotations

import asyncio
import io
import runpy
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import JobServer, errors
from jobserver_core.memory import InlineJob, InlineLauncher

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def sales(job: InlineJob) -> dict[str, Any]:
    if job.config["day"] == "holiday":
        raise ValueError("no sales on a holiday")
    return {"day": job.config["day"], "sold": 3}


@pytest.fixture
def server() -> Iterator[JobServer]:
    with JobServer.in_memory(launcher=InlineLauncher({"reports.Sales": sales})) as server:
        yield server


def test_a_service_embeds_the_library(server: JobServer) -> None:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as file:
        file.writestr("reports.py", "")
    names = runpy.run_path(str(EXAMPLES / "embedded" / "service.py"))
    reports = names["Reports"](server, package.getvalue())

    monday = reports.request("Sales", "monday")
    assert reports.request("Sales", "monday") == monday
    assert asyncio.run(reports.outcome(monday)) == {"day": "monday", "sold": 3}

    holiday = reports.request("Sales", "holiday")
    with pytest.raises(errors.JobFailed, match="no sales on a holiday"):
        asyncio.run(reports.outcome(holiday))
    assert reports.failed() == [f"{holiday}: no sales on a holiday"]
