from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from launcher_world import code_of, make_launcher

from jobserver_core.ports import JobCode, Launcher
from jobserver_core.testing.launcher import LauncherContract, RunningContext
from jobserver_core.testing.options import BackendOptions
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import build_wheel

pytestmark = pytest.mark.spark

LABEL = """
from sparkjobserver.api import SparkJob

class Label(SparkJob):
    def validate(self, context, runtime, config):
        return None

    def run_job(self, context, runtime, data):
        return {text!r}
"""


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
        self._folder = tmp_path
        launcher = make_launcher(tmp_path, reattach_timeout=self.timeout)
        yield launcher
        launcher.close()

    @pytest.fixture
    def context(self, keeper: tuple[Launcher, Path]) -> Iterator[RunningContext]:
        kept = type(self)._kept
        if kept is None or any(event[0] == "context_ended" for event in kept.listener.events):
            kept = self.start(*keeper, self.settings())
            kept.listener.wait_for("context_ready", timeout=self.start_timeout)
            type(self)._kept = kept
        yield kept
        assert kept.listener.faults == []

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.launcher.options"
        return BackendOptions(
            backend=PySparkLauncher,
            accepted=[{}, {f"{key}.spare-runners": 1, f"{key}.cache-dir": "cache"}],
            refused=[
                ({f"{key}.spare-runner": 1}, f"{key}.spare-runner"),
                ({f"{key}.packages-size": "many"}, f"{key}.packages-size"),
            ],
        )

    def successor(self, launcher: Launcher) -> Launcher:
        return make_launcher(self._folder, reattach_timeout=self.timeout)

    @pytest.fixture(autouse=True)
    def _code(self, code: JobCode) -> None:
        self._class_path = (code,)

    def class_name(self, kind: str) -> str:
        if kind in {"shared", "ordered"}:
            return f"{kind}_label.Label"
        return f"launcher_jobs.contract.{kind.title()}"

    def class_path(self) -> tuple[JobCode, ...]:
        return self._class_path

    def label_code(self, directory: Path, kind: str, text: str) -> JobCode:
        target = directory / str(uuid4())
        package = target / f"{kind}_label"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(LABEL.format(text=text))
        return code_of(build_wheel(package, target, version="1.0"))

    def settings(self) -> dict[str, Any]:
        return {"num-cpu-cores": 2, "spark": {"master": "local[*]"}}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        settings = {"spark": {"master": "local[*]", "serializer": "no.such.Serializer"}}
        return settings, "no.such.Serializer"

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"spark": {"master": "local[no-number]"}}, "spark.master"
