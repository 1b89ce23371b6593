from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher_world import make_launcher

from jobserver_core.ports import JobCode, Launcher
from jobserver_core.testing.launcher import LauncherContract, RunningContext

pytestmark = pytest.mark.spark

NAMES = {kind: f"launcher_jobs.contract.{kind.title()}" for kind in ("echo", "print", "raise", "refuse")}
NAMES |= {kind: f"launcher_jobs.contract.{kind.title()}" for kind in ("endless", "stream")}


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launcher, Path]]:
    launcher = make_launcher(tmp_path_factory.mktemp("contract"))
    yield launcher, tmp_path_factory.mktemp("kept")
    launcher.close()


class TestPySparkLauncher(LauncherContract):
    """The contract on real Spark. A context that a test leaves alive serves the next one too."""

    _kept: RunningContext | None = None

    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Iterator[Launcher]:
        launcher = make_launcher(tmp_path)
        yield launcher
        launcher.close()

    @pytest.fixture
    def context(self, keeper: tuple[Launcher, Path]) -> Iterator[RunningContext]:
        kept = type(self)._kept
        if kept is None or any(event[0] == "context-ended" for event in kept.listener.events):
            kept = self.start(*keeper, self.settings())
            kept.listener.wait_for("ready", timeout=self.start_timeout)
            type(self)._kept = kept
        yield kept
        assert kept.listener.faults == []

    @pytest.fixture(autouse=True)
    def _code(self, code: JobCode) -> None:
        self._class_path = (code,)

    def class_name(self, kind: str) -> str:
        return NAMES[kind]

    def class_path(self) -> tuple[JobCode, ...]:
        return self._class_path

    def settings(self) -> dict[str, Any]:
        return {"num-cpu-cores": 2, "spark": {"master": "local[*]"}}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        return {"spark": {"master": "local[*]", "scheduler": {"mode": "by-lot"}}}, "by-lot"

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"spark": {"master": "local[no-number]"}}, "spark.master"
