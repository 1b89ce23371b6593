"""The plans of contexts on YARN, and the checks before them."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_core.errors import InvalidSetting
from jobserver_core.ports import ContextSpec
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.host.yarn import _delete_old_parts, _publish
from jobserver_pyspark.installation.environment import hadoop_directories
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.options import LauncherOptions

SOCKETS = "spark.python.unix.domain.socket.enabled"


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "no-spark-conf"))


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    package = tmp_path / "pyspark"
    for name in ("jars", "bin", "python"):
        (package / name).mkdir(parents=True)
    (package / "jars" / "a.jar").write_bytes(b"PK")
    return Installation(python="python3", package=package, version="4.3.0")


def plan_of(
    installation: Installation, tmp_path: Path, settings: dict[str, Any], master: str = "yarn", **options: Any
) -> HostPlan:
    work_dir = tmp_path / "work"
    spec = ContextSpec(
        id="id-1", name="name", log_path=tmp_path / "log", work_dir=work_dir, data_dir=tmp_path / "data"
    )
    return make_plan(
        spec,
        read_settings(settings, default_master=master),
        installation,
        Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
        LauncherOptions(cache_dir=tmp_path / "cache", **options),
        tmp_dir=tmp_path / "tmp",
        log_limit=1,
        result_limit=2,
        class_data=[],
    )


def test_the_configuration_of_a_context_comes_before_that_of_the_server_and_its_environment(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("context", "server", "hadoop", "yarn")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setenv("HADOOP_CONF_DIR", str(places["hadoop"]))
    monkeypatch.setenv("YARN_CONF_DIR", str(places["yarn"]))
    expected = {"": ["hadoop", "yarn"], "server": ["server"], "context": ["context"]}
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for changed, names in expected.items():
        if changed == "server":
            options["hadoop_conf_dir"] = places["server"]
        if changed == "context":
            settings["hadoop-conf-dir"] = str(places["context"])
        plan = plan_of(installation, tmp_path, settings, **options)
        command = plan.spec.jvm.command
        entries = command[command.index("-cp") + 1].split(":")
        assert [Path(entry).name for entry in entries if Path(entry) in places.values()] == names
        found = [plan.environment.get(name) for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR")]
        assert [Path(value).name for value in found if value] == names


def test_only_yarn_gets_the_zip_files_of_pyspark(installation: Installation, tmp_path: Path) -> None:
    for master, expected in (("yarn", ["bin", "jars", "python"]), ("local[1]", ["bin", "jars"])):
        plan = plan_of(installation, tmp_path, {}, master)
        home = Path(plan.spec.jvm.environment["SPARK_HOME"])
        assert sorted(entry.name for entry in home.iterdir()) == expected


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("local[2]", "true"),
        ("spark://h:7077", "true"),
        ("yarn", None),
        ("k8s://https://h:443", None),
    ],
)
def test_unix_sockets_are_only_used_where_their_paths_are_short(
    installation: Installation, tmp_path: Path, master: str, expected: str | None
) -> None:
    assert plan_of(installation, tmp_path, {}, master).spec.conf.get(SOCKETS) == expected
    chosen = {"spark": {"python.unix.domain.socket.enabled": "true"}}
    assert plan_of(installation, tmp_path, chosen, master).spec.conf[SOCKETS] == "true"


def test_an_application_on_yarn_carries_the_id_of_its_context_as_a_tag(
    installation: Installation, tmp_path: Path
) -> None:
    def tags(settings: dict[str, Any], master: str = "yarn") -> str | None:
        return plan_of(installation, tmp_path, settings, master).spec.conf.get("spark.yarn.tags")

    assert tags({}) == "jobserver,jobserver-context-id-1"
    assert tags({"spark": {"yarn.tags": "nightly"}}) == "nightly,jobserver,jobserver-context-id-1"
    assert tags({}, "local[1]") is None


@pytest.mark.parametrize(
    ("spark", "expected"),
    [
        ({}, {"executor.instances": "6"}),
        ({"executor.cores": 2}, {"executor.instances": "3"}),
        ({"executor.cores": 9}, {"executor.instances": "1"}),
        ({"executor.instances": 4}, {"executor.instances": "4"}),
        ({"dynamicAllocation.enabled": True}, {"dynamicAllocation.maxExecutors": "6"}),
    ],
)
def test_cores_become_executors_where_spark_ignores_the_limit_of_cores(
    installation: Installation, tmp_path: Path, spark: dict[str, Any], expected: dict[str, str]
) -> None:
    keys = ("spark.executor.instances", "spark.dynamicAllocation.maxExecutors")
    settings = {"num-cpu-cores": 6, "spark": spark}
    for master in ("yarn", "k8s://https://h:443"):
        conf = plan_of(installation, tmp_path, settings, master).spec.conf
        assert {key: conf[key] for key in keys if key in conf} == {
            f"spark.{key}": value for key, value in expected.items()
        }
    assert keys[0] not in plan_of(installation, tmp_path, {"num-cpu-cores": 6}, "spark://h:1").spec.conf
    assert keys[0] not in plan_of(installation, tmp_path, {}).spec.conf


def test_yarn_without_its_configuration_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LauncherOptions(cache_dir=tmp_path / "cache")
    with closing(PySparkLauncher(tmp_path / "launcher", master="yarn", options=options)) as launcher:
        with pytest.raises(
            InvalidSetting, match=r"not known where its yarn-site\.xml is; set hadoop-conf-dir"
        ):
            launcher.validate({})
        launcher.validate({"spark": {"master": "local[1]"}})
        with pytest.raises(InvalidSetting, match=r"there is no yarn-site\.xml in .*/absent; set"):
            launcher.validate({"hadoop-conf-dir": str(tmp_path / "absent")})
        monkeypatch.setenv("YARN_CONF_DIR", str(tmp_path))
        with pytest.raises(InvalidSetting, match=r"there is no yarn-site\.xml"):
            launcher.validate({})
        (tmp_path / "yarn-site.xml").write_text("<configuration/>")
        launcher.validate({})
    chosen = attrs.evolve(options, hadoop_conf_dir=tmp_path)
    monkeypatch.delenv("YARN_CONF_DIR")
    with closing(PySparkLauncher(tmp_path / "launcher", master="yarn", options=chosen)) as launcher:
        launcher.validate({})


def test_variables_that_are_empty_name_no_directory() -> None:
    assert hadoop_directories(None, {"HADOOP_CONF_DIR": "", "YARN_CONF_DIR": "/y"}) == [Path("/y")]
    assert hadoop_directories(None, {}) == []


class HadoopPath:
    """A path of Hadoop in a local directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def getName(self) -> str:  # noqa: N802 - Hadoop's name
        return self.path.name

    def toString(self) -> str:  # noqa: N802 - Hadoop's name
        return str(self.path)


