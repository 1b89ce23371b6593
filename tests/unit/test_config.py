"""Settings: their defaults, values, files and overrides, and the errors about them."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.loading import describe, load_settings, sections, setting_types
from jobserver_core.config.reference import settings_reference
from jobserver_core.config.settings import (
    AuthSettings,
    CallbackSettings,
    HttpSettings,
    JobLimits,
    Secret,
    Settings,
    SparkSettings,
    default_data_dir,
)
from jobserver_core.config.trees import nested
from jobserver_core.errors import InvalidConfig, InvalidSetting
from jobserver_core.models.redaction import redacted, redacted_options, redacted_strings, redacted_url

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def from_text(directory: Path, text: str, **options: Any) -> Settings:
    file = directory / "server.conf"
    file.write_text(text)
    return load_settings(file, **options)


# -- defaults ------------------------------------------------------------------------------------------


def test_settings_without_arguments_are_the_documented_defaults() -> None:
    settings = Settings()
    assert settings == load_settings() == Settings.from_mapping({})
    assert settings.spark.master == "local[*]"
    assert settings.jobs.max_jobs_per_context == 8
    assert settings.jobs.sync_timeout == 10.0
    assert settings.jobs.retention == 30 * 86_400
    assert settings.callbacks.retry_delay == 10.0
    assert settings.limits.config_size == 1024**2
    assert settings.fetcher.allowed_schemes == ("http", "https", "ftp", "file", "local")
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8090)
    assert settings.contexts.max_contexts is None
    assert settings.warnings == ()


def test_every_setting_is_documented_and_accepts_its_own_default() -> None:
    kinds = setting_types()
    for described in describe(Settings()):
        kind = kinds[described.key]
        assert len(described.doc) > 10
        assert described.origin == "default"
        written = kind.convert(described.value, described.key)
        assert described.value is None or kind.show(written) == described.value


def test_keys_are_lower_case_with_hyphens_and_below_their_section() -> None:
    for key in setting_types():
        assert key == key.lower()
        assert "_" not in key
        assert key.startswith(("jobserver.", "spark."))


def test_the_reference_page_is_the_settings() -> None:
    assert REFERENCE.read_text() == settings_reference(), (
        "run python -m jobserver_core.config.reference again"
    )


def test_the_data_directory_follows_the_xdg_specification(tmp_path: Path) -> None:
    assert default_data_dir({"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/jobserver")
    assert default_data_dir({"HOME": "/h"}) == Path("/h/.local/share/jobserver")
    assert default_data_dir({"XDG_DATA_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/share/jobserver")
    assert load_settings(env={"HOME": str(tmp_path)}).data_dir == tmp_path / ".local/share/jobserver"


def test_without_a_home_directory_the_data_directory_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", str)
    with pytest.raises(InvalidSetting, match="there is no home directory") as caught:
        default_data_dir({})
    assert caught.value.key == "jobserver.data-dir"
    assert load_settings(env={}, overrides={"jobserver.data-dir": "/d"}).data_dir == Path("/d")


def test_settings_are_frozen_copied_and_pickled_as_equals() -> None:
    settings = Settings.from_mapping(
        {"jobserver.callbacks.signing-secret": "s3cret", "jobserver.http.port": 1}
    )
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.http.port = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings == copy.deepcopy(settings)
    assert attrs.evolve(settings, jobs=JobLimits(max_queued_jobs=0)).jobs.max_queued_jobs == 0


def test_sections_are_found_by_their_attribute() -> None:
    assert sections()["jobs"] is JobLimits
    assert set(sections()) == {
        *("auth", "blobs", "callbacks", "contexts", "fetcher", "http", "jobs"),
        *("binaries", "data_files", "launcher", "limits", "metadata", "servers", "spark"),
    }


# -- values --------------------------------------------------------------------------------------------


def test_constructors_accept_the_same_values_as_a_file() -> None:
    assert JobLimits(sync_timeout="2 minutes").sync_timeout == 120.0  # type: ignore[arg-type]
    assert JobLimits(max_result_size="64 MiB").max_result_size == 64 * 1024**2  # type: ignore[arg-type]
    assert AuthSettings(use_as_proxy_user="on").use_as_proxy_user is True  # type: ignore[arg-type]
    assert CallbackSettings(backoff=2).backoff == 2.0


GOOD: list[tuple[str, Any, str, Any]] = [
    ("jobserver.jobs.retention", "30 days", "jobs.retention", 30 * 86400.0),
    ("jobserver.jobs.retention", None, "jobs.retention", None),
    ("jobserver.jobs.max-queued-jobs", "0", "jobs.max_queued_jobs", 0),
    ("jobserver.contexts.max-contexts", 0, "contexts.max_contexts", None),
    ("jobserver.contexts.max-contexts", 3, "contexts.max_contexts", 3),
    ("jobserver.callbacks.backoff", "1.5", "callbacks.backoff", 1.5),
    (
        "jobserver.callbacks.denied-networks",
        ["10.0.0.0/8", "fd00::/8"],
        "callbacks.denied_networks",
        ("10.0.0.0/8", "fd00::/8"),
    ),
    (
        "jobserver.callbacks.allowed-hosts",
        "A.example, b.example.",
        "callbacks.allowed_hosts",
        ("a.example", "b.example"),
    ),
    ("jobserver.callbacks.public-url", "https://h/x/", "callbacks.public_url", "https://h/x"),
    ("jobserver.fetcher.allowed-schemes", ["HTTPS", "s3a"], "fetcher.allowed_schemes", ("https", "s3a")),
    ("jobserver.fetcher.allowed-folders", [], "fetcher.allowed_folders", ()),
    ("jobserver.http.port", 0, "http.port", 0),
    ("jobserver.blobs.backend", 5, "blobs.backend", "5"),
    ("jobserver.http.host", "::1", "http.host", "::1"),
    ("jobserver.http.allow-unauthenticated", "yes", "http.allow_unauthenticated", True),
    ("jobserver.http.allow-unauthenticated", "off", "http.allow_unauthenticated", False),
    ("jobserver.metadata.url", "postgresql://h/db", "metadata.url", "postgresql://h/db"),
    ("spark.master", "yarn", "spark.master", "yarn"),
    ("spark.contexts", {"a": None, "b": {"x": 1}}, "spark.contexts", {"a": {}, "b": {"x": 1}}),
    ("spark.contexts", None, "spark.contexts", {}),
]


@pytest.mark.parametrize(("key", "value", "attribute", "expected"), GOOD)
def test_a_value_that_is_allowed_is_typed(key: str, value: Any, attribute: str, expected: Any) -> None:
    section, _, name = attribute.partition(".")
    settings = Settings.from_mapping({key: value})
    found = getattr(getattr(settings, section), name)
    assert found == expected
    assert type(found) is type(expected)
    assert settings.origins == {key: "override"}


BAD: list[tuple[str, Any, str]] = [
    ("jobserver.http.port", 65536, "must be at most 65535, got 65536"),
    ("jobserver.http.port", -1, "must be at least 0, got -1"),
    ("jobserver.http.port", "http", "expected an integer, got 'http'"),
    ("jobserver.http.port", 80.5, "expected an integer, got 80.5"),
    ("jobserver.http.port", True, "expected an integer, got True"),
    ("jobserver.http.port", None, "must not be null; its type is integer"),
    ("jobserver.http.port", "9" * 500, "expected an integer, got '999"),
    ("jobserver.http.host", "http://h", "a host name without scheme"),
    ("jobserver.http.host", "", "must not be empty"),
    ("jobserver.http.host", ["h"], "expected a string, got ['h']"),
    ("jobserver.http.host", "a\0b", "must not contain a NUL character"),
    ("jobserver.http.allow-unauthenticated", "maybe", "expected true or false, got 'maybe'"),
    ("jobserver.http.allow-unauthenticated", 1, "expected true or false, got 1"),
    ("jobserver.jobs.sync-timeout", "0 s", "must be at least 1 ms, got 0 s"),
    ("jobserver.jobs.sync-timeout", "-1 s", "must be at least 1 ms, got -1 s"),
    ("jobserver.jobs.sync-timeout", "11000 days", "must be at most 3650 days, got 11000 days"),
    ("jobserver.jobs.sync-timeout", "1 parsec", "unknown unit of time 'parsec'"),
    ("jobserver.jobs.max-jobs-per-context", 0, "must be at least 1, got 0"),
    ("jobserver.jobs.max-result-size", "10 mb", "unknown unit of size 'mb'"),
    ("jobserver.jobs.inline-result-limit", -1, "must be at least 0 B, got -1 B"),
    ("jobserver.limits.config-depth", 151, "must be at most 150, got 151"),
    ("jobserver.callbacks.backoff", 0.5, "must be at least 1, got 0.5"),
    ("jobserver.callbacks.backoff", "nan", "expected a number, got 'nan'"),
    ("jobserver.callbacks.denied-networks", ["10.0.0.1/8"], "expected a network such as 10.0.0.0/8"),
    ("jobserver.callbacks.denied-networks", 5, "expected a list of strings, got 5"),
    ("jobserver.callbacks.allowed-hosts", ["http://h/"], "a host name without scheme"),
    ("jobserver.callbacks.public-url", "ftp://h", "expected an http or https URL"),
    ("jobserver.callbacks.public-url", "http://[", "expected an http or https URL"),
    ("jobserver.callbacks.signing-secret", "", "expected a non-empty string"),
    ("jobserver.fetcher.allowed-schemes", ["https://"], "a URL scheme such as https, without ://"),
    (
        "jobserver.auth.token-file",
        "~no-such-user-here/x",
        "unknown home directory in '~no-such-user-here/x'",
    ),
    ("jobserver.auth.options", [1], "expected an object of anything, got [1]"),
    ("jobserver.job-binary-paths", {"a": {}}, "expected a string, got {}"),
    ("spark.contexts", {"a": 1}, "expected an object of settings, got 1"),
    ("spark.context-settings", "x", "expected an object of anything, got 'x'"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_the_error_for_an_invalid_value_lists_the_valid_ones(key: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({key: value})
    assert caught.value.key == key
    assert message in caught.value.message
    assert len(str(caught.value)) < 300


def test_a_constructor_refuses_with_the_settings_key() -> None:
    with pytest.raises(InvalidSetting, match=r"jobserver\.jobs\.max-queued-jobs.*at least 0"):
        JobLimits(max_queued_jobs=-1)


@pytest.mark.parametrize(
    ("given", "missing"), [("tls-key", "tls-certificate"), ("tls-certificate", "tls-key")]
)
def test_a_certificate_and_its_key_need_each_other(given: str, missing: str) -> None:
    with pytest.raises(InvalidSetting, match="is required if") as caught:
        Settings.from_mapping({f"jobserver.http.{given}": "/x.pem"})
    assert caught.value.key == f"jobserver.http.{missing}"
    both = HttpSettings(tls_certificate=Path("/c.pem"), tls_key=Path("/k.pem"))
    assert both.tls_key == Path("/k.pem")


def test_contexts_are_left_to_the_next_server_only_if_they_wait_for_it() -> None:
    expected = "must be more than 0, such as 60 s, if .*on-shutdown is detach"
    with pytest.raises(InvalidSetting, match=expected) as caught:
        Settings.from_mapping({"jobserver.contexts.on-shutdown": "detach"}, env={})
    assert caught.value.key == "jobserver.contexts.reattach-timeout"
    both = {"jobserver.contexts": {"on-shutdown": "detach", "reattach-timeout": "60 s"}}
    assert Settings.from_mapping(both, env={}).contexts.on_shutdown == "detach"


# -- files and overrides -------------------------------------------------------------------------------


def test_a_file_overrides_the_defaults_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    text = "jobserver { http { port = 1, host = localhost }, jobs.sync-timeout = 1 minute }"
    settings = from_text(
        tmp_path, text, overrides={"jobserver.http.port": 2, "jobserver": {"jobs": {"kill-timeout": 3}}}
    )
    assert (settings.http.host, settings.http.port) == ("localhost", 2)
    assert (settings.jobs.sync_timeout, settings.jobs.kill_timeout) == (60.0, 3.0)
    file = str(tmp_path / "server.conf")
    assert settings.origins == {
        "jobserver.http.host": file,
        "jobserver.http.port": "override",
        "jobserver.jobs.sync-timeout": file,
        "jobserver.jobs.kill-timeout": "override",
    }


_SCHEMES = ("http", "https", "ftp", "file", "local")


@pytest.mark.parametrize(
    ("text", "schemes", "origin"),
    [
        ("allowed-schemes += s3", (*_SCHEMES, "s3"), True),
        ("allowed-schemes += s3\nallowed-schemes += hdfs", (*_SCHEMES, "s3", "hdfs"), True),
        ("allowed-schemes = ${jobserver.fetcher.allowed-schemes} [s3]", (*_SCHEMES, "s3"), True),
        ("allowed-schemes = [https]\nallowed-schemes += s3", ("https", "s3"), True),
        ("allowed-schemes = [s3]", ("s3",), True),
        ("allowed-schemes = []", (), True),
        ("allowed-schemes = [http, https, ftp, file, local]", _SCHEMES, True),
        ("denied-hosts += example.com", _SCHEMES, False),
    ],
)
def test_a_file_appends_to_the_default_of_a_list(
    tmp_path: Path, text: str, schemes: tuple[str, ...], origin: bool
) -> None:
    path = tmp_path / "jobserver.conf"
    path.write_text(f"jobserver.fetcher {{\n{text}\n}}", encoding="utf-8")
    settings = load_settings(path)
    assert settings.fetcher.allowed_schemes == schemes
    assert settings.callbacks.transports == ("httpx",)
    assert ("jobserver.fetcher.allowed-schemes" in settings.origins) == origin


def test_the_origin_of_a_value_is_the_file_that_defined_it_last(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    included = tmp_path / "site" / "http.conf"
    included.write_text('http { port = 1, host = localhost }, jobs { include required("jobs") }')
    (tmp_path / "site" / "jobs.properties").write_text("sync-timeout = 3 s\nkill-timeout = 3 s")
    (tmp_path / "site" / "jobs.json").write_text('{"sync-timeout": "4 s"}')
    (tmp_path / "spark.conf").write_text("spark.context-settings.num-cpu-cores = 2")
    text = """
    jobserver.http.port = 2
    jobserver { include required("site/http.conf") }
    jobserver.http.host = 127.0.0.1
    spark.context-settings { spark.executor.memory = 1g }
    include "spark.conf"
    """
    settings = from_text(tmp_path, text)
    main, extra = str(tmp_path / "server.conf"), str(tmp_path / "spark.conf")
    assert settings.jobs.sync_timeout == 4.0
    assert settings.origins == {
        "jobserver.http.port": str(included),
        "jobserver.http.host": main,
        "jobserver.jobs.sync-timeout": str(tmp_path / "site" / "jobs.json"),
        "jobserver.jobs.kill-timeout": str(tmp_path / "site" / "jobs.properties"),
        "spark.context-settings": f"{main}, {extra}",
    }


def test_an_invalid_value_is_reported_with_the_included_file_that_has_it(tmp_path: Path) -> None:
    included = tmp_path / "http.conf"
    included.write_text("jobserver.http.port = many")
    with pytest.raises(InvalidSetting, match=re.escape(f"(in {included})")):
        from_text(tmp_path, 'include "http.conf"')


def test_free_objects_of_a_file_and_overrides_are_merged(tmp_path: Path) -> None:
    text = "spark.context-settings { num-cpu-cores = 2, spark.executor.memory = 1g }"
    settings = from_text(
        tmp_path,
        text,
        overrides={
            "spark.context-settings.spark.executor.cores": 1,
            "spark": {"context-settings": {"a": [1]}},
        },
    )
    assert settings.spark.context_settings == {
        "num-cpu-cores": 2,
        "spark": {"executor": {"memory": "1g", "cores": 1}},
        "a": [1],
    }


def test_quoted_names_with_dots_stay_names(tmp_path: Path) -> None:
    settings = from_text(tmp_path, 'spark.contexts { "my.context" { x = 1 }, plain {} }')
    assert settings.spark.contexts == {"my.context": {"x": 1}, "plain": {}}


def test_changing_the_mapping_afterwards_changes_no_settings() -> None:
    options: dict[str, Any] = {"a": {"b": 1}}
    settings = Settings.from_mapping({"jobserver.launcher.options": options})
    options["a"]["b"] = 2
    assert settings.launcher.options == {"a": {"b": 1}}


def test_relative_paths_start_at_the_directory_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        jobserver {
          data-dir = data
          fetcher.allowed-folders = [shared, /abs]
          auth.password-file = ~/passwords
          callbacks.ca-file = ../ca.pem
          blobs.options { path = blobs, nested.path = x }
          job-binary-paths { a = jars/a.jar, b = "https://h/b.whl", c = /c.egg, d = ~/d.whl }
        }"""
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "server.conf").write_text(text)
    settings = load_settings("conf/server.conf")
    directory = tmp_path / "conf"
    assert settings.data_dir == directory / "data"
    assert settings.option_path("jobserver.blobs.options.path", Path("/default")) == directory / "blobs"
    assert settings.option_path("jobserver.metadata.options.path", Path("/default")) == Path("/default")
    assert settings.fetcher.allowed_folders == (directory / "shared", Path("/abs"))
    assert settings.auth.password_file == Path("/home/somebody/passwords")
    assert settings.callbacks.ca_file == directory / "../ca.pem"
    assert settings.job_binary_paths == {
        "a": str(directory / "jars/a.jar"),
        "b": "https://h/b.whl",
        "c": "/c.egg",
        "d": "/home/somebody/d.whl",
    }


