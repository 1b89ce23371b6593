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
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.spare_pools import Pool

pytestmark = pytest.mark.spark

SPARE_TIMEOUT = 240.0
"""A spare starts with a low priority."""

PRELOADING = {"python.preload": "colorsys"}


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[PySparkLauncher]:
    pool = Pool(name="default", size=1, settings=read_settings(PRELOADING, default_master="local[2]"))
    launcher = make_launcher(tmp_path, pools=[pool])
    launcher.sweep()
    yield launcher
    launcher.close()
    assert not list((tmp_path / "pyspark" / "spares").iterdir())
    assert not list((tmp_path / "pyspark" / "contexts").iterdir())


@pytest.fixture
def start(launcher: PySparkLauncher, tmp_path: Path, code: JobCode) -> Start:
    return starter(launcher, tmp_path, code)


def _records(directory: Path) -> dict[str, dict[str, object]]:
    files = (directory / "pyspark" / "contexts").glob("*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}


def _jvm_of(host: int) -> int:
    return next(
        pid for pid in processes.children(host) if b"java" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


@pytest.mark.timeout(600)
def test_contexts_take_spares_that_live_and_all_end_with_the_launcher(
    launcher: PySparkLauncher, start: Start, tmp_path: Path
) -> None:
    def wait_for_a_spare() -> None:
        wait_until(lambda: launcher.spare_pools()[0].ready == 1, timeout=SPARE_TIMEOUT)

    wait_for_a_spare()
    ((spare_id, spare),) = _records(tmp_path).items()
    host = int(str(spare["pid"]))
    assert os.getpriority(os.PRIO_PROCESS, _jvm_of(host)) == os.getpriority(os.PRIO_PROCESS, 0)

    first = start({"idle-timeout": "1 h", **PRELOADING}, name="first").wait_ready()
    record = _records(tmp_path)[first.spec.id]
    assert (record["pid"], record["marker"]) == (host, spare["marker"])
    assert spare_id not in _records(tmp_path)
    assert first.run("preload.Loaded", {"modules": ["colorsys"]}).value == ["colorsys"]
    conf = first.run("work.Conf", {"keys": ["spark.app.name", "spark.local.dir"]})
    assert conf.value["spark.app.name"] == "first"
    assert first.run("work.WordCount", {"input": {"string": "a b a"}}).value == {"a": 2, "b": 1}
    assert "Setting default log level" in first.spec.log_path.read_text()

    wait_for_a_spare()
    (other,) = (found for stem, found in _records(tmp_path).items() if stem != first.spec.id)
    os.kill(_jvm_of(int(str(other["pid"]))), signal.SIGKILL)
    second = start(PRELOADING, name="second").wait_ready()
    assert str(_records(tmp_path)[second.spec.id]["marker"]).startswith(second.spec.id)
    assert second.run("contract.Echo", {"value": 1}).value == 1

    first.handle.stop(60.0)
    assert first.wait_end()[0] is ContextEnd.STOPPED
    assert not first.spec.work_dir.exists()
    assert not [name for name in record["directories"] if Path(name).exists()]  # type: ignore[attr-defined]
    wait_until(lambda: len(_records(tmp_path)) == 2, timeout=SPARE_TIMEOUT)
    markers = [str(found["marker"]) for found in _records(tmp_path).values()]
    launcher.close()
    assert second.wait_end(1.0)[0] is ContextEnd.KILLED
    assert not [pid for marker in markers for pid in processes.marked(marker)]
