"""What becomes of each key of an old configuration file, in files as old deployments have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobserver_core.config.loading import load_settings
from jobserver_core.config.migration import KeyMigration, Outcome, migrate
from jobserver_core.config.old_settings import IGNORED, IGNORED_IN_CONTEXTS, PEM_COMMANDS
from jobserver_core.config.settings import Settings
from jobserver_core.errors import (
    InvalidConfig,
    InvalidInput,
    InvalidName,
    InvalidRequest,
    InvalidSetting,
    MalformedUrl,
)
from jobserver_core.models.json_values import JsonMapping

ON_ONE_MACHINE = """
# A laptop: SQLite's predecessor H2, one JVM for everything.
spark {
  master = "local[4]"
  master = ${?SPARK_MASTER}
  webUrlPort = 8080
  submit.deployMode = "client"
  jobserver {
    port = 8090
    context-per-jvm = false
    jobdao = spark.jobserver.io.JobFileDAO
    filedao { rootdir = /tmp/spark-job-server/filedao/data }
    datadao { rootdir = /tmp/spark-jobserver/upload }
    result-chunk-size = 1m
  }
  contexts { reports { num-cpu-cores = 2, memory-per-node = 1g, forked-jvm-init-timeout = 30s } }
  context-settings { num-cpu-cores = 2, memory-per-node = 512m, passthrough { es.nodes = "10.0.0.1" } }
  home = "/opt/spark"
}
"""
ON_YARN = """
# A cluster edge node with users from LDAP and a database.
spark {
  master = yarn
  jobserver {
    bind-address = 127.0.0.1
    context-per-jvm = true
    max-jobs-per-context = 16
    yarn-context-creation-timeout = 120 s
    dao-cleanup-after = 72h
    short-timeout = 10 s
    sqldao {
      slick-driver = slick.jdbc.PostgresProfile
      jdbc { url = "jdbc:postgresql://db/jobs", user = jobserver, password = hush }
    }
    job-bin-paths { etl = /opt/etl/etl.jar }
  }
}
shiro { authentication = on, config.path = "/etc/shiro.ini" }
akka.http.server { request-timeout = 90 s, parsing.max-content-length = 300m }
"""
OF_VERSION_0_6 = """
spark.jobserver.port = 8092
spark.jobserver.context-creation-timeout = 15
spark.jobserver.job-jar-paths { test = jars/test.jar }
spark.jobserver.yarn-context-creation-timeout = 40 s
spray.can.server { idle-timeout = 60 s, parsing.max-content-length = 200m, ssl-encryption = off }
deploy { manager-start-cmd = "app/manager_start.sh" }
"""
WITH_MISTAKES = """
spark.jobserver { prot = 8090, max-jobs-per-context = many }
spark.executor.memory = 2g
wordcount { minimum = 3 }
spark.jobserver.bind-address { host = 127.0.0.1 }
spark.jobserver.job-bin-paths = ${spark.jobserver.job-jar-paths}
spark.jobserver.job-jar-paths { a = a.jar }
"""


def migrated(directory: Path, text: str) -> dict[str, KeyMigration]:
    file = directory / "old.conf"
    file.write_text(text)
    found = migrate(file, env={"HOME": "/h"})
    keys = {one.key: one for one in found}
    assert len(keys) == len(found)
    return keys


def outcomes(found: dict[str, KeyMigration], outcome: Outcome) -> set[str]:
    return {key for key, one in found.items() if one.outcome is outcome}


def test_the_keys_of_a_file_for_one_machine(tmp_path: Path) -> None:
    found = migrated(tmp_path, ON_ONE_MACHINE)
    assert outcomes(found, Outcome.SAME) == {
        "spark.master",
        "spark.contexts.reports.num-cpu-cores",
        "spark.contexts.reports.memory-per-node",
        "spark.context-settings.num-cpu-cores",
        "spark.context-settings.memory-per-node",
        "spark.context-settings.passthrough.es.nodes",
    }
    assert found["spark.jobserver.port"].setting == "jobserver.http.port"
    assert outcomes(found, Outcome.RENAMED) == {"spark.jobserver.port"}
    assert outcomes(found, Outcome.IGNORED) == {
        "spark.submit.deployMode",
        "spark.jobserver.context-per-jvm",
        "spark.jobserver.result-chunk-size",
    }
    assert "jobserver.metadata.url" in found["spark.jobserver.jobdao"].explanation
    assert "creation-timeout" in found["spark.contexts.reports.forked-jvm-init-timeout"].explanation
    assert not any(one.outcome.refused for one in found.values())


def test_the_keys_of_a_file_for_yarn(tmp_path: Path) -> None:
    found = migrated(tmp_path, ON_YARN)
    assert found["spark.jobserver.yarn-context-creation-timeout"].outcome is Outcome.RENAMED
    assert found["akka.http.server.parsing.max-content-length"].setting == "jobserver.limits.upload-size"
    assert "for akka.http.server.request-timeout = 90 s, set jobserver.jobs.sync" in found["akka"].explanation
    assert outcomes(found, Outcome.INVALID) == {"shiro"}
    assert "set jobserver.auth" in found["shiro"].explanation
    assert "hush" not in str(found)


def test_binaries_that_the_server_could_not_upload_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.jar").touch()
    text = "spark.jobserver.job-bin-paths { a = there.jar, b = 17, c = [x], d/e = there.jar, f = . }"
    [found] = migrated(tmp_path, text.replace("c = [x], ", "")).values()
    assert (found.outcome, found.setting) == (Outcome.RENAMED, "jobserver.job-binary-paths")
    for words in (
        f"the server cannot upload b: [Errno 2] No such file or directory: '{tmp_path}/17'",
        "the server cannot upload d/e: binary name 'd/e' is not allowed",
        f"the server cannot upload f: [Errno 21] Is a directory: '{tmp_path}'",
    ):
        assert words in found.explanation
    assert "upload a:" not in found.explanation
    [found] = migrated(tmp_path, text).values()
    assert (found.outcome, found.explanation) == (Outcome.INVALID, "expected a string, got ['x']")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("spark.submit.deployMode = client", Outcome.IGNORED),
        ("spark.submit.deployMode = cluster", Outcome.GONE),
        ("spark.jobserver.driver-mode = client", Outcome.IGNORED),
        ("spark.jobserver.driver-mode = mesos-cluster", Outcome.GONE),
        ("spark.jobserver.kill-context-on-supervisor-down = false", Outcome.IGNORED),
        ("spark.driver.supervise = true", Outcome.GONE),
        ("shiro { authentication = off, config.path = shiro.ini }", Outcome.IGNORED),
        ("shiro { config.path = shiro.ini }", Outcome.IGNORED),
        ("access-control.provider = spark.jobserver.auth.AllowAllAccessControl", Outcome.IGNORED),
        ("spark.jobserver.authentication { enabled = off }", Outcome.IGNORED),
    ],
)
def test_nothing_is_to_do_for_a_key_whose_value_asked_for_nothing(
    tmp_path: Path, text: str, outcome: Outcome
) -> None:
    [one] = migrated(tmp_path, text).values()
    assert one.outcome is outcome
    assert ("jobserver.metadata.url" in one.explanation or "set supervise" in one.explanation) == (
        outcome is Outcome.GONE
    )


@pytest.mark.parametrize(
    ("text", "without_effect"),
    [
        ("akka.http.server.parsing.max-content-length = 100m", set()),
        ("akka.http.server.parsing { max-content-length = 100m, max-uri-length = 4k }", {"akka"}),
    ],
)
def test_a_group_without_effect_is_named_only_if_it_has_such_keys(
    tmp_path: Path, text: str, without_effect: set[str]
) -> None:
    found = migrated(tmp_path, text)
    assert set(found) == {"akka.http.server.parsing.max-content-length"} | without_effect
    assert outcomes(found, Outcome.IGNORED) == without_effect


@pytest.mark.parametrize(
    ("text", "outcome", "explanation"),
    [
        (
            "akka.remote.netty.tcp { hostname = a, port = 1 }",
            Outcome.IGNORED,
            "akka.remote.netty.tcp.hostname, akka.remote.netty.tcp.port have no effect",
        ),
        (
            "akka { a = 1, b = 1, c = 1, d = 1, e = 1, f = 1, g = 1 }",
            Outcome.IGNORED,
            "akka.a, akka.b, akka.c, akka.d, akka.e and 2 more have no effect",
        ),
        (
            "akka { loglevel = DEBUG, http.server { keystore = k.jks, keystorePW = hidden, x = 1 } }",
            Outcome.GONE,
            "for akka.loglevel = DEBUG, start the server with --log-level; for akka.http.server.keystore = "
            f"k.jks, set jobserver.http.tls-certificate and tls-key to files that you make with: "
            f"{PEM_COMMANDS.replace('KEYSTORE', 'k.jks')}; for akka.http.server.keystorePW, give "
            "jobserver.http.tls-key a key without a password; akka.http.server.x has no effect",
        ),
        (
            "akka.http { server.request-timout = 3 s, client.idle-timeot = 3 s }",
            Outcome.IGNORED,
            "akka.http.server.request-timout (did you mean request-timeout?), akka.http.client.idle-timeot "
            "have no effect",
        ),
        ("akka = 1", Outcome.IGNORED, "akka has no effect"),
    ],
)
def test_each_key_of_akka_is_named_with_what_becomes_of_it(
    tmp_path: Path, text: str, outcome: Outcome, explanation: str
) -> None:
    found = migrated(tmp_path, text)["akka"]
    assert (found.outcome, found.explanation) == (outcome, f"there is no Akka here; {explanation}")


def test_the_keys_of_a_file_of_version_0_6(tmp_path: Path) -> None:
    found = migrated(tmp_path, OF_VERSION_0_6)
    assert found["spark.jobserver.context-creation-timeout"].explanation == (
        "15 without a unit means 15 ms; write the unit"
    )
    assert found["spark.jobserver.yarn-context-creation-timeout"] == KeyMigration(
        key="spark.jobserver.yarn-context-creation-timeout",
        outcome=Outcome.IGNORED,
        explanation="this setting applies only to YARN masters",
    )
    assert found["spark.jobserver.job-jar-paths"].setting == "jobserver.job-binary-paths"
    assert outcomes(found, Outcome.GONE) == {"spray"}
    assert found["spray"].explanation == (
        "there is no Spray here; for spray.can.server.idle-timeout = 60 s, set jobserver.http.idle-timeout; "
        "spray.can.server.ssl-encryption has no effect"
    )
    assert outcomes(found, Outcome.IGNORED) >= {"deploy"}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("flywy.locations", "flyway"),
        ("spark.jobserver.short-timeuot", "spark.jobserver.short-timeout"),
        ("spark.jobserver.contxt-init-timeout", "jobserver.contexts.creation-timeout"),
    ],
)
def test_a_misspelled_key_of_the_old_server_is_recognized(tmp_path: Path, key: str, nearest: str) -> None:
    [found] = migrated(tmp_path, f"{key} = 3s").values()
    assert found.outcome is Outcome.UNKNOWN
    assert found.explanation.endswith(f"; did you mean '{nearest}'?")


def test_one_mistake_does_not_hide_the_others(tmp_path: Path) -> None:
    found = migrated(tmp_path, WITH_MISTAKES)
    assert found["spark.jobserver.prot"].explanation == "unknown setting; did you mean 'jobserver.http.port'?"
    assert "spark.context-settings" in found["spark.executor"].explanation
    assert "jobserver.jobs.default-config" in found["wordcount"].explanation
    assert outcomes(found, Outcome.UNKNOWN) == {"spark.jobserver.prot", "spark.executor", "wordcount"}
    assert outcomes(found, Outcome.INVALID) == {
        "spark.jobserver.max-jobs-per-context",
        "spark.jobserver.bind-address",
        "spark.jobserver.job-jar-paths",
    }


@pytest.mark.parametrize("text", [ON_ONE_MACHINE, ON_YARN, OF_VERSION_0_6, WITH_MISTAKES, "jobserver = 1"])
def test_a_file_has_a_refused_key_exactly_if_it_cannot_be_loaded(tmp_path: Path, text: str) -> None:
    refused = [one for one in migrated(tmp_path, text).values() if one.outcome.refused]
    if refused:
        with pytest.raises(InvalidSetting):
            load_settings(tmp_path / "old.conf", env={"HOME": "/h"})
    else:
        load_settings(tmp_path / "old.conf", env={"HOME": "/h"})


def test_settings_that_contradict_each_other_show_although_each_is_right(tmp_path: Path) -> None:
    text = "jobserver.http.tls-certificate = a.pem"
    found = migrated(tmp_path, text)
    assert outcomes(found, Outcome.SAME) == {"jobserver.http.tls-certificate"}
    assert outcomes(found, Outcome.INVALID) == {"jobserver.http.tls-key"}
    found = migrated(tmp_path, f"{text}\njobserver.http.tls-key = b.pem")
    assert not any(one.outcome.refused for one in found.values())


def test_a_context_is_asked_about_each_key_only_if_it_is_refused_as_a_whole(tmp_path: Path) -> None:
    asked: list[JsonMapping] = []

    def check_context(_server: Settings, context: JsonMapping) -> None:
        asked.append(context)
        if "cores" in context:
            raise InvalidSetting(
                key="cores", message="a context has no such setting", nearest="num-cpu-cores"
            )

    file = tmp_path / "old.conf"
    file.write_text("spark.contexts { good { a = 1, b = 2 }, bad { a = 1, cores = 2 } }")
    found = {one.key: one for one in migrate(file, check_context=check_context)}
    assert asked == [{"a": 1, "b": 2}, {"a": 1, "cores": 2}, {"a": 1}, {"cores": 2}]
    assert found["spark.contexts.bad.cores"].outcome is Outcome.INVALID
    assert "did you mean 'num-cpu-cores'?" in found["spark.contexts.bad.cores"].explanation
    assert sum(one.outcome is Outcome.SAME for one in found.values()) == 3


@pytest.mark.parametrize(
    "error",
    [
        InvalidName(kind="binary", name="/x", rule="it looks like a path"),
        MalformedUrl(url="file:", reason="nothing follows the scheme"),
        InvalidRequest(message="odd"),
        InvalidConfig(message="odd"),
    ],
)
def test_an_error_that_names_no_setting_is_reported_at_the_key_that_causes_it(
    tmp_path: Path, error: InvalidInput
) -> None:
    def check_context(_server: Settings, context: JsonMapping) -> None:
        if "cp" in context:
            raise error

    file = tmp_path / "old.conf"
    file.write_text("spark { master = local, contexts.a { cp = x, num-cpu-cores = 1 } }")
    assert [(one.key, one.explanation) for one in migrate(file, check_context=check_context)] == [
        ("spark.master", ""),
        ("spark.contexts.a.cp", str(error)),
        ("spark.contexts.a.num-cpu-cores", ""),
    ]


def test_an_error_that_names_no_setting_is_reported_at_its_context_if_no_key_causes_it_alone(
    tmp_path: Path,
) -> None:
    def check_context(_server: Settings, context: JsonMapping) -> None:
        if len(context) > 1:
            raise InvalidRequest(message="too many")

    def check(_settings: Settings) -> None:
        raise InvalidRequest(message="too old")

    file = tmp_path / "old.conf"
    file.write_text("spark.contexts.a { cp = x, num-cpu-cores = 1 }")
    refused = [one for one in migrate(file, check_context=check_context) if one.outcome.refused]
    assert [(one.key, one.explanation) for one in refused] == [("spark.contexts.a", "too many")]
    refused = [one for one in migrate(file, check=check) if one.outcome.refused]
    assert [(one.key, one.explanation) for one in refused] == [("spark", "too old")]


@pytest.mark.parametrize("key", ["spark.jobserver.python", "jobserver.python", "spark.python"])
def test_settings_of_python_are_said_to_belong_to_the_settings_of_contexts(tmp_path: Path, key: str) -> None:
    found = migrated(tmp_path, f"{key}.paths = [/opt/python]")
    assert outcomes(found, Outcome.UNKNOWN) == {key}
    assert "python.paths and python.executable belong in spark.context-settings" in found[key].explanation


def test_what_the_whole_server_would_refuse_is_said_of_its_key_at_the_end(tmp_path: Path) -> None:
    def check(settings: Settings) -> None:
        raise InvalidSetting(key="jobserver.http.host", message=f"{settings.http.host} is open to all")

    file = tmp_path / "old.conf"
    file.write_text("spark.jobserver { bind-address = 0.0.0.0, port = 8090 }")
    assert [(one.key, one.outcome) for one in migrate(file, check=check)] == [
        ("spark.jobserver.port", Outcome.RENAMED),
        ("spark.jobserver.bind-address", Outcome.INVALID),
    ]


def test_keys_that_change_no_setting_do_not_hide_what_the_whole_server_would_refuse(tmp_path: Path) -> None:
    def check(settings: Settings) -> None:
        raise InvalidSetting(key="jobserver.http.host", message=f"{settings.http.host} is open to all")

    file = tmp_path / "old.conf"
    old = "shiro.authentication = on, spark.jobserver { mymistake = 1, bind-address = 0.0.0.0 }"
    file.write_text(old)
    assert {one.key for one in migrate(file, check=check) if one.outcome.refused} == {
        "shiro",
        "spark.jobserver.mymistake",
        "spark.jobserver.bind-address",
    }
    file.write_text(f"{old}, jobserver.auth.backend = [1]")
    assert "spark.jobserver.bind-address" not in {
        one.key for one in migrate(file, check=check) if one.outcome.refused
    }


@pytest.mark.parametrize(
    ("refused", "reported"),
    [
        ("spark.jobserver.max-jobs-per-context = many", True),
        ("spark.context-settings.cores = 2", True),
        ("spark.contexts.etl.cores = 2", True),
        ("jobserver.http.idle-timeout = long", False),
        ("jobserver.auth.bakend = file", False),
    ],
)
def test_a_refused_key_hides_what_the_whole_server_would_refuse_only_if_it_may_be_the_cause(
    tmp_path: Path, refused: str, *, reported: bool
) -> None:
    def check(settings: Settings) -> None:
        assert not settings.spark.contexts
        raise InvalidSetting(key="jobserver.http.host", message=f"{settings.http.host} is open to all")

    def check_context(_server: Settings, context: JsonMapping) -> None:
        if "cores" in context:
            raise InvalidSetting(key="cores", message="a context has no such setting")

    file = tmp_path / "old.conf"
    file.write_text(f"spark.jobserver.bind-address = 0.0.0.0, {refused}")
    found = [
        one.key for one in migrate(file, check=check, check_context=check_context) if one.outcome.refused
    ]
    assert found == [refused.partition(" ")[0], *(["spark.jobserver.bind-address"] if reported else [])]


def test_all_that_the_whole_server_would_refuse_shows_at_once(tmp_path: Path) -> None:
    def check(settings: Settings) -> None:
        if settings.http.host == "0.0.0.0":
            raise InvalidSetting(key="jobserver.http.host", message="is open to all")
        if settings.spark.master == "moon":
            raise InvalidSetting(key="spark.master", message="is not here")

    file = tmp_path / "old.conf"
    file.write_text("spark.jobserver { bind-address = 0.0.0.0, master = moon }")
    assert [one.key for one in migrate(file, check=check) if one.outcome.refused] == [
        "spark.jobserver.bind-address",
        "spark.jobserver.master",
    ]


WITHOUT_EFFECT_IN_CONTEXTS = """
spark.context-settings { context-init-timeout = 60s, streaming.stopSparkContext = true }
spark.contexts.mine {
  context-factory = com.acme.MyContextFactory
  spark.mesos.coarse = true
  passthrough.spark.driver.allowMultipleContexts = true
}
spark.contexts.yours.context-factory = spark.jobserver.context.SessionContextFactory
"""


def test_settings_of_contexts_without_effect_are_never_the_same_here_and_the_server_warns_of_each(
    tmp_path: Path,
) -> None:
    found = migrated(tmp_path, WITHOUT_EFFECT_IN_CONTEXTS)
    assert outcomes(found, Outcome.SAME) == {"spark.contexts.yours.context-factory"}
    assert outcomes(found, Outcome.GONE) == {
        "spark.context-settings.context-init-timeout",
        "spark.contexts.mine.context-factory",
    }
    warnings = load_settings(tmp_path / "old.conf", env={"HOME": "/h"}).warnings
    warned = {warning.partition(": ")[0] for warning in warnings}
    factories = {f"spark.contexts.{name}.context-factory" for name in ("mine", "yours")}
    assert warned == set(found) - factories  # Python jobs can use one of their own
    assert any("jobserver.contexts.creation-timeout" in warning for warning in warnings)


def test_the_keys_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
    spray.can.server.idle-timeout = 60 s
    spark {
      mistake = 1
      jobserver { jobdao = x, port = 8090, filedao.rootdir = /tmp }
      contexts { "a/b" { num-cpu-cores = 1 } }
      master = local
    }
    shiro.authentication = on
    """
    assert list(migrated(tmp_path, text)) == [
        "spray",
        "spark.mistake",
        "spark.jobserver.jobdao",
        "spark.jobserver.port",
        "spark.jobserver.filedao",
        'spark.contexts."a/b"',
        "spark.master",
        "shiro",
    ]


@pytest.mark.parametrize("key", ["spark.jobserver.context-init-timeout", "spark.forked-jvm-init-timeout"])
def test_other_keys_for_the_time_of_a_start_are_said_to_be_creation_timeout(tmp_path: Path, key: str) -> None:
    [found] = migrated(tmp_path, f"{key} = 60 s").values()
    assert found == KeyMigration(
        key=key,
        outcome=Outcome.UNKNOWN,
        explanation="unknown setting; did you mean 'jobserver.contexts.creation-timeout'?",
    )


def test_a_file_that_is_not_hocon_is_refused_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="line 1"):
        migrated(tmp_path, "spark { master = ")


@pytest.mark.parametrize("reason", [*IGNORED.values(), *IGNORED_IN_CONTEXTS.values()], ids=str)
def test_settings_that_replace_old_ones_exist(reason: object) -> None:
    for word in str(reason).replace(",", " ").replace("(", " ").replace(")", " ").split():
        if word.startswith("jobserver."):
            settings = Settings()
            for part in word.removeprefix("jobserver.").split("."):
                settings = getattr(settings, part.replace("-", "_"))
