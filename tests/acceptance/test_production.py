"""The configuration of production loads, is complete, and runs; the guide and the services fit it."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from sqlalchemy import make_url

from conditions import wait_until
from jobserver_core import InvalidSetting, Settings, load_settings
from jobserver_core.config.loading import describe, sections, setting_types
from jobserver_core.running.context_settings import check_common_settings, configuration_problems
from jobserver_http.access import parse_permissions
from jobserver_http.addresses import check_exposure
from jobserver_http.credential_files import entry_line, hash_token, new_token
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel
from jobserver_sql import SqlMetadataStore, database_problem
from jobserver_sql.testing import PostgresqlServer
from spark_server import spark_server

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PRODUCTION = DEPLOY / "production.conf"
GUIDE = ROOT / "docs" / "howto" / "go-to-production.md"
PATIENCE = 250.0
ENVIRONMENT = {
    "JOBSERVER_DATABASE_URL": "postgresql://jobserver:s3cret@db.example.com/jobserver?sslmode=verify-full",
    "JOBSERVER_BLOBS_URL": "s3://my-bucket/jobserver",
    "JOBSERVER_CALLBACK_SECRET": "whsec_" + "c2VjcmV0" * 4,
    "JOBSERVER_SPARK_MASTER": "yarn",
    "JOBSERVER_HOST": "0.0.0.0",
    "JOBSERVER_TOKEN_FILE": "/run/secrets/jobserver/tokens",
}


def everything() -> str:
    """Return the file with all settings turned on that it has as comments."""
    return re.sub(r"^(\s*)#(?=\S)", r"\1", PRODUCTION.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A file with everything turned on."""
    file = tmp_path / "jobserver.conf"
    file.write_text(everything(), encoding="utf-8")
    return file


def variables() -> set[str]:
    return set(re.findall(r"\$\{\?(JOBSERVER_\w+)\}", PRODUCTION.read_text(encoding="utf-8")))


@pytest.mark.postgresql
def test_a_server_can_use_the_database_of_the_guide(postgresql_server: PostgresqlServer) -> None:
    [commands] = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    with postgresql_server.connect(postgresql_server.url("postgres")) as connection:
        for command in commands.strip().split(";\n"):
            connection.execute(command.encode())
        try:
            url = make_url(postgresql_server.url("jobserver")).set(username="jobserver").render_as_string()
            assert database_problem(url) is None
            SqlMetadataStore(url).close()
        finally:
            connection.execute("DROP DATABASE jobserver WITH (FORCE)")
            connection.execute("DROP ROLE jobserver")


def test_it_fits_containers_in_which_no_context_outlives_the_server() -> None:
    contexts = load_settings(PRODUCTION, env={}).contexts
    assert (contexts.on_shutdown, contexts.reattach_timeout) == ("stop", 0)


def test_the_unit_of_a_user_in_the_guide_leaves_contexts_alone() -> None:
    [unit] = re.findall(r"```ini\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    settings = load_settings(PRODUCTION, env={})
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit)
    service = parsed["Service"]
    assert service["KillMode"] == "process"
    assert int(service["TimeoutStopSec"]) > settings.http.drain_timeout + settings.stop_timeout
    assert service["ExecStart"].endswith("/bin/jobserver serve --config %h/jobserver/jobserver.conf")


def test_it_loads_without_any_variable_and_without_a_warning() -> None:
    settings = load_settings(PRODUCTION, env={})
    assert settings.warnings == ()
    assert (settings.metadata.url, settings.blobs.url) == (None, None)
    assert (settings.http.host, settings.spark.master) == ("127.0.0.1", "local[4]")
    assert settings.auth.backend == "file"


def test_variables_of_the_environment_win_and_secrets_are_redacted() -> None:
    assert set(ENVIRONMENT) == variables()
    settings = load_settings(PRODUCTION, env=ENVIRONMENT)
    assert settings.metadata.url == ENVIRONMENT["JOBSERVER_DATABASE_URL"]
    assert settings.blobs.url == ENVIRONMENT["JOBSERVER_BLOBS_URL"]
    assert settings.spark.master == "yarn"
    assert settings.http.host == "0.0.0.0"
    assert str(settings.auth.token_file) == ENVIRONMENT["JOBSERVER_TOKEN_FILE"]
    assert settings.callbacks.signing_secret is not None
    assert settings.callbacks.signing_secret.reveal() == ENVIRONMENT["JOBSERVER_CALLBACK_SECRET"]
    shown = str([one.value for one in describe(settings)])
    assert "s3cret" not in shown
    assert "c2VjcmV0" not in shown


