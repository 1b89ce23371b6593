from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import Settings, load_settings
from jobserver_core.config.trees import nested
from jobserver_core.errors import InvalidSetting, UnknownContextFactory
from jobserver_pyspark.launcher.context_settings import CONTEXT_TYPES, flattened, read_settings
from jobserver_pyspark.launcher.options import LauncherOptions


def read(settings: dict[str, Any], master: str = "local[*]") -> Any:
    return read_settings(settings, default_master=master)


def test_a_settings_tree_is_flattened_for_spark() -> None:
    tree = {"a": {"b": 1, "c": {"d": True, "e": None}}, "f": ["x", 2], "g.h": 0.5, "i": False}
    assert flattened(tree) == {"a.b": "1", "a.c.d": "true", "f": "x,2", "g.h": "0.5", "i": "false"}


@pytest.mark.parametrize(
    ("settings", "master", "threads", "cores"),
    [
        ({"num-cpu-cores": 3}, "local[*]", "local[3]", None),
        ({"num-cpu-cores": "3"}, "local", "local[3]", None),
        ({"num-cpu-cores": 3}, "local[2]", "local[2]", None),
        ({}, "local[*]", "local[*]", None),
        ({"num-cpu-cores": 3}, "spark://h:7077", "spark://h:7077", "3"),
        ({"num-cpu-cores": 3, "spark": {"cores": {"max": 5}}}, "yarn", "yarn", "5"),
        ({"spark": {"master": "local[7]"}}, "yarn", "local[7]", None),
        ({"spark.master": "local[7]"}, "yarn", "local[7]", None),
    ],
)
def test_cores_are_threads_of_a_local_master_and_cores_of_a_cluster(
    settings: dict[str, Any], master: str, threads: str, cores: str | None
) -> None:
    found = read(settings, master)
    assert found.master == threads
    assert found.conf.get("spark.cores.max") == cores
    assert "spark.master" not in found.conf


def test_an_interpreter_that_may_not_be_executed_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "python").touch(mode=0o600)
    with pytest.raises(InvalidSetting, match=r"may not execute '.*/python': .*\(chmod\), or choose another"):
        read({"python.executable": str(tmp_path / "python")})
    with pytest.raises(InvalidSetting, match="expected a program, got the directory"):
        read({"spark.pyspark.python": str(tmp_path)})


def test_memory_is_the_executors_and_in_local_mode_the_drivers_too() -> None:
    assert read({"memory-per-node": "2 G"}).conf == {
        "spark.executor.memory": "2g",
        "spark.driver.memory": "2g",
    }
    assert read({"memory-per-node": "512m"}, "yarn").conf == {"spark.executor.memory": "512m"}
    assert read({"memory-per-node": 512}, "yarn").conf == {"spark.executor.memory": "512m"}
    chosen = read({"memory-per-node": "2g", "launcher": {"spark": {"driver": {"memory": "1g"}}}})
    assert chosen.conf["spark.driver.memory"] == "1g"


def test_prefixes_lead_where_the_contract_says(tmp_path: Path) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    Path(one).mkdir()
    Path(two).touch()  # such as a ZIP file
    found = read(
        {
            "spark": {"a": 1, "proxy": {"user": "alice"}},
            "passthrough": {"spark": {"b": 2}, "other": "x"},
            "hadoop": {"fs": {"c": 3}},
            "launcher": {"spark": {"d": 4}},
            "python": {"executable": sys.executable, "paths": [one, two]},
        }
    )
    assert found.conf == {"spark.a": "1", "spark.b": "2", "other": "x", "spark.d": "4"}
    assert found.hadoop == {"fs.c": "3"}
    assert found.proxy_user == "alice"
    assert found.python == sys.executable
    assert found.python_paths == (one, two)
    assert read({"python.paths": f"{one}:{two}, {one}"}).python_paths == (one, two, one)