def test_relative_paths_of_overrides_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_mapping({"jobserver.data-dir": "here"}).data_dir == tmp_path / "here"
    key = "jobserver.launcher.options.path"
    settings = Settings.from_mapping({key: "here"})
    assert settings.option_path(key, tmp_path) == tmp_path / "here"
    assert Settings(launcher=settings.launcher).option_path(key, tmp_path) == tmp_path / "here"


def test_an_option_that_is_no_path_is_an_invalid_setting() -> None:
    key = "jobserver.blobs.options.path"
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({key: {"a": 1}}).option_path(key, Path())
    assert caught.value.key == key


def test_a_file_may_use_the_environment_and_includes(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("jobserver.http.port = 7")
    settings = from_text(
        tmp_path,
        'include "more.conf"\nspark.master = ${MASTER}\njobserver.callbacks.signing-secret = ${?SECRET}',
        env={"MASTER": "yarn", "SECRET": "x", "HOME": "/h"},
    )
    assert (settings.http.port, settings.spark.master) == (7, "yarn")
    assert settings.callbacks.signing_secret == Secret("x")
    assert "jobserver.data-dir" not in {d.key for d in describe(settings) if d.origin != "default"}


def test_a_bad_value_in_a_file_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"jobserver\.http\.port.*\(in .*server\.conf\)"):
        from_text(tmp_path, "jobserver.http.port = x")
    with pytest.raises(InvalidConfig, match=r"server\.conf: .*line 1"):
        from_text(tmp_path, "jobserver {")


