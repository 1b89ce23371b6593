from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jobserver_core.memory import InlineJob, InlineLauncher, JobRefused
from jobserver_core.memory.inline_jobs import JobFunction
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import ContextHandle, ContextListener, ContextSpec, JobCode, Launcher
from jobserver_core.testing.launcher import LauncherContract
from jobserver_core.testing.options import BackendOptions


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


def astream(job: InlineJob) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in job.config["chunks"]:
            yield chunk.encode()

    return chunks()


def say(job: InlineJob) -> None:
    job.print(job.config["text"])
    job.print(job.config["error"])


def crash(_job: InlineJob) -> None:
    raise SystemExit(3)


def hold(job: InlineJob) -> None:
    with open(job.config["lock"], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        while not job.config.get("return", False):
            job.sleep(60)


def labelled(kind: str) -> JobFunction:
    """A job that returns the content of the first file of its kind in its class path."""

    def label(job: InlineJob) -> str:
        return next(code.path.read_text() for code in job.search_path if code.source == kind)

    return label


FUNCTIONS = {
    "test.echo": echo,
    "test.raise": fail,
    "test.refuse": refuse,
    "test.endless": endless,
    "test.stream": stream,
    "test.astream": astream,
    "test.print": say,
    "test.crash": crash,
    "test.hold": hold,
    "test.shared": labelled("shared"),
    "test.ordered": labelled("ordered"),
}


class DelayingLauncher(InlineLauncher):
    """Its contexts are ready after the seconds that their settings name."""

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        self.start_delay = spec.settings.get("delay", 0.0)
        return super().start_context(spec, listener)


class TestInlineLauncher(LauncherContract):
    timeout = 10.0
    start_timeout = 10.0
    linger = 0.1

    @pytest.fixture
    def launcher(self) -> Iterator[Launcher]:
        launcher = DelayingLauncher(FUNCTIONS, kill_grace=10.0)
        yield launcher
        self.close(launcher)

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=InlineLauncher, accepted=[{}], refused=[])

    def successor(self, launcher: Launcher) -> Launcher:
        return launcher

    def class_name(self, kind: str) -> str:
        return f"test.{kind}"

    def class_path(self) -> tuple[JobCode, ...]:
        return (JobCode(path=Path("jobs.whl"), type=BinaryType.WHEEL, digest="0" * 64, source="jobs"),)

    def label_code(self, directory: Path, kind: str, text: str) -> JobCode:
        path = directory / f"{uuid4()}.whl"
        path.write_text(text)
        return JobCode(path=path, type=BinaryType.WHEEL, digest="0" * 64, source=kind)

    def settings(self) -> dict[str, Any]:
        return {}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        return {"inline": {"fail": "no cores left"}}, "no cores left"

    def unready_settings(self, directory: Path) -> dict[str, Any]:
        return {"delay": 3600.0}

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"inline": {"fial": "no cores left"}}, "inline.fial"