def test_modules_to_import_ahead_of_need_are_a_list_or_a_string_with_commas() -> None:
    names = ("pandas", "pyarrow.compute", "_größe")
    assert read({"python": {"preload": [*names, "pandas"]}}).preload == names
    assert read({"python.preload": "pandas, pyarrow.compute,_größe,"}).preload == names
    assert read({}).preload == ()
    assert len(read({"python.preload": [f"m{number}" for number in range(100)]}).preload) == 100


@pytest.mark.parametrize(
    "name", ["scikit-learn", "a..b", ".a", "a.", "a b", "1a", "a/b.py", "a;b", "a" * 129, 1]
)
def test_what_can_never_be_the_name_of_a_module_is_refused(name: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"takes the names of Python modules, such as pandas") as caught:
        read({"python.preload": ["pandas", name]})
    assert caught.value.key == "python.preload"


def test_too_many_modules_to_import_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="takes up to 100 modules, got 101"):
        read({"python.preload": [f"m{number}" for number in range(101)]})


@pytest.mark.parametrize(
    ("factory", "context_type"),
    [
        (None, "any"),
        ("spark.jobserver.context.DefaultSparkContextFactory", "spark"),
        ("spark.jobserver.context.SessionContextFactory", "session"),
        ("spark.jobserver.context.SQLContextFactory", "sql"),
        ("spark.jobserver.context.HiveContextFactory", "hive"),
        ("spark.jobserver.context.StreamingContextFactory", "streaming"),
        ("spark.jobserver.context.JavaSparkContextFactory", "spark"),
        ("spark.jobserver.context.JavaSessionContextFactory", "session"),
        ("spark.jobserver.context.JavaSqlContextFactory", "sql"),
        ("spark.jobserver.context.JavaHiveContextFactory", "hive"),
        ("spark.jobserver.context.JavaStreamingContextFactory", "streaming"),
        ("spark.jobserver.python.PythonContextFactory", "spark"),
        ("spark.jobserver.python.PythonSparkContextFactory", "spark"),
        ("spark.jobserver.python.PythonSessionContextFactory", "session"),
        ("spark.jobserver.python.PythonHiveContextFactory", "hive"),
        ("custom", "custom"),
        ("com.example.Mine", "custom"),
        ("com.example.SessionContextFactory", "custom"),
        ("com.example.Outer$Mine", "custom"),
    ],
)
def test_a_factory_names_a_context_type(factory: str | None, context_type: str) -> None:
    found = read({"context-factory": factory} if factory else {})
    assert found.context_type == context_type
    assert (found.factory.name if found.factory else None) == (
        factory if factory and factory.startswith("com.example.") else None
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Mine", "use custom"),
        ("MyContextFactory", "use custom"),
        ("SesionContextFactory", "use custom; did you mean 'SessionContextFactory'?"),
        ("SessionContextFactory", "use custom; did you mean 'SessionContextFactory'?"),
    ],
)
def test_the_error_for_a_missing_factory_of_the_users_own_says_what_would_be_right(
    name: str, hint: str
) -> None:
    factory = read({"context-factory": f"com.example.{name}"}).factory
    assert factory is not None
    assert factory.missing.message == (
        f"setting 'context-factory': class com.example.{name} is in no jar of the context's class path "
        f"(cp, dependent-jar-uris); for a context that Python jobs build in build_context, {hint}"
    )
    assert factory.missing.error_class == "jobserver_core.errors.UnknownContextFactory"


def test_the_page_about_jvm_jobs_lists_every_factory_in_the_row_of_its_type() -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "jvm-jobs.md").read_text()
    listed: dict[str, list[str]] = {}
    for line in page.splitlines():
        if line.startswith("| ") and (names := re.findall(r"`(\w+ContextFactory)`", line)):
            listed[CONTEXT_TYPES[names[0]]] = names
    assert listed == {
        kind: [name for name, of in CONTEXT_TYPES.items() if of == kind]
        for kind in dict.fromkeys(CONTEXT_TYPES.values())
    }


