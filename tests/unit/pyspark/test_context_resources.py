"""What a context asks for at most, by master and settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import InvalidSetting, Resources
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.resources import resources
from jobserver_pyspark.launcher.spare_pools import Pool

GIB, MIB = 2**30, 2**20
DYNAMIC = {"spark.dynamicAllocation.enabled": "true"}


def asked(master: str, settings: dict[str, Any], site: dict[str, str] | None = None) -> Resources:
    return resources(read_settings(settings, default_master=master), site or {}, cores_here=16)


@pytest.mark.parametrize(
    ("master", "settings", "cores", "memory"),
    [
        ("local", {}, 1, GIB),
        ("local[3]", {}, 3, GIB),
        ("local[2, 5]", {}, 2, GIB),
        ("local[*]", {}, 16, GIB),
        ("local[*]", {"num-cpu-cores": 4, "memory-per-node": "2g"}, 4, 2 * GIB),
        ("local[2]", {"spark.driver.memory": "3g"}, 2, 3 * GIB),
        ("local-cluster[2, 3, 512]", {}, 6, 2 * GIB),
    ],
)
def test_a_local_context_asks_for_its_threads_and_its_driver(
    master: str, settings: dict[str, Any], cores: int, memory: int
) -> None:
    assert asked(master, settings) == Resources(cores=cores, memory=memory)


IN_CONTAINERS = pytest.mark.parametrize(
    ("settings", "cores", "memory"),
    [
        ({}, 2, GIB + 2 * (GIB + 384 * MIB)),
        ({"spark.executor.instances": 3, "spark.executor.cores": 4}, 12, GIB + 3 * (GIB + 384 * MIB)),
        ({"num-cpu-cores": 6, "spark.executor.cores": 2}, 6, GIB + 3 * (GIB + 384 * MIB)),
        ({"memory-per-node": "10g", "spark.executor.instances": 1}, 1, 12 * GIB),
        ({"spark.executor.memoryOverhead": "1g", "spark.driver.memory": "2g"}, 2, 6 * GIB),
        ({"spark.executor.memoryOverheadFactor": "0.5", "spark.executor.memory": "2g"}, 2, 7 * GIB),
        ({"spark.executor.pyspark.memory": "640m"}, 2, GIB + 2 * 2 * GIB),
        ({"spark.memory.offHeap.enabled": True, "spark.memory.offHeap.size": "640m"}, 2, 5 * GIB),
        (DYNAMIC, None, None),
        ({**DYNAMIC, "spark.dynamicAllocation.maxExecutors": "infinity"}, None, None),
        ({**DYNAMIC, "spark.dynamicAllocation.maxExecutors": 5}, 5, GIB + 5 * (GIB + 384 * MIB)),
        ({**DYNAMIC, "num-cpu-cores": 4, "spark.executor.cores": 2}, 4, GIB + 2 * (GIB + 384 * MIB)),
    ],
)


@IN_CONTAINERS
def test_a_context_on_kubernetes_asks_for_its_executors_with_their_overhead(
    settings: dict[str, Any], cores: int | None, memory: int | None
) -> None:
    assert asked("k8s://https://host:6443", settings) == Resources(cores=cores, memory=memory)


@IN_CONTAINERS
def test_a_context_on_yarn_asks_for_an_application_master_as_well(
    settings: dict[str, Any], cores: int | None, memory: int | None
) -> None:
    master = (512 + 384) * MIB
    assert asked("yarn", settings) == Resources(
        cores=None if cores is None else cores + 1, memory=None if memory is None else memory + master
    )


@pytest.mark.parametrize(
    ("settings", "cores", "memory"),
    [
        ({"spark.yarn.am.memory": "8g"}, 1, 8 * GIB + 819 * MIB),
        ({"spark.yarn.am.memory": "1g", "spark.yarn.am.memoryOverhead": "512m"}, 1, 1536 * MIB),
        ({"spark.yarn.am.cores": 4}, 4, 896 * MIB),
    ],
)
def test_the_application_master_has_settings_of_its_own(
    settings: dict[str, Any], cores: int, memory: int
) -> None:
    plain = asked("yarn", {"spark.yarn.am.memory": "512m", "spark.yarn.am.memoryOverhead": 0})
    found = asked("yarn", settings)
    assert plain.cores is not None
    assert found.cores == plain.cores - 1 + cores
    assert plain.memory is not None
    assert found.memory == plain.memory - 512 * MIB + memory


@pytest.mark.parametrize(
    ("settings", "cores", "memory"),
    [
        ({}, None, None),
        ({"num-cpu-cores": 4}, 4, 5 * GIB),
        ({"num-cpu-cores": 5, "spark.executor.cores": 2}, 4, 3 * GIB),
        ({"num-cpu-cores": 4, "spark.executor.cores": 2, "memory-per-node": "2g"}, 4, 5 * GIB),
        ({"spark.cores.max": 4, "spark.executor.cores": 4}, 4, 2 * GIB),
        (
            {
                **DYNAMIC,
                "spark.dynamicAllocation.maxExecutors": 3,
                "spark.executor.cores": 2,
                "num-cpu-cores": 4,
            },
            4,
            3 * GIB,
        ),
        ({**DYNAMIC, "spark.dynamicAllocation.maxExecutors": 2, "spark.executor.cores": 2}, 4, 3 * GIB),
        ({**DYNAMIC, "spark.dynamicAllocation.maxExecutors": 2}, None, 3 * GIB),
    ],
)
def test_a_context_on_a_standalone_cluster_asks_for_up_to_its_cores(
    settings: dict[str, Any], cores: int | None, memory: int | None
) -> None:
    assert asked("spark://host:7077", settings) == Resources(cores=cores, memory=memory)


def test_the_settings_of_the_site_count_below_those_of_the_context() -> None:
    site = {"spark.executor.instances": "7", "spark.executor.cores": "2"}
    master = "k8s://https://host:6443"
    assert asked(master, {}, site).cores == 14
    assert asked(master, {"spark.executor.instances": 1}, site).cores == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spark.executor.instances", "many"),
        ("spark.executor.memoryOverheadFactor", "a tenth"),
        ("spark.executor.minMemoryOverhead", "some"),
    ],
)
def test_a_value_that_cannot_be_counted_is_an_invalid_setting(key: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=key):
        asked("yarn", {key: value})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site's ``spark-defaults.conf``, whose drivers have 3 GiB."""
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    file = tmp_path / "spark-defaults.conf"
    file.write_text("spark.driver.memory 3g\n")
    return file


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[PySparkLauncher]:
    pool = Pool(name="warm", size=0, settings=read_settings({}, default_master="local[2]"))
    options = LauncherOptions(cache_dir=tmp_path / "cache")
    with closing(PySparkLauncher(tmp_path / "launcher", options=options, pools=[pool])) as launcher:
        yield launcher