# -- unknown keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("jobserver.http.prot", "jobserver.http.port"),
        ("jobserver.port", "jobserver.http.port"),
        ("jobserver.jobs.sync_timeout", "jobserver.jobs.sync-timeout"),
        ("jobserver.sync-timeout", "jobserver.jobs.sync-timeout"),
        ("jobserver.callback.retry-delay", "jobserver.callbacks.retry-delay"),
        ("spark.context-setings", "spark.context-settings"),
        ("spark.jobserver.max-job-per-context", "jobserver.jobs.max-jobs-per-context"),
        ("jobserver.http.port.number", "jobserver.http.port"),
        ("jobserver.jobs.max-run-time", "spark.context-settings.job-max-run-time"),
        ("jobserver.jobs.max-queue-time", "spark.context-settings.job-max-queue-time"),
        ("jobserver.contexts.num-cpu-core", "spark.context-settings.num-cpu-cores"),
        ("jobserver.supervise", "spark.context-settings.supervise"),
        ("jobserver.idle-timeout", "jobserver.http.idle-timeout"),
        ("jobserver.contexts.idle-timeout", "spark.context-settings.idle-timeout"),
        ("spark.jobserver.context.idle-timeout", "spark.context-settings.idle-timeout"),
        ("spark.context.idle-timeout", "spark.context-settings.idle-timeout"),
        ("spark.jobserver.mymistake", None),
        ("nonsense", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str | None) -> None:
    with pytest.raises(InvalidSetting, match="unknown setting") as caught:
        Settings.from_mapping({key: 1})
    assert caught.value.key == key
    assert caught.value.nearest == nearest