@pytest.mark.parametrize(
    ("factory", "hint"),
    [
        ("spark.jobserver.context.SesionContextFactory", "did you mean 'SessionContextFactory'"),
        ("spark.jobserver.context.SqlContextFactory", "did you mean 'SQLContextFactory'"),
        ("Custom", "did you mean 'custom'"),
        ("", "must not be empty; without it, each job chooses"),
        ("nonsense", "expected one of DefaultSparkContextFactory, .*, custom, or a class in a jar"),
        ("spark.jobserver.custom", "did you mean 'custom'"),
        ("spark.jobserver.Nonsense", "expected one of DefaultSparkContextFactory, "),
        ("spark.jobserver.context.", "expected one of DefaultSparkContextFactory, "),
        ("com.example.", "expected one of DefaultSparkContextFactory, "),
        ("com..Mine", "expected one of DefaultSparkContextFactory, "),
        ("com.example.My Factory", "expected one of DefaultSparkContextFactory, "),
    ],
)
def test_a_factory_that_does_not_exist_is_refused(factory: str, hint: str) -> None:
    with pytest.raises(UnknownContextFactory, match=hint) as caught:
        read({"context-factory": factory})
    assert caught.value.key == "context-factory"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("memory-per-nod", "memory-per-node"),
        ("num-cpu-core", "num-cpu-cores"),
        ("contextfactory", "context-factory"),
        ("python.exectuable", "python.executable"),
        ("pasthrough.a.b", "passthrough.*"),
        ("wholly.different", None),
    ],
)
def test_a_key_that_no_context_has_is_refused_with_the_nearest(key: str, nearest: str | None) -> None:
    with pytest.raises(InvalidSetting, match="a context has no such setting") as caught:
        read({key: "1g", "num-cpu-cores": 1})
    assert (caught.value.key, caught.value.nearest) == (key, nearest)


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(InvalidSetting, match=r"'a\.b': a context has no such setting, nor 'c'"):
        read({"a": {"b": 1}, "c": 2})


@pytest.mark.parametrize("key", ["context-per-jvm", "context-init-timeout", "forked-jvm-init-timeout"])
def test_meaningless_keys_of_the_old_server_are_accepted(key: str) -> None:
    assert read({key: "true"}).conf == {}


def test_settings_below_a_setting_reach_spark() -> None:
    settings = nested(
        {"spark.speculation": True, "spark.speculation.interval": "10s", "hadoop.a": 1, "hadoop.a.b": 2}
    )
    found = read(settings)
    assert found.conf == {"spark.speculation": "true", "spark.speculation.interval": "10s"}
    assert found.hadoop == {"a": "1", "a.b": "2"}


@pytest.mark.parametrize(
    ("factory", "enabled", "hive"),
    [
        ("HiveContextFactory", None, True),
        ("SessionContextFactory", None, False),
        ("SessionContextFactory", True, True),
        ("JavaSessionContextFactory", "true", True),
        ("PythonSessionContextFactory", True, True),
        ("SessionContextFactory", False, False),
        ("DefaultSparkContextFactory", True, False),
    ],
)
def test_sessions_have_hives_tables_where_the_old_setting_says_so(
    factory: str, enabled: Any, hive: bool
) -> None:
    settings = {"context-factory": factory, "spark": {"session": {"hive": {"enabled": enabled}}}}
    assert read(settings).hive is hive


@pytest.mark.parametrize("isolation", [None, "session", "shared"])
def test_the_isolation_of_jvm_code_versions_can_be_chosen(isolation: str | None) -> None:
    assert read({"jvm": {"isolation": isolation}}).jvm_isolation == isolation


