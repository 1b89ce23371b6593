"""The plan of a context host, made from settings, installation and site configuration."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_core.errors import InvalidSetting, UnknownContextFactory
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import ContextSpec, JobCode
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan, properties_file
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.processes import MARKER


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    jars = tmp_path / "pyspark" / "jars"
    jars.mkdir(parents=True)
    for name in ("a.jar", "slf4j-api-2.jar", "z.jar"):
        (jars / name).write_bytes(b"PK")
    return Installation(python=sys.executable, package=jars.parent, version="4.3.0")


@pytest.fixture
def spec(tmp_path: Path) -> ContextSpec:
    return ContextSpec(
        id="id-1",
        name="name",
        log_path=tmp_path / "log",
        work_dir=tmp_path / "work",
        data_dir=tmp_path / "data",
    )


def plan_of(
    spec: ContextSpec, installation: Installation, tmp_path: Path, settings: dict[str, Any], **options: Any
) -> HostPlan:
    return make_plan(
        spec,
        read_settings(settings, default_master="local[*]"),
        installation,
        Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
        LauncherOptions(cache_dir=tmp_path / "cache", **options),
        tmp_dir=tmp_path / "tmp",
        log_limit=1,
        result_limit=2,
        class_data=["-XX:SharedArchiveFile=x.jsa"],
    )


def test_the_jvm_is_started_with_sparks_jars_in_a_fixed_order(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for configuration in ("SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR"):  # these would be entries too
        monkeypatch.delenv(configuration, raising=False)
    jar = JobCode(path=tmp_path / "blob", type=BinaryType.JAR, digest="d" * 64, source="jar")
    plan = plan_of(attrs.evolve(spec, class_path=(jar,)), installation, tmp_path, {})
    command = plan.spec.jvm.command
    assert command[0] == "/jdk/bin/java"
    names = [Path(entry).name for entry in command[command.index("-cp") + 1].split(":")]
    # The job API comes before the jars of the context, which may use it or hold copies of it.
    assert names == ["slf4j-api-2.jar", "a.jar", "z.jar", "job-classes", "d" * 64 + ".jar"]
    assert command[-1] == "org.apache.spark.api.python.PythonGatewayServer"
    assert "-XX:+ExitOnOutOfMemoryError" in command
    assert "-Xmx1024m" in command


def test_a_context_keeps_to_its_directory_and_to_loopback(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    conf = plan_of(spec, installation, tmp_path, {}).spec.conf
    assert conf["spark.driver.host"] == conf["spark.driver.bindAddress"] == "127.0.0.1"
    assert conf["spark.sql.warehouse.dir"] == str(spec.work_dir / "warehouse")
    assert conf["spark.ui.enabled"] == "false"
    assert conf["spark.app.name"] == "name"


def test_the_jvm_unpacks_native_libraries_where_programs_may_run(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    """Parquet needs these; /tmp often forbids to map them, as Docker's ``--tmpfs`` does."""
    command = plan_of(spec, installation, tmp_path, {}).spec.jvm.command
    for option in ("org.xerial.snappy.tempdir", "ZstdTempFolder"):
        assert f"-D{option}={spec.work_dir}" in command