def test_a_misspelled_section_is_refused_with_the_right_one() -> None:
    with pytest.raises(InvalidSetting, match=r"did you mean 'jobserver\.jobs'") as caught:
        Settings.from_mapping({"jobserver": {"job": {"sync-timeout": 1}}})
    assert caught.value.key == "jobserver.job"


def test_the_settings_of_python_belong_to_contexts() -> None:
    with pytest.raises(InvalidSetting, match=r"python\.executable belong in spark\.context") as caught:
        Settings.from_mapping({"spark": {"python": {"paths": ["/opt/libs"]}}})
    assert "Spark's own" not in caught.value.message


def test_the_error_for_a_misplaced_spark_setting_names_the_right_place() -> None:
    with pytest.raises(InvalidSetting, match=r"Spark's own settings belong in spark\.context-settings"):
        Settings.from_mapping({"spark.driver.memory": "4g"})


@pytest.mark.parametrize("value", [5, None, "x", [1]])
def test_a_section_takes_only_an_object(value: Any) -> None:
    with pytest.raises(
        InvalidSetting, match=r"'jobserver\.jobs': is a group of settings; expected an object"
    ):
        Settings.from_mapping({"jobserver.jobs": value})


known_names = {key.rpartition(".")[2] for key in setting_types()}


@given(st.text(max_size=12).filter(lambda name: name not in known_names), st.integers() | st.text(max_size=5))
def test_unknown_keys_are_never_accepted(name: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match="unknown setting"):
        Settings.from_mapping({"jobserver": {"http": {name: value}}})