def test_an_unknown_isolation_of_versions_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="takes session or shared, got 'magic'"):
        read({"jvm.isolation": "magic"})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num-cpu-cores": "x"}, "num-cpu-cores"),
        ({"num-cpu-cores": -1}, "num-cpu-cores"),
        ({"num-cpu-cores": 1.5}, "num-cpu-cores"),
        ({"memory-per-node": "lots"}, "memory-per-node"),
        ({"memory-per-node": "-1g"}, "memory-per-node"),
        ({"memory-per-node": "1bb"}, "memory-per-node"),
        ({"memory-per-node": "1.5g"}, "memory-per-node"),
        ({"memory-per-node": "449m"}, "memory-per-node"),
        ({"spark.driver.memory": "64"}, "spark.driver.memory"),
        ({"launcher.spark.executor.memory": "1m"}, "launcher.spark.executor.memory"),
        ({"spark.executor.memoryOverhead": "some"}, "spark.executor.memoryOverhead"),
        ({"spark.cores.max": -1}, "spark.cores.max"),
        ({"passthrough.spark.executor.cores": "two"}, "passthrough.spark.executor.cores"),
        ({"launcher": {"spark": {"driver": {"memory": "-1g"}}}}, "launcher.spark.driver.memory"),
        ({"num-cpu-cores": [2]}, "num-cpu-cores"),
        ({"num-cpu-cores": {}}, "num-cpu-cores"),
        ({"context-factory": []}, "context-factory"),
        ({"python": {"executable": {}}}, "python.executable"),
        ({"python.preload": {}}, "python.preload"),
        ({"pod-template": {}}, "pod-template"),
        ({"spark": {"proxy": {"user": ["ann"]}}}, "spark.proxy.user"),
        ({"spark.proxy.user": " ann"}, "spark.proxy.user"),
        ({"spark.proxy.user": "a\nb"}, "spark.proxy.user"),
        ({"streaming": {"batch_interval": [500]}}, "streaming.batch_interval"),
        ({"streaming.batchInterval": 500}, "streaming.batchInterval"),
        ({"spark.task.cpus": "²"}, "spark.task.cpus"),
        ({"spark.sql.shuffle.partitions": "many"}, "spark.sql.shuffle.partitions"),
        ({"spark.default.parallelism": 0}, "spark.default.parallelism"),
        ({"spark.scheduler.mode": "FARI"}, "spark.scheduler.mode"),
        ({"spark.driver.extraJavaOptions": "'-Da=b"}, "spark.driver.extraJavaOptions"),
        ({"spark.executor.extraJavaOptions": "-Xmx1g"}, "spark.executor.extraJavaOptions"),
        ({"spark.driver.extraJavaOptions": "-Da=b '-Dspark.ui.port=1'"}, "spark.driver.extraJavaOptions"),
        ({"spark.submit.deployMode": "cluster"}, "spark.submit.deployMode"),
        ({"spark.driver.userClassPathFirst": True}, "spark.driver.userClassPathFirst"),
        ({"spark.executor.userClassPathFirst": "true"}, "spark.executor.userClassPathFirst"),
        ({"python.executable": "/no/such/python"}, "python.executable"),
        ({"python.executable": ""}, "python.executable"),
        ({"python.paths": "pandas"}, "python.paths"),
        ({"python.paths": "/usr,~/lib"}, "python.paths"),
        ({"python": {"paths": ["/usr", "/no/such/directory"]}}, "python.paths"),
        ({"hadoop-conf-dir": "/no/such/directory"}, "hadoop-conf-dir"),
        ({"streaming": {"batch_interval": "soon"}}, "streaming.batch_interval"),
        ({"streaming.batch_interval": "2 s"}, "streaming.batch_interval"),
        ({"streaming.batch_interval": 0}, "streaming.batch_interval"),
        ({"streaming.stopGracefully": "perhaps"}, "streaming.stopGracefully"),
        ({"spark.session.hive.enabled": "on"}, "spark.session.hive.enabled"),
    ],
)
def test_values_that_can_never_work_are_refused_by_name(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read(settings)
    assert caught.value.key == key


_FILES = ["spark.jars", "spark.files", "spark.archives", "spark.submit.pyFiles"]


@pytest.mark.parametrize("key", _FILES)
@pytest.mark.parametrize("prefix", ["", "file:", "file://", "FILE:"])
@pytest.mark.parametrize("master", ["local[2]", "spark://h:7077", "yarn"])
def test_a_local_file_that_does_not_exist_is_named_before_spark_starts(
    tmp_path: Path, key: str, prefix: str, master: str
) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing one"
    there.touch()
    shown = str(missing).replace(" ", "%20") if prefix else str(missing)
    with pytest.raises(InvalidSetting) as caught:
        read({key: f"{prefix}{there}, {prefix}{shown}#name"}, master)
    assert caught.value.key == key
    assert caught.value.message == f"file {missing} does not exist on the server's machine"


def test_a_file_must_have_an_absolute_path_because_a_context_has_a_directory_of_its_own() -> None:
    with pytest.raises(InvalidSetting, match=r"absolute path of a file on the server's machine, got a\.jar"):
        read({"spark.jars": "a.jar"})


@pytest.mark.parametrize("key", _FILES)
def test_files_that_exist_patterns_and_files_of_other_machines_are_accepted(tmp_path: Path, key: str) -> None:
    for name in ("a b.zip", "a%20c.zip", "d#e.zip"):
        (tmp_path / name).touch()
    entries = [
        *(f"{tmp_path}/{name}" for name in ("a b.zip", "a b.zip#x", "a%20c.zip", "d#e.zip", "d#e.zip#x")),
        *(f"{tmp_path.as_uri()}/{name}" for name in ("a%20b.zip", "a%20b.zip#x", "d%23e.zip")),
        f"file://localhost{tmp_path}/a%20b.zip",
        f"{tmp_path}/*.jar",
        f"file:{tmp_path}/b[0-9]?.jar",
        f"{tmp_path}",
        "local:/no/such.jar",
        "hdfs:///no/such.jar",
        "s3a://bucket/no/such.jar",
        "https://example.com/no/such.jar",
        "",
    ]
    assert read({key: ",".join(entries)}, "spark://h:7077").conf[key]
    assert read({key: entries}).conf[key]


def test_a_running_context_does_not_need_the_files_that_it_was_started_with() -> None:
    settings = {"spark.jars": "/no/such.jar"}
    gone = {"hadoop-conf-dir": "/no/such/directory"}
    assert read_settings({**settings, **gone}, default_master="local", accepted=True).conf == settings


def test_values_that_spark_accepts_are_passed_through() -> None:
    settings = {
        "spark.driver.memory": "300m",
        "spark.testing.reservedMemory": "1m",
        "spark.executor.memoryOverhead": "384",
        "spark.memory.offHeap.size": 0,
        "spark.driver.userClassPathFirst": False,
        "spark.submit.deployMode": "client",
        "spark.driver.extraJavaOptions": "-Da='b c' -XX:+UseSerialGC",
        "python.executable": "python3",
    }
    assert read(settings).conf["spark.driver.memory"] == "300m"


MASTERS = (
    "local",
    "local[*]",
    "local[4]",
    "local[*,3]",
    "local[2, 3]",
    "local-cluster[1, 1, 1024]",
    "spark://host:7077",
    "spark://[::1]:7077",
    "spark://a:7077,b:7077",
    "yarn",
    "k8s://https://host:443",
)


@pytest.mark.parametrize("master", MASTERS)
def test_every_kind_of_master_is_accepted(master: str) -> None:
    assert read({"spark.master": master}).master == master
    assert read({}, master).master == master


@pytest.mark.parametrize(
    "master",
    [
        "",
        "local[0]",
        "local[no-number]",
        "local[]",
        "locale",
        "spark://host",
        "yarn-client",
        "mesos://h:5050",
        "k8s://",
    ],
)
def test_a_master_of_an_unknown_kind_is_refused(master: str) -> None:
    for settings, default in (({"spark.master": master}, "local"), ({}, master)):
        with pytest.raises(InvalidSetting, match="expected local, ") as caught:
            read(settings, default)
        assert caught.value.key == "spark.master"


@pytest.mark.parametrize(
    ("master", "advice"),
    [
        ("yarn-client", "Spark calls it yarn; write yarn"),
        ("yarn-cluster", "drivers run on the server's machine; write yarn"),
        ("mesos://h:5050", "Spark 4 does not support Mesos"),
    ],
)
def test_a_master_of_an_old_kind_is_refused_with_what_to_write_instead(master: str, advice: str) -> None:
    with pytest.raises(InvalidSetting, match=f"got '{master}': {advice}"):
        read({"spark.master": master})


@pytest.mark.parametrize(
    ("settings", "master", "needed"),
    [
        ({}, "local[*]", False),
        ({}, "spark://h:7077", False),
        ({}, "yarn", True),
        ({}, "k8s://https://h", True),
        ({"spark": {"proxy": {"user": "alice"}}}, "local[*]", True),
        ({"spark": {"jars": {"packages": "a:b:1"}}}, "local[*]", True),
    ],
)
def test_sparks_own_submission_is_used_where_it_has_work_to_do(
    settings: dict[str, Any], master: str, needed: bool
) -> None:
    assert read(settings, master).needs_submit is needed


def test_an_empty_proxy_user_is_none() -> None:
    assert read({"spark": {"proxy": {"user": ""}}}).proxy_user is None


def test_directories_of_options_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "jobserver.conf").write_text(
        'jobserver.launcher.options { jvm-libraries = libraries, hadoop-conf-dir = "/etc/hadoop" }'
    )
    options = LauncherOptions.from_settings(load_settings(tmp_path / "jobserver.conf"))
    assert (options.jvm_libraries, options.hadoop_conf_dir) == (tmp_path / "libraries", Path("/etc/hadoop"))
    for wrong in ("", 5):
        settings = Settings.from_mapping({"jobserver.launcher.options.cache-dir": wrong})
        with pytest.raises(InvalidSetting) as caught:
            LauncherOptions.from_settings(settings)
        assert caught.value.key == "jobserver.launcher.options.cache-dir"