def test_a_context_in_a_packed_environment_that_is_gone_still_has_its_resources(
    launcher: PySparkLauncher, site: Path
) -> None:
    settings = {"spark.archives": "/no/such.tar.gz#env", "python.executable": "env/bin/python"}
    with pytest.raises(InvalidSetting, match=r"spark\.archives"):
        launcher.validate(settings)
    assert launcher.resources({**settings, "num-cpu-cores": 2}) == Resources(cores=2, memory=3 * GIB)


def test_the_resources_of_pools_are_asked_for_once(launcher: PySparkLauncher, site: Path) -> None:
    [before] = launcher.spare_pools()
    assert before.resources == Resources(cores=2, memory=3 * GIB)
    site.write_text("spark.driver.memory nonsense\n")
    assert launcher.spare_pools() == [before]


@pytest.mark.parametrize("key", ["memory-per-node", "spark.driver.memory"])
def test_the_launcher_of_a_server_refuses_a_heap_that_is_larger_than_the_memory_of_its_machine(
    launcher: PySparkLauncher, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("jobserver_pyspark.launcher.launcher.usable_memory", lambda: 8 * GIB)
    launcher.validate({key: "200g"})  # a configuration for another machine
    launcher.survivors()  # as a server does when it starts
    launcher.validate({key: "8g"})
    launcher.validate({"spark.master": "spark://host:7077", "memory-per-node": "200g"})
    with pytest.raises(InvalidSetting, match=f"'{key}': the driver runs on .* which has 8 GiB of memory"):
        launcher.validate({key: "200g"})