class HadoopStatus:
    def __init__(self, path: Path) -> None:
        self._path = path

    def getPath(self) -> HadoopPath:  # noqa: N802 - Hadoop's name
        return HadoopPath(self._path)

    def getModificationTime(self) -> int:  # noqa: N802 - Hadoop's name
        return int(self._path.stat().st_mtime * 1000)


class HadoopFiles:
    """A file system of Hadoop: its ``rename`` does not replace files, and returns whether it renamed one."""

    def exists(self, path: HadoopPath) -> bool:
        return path.path.exists()

    def rename(self, source: HadoopPath, target: HadoopPath) -> bool:
        if target.path.exists() or not target.path.parent.exists():
            return False
        source.path.rename(target.path)
        return True

    def listStatus(self, directory: HadoopPath) -> list[HadoopStatus]:  # noqa: N802 - Hadoop's name
        return [HadoopStatus(path) for path in directory.path.iterdir()]

    def delete(self, path: HadoopPath, _recursive: bool) -> bool:
        path.path.unlink()
        return True


def test_an_archive_that_cannot_get_its_name_is_an_error_unless_another_context_was_faster(
    tmp_path: Path,
) -> None:
    part, target = tmp_path / "part", tmp_path / "spark-1.zip"
    part.write_text("mine")
    with pytest.raises(OSError, match=r"part cannot be renamed to spark-1\.zip"):
        _publish(HadoopFiles(), HadoopPath(part), HadoopPath(tmp_path / "absent" / target.name))
    target.write_text("that of another")
    _publish(HadoopFiles(), HadoopPath(part), HadoopPath(target))
    assert target.read_text() == "that of another"
    target.unlink()
    _publish(HadoopFiles(), HadoopPath(part), HadoopPath(target))
    assert target.read_text() == "mine"


def test_parts_of_archives_that_killed_contexts_left_are_deleted_after_a_day(tmp_path: Path) -> None:
    part = ".spark-0123abc.zip." + "0" * 31
    hours = {part + "1": 25, part + "2": 23, "spark-0123abc.zip": 1000, ".other": 1000}
    for name, age in hours.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 3600 * age,) * 2)
    _delete_old_parts(HadoopFiles(), HadoopPath(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == hours.keys() - {part + "1"}