# -- secrets -------------------------------------------------------------------------------------------


def test_displayed_settings_contain_no_secrets() -> None:
    settings = Settings.from_mapping(
        {
            "jobserver.callbacks.signing-secret": "hidden-1",
            "jobserver.metadata.url": "postgresql://user:hidden-2@host/db?sslpassword=hidden-3",
            "jobserver.blobs.options": {
                "s3": {"secret": {"key": "hidden-4"}},
                "endpoint": "http://u:hidden-5@h",
            },
            "spark.context-settings": {"spark": {"hadoop": {"fs.s3a.access.key": "hidden-6"}}},
            "spark.contexts": {"a": {"password": "hidden-7"}},
            "jobserver.auth.options": {"tokens": ["hidden-8"]},
        }
    )
    shown = repr(settings) + str(settings) + "".join(f"{d!r}" for d in describe(settings))
    assert "hidden" not in shown
    assert "postgresql://user:***@host/db" in shown
    assert settings.callbacks.signing_secret is not None
    assert settings.callbacks.signing_secret.reveal() == "hidden-1"
    assert settings.metadata.url == "postgresql://user:hidden-2@host/db?sslpassword=hidden-3"


def test_an_error_about_a_secret_does_not_reveal_it() -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_mapping({"jobserver.callbacks.signing-secret": ["hidden"]})
    assert "hidden" not in str(caught.value)


