"""Saved servers, and watching a list."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from command_line import CommandLine
from jobserver_cli.exits import ExitCode
from jobserver_core import JobRequest, JobServer
from jobserver_http.credential_files import hash_password, hash_token

PASSWORD, TOKEN = "correct horse", "battery-staple"


@pytest.fixture
def guarded(
    jobserver: CommandLine, tmp_path: Path, start_guarded: Callable[[str, str], AbstractContextManager[str]]
) -> Iterator[str]:
    """A server that requires a login: ann may do everything, the token only upload."""
    jobserver.environment.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    passwords, tokens = f"ann:{hash_password(PASSWORD)}:*\n", f"robot:{hash_token(TOKEN)}:binaries\n"
    with start_guarded(passwords, tokens) as url:
        yield url


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "config" / "jobserver" / "servers.json"


def test_a_login_is_saved_where_only_the_user_can_read_it(
    jobserver: CommandLine, guarded: str, saved: Path
) -> None:
    jobserver.environment.setenv("JOBSERVER_PASSWORD", PASSWORD)
    done = jobserver("login", "prod", "--server", guarded, "--user", "ann")
    assert done.code == 0, done.err
    assert PASSWORD not in done.out + done.err
    assert (saved.stat().st_mode & 0o777, saved.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    jobserver.environment.delenv("JOBSERVER_PASSWORD")
    assert jobserver("jobs", "--server", "prod").code == 0
    jobserver.environment.setenv("JOBSERVER_URL", "prod")
    assert jobserver("storage").code == 0
    assert [one.name for one in saved.parent.iterdir()] == ["servers.json"]


def test_a_file_of_servers_that_cannot_be_written_is_named_with_how_to_use_another(
    jobserver: CommandLine, guarded: str, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "config").symlink_to(tmp_path / "missing")
    done = jobserver("login", "prod", "--server", guarded, "--token", TOKEN)
    assert (done.code, done.out) == (ExitCode.NOT_READY, "")
    assert f"cannot write the saved servers to {saved}: File exists" in done.err
    assert "set XDG_CONFIG_HOME to a directory that you can write to" in done.err


def test_without_a_home_directory_no_server_is_saved_and_the_variable_for_another_is_named(
    jobserver: CommandLine, guarded: str
) -> None:
    jobserver.environment.delenv("XDG_CONFIG_HOME")
    jobserver.environment.setenv("HOME", "no-home")
    done = jobserver("login", "prod", "--server", guarded, "--token", TOKEN)
    assert (done.code, done.out) == (ExitCode.NOT_READY, "")
    assert "there is no home directory" in done.err
    assert "set XDG_CONFIG_HOME to a directory" in done.err
    done = jobserver("logout", "prod")
    assert (done.code, done.err) == (ExitCode.REFUSED, "✗ server 'prod' is not saved; saved servers: none\n")
    done = jobserver("submit", "words.Count", "--cp", "~nobody-has-this-name/words.jar", "--server", guarded)
    assert "~nobody-has-this-name/words.jar: file not found" in done.err


def test_missing_credentials_lead_to_the_saved_servers(jobserver: CommandLine, guarded: str) -> None:
    assert "saved server" not in jobserver("jobs", "--server", guarded).err
    assert jobserver("login", "ci", "--server", guarded, "--token", TOKEN).code == 0
    done = jobserver("jobs", "--server", guarded)
    message = " ".join(done.err.split())
    assert (done.code, "JOBSERVER_TOKEN" in message) == (ExitCode.DENIED, True)
    assert "Or use a saved server: --server ci. " in message
    assert f"To save this one: jobserver login NAME --server {guarded} --user USER" in message
    done = jobserver("logs", "a" * 32, "-f", "--server", guarded)  # through the client's errors
    assert (done.code, "--server ci" in done.err) == (ExitCode.DENIED, True)


def test_a_refused_login_does_not_recommend_the_same_command(jobserver: CommandLine, guarded: str) -> None:
    assert jobserver("login", "ci", "--server", guarded, "--token", TOKEN).code == 0
    jobserver.environment.setenv("JOBSERVER_PASSWORD", "wrong")
    done = jobserver("login", "prod", "--server", guarded, "--user", "ann")
    message = " ".join(done.err.split())
    assert done.code == ExitCode.DENIED
    assert "Wrong user or password. Check the user ann" in message
    assert "jobserver login" not in message


def test_saved_credentials_that_are_refused_can_be_saved_anew(
    jobserver: CommandLine, guarded: str, saved: Path
) -> None:
    assert jobserver("login", "ci", "--server", guarded, "--token", TOKEN).code == 0
    saved.write_text(saved.read_text().replace(TOKEN, "expired"))
    done = jobserver("binaries", "--server", "ci")
    message = " ".join(done.err.split())
    assert done.code == ExitCode.DENIED
    assert f"To save other credentials: jobserver login ci --server {guarded} --user USER" in message


def test_options_take_precedence_over_saved_credentials(jobserver: CommandLine, guarded: str) -> None:
    assert jobserver("login", "ci", "--server", guarded, "--token", TOKEN).code == 0  # may not read jobs
    assert jobserver("binaries", "--server", "ci").code == 0
    assert jobserver("jobs", "--server", "ci").code == ExitCode.DENIED
    jobserver.environment.setenv("JOBSERVER_PASSWORD", PASSWORD)
    assert jobserver("jobs", "--server", "ci", "--user", "ann").code == 0


def test_wrong_credentials_are_not_saved(jobserver: CommandLine, guarded: str, saved: Path) -> None:
    assert jobserver("login", "prod", "--server", guarded, "--token", "wrong").code == ExitCode.DENIED
    assert not saved.exists()


def test_a_file_that_others_can_read_is_refused(jobserver: CommandLine, guarded: str, saved: Path) -> None:
    jobserver("login", "prod", "--server", guarded, "--token", TOKEN)
    saved.chmod(0o640)
    refused = jobserver("binaries", "--server", "prod")
    assert (refused.code, f"chmod 600 {saved}" in refused.err) == (ExitCode.USAGE, True)
    assert TOKEN not in refused.err


def test_a_saved_server_is_forgotten(jobserver: CommandLine, guarded: str, saved: Path) -> None:
    jobserver("login", "prod", "--server", guarded, "--token", TOKEN)
    unknown = jobserver("logout", "pord")
    assert (unknown.code, "saved servers: prod" in unknown.err) == (ExitCode.REFUSED, True)
    assert jobserver("logout", "prod").code == 0
    assert json.loads(saved.read_text()) == {}


def test_a_misspelled_saved_server_is_named(jobserver: CommandLine, guarded: str) -> None:
    first = jobserver("jobs", "--server", "prdo")
    assert (first.code, "Save one with: jobserver login NAME" in first.err) == (ExitCode.UNREACHABLE, True)
    jobserver("login", "prod", "--server", guarded, "--token", TOKEN)
    done = jobserver("jobs", "--server", "prdo")
    assert (done.code, "Did you mean prod?" in done.err) == (ExitCode.UNREACHABLE, True)


def test_a_name_that_looks_like_an_address_is_not_saved(jobserver: CommandLine, guarded: str) -> None:
    for name in ("a.b", "http://x", "1st", ""):
        assert jobserver("login", name, "--server", guarded, "--token", TOKEN).code == ExitCode.USAGE


@pytest.mark.usefixtures("client")
def test_a_watched_list_is_shown_again_after_each_change(server: JobServer) -> None:
    command = [sys.executable, "-m", "jobserver_cli", "jobs", "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "no jobs\n"
        job = server.submit(JobRequest(class_name="words.Sleep", class_path="words", context="warm"))
        assert any(job.id in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == ExitCode.INTERRUPTED
