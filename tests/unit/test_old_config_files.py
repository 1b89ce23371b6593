"""Configuration files of the old server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
from test_config import from_text

from jobserver_core.config.loading import describe, load_settings, setting_types
from jobserver_core.config.old_settings import ALIASES, IGNORED
from jobserver_core.config.settings import (
    Settings,
)
from jobserver_core.config.trees import flatten
from jobserver_core.errors import InvalidSetting

# -- files of the old server ---------------------------------------------------------------------------

OLD_FILE = """
flyway.locations = "db/h2/migration"
flyway.initOnMigrate = false
spark {
  master = "local[4]"
  master = ${?SPARK_MASTER}
  submit.deployMode = "client"
  driver.supervise = false
  job-number-cpus = 4
  jobserver {
    port = 8091
    bind-address = "127.0.0.2"
    context-per-jvm = false
    jobdao = spark.jobserver.io.JobSqlDAO
    daorootdir = "/tmp/jobserver"
    filedao { rootdir = /tmp/x }
    sqldao {
      slick-driver = slick.jdbc.H2Profile
      jdbc { url = "jdbc:h2:file:/tmp/x", user = "u", password = "p" }
    }
    dao-cleanup-after = 72h
    short-timeout = 3 s
    context-creation-timeout = 90 s
    context-deletion-timeout = 20 s
    yarn-context-creation-timeout = 40 s
    max-jobs-per-context = 4
    job-bin-paths { test = jars/test.jar }
    ha { masters = [] }
  }
  contexts { low-latency { num-cpu-cores = 1, memory-per-node = 512m } }
  context-settings {
    num-cpu-cores = 2
    passthrough { es.nodes = "192.1.1.1" }
    python { paths = [${?SPARK_HOME}/python], executable = "python3" }
  }
  home = "/home/spark"
}
akka {
  loggers = ["akka.event.slf4j.Slf4jLogger"]
  cluster.singleton { singleton-name = "context-supervisor" }
  cluster.singleton-proxy { singleton-name = ${akka.cluster.singleton.singleton-name} }
}
akka.http.server { idle-timeout = 60 s, parsing.max-content-length = 30m, ssl-encryption = off }
access-control { provider = spark.jobserver.auth.AllowAllAccessControl, auth-timeout = 10 s }
"""


def test_a_file_of_the_old_server_can_be_brought_along(tmp_path: Path) -> None:
    settings = from_text(tmp_path, OLD_FILE, env={"HOME": "/h", "SPARK_HOME": "/spark"})
    assert settings.spark.master == "local[4]"
    assert (settings.http.host, settings.http.port) == ("127.0.0.2", 8091)
    assert settings.jobs.max_jobs_per_context == 4
    assert settings.jobs.retention == 72 * 3600
    assert (settings.contexts.creation_timeout, settings.contexts.deletion_timeout) == (90.0, 20.0)
    assert settings.limits.upload_size == 30 * 1024**2
    assert settings.job_binary_paths == {"test": str(tmp_path / "jars/test.jar")}
    assert settings.spark.contexts == {"low-latency": {"num-cpu-cores": 1, "memory-per-node": "512m"}}
    assert settings.spark.context_settings["python"]["paths"] == ["/spark/python"]
    assert settings.origins["jobserver.http.port"] == str(tmp_path / "server.conf")


def test_each_old_key_without_a_meaning_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="jobserver_core"):
        settings = from_text(tmp_path, OLD_FILE, overrides={"akka.x": 1}, env={"HOME": "/h"})
    warned = [warning.partition(":")[0] for warning in settings.warnings]
    assert sorted(warned) == sorted(
        f"{prefix}{name}"
        for prefix, names in {
            "": "flyway akka access-control",
            "spark.": "submit.deployMode driver.supervise job-number-cpus home",
            "spark.jobserver.": "context-per-jvm jobdao daorootdir filedao sqldao short-timeout ha "
            "yarn-context-creation-timeout",
        }.items()
        for name in names.split()
    )
    assert [record.getMessage() for record in caplog.records] == list(settings.warnings)


def test_a_number_without_a_unit_is_milliseconds_in_a_file_and_seconds_in_python(tmp_path: Path) -> None:
    text = """
    spark.jobserver { context-creation-timeout = 60000, context-deletion-timeout = "1500" }
    spark.jobserver.default-sync-timeout = 20 s
    jobserver { jobs.kill-timeout = 0, callbacks.retry-delay = 2.5 }
    """
    settings = from_text(tmp_path, text, overrides={"jobserver.http.drain-timeout": 3})
    assert settings.contexts.creation_timeout == 60.0
    assert settings.contexts.deletion_timeout == 1.5
    assert settings.jobs.sync_timeout == 20.0
    assert settings.jobs.kill_timeout == 0.0
    assert settings.callbacks.retry_delay == 0.0025
    assert settings.http.drain_timeout == 3.0
    assert [warning.partition(":")[0] for warning in settings.warnings] == [
        "spark.jobserver.context-creation-timeout",
        "spark.jobserver.context-deletion-timeout",
        "jobserver.callbacks.retry-delay",
    ]


def test_every_duration_of_a_file_counts_in_milliseconds_without_a_unit(tmp_path: Path) -> None:
    durations = [key for key, kind in setting_types().items() if kind.name == "duration"]
    text = "\n".join(f"{key} = 1500" for key in durations)
    shown = {one.key: one.value for one in describe(from_text(tmp_path, text))}
    assert {shown[key] for key in durations} == {"1.5 s"}


def test_all_unknown_keys_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = "wordcount.min = 3\njobservr.http.port = 1\nspark.jobserver.prot = 8090\njobserver.http.prt = 1"
    with pytest.raises(InvalidSetting) as caught:
        from_text(tmp_path, text)
    message = str(caught.value)
    for expected in (
        "'wordcount'",
        "'jobservr'",
        "'spark.jobserver.prot'",
        "'jobserver.http.prt' (did you mean",
    ):
        assert expected in message
    assert message.count("jobserver.jobs.default-config") == 1


@pytest.mark.parametrize("value", [True, "on", {"enabled": "yes"}])
def test_authentication_that_was_on_is_not_ignored(value: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"set jobserver\.auth"):
        Settings.from_mapping({"spark.jobserver.authentication": value})


SETTINGS_BELOW_SETTINGS = """
spark {
  context-settings { spark.speculation = true, spark.speculation.interval = 10s }
  context-settings.spark.sql.catalog.lake = a.Lake
  context-settings.spark.sql.catalog.lake.type = hadoop
  contexts { c { hadoop.fs.x = 1, hadoop.fs.x.y = 2 } }
}
"""


def test_a_file_may_set_nested_spark_settings_and_overrides_win_over_each(tmp_path: Path) -> None:
    overrides = {
        "spark.context-settings.spark.speculation": False,
        "spark": {"contexts": {"c": {"hadoop": {"fs": {"x": {"y": 3}}}}}},
    }
    settings = from_text(tmp_path, SETTINGS_BELOW_SETTINGS, overrides=overrides)
    assert flatten(settings.spark.context_settings) == {
        "spark.speculation": False,
        "spark.speculation.interval": "10s",
        "spark.sql.catalog.lake": "a.Lake",
        "spark.sql.catalog.lake.type": "hadoop",
    }
    assert flatten(settings.spark.contexts) == {"c.hadoop.fs.x": 1, "c.hadoop.fs.x.y": 3}


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_an_ignored_key_is_accepted_alone_and_with_anything_below_it(key: str) -> None:
    for value in (1, "x", None, {"a": {"b": [1]}}):
        settings = Settings.from_mapping({key: value})
        assert len(settings.warnings) == 1
        assert settings.warnings[0].startswith(f"{key}: ")
        assert settings == attrs.evolve(Settings(), warnings=settings.warnings)


def test_files_of_old_servers_start_with_the_keys_that_they_have(tmp_path: Path) -> None:
    (tmp_path / "docker.conf").write_text(
        """
        flyway.locations = "db/h2/migration"
        spark {
          master = yarn-client
          master-provider = com.example.Masters
          home = ${?NO_SUCH_HOME}
          jobserver {
            port = 8090, jobdao = spark.jobserver.io.JobSqlDAO, cachedao { size = 5 }
            job-result-cache-ttl-seconds = 3600
            named-object-creation-timeout = 60 s
            yarn-broadcast-factory = com.example.Factory
          }
          context-settings { num-cpu-cores = 2, memory-per-node = 512m, passthrough { #es.nodes = "a"
          } }
        }
        akka.remote.netty.tcp.maximum-frame-size = 100 MiB
        """
    )
    settings = load_settings(tmp_path / "docker.conf", env={})
    assert settings.spark.master == "yarn"
    assert sorted(warning.partition(":")[0] for warning in settings.warnings) == [
        "akka",
        "flyway",
        "spark.jobserver.cachedao",
        "spark.jobserver.job-result-cache-ttl-seconds",
        "spark.jobserver.jobdao",
        "spark.jobserver.named-object-creation-timeout",
        "spark.jobserver.yarn-broadcast-factory",
        "spark.master",
        "spark.master-provider",
    ]


@pytest.mark.parametrize(("old", "key"), sorted(ALIASES.items()))
def test_an_old_spelling_sets_the_same_and_its_errors_name_it(old: str, key: str) -> None:
    kind = setting_types()[key]
    value: Any = {"a": "/a.jar"} if kind.free else {"text": "yarn-x", "duration": "7 s"}.get(kind.name, 7)
    master = {"spark.master": "yarn"} if ".yarn-" in old else {}
    by_old = Settings.from_mapping({**master, old: value})
    by_new = Settings.from_mapping({**master, key: value})
    assert attrs.evolve(by_old, warnings=()) == by_new != Settings.from_mapping(master)
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({**master, old: [[]]})
    assert caught.value.key == old


def test_the_spelling_for_yarn_wins_on_a_yarn_master_only() -> None:
    old = {
        "spark.jobserver.yarn-context-creation-timeout": 40,
        "spark.jobserver.context-creation-timeout": 15,
    }
    assert Settings.from_mapping({**old, "spark.master": "yarn"}).contexts.creation_timeout == 40
    other = Settings.from_mapping(old)
    assert other.contexts.creation_timeout == 15
    assert other.warnings == (
        "spark.jobserver.yarn-context-creation-timeout: this setting applies only to YARN masters",
    )


def test_the_new_layout_may_be_nested_under_spark() -> None:
    settings = Settings.from_mapping(
        {"spark": {"jobserver": {"jobs": {"sync-timeout": "1 s"}, "data-dir": "/d"}}}
    )
    assert (settings.jobs.sync_timeout, settings.data_dir) == (1.0, Path("/d"))


def test_two_spellings_of_one_setting_are_refused() -> None:
    with pytest.raises(
        InvalidSetting, match=r"is the same setting as 'spark\.jobserver\.port'; remove one of them"
    ):
        Settings.from_mapping({"spark.jobserver.port": 1, "jobserver.http.port": 2})


def test_an_override_may_use_another_spelling_than_the_file(tmp_path: Path) -> None:
    settings = from_text(tmp_path, "spark.jobserver.port = 1", overrides={"jobserver.http.port": 2})
    assert settings.http.port == 2


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"access-control.provider": "spark.jobserver.auth.ShiroAccessControl"}, "access-control"),
        ({"shiro.authentication": "on"}, "shiro"),
        ({"akka.http.server.ssl-encryption": True}, "akka.http.server.ssl-encryption"),
        ({"spray.can.server.ssl-encryption": "on"}, "spray.can.server.ssl-encryption"),
    ],
)
def test_old_access_control_and_encryption_are_never_dropped_in_silence(
    tree: dict[str, Any], key: str
) -> None:
    with pytest.raises(InvalidSetting, match="remove it, and set jobserver") as caught:
        Settings.from_mapping(tree)
    assert caught.value.key == key