def test_sparks_own_interface_listens_where_the_driver_does(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def address(settings: dict[str, Any]) -> Any:
        jvm = plan_of(spec, installation, tmp_path, settings).spec.jvm
        return jvm.environment.get("SPARK_LOCAL_IP")

    assert address({}) == "127.0.0.1"
    assert address({"spark": {"driver": {"bindAddress": "0.0.0.0"}}}) is None
    assert address({"spark": {"master": "spark://example:7077"}}) is None
    monkeypatch.setenv("SPARK_LOCAL_IP", "192.0.2.1")  # which hosts inherit
    assert address({}) is None


def test_jobs_see_settings_below_a_setting_in_objects_as_typesafe_config_has_them(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    settings = {"spark": {"speculation": True, "speculation.interval": "10s"}, "hadoop": {"a": 1, "a.b.c": 2}}
    host = plan_of(attrs.evolve(spec, settings=settings), installation, tmp_path, settings).spec
    assert json.loads(host.settings) == {
        "spark": {"speculation": {"interval": "10s"}},
        "hadoop": {"a": {"b": {"c": 2}}},
    }
    assert host.conf["spark.speculation"] == "true"
    assert host.conf["spark.speculation.interval"] == "10s"


def test_a_contexts_own_settings_win_over_the_defaults(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    settings = {"spark": {"app": {"name": "mine"}, "ui": {"enabled": True}, "driver": {"memory": "3g"}}}
    host = plan_of(spec, installation, tmp_path, settings).spec
    assert host.conf["spark.app.name"] == "mine"
    assert host.conf["spark.ui.enabled"] == "true"
    assert "-Xmx3072m" in host.jvm.command


@pytest.mark.parametrize(
    ("memory", "option"),
    [
        ("2g", "-Xmx2048m"),
        ("2 GB", "-Xmx2048m"),
        ("600", "-Xmx600m"),
        ("614400k", "-Xmx600m"),
        ("1073741824b", "-Xmx1024m"),
        ("1p", "-Xmx1073741824m"),
    ],
)
def test_the_driver_heap_is_parsed_as_spark_parses_it(
    spec: ContextSpec, installation: Installation, tmp_path: Path, memory: str, option: str
) -> None:
    plan = plan_of(spec, installation, tmp_path, {"spark": {"driver": {"memory": memory}}})
    assert option in plan.spec.jvm.command


def test_the_sites_own_configuration_wins_over_the_defaults_and_a_contexts_over_it(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    first = ("spark.driver.userClassPathFirst true", "spark.executor.userClassPathFirst=true")
    lines = ("# ours", "spark.ui.enabled true", "spark.a=site", "spark.b: site", "spark.master yarn", *first)
    (tmp_path / "spark-defaults.conf").write_text("\n".join((*lines, "spark.submit.deployMode cluster")))
    conf = plan_of(spec, installation, tmp_path, {"spark": {"b": "mine"}}).spec.conf
    assert (conf["spark.ui.enabled"], conf["spark.a"], conf["spark.b"]) == ("true", "site", "mine")
    assert (conf["spark.master"], conf["spark.submit.deployMode"]) == ("local[*]", "client")
    assert not [key for key in conf if key.endswith("userClassPathFirst")]


def test_packages_of_the_site_are_left_to_spark_submit(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "spark-defaults.conf").write_text("spark.jars.packages org.example:it:1.0")
    host = plan_of(spec, installation, tmp_path, {}).spec
    assert host.submitted
    assert "org.apache.spark.deploy.SparkSubmit" in host.jvm.command


def test_the_sites_configuration_of_spark_and_hadoop_is_on_the_class_path(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SPARK_DIST_CLASSPATH", "/hadoop/*")
    command = plan_of(spec, installation, tmp_path, {}).spec.jvm.command
    names = [Path(entry).name for entry in command[command.index("-cp") + 1].split(":")]
    assert names[:3] == ["slf4j-api-2.jar", "a.jar", "z.jar"]
    assert names[3:] == ["SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR", "*", "job-classes"]


def test_the_metastore_of_the_site_is_used_if_there_is_one(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    settings = {"context-factory": "HiveContextFactory"}
    own = {"spark.sql.warehouse.dir", "spark.hadoop.javax.jdo.option.ConnectionURL"}
    assert own <= plan_of(spec, installation, tmp_path, settings).spec.conf.keys()
    (tmp_path / "hive-site.xml").write_text("<configuration/>")
    conf = plan_of(spec, installation, tmp_path, settings).spec.conf
    assert not own & conf.keys()
    assert conf["spark.sql.catalogImplementation"] == "hive"


@pytest.mark.parametrize("memory", ["much", "1.5g", "-Xmx9g"])
def test_a_heap_setting_that_is_not_a_size_is_refused(
    spec: ContextSpec, installation: Installation, tmp_path: Path, memory: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        plan_of(spec, installation, tmp_path, {"spark": {"driver": {"memory": memory}}})
    assert caught.value.key == "spark.driver.memory"


def test_the_environment_is_an_allow_list(
    spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    monkeypatch.setenv("WANTED", "seen")
    monkeypatch.setenv("LD_PRELOAD", "evil.so")
    monkeypatch.setenv("PYTHONPATH", "/the/servers")
    plan = plan_of(spec, installation, tmp_path, {"python": {"paths": ["/usr"]}}, environment=("WANTED",))
    assert "PASSWORD" not in plan.environment
    assert "LD_PRELOAD" not in plan.environment
    assert plan.environment["WANTED"] == "seen"
    assert plan.environment[MARKER].startswith("id-1:")
    view, *paths = plan.environment["PYTHONPATH"].split(":")
    assert paths == ["/usr"]
    assert sorted(entry.name for entry in Path(view).iterdir()) == ["jobserver_pyspark", "sparkjobserver"]


def test_the_host_and_the_runners_import_no_library_but_the_core(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    plan = plan_of(spec, installation, tmp_path, {})
    found = (plan.environment["PYTHONPATH"], plan.environment["JOBSERVER_FALLBACK_PATH"])
    environment = {"PYTHONPATH": ":".join(found)}
    code = (
        "import jobserver_pyspark.host.host\n"
        "import jobserver_pyspark.runner.zygote, jobserver_pyspark.runner.runner\n"
        "import sparkjobserver.api, sys\n"
        "print(sorted({'attr', 'attrs', 'pyspark', 'py4j', 'pyhocon', 'cattrs'} & set(sys.modules)))"
    )
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
def test_a_host_starts_in_an_interpreter_that_has_nothing_of_the_server(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    environment = plan_of(spec, installation, tmp_path, {}).environment
    command = [sys.executable, "-S", "-c", "import jobserver_pyspark.host.__main__"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_properties_file_is_read_back_as_it_was() -> None:
    conf = {"spark.a": "x=y: z#\\n", "spark.b": "line\nline\ttab", "spark.c": "ünï€𝄞", "spark.d": " lead"}
    text = properties_file(conf)
    assert text.isascii()
    assert text.splitlines()[0] == r"spark.a=x\u003dy\u003a\u0020z\u0023\u005cn"
    assert r"spark.c=\u00fcn\u00ef\u20ac\ud834\udd1e" in text


def with_class(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"never loaded")
    return path


def test_a_factory_that_no_jar_has_is_refused_before_a_jvm_starts(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    settings = {"context-factory": "com.example.Typo"}
    with pytest.raises(UnknownContextFactory, match=r"class com\.example\.Typo is in no jar"):
        plan_of(spec, installation, tmp_path, settings)
    jar = with_class(tmp_path / "other.jar", "com/example/Right.class")
    code = JobCode(path=jar, type=BinaryType.JAR, digest="d" * 64, source="other")
    with pytest.raises(UnknownContextFactory):
        plan_of(attrs.evolve(spec, class_path=(code,)), installation, tmp_path, settings)


def test_a_factory_in_a_jar_of_the_context_or_of_spark_is_accepted(
    spec: ContextSpec, installation: Installation, tmp_path: Path
) -> None:
    settings = {"context-factory": "com.example.Outer$Mine"}
    jar = with_class(tmp_path / "mine.jar", "com/example/Outer$Mine.class")
    code = JobCode(path=jar, type=BinaryType.JAR, digest="d" * 64, source="mine")
    assert plan_of(attrs.evolve(spec, class_path=(code,)), installation, tmp_path, settings).spec.factory
    with pytest.raises(UnknownContextFactory):
        plan_of(spec, installation, tmp_path, settings)
    jar.replace(installation.package / "jars" / "added.jar")
    assert plan_of(spec, installation, tmp_path, settings).spec.factory


@pytest.mark.parametrize(
    "key", ["spark.driver.extraClassPath", "spark.jars.packages", "spark.driver.extraJavaOptions"]
)
def test_only_the_jvm_can_know_a_factory_where_settings_may_add_classes(
    key: str, spec: ContextSpec, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = {"context-factory": "com.example.Mine"}
    assert plan_of(spec, installation, tmp_path, {**factory, key: "-javaagent:a.jar"}).spec.factory
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "spark-defaults.conf").write_text(f"{key} -javaagent:a.jar\n")
    assert plan_of(spec, installation, tmp_path, factory).spec.factory
