from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_core.memory import InlineJob, InlineLauncher, JobRefused
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import JobCode, Launcher
from jobserver_core.testing.launcher import LauncherContract


def echo(job: InlineJob) -> Any:
    return job.config["value"]


def fail(job: InlineJob) -> Any:
    raise RuntimeError(job.config["message"])


def refuse(_job: InlineJob) -> Any:
    raise AssertionError("a refused job never runs")


def _refuse(job: InlineJob) -> None:
    raise JobRefused(job.config["message"])


refuse.validate = _refuse  # type: ignore[attr-defined]


def endless(job: InlineJob) -> Any:
    while True:
        job.sleep(60)


def stream(job: InlineJob) -> Iterator[bytes]:
    return (chunk.encode() for chunk in job.config["chunks"])


def say(job: InlineJob) -> None:
    job.print(job.config["text"])


FUNCTIONS = {
    "test.echo": echo,
    "test.raise": fail,
    "test.refuse": refuse,
    "test.endless": endless,
    "test.stream": stream,
    "test.print": say,
}


class TestInlineLauncher(LauncherContract):
    timeout = 10.0
    start_timeout = 10.0

    @pytest.fixture
    def launcher(self) -> Iterator[Launcher]:
        launcher = InlineLauncher(FUNCTIONS)
        yield launcher
        launcher.close()

    def class_name(self, kind: str) -> str:
        return f"test.{kind}"

    def class_path(self) -> tuple[JobCode, ...]:
        return (JobCode(path=Path("jobs.whl"), type=BinaryType.WHEEL, digest="0" * 64, source="jobs"),)

    def settings(self) -> dict[str, Any]:
        return {}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        return {"inline": {"fail": "no cores left"}}, "no cores left"

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"inline": {"fial": "no cores left"}}, "inline.fial"