def test_options_are_read_and_refused_by_name() -> None:
    options = LauncherOptions.parse(
        {
            "environment": ["A", "B"],
            "spare-runners": "3",
            "class-data-sharing": False,
            "cache-dir": "/c",
            "packages-size": "2 GiB",
        }
    )
    assert options == LauncherOptions(
        environment=("A", "B"),
        spare_runners=3,
        class_data_sharing=False,
        cache_dir=Path("/c"),
        packages_size=2 * 1024**3,
    )
    for tree, key in (
        ({"no-such": 1}, "jobserver.launcher.options.no-such"),
        ({"spare-runners": -1}, "jobserver.launcher.options.spare-runners"),
        ({"class-data-sharing": "maybe"}, "jobserver.launcher.options.class-data-sharing"),
        ({"environment": 5}, "jobserver.launcher.options.environment"),
        ({"cache-dir": 5}, "jobserver.launcher.options.cache-dir"),
        ({"packages-size": "much"}, "jobserver.launcher.options.packages-size"),
    ):
        with pytest.raises(InvalidSetting) as caught:
            LauncherOptions.parse(tree)
        assert caught.value.key == key


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("local[2]", True),
        ("spark://127.0.0.1:7077", True),
        ("spark://127.0.0.1:7077,localhost:7078", True),
        ("spark://127.0.0.1:7077,other:7078", False),
        ("spark://other:7077,127.0.0.1:7078", False),
        ("yarn", False),
    ],
)
def test_a_driver_keeps_to_loopback_only_if_every_master_does(master: str, expected: bool) -> None:
    assert read({}, master).loopback is expected