def test_secrets_compare_and_hash_by_value() -> None:
    assert Secret("é") == Secret("é") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a")
    assert f"{Secret('a')} {Secret('a')!r}" == "*** Secret(***)"


def test_urls_and_trees_are_redacted() -> None:
    assert redacted_url("s3://key:p:a@ss@host/x") == "s3://key:***@host/x"
    assert redacted_url("https://host/x?token=abc&y=1") == "https://host/x?token=***&y=1"
    assert redacted_url("https://host/x@y:z@") == "https://host/x@y:z@"
    assert redacted([{"apiKey": 1, "x": ("http://a:b@c",)}]) == [{"apiKey": "***", "x": ["http://a:***@c"]}]
    pod = "spec: {containers: [{env: [{name: DSN, value: hunter2}]}]}"
    file = {"spark.kubernetes.executor.podTemplateFile": "/etc/pod.yaml"}
    assert redacted({"pod-template": pod, **file}) == {"pod-template": "***", **file}
    assert "hunter2" not in repr(redacted({"pod-template.spec": pod, "a": {"pod-template": {"spec": pod}}}))


@pytest.mark.parametrize(
    "key",
    [
        "hadoop.fs.azure.account.key.acct.dfs.core.windows.net",
        "hadoop.fs.azure.sas.container.acct.blob.core.windows.net",
        "spark.hadoop.fs.s3a.encryption.key",
        "spark.hadoop.fs.s3a.bucket.b.server-side-encryption.key",
        "spark.redis.auth",
        "spark.executorEnv.DB_PWD",
        "pwd",
        "spark.executorEnv.PGPASS",
        "ssl.key.passphrase",
        "kafka.sasl.jaas.config",
        "parquet.encryption.key.list",
        "AZURE_STORAGE_KEY",
        "account_key",
        "basic.auth.user.info",
        "kafka.schema.registry.basic.auth.user.info",
        "solr.basicAuth",
        "ssl.keystore.key",
        "kafka.ssl.key.pem",
        "saslJaasConfig",
        "listener.name.sasl_ssl.plain.sasl.jaas.config",
        "pulsar.client.authParams",
        "spark.mongodb.authMechanismProperties",
        "kyuubi.ha.zookeeper.auth.digest",
        "es.net.http.auth.pass",
        "es.net.http.header.Authorization",
        "spark.sql.catalog.rest.header.Cookie",
        "authentication.kerberos.ticket",
        "fs.azure.client-provided-encryption-key.acct.dfs.core.windows.net",
        "fs.azure.encryption.encoded.client-provided-key",
        "spark.sql.catalog.c.s3.sse.key",
        "spark.sql.catalog.c.gcs.decryption-key",
        "spark.cosmos.auth.aad.clientCertPemBase64",
        "spark.cosmos.Masterkey",
        "OAuthPvtKey",
        "keystorePass",
        "SSHPASS",
        "snowflake.passcode",
        "NEW_RELIC_LICENSE_KEY",
        "DD_APP_KEY",
        "jwt.signing-key",
        "spark.executorEnv.API_JWT",
        "spark.hadoop.fs.s3.awsAccessKeyId",
        "sfPassword",
        "pem_private_key",
    ],
)
def test_values_of_secret_keys_are_redacted_also_in_nested_settings(key: str) -> None:
    tree: Any = "hunter2"
    for segment in reversed(key.split(".")):
        tree = {segment: tree}
    assert redacted({key: "hunter2"}) == {key: "***"}
    assert "hunter2" not in repr(redacted(tree))


