from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import Start, make_launcher, starter

from conditions import wait_until
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark import PySparkLauncher, processes

pytestmark = pytest.mark.spark


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[PySparkLauncher]:
    launcher = make_launcher(tmp_path, spare_hosts=1)
    yield launcher
    launcher.close()
    assert not list((tmp_path / "pyspark" / "spares").iterdir())
    assert not list((tmp_path / "pyspark" / "contexts").iterdir())


@pytest.fixture
def start(launcher: PySparkLauncher, tmp_path: Path, code: JobCode) -> Start:
    return starter(launcher, tmp_path, code)


def _record(directory: Path, context_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        (directory / "pyspark" / "contexts" / f"{context_id}.json").read_text()
    )
    return found


def test_a_context_takes_a_spare_host_that_fits(
    launcher: PySparkLauncher, start: Start, tmp_path: Path
) -> None:
    first = start().wait_ready()
    wait_until(lambda: launcher.spares_ready == 1, timeout=60.0)
    second = start({"spark": {"my": {"setting": "of the second"}}}, name="second").wait_ready()
    record = _record(tmp_path, second.spec.id)
    assert not str(record["marker"]).startswith(second.spec.id)
    told = second.run("work.Tell").value
    assert told["setting"] == "of the second"
    conf = second.run("work.Conf", {"keys": ["spark.app.name"]}).value
    assert conf == {"spark.app.name": "second"}
    assert second.run("work.WordCount", {"input": {"string": "a b a"}}).value == {"a": 2, "b": 1}
    assert "Setting default log level" in second.spec.log_path.read_text()
    for context in (first, second):
        context.handle.stop(30.0)
        assert context.wait_end()[0] is ContextEnd.STOPPED
        assert not context.spec.work_dir.exists()
    assert not [name for name in record["directories"] if Path(name).exists()]  # type: ignore[attr-defined]


def test_a_context_of_other_options_or_with_a_dead_spare_starts_its_own_host(
    launcher: PySparkLauncher, start: Start, tmp_path: Path
) -> None:
    first = start()
    wait_until(lambda: launcher.spares_ready == 1, timeout=60.0)
    other = start({"spark": {"driver": {"memory": "600m"}}})
    other.wait_ready()
    assert str(_record(tmp_path, other.spec.id)["marker"]).startswith(other.spec.id)
    wait_until(lambda: launcher.spares_ready == 1, timeout=60.0)
    for file in (tmp_path / "pyspark" / "contexts").glob("*.json"):
        if file.stem not in (first.spec.id, other.spec.id):
            os.kill(int(json.loads(file.read_text())["pid"]), signal.SIGKILL)
    wait_until(lambda: launcher.spares_ready == 0)
    again = start({"spark": {"driver": {"memory": "600m"}}}).wait_ready()
    assert again.run("contract.Echo", {"value": 1}).value == 1
    for context in (first, other, again):
        context.handle.kill()
        context.wait_end()


def test_spares_end_with_their_launcher(launcher: PySparkLauncher, start: Start, tmp_path: Path) -> None:
    context = start()
    wait_until(lambda: launcher.spares_ready == 1, timeout=60.0)
    markers = [
        json.loads(file.read_text())["marker"] for file in (tmp_path / "pyspark" / "contexts").glob("*.json")
    ]
    assert len(markers) == 2
    launcher.close()
    assert context.wait_end(1.0)[0] is ContextEnd.KILLED
    assert not processes.marked(markers)