def test_files_beside_it_win(tmp_path: Path) -> None:
    (tmp_path / "jobserver.conf").write_text(PRODUCTION.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "site.conf").write_text("jobserver.contexts.max-contexts = 3", encoding="utf-8")
    [example] = re.findall(
        r"```hocon\n(jobserver\.callbacks.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "secrets.conf").write_text(example, encoding="utf-8")
    settings = load_settings(tmp_path / "jobserver.conf", env=ENVIRONMENT)
    assert settings.contexts.max_contexts == 3
    assert settings.callbacks.signing_secret is not None
    assert settings.callbacks.signing_secret.reveal() == "whsec_…"


def test_the_settings_of_a_small_machine_without_root_fit_the_file(tmp_path: Path) -> None:
    (tmp_path / "jobserver.conf").write_text(PRODUCTION.read_text(encoding="utf-8"), encoding="utf-8")
    [example] = re.findall(
        r"```hocon\n(jobserver \{\n  data-dir.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "site.conf").write_text(example, encoding="utf-8")
    settings = load_settings(tmp_path / "jobserver.conf", env={"HOME": "/home/ada"})
    assert settings.warnings == ()
    assert settings.data_dir == Path("/home/ada/jobserver/data")
    assert settings.auth.token_file == Path("/home/ada/jobserver/tokens")
    assert (settings.http.host, settings.spark.master) == ("127.0.0.1", "local[2]")
    assert (settings.contexts.on_shutdown, settings.contexts.reattach_timeout) == ("detach", 60)
    assert settings.contexts.max_contexts == 3, "the second object extends the first"
    launcher = PySparkLauncher.from_settings(settings, tmp_path / "data")
    try:
        check_common_settings(settings.spark, launcher)
    finally:
        launcher.close()


@pytest.mark.parametrize("given", [{}, ENVIRONMENT], ids=["one machine", "shared"])
def test_everything_that_can_be_turned_on_is_valid_together(complete: Path, given: dict[str, str]) -> None:
    plain = load_settings(PRODUCTION, env=given)
    settings = load_settings(complete, env=given)
    assert settings.warnings == ()
    assert settings.contexts.pools
    assert settings.spark.contexts
    assert settings.auth.use_as_proxy_user
    assert settings.http.tls_key is not None
    assert settings.http.host == given.get("JOBSERVER_HOST", "127.0.0.1")
    for one in (plain, settings):
        check_exposure(one.http, authenticated=one.auth.backend != "none")


def test_contexts_can_start_with_its_settings(complete: Path, tmp_path: Path) -> None:
    for file in (PRODUCTION, complete):
        settings = load_settings(file, env={})
        launcher = PySparkLauncher.from_settings(settings, tmp_path / "data")
        try:
            check_common_settings(settings.spark, launcher)
            assert list(configuration_problems(settings.spark, launcher)) == []
        finally:
            launcher.close()


def test_a_misspelled_setting_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "jobserver.conf"
    file.write_text(everything().replace("max-contexts", "max-context"), encoding="utf-8")
    with pytest.raises(InvalidSetting, match="max-contexts"):
        load_settings(file, env={})


def given_keys(settings: Settings) -> set[str]:
    return {key for key, origin in settings.origins.items() if origin != "default"}


def test_it_decides_about_every_section_of_a_server(complete: Path) -> None:
    """A section without any setting here would be one that nobody thinks of."""
    by_default = {"jobserver.launcher", "jobserver.binaries"}
    given = given_keys(load_settings(complete, env=ENVIRONMENT))
    prefixes = {section.prefix for section in sections().values()}
    assert {
        prefix for prefix in prefixes if not any(key.startswith(f"{prefix}.") for key in given)
    } == by_default


def test_the_guide_explains_every_variable_and_names_settings_that_exist() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(JOBSERVER_\w+)` \| `([\w.-]+)` \|", text, re.MULTILINE))
    assert set(table) == variables()
    assert set(table.values()) <= set(setting_types())
    for name, key in table.items():
        field = key.rpartition(".")[2]
        assert re.search(rf"\b{field} = \$\{{\?{name}\}}", PRODUCTION.read_text(encoding="utf-8")), name


def test_the_guide_shows_valid_values_of_the_variables() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name, values in re.findall(r"^\| `(JOBSERVER_\w+)` \| `[\w.-]+` \| (.*) \|$", text, re.MULTILINE):
        for value in re.findall(r"`([^`]+)`", values):
            load_settings(PRODUCTION, env={name: value})


def test_the_services_pass_the_variables_on() -> None:
    unit = (DEPLOY / "systemd" / "jobserver.service").read_text(encoding="utf-8")
    assert "\nEnvironmentFile=-/etc/jobserver/environment\n" in unit
    stateful = yaml.safe_load(
        (DEPLOY / "kubernetes" / "base" / "stateful-set.yaml").read_text(encoding="utf-8")
    )
    [server] = stateful["spec"]["template"]["spec"]["containers"]
    [source] = server["envFrom"]
    assert source == {"secretRef": {"name": "jobserver-environment", "optional": True}}
    guide = GUIDE.read_text(encoding="utf-8")
    assert "the secret `jobserver-environment`" in guide
    assert "/etc/jobserver/environment" in guide


def test_the_rights_of_the_users_in_the_guide_exist() -> None:
    found = re.findall(
        r"jobserver credentials token (\w+) '?([^\s']+)'? >>", GUIDE.read_text(encoding="utf-8")
    )
    assert {name for name, _ in found} >= {"ci", "scheduler", "prometheus"}
    for _, permissions in found:
        parse_permissions(permissions)


@pytest.mark.spark
@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_a_server_runs_with_it(postgresql_server: PostgresqlServer, tmp_path: Path) -> None:
    """Everything that needs no other machine is turned on: PostgreSQL, users, a shared context, a pool."""
    token, scheduler = new_token(), new_token()
    tokens = tmp_path / "tokens"
    tokens.write_text(
        f"{entry_line('admin', hash_token(token), '*')}\n"
        f"{entry_line('scheduler', hash_token(scheduler), 'jobs,contexts:read')}\n"
    )
    tokens.chmod(0o600)
    config = re.sub(
        r"^(\s*)#(?=contexts\.)", r"\1", PRODUCTION.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    (tmp_path / "site.conf").write_text("spark.context-settings.memory-per-node = 600m")
    database = postgresql_server.database("production")
    blobs = tmp_path / "blobs"
    environment = {
        **os.environ,
        "JOBSERVER_DATABASE_URL": postgresql_server.url(database),
        "JOBSERVER_BLOBS_URL": str(blobs),
        "JOBSERVER_TOKEN_FILE": str(tokens),
        "JOBSERVER_SPARK_MASTER": "local[2]",
    }
    with (
        spark_server(tmp_path, environment, config=config) as url,
        httpx.Client(base_url=url, timeout=PATIENCE, headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        assert httpx.get(f"{url}/jobs").status_code == 401
        assert client.get("/readyz").status_code == 200
        wait_until(lambda: client.get("/contexts/shared").json()["state"] == "RUNNING", timeout=PATIENCE)
        assert client.get("/contexts/shared").json()["settings"]["supervise"] in (True, "true")
        wheel = build_example_wheel(tmp_path).read_bytes()
        uploaded = client.post(
            "/binaries/words", content=wheel, headers={"Content-Type": "application/python-wheel"}
        )
        assert uploaded.status_code == 201, uploaded.text
        client.headers["Authorization"] = f"Bearer {scheduler}"
        job = client.post(
            f"/jobs?cp=words&mainClass={CLASS_NAME}&context=shared&sync=true&timeout=200",
            content='input.string = "a b a"',
        )
        assert job.json()["result"] == {"a": 2, "b": 1}, job.text
        assert client.post("/contexts/own").status_code == 403, "the scheduler may not start contexts"
        wait_until(
            lambda: (
                'jobserver_spare_contexts{pool="default",state="ready"} 1.0' in client.get("/metrics").text
            ),
            timeout=PATIENCE,
        )
    postgresql_server.drop(database)
    assert any(blobs.rglob("*")), "the uploads are in the shared directory"
    assert not (tmp_path / "data" / "metadata.db").exists()


@pytest.mark.real
def test_the_command_shows_its_settings_without_warnings_and_secrets(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *[sys.executable, "-m", "jobserver_cli", "config", "show", "--changed"],
            *["--config", str(PRODUCTION), "--data-dir", str(tmp_path / "data")],
        ],
        env={**os.environ, **ENVIRONMENT, "JOBSERVER_SPARK_MASTER": "local[2]"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "warning" not in done.stderr
    assert "s3cret" not in done.stdout