@pytest.mark.parametrize(
    "key", ["key", "keys", "Key", "hmac-key", "signingKeys", "API_KEYS", "s3.key", "key2", "key.x"]
)
def test_keys_in_options_of_backends_are_redacted(key: str) -> None:
    for tree in ({key: "hunter2"}, nested({key: {"ann": ["hunter2"], "bob": 5}})):
        assert "hunter2" not in repr(redacted_options(tree))


@pytest.mark.parametrize("key", ["keyspace", "key-file", "keyring", "monkey", "turkeys", "bucket", "path"])
def test_other_options_of_backends_are_shown(key: str) -> None:
    assert redacted_options({key: "x", "a": [{key: 1}]}) == {key: "x", "a": [{key: 1}]}


def test_every_string_in_options_of_authenticators_is_redacted() -> None:
    given: Any = {"people": {"ann": ["hunter2", 3]}, "realm": "hunter2", "cache": True, "token": 5, "x": None}
    shown = {"people": {"ann": ["***", 3]}, "realm": "***", "cache": True, "token": "***", "x": None}
    assert redacted_strings(given) == shown


@pytest.mark.parametrize(
    "key",
    [
        "spark.sql.shuffle.partitions",
        "spark.authenticate",
        "spark.hadoop.hadoop.security.authentication",
        "spark.ssl.keyStore",
        "spark.io.encryption.keySizeBits",
        "parquet.encryption.column.keys",
        "hadoop.fs.azure.account.keyprovider.acct.dfs.core.windows.net",
        "hadoop.fs.azure.account.auth.type",
        "spark.hadoop.fs.s3a.encryption.algorithm",
        "primary.key.columns",
        "hoodie.datasource.write.recordkey.field",
        "spark.sql.bypass",
        "spark.hadoop.hadoop.security.authorization",
        "spark.kerberos.keytab",
        "spark.mongodb.authMechanism",
        "basic.auth.user",
        "spark.user.info",
        "kafka.sasl.mechanism",
        "kafka.security.protocol",
        "kafka.ssl.keystore.location",
        "kafka.ssl.keystore.certificate.chain",
        "kafka.ssl.truststore.certificates",
        "kafka.message.key",
        "primaryKey",
        "partition.key",
        "hoodie.bucket.index.hash.field",
        "pulsar.client.authPluginClassName",
        "es.net.http.auth.user",
        "spark.jdbc.header",
        "fs.azure.encryption.encoded.client-provided-key-sha",
        "fs.azure.account.oauth2.client.endpoint",
        "fs.s3a.encryption.context",
        "fs.gs.encryption.key.hash",
        "google.cloud.auth.service.account.json.keyfile",
        "sfAuthenticator",
        "spark.cassandra.auth.username",
        "spark.redis.host",
        "spark.cosmos.accountEndpoint",
        "spark.master",
        "spark.app.name",
        "parquet.encryption.footer.key",
        "yarn.resourcemanager.webapp.cross-origin.allowed-headers",
    ],
)
def test_values_of_harmless_keys_are_shown(key: str) -> None:
    assert redacted({key: "x", "tree": nested({key: "x"})}) == {key: "x", "tree": nested({key: "x"})}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-Xmx1g -Djavax.net.ssl.trustStorePassword=hunter2 -Da=b", None),
        ("jdbc:sqlserver://h;user=u;password=hunter2", None),
        ("jdbc:sqlserver://h;password={hun;ter2};user=u", "jdbc:sqlserver://h;password=***;user=u"),
        ("user=u,password=hunter2,x=1", None),
        ('PlainLogin required username="u" password="hun ter2";', None),
        ("options=-Dtoken=hunter2", "options=-Dtoken=***"),
        ('password="hunter2', "password=***"),
        ("jdbc:oracle:thin:scott/hunter2@//db:1521/sales", None),
        ("JDBC:Oracle:OCI:scott/hunter2@sales", None),
        ("jdbc:oracle:thin:proxy[scott]/hunter2@(DESCRIPTION=(ADDRESS=(HOST=h)(PORT=1)))", None),
        ('jdbc:oracle:thin:"S c"/"hun ter2"@h:1521:sid', None),
        ("jdbc:oracle:thin:scott/h@n/t?e#r2@h:1521:sid", "jdbc:oracle:thin:scott/***@h:1521:sid"),
        ("url=jdbc:oracle:thin:a/hunter2@h1,jdbc:oracle:thin:b/hunter2@h2 to=x@y", None),
        ("jdbc:oracle:thin:@//db:1521/sales", None),
        ("jdbc:oracle:thin:/@sales", None),
        ("jdbc:oracle:thin:@tcps://h:1521/s?user=scott&password=hunter2", None),
        ("mongodb+srv://u:hunter2@h/?authMechanismProperties=hunter2&x=1", None),
        ("Endpoint=sb://h/;SharedAccessKey=hunter2;EntityPath=e", None),
        ("basic.auth.user.info=hunter2", None),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2", "***"),
        ("-----BEGIN CERTIFICATE-----\nMIIB", None),
        ("-Djavax.net.ssl.trustStore=/a/b.jks -Dspark.authenticate=true", None),
        ("a = b, c == d", None),
    ],
)
def test_secrets_among_the_options_in_a_string_are_redacted(text: str, shown: str | None) -> None:
    expected = shown or text.replace("hunter2", "***").replace('"hun ter2"', "***")
    assert redacted({"spark.driver.options": text}) == {"spark.driver.options": expected}


@pytest.mark.parametrize(
    "name", ["sig", "X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "sslpassword"]
)
def test_signatures_in_the_queries_of_urls_are_redacted(name: str) -> None:
    assert redacted_url(f"https://h/x?se=1&{name}=hunter2&z=2#f") == f"https://h/x?se=1&{name}=***&z=2#f"
    assert redacted_url(f"https://h/x?to=http://g?{name}=hunter2") == f"https://h/x?to=http://g?{name}=***"
    assert redacted_url("https://h/x?design=1&signal=2") == "https://h/x?design=1&signal=2"


def test_describing_includes_values_set_in_code() -> None:
    settings = Settings(spark=SparkSettings(master="local[1]"), jobs=JobLimits(sync_timeout=5))
    told = {d.key: (d.value, d.origin) for d in describe(settings) if d.origin != "default"}
    assert told == {"spark.master": ("local[1]", "code"), "jobserver.jobs.sync-timeout": ("5 s", "code")}
