"""Completing commands and names in shells: bash, zsh and fish as they run on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from jobserver_core import BinaryType, JobServer
from loopback import Loopback

PATIENCE = 60.0
NOTHING = {"": ""}
"""What the command offers where no name matches and no file can be meant."""
START = "import sys; from jobserver_cli import main; main()"


def completed(line: str) -> dict[str, str]:
    """Return what the command offers for the end of a line, with the descriptions."""
    environment = {
        **os.environ,
        "_JOBSERVER_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-c", START],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    found = (one.partition("\t") for one in done.stdout.splitlines() if one)
    return {value: about for value, _, about in found}


def submitted(client: CommandLine, main_class: str = "words.Count") -> str:
    return client("submit", main_class, "--cp", "words", "-c", "warm", "-d", "input.string=a").out.strip()


def test_completion_knows_commands_and_options() -> None:
    assert list(completed("jobserver submit --fol")) == ["--follow"]
    assert set(completed("jobserver lo")) == {"login", "logout", "logs"}


def test_a_long_description_stays_on_the_line_of_its_option() -> None:
    found = completed("jobserver run --")
    assert {value[:2] for value in found} == {"--"}
    assert found["--cp"].endswith("Can be repeated.")


def test_jobs_are_completed_with_a_description(client: CommandLine) -> None:
    job_id = submitted(client)
    assert client("result", job_id, "--wait").code == 0
    for line in ("result", "logs", "job show", "job logs", "job"):
        found = completed(f"jobserver {line} {job_id[:6]}")
        assert list(found) == [job_id]
        assert re.fullmatch(r"FINISHED Count \d\d:\d\d:\d\d", found[job_id])
    assert completed("jobserver logs @") == {"@last": "the newest job"}


def test_kill_completes_only_jobs_that_have_not_ended(client: CommandLine) -> None:
    ended = submitted(client)
    assert client("result", ended, "--wait").code == 0
    running = submitted(client, "words.Sleep")
    assert list(completed("jobserver kill ")) == [running]
    client("kill", running)


def test_contexts_binaries_and_data_files_are_completed(client: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("a")
    path = client("data", "upload", "birds", tmp_path / "a b.txt").out.strip()
    name = path.rpartition("/")[2]
    assert re.fullmatch(r"RUNNING since \d\d:\d\d:\d\d", completed("jobserver context show w")["warm"])
    assert list(completed("jobserver submit words.Count -c w")) == ["warm"]
    assert re.fullmatch(r"Wheel of \d\d:\d\d:\d\d", completed("jobserver binary versions wo")["words"])
    assert list(completed("jobserver run words.Count --wheel wo")) == ["words"]
    assert list(completed("jobserver data delete b")) == [name]
    assert list(completed(f"jobserver data delete {path[:-5]}")) == [path]


@pytest.mark.parametrize("typed", ["'two wo", '"two ', "two\\ ", r"two\ wo", "two' 'w"])
def test_a_name_with_a_blank_is_completed_however_it_is_quoted(
    client: CommandLine, server: JobServer, tmp_path: Path, typed: str
) -> None:
    server.upload("two words", BinaryType.WHEEL, (tmp_path / "words-0.1-py3-none-any.whl").read_bytes())
    assert list(completed(f"jobserver binary delete {typed}")) == ["two words"]


def test_saved_servers_are_completed_without_asking_any(client: CommandLine, tmp_path: Path) -> None:
    client.environment.setenv("XDG_CONFIG_HOME", str(tmp_path))
    url = os.environ["JOBSERVER_URL"]
    assert client("login", "prod").code == 0
    client.environment.setenv("JOBSERVER_URL", "http://127.0.0.1:9")
    for line in ("logout p", "jobs --server p", "job list --server=p"):
        found = completed(f"jobserver {line}")
        assert {value.rpartition("=")[2]: about for value, about in found.items()} == {"prod": url}


def test_completion_is_empty_when_no_server_answers(jobserver: CommandLine) -> None:
    jobserver.environment.setenv("JOBSERVER_URL", "http://127.0.0.1:9")
    assert completed("jobserver result a") == NOTHING


def test_completion_asks_the_server_only_once(jobserver: CommandLine) -> None:
    with Loopback(lambda handler: handler.say(502, b"<html>")) as web:
        jobserver.environment.setenv("JOBSERVER_URL", web.url(""))
        assert completed("jobserver context show w") == NOTHING
        assert len(web.calls) == 1


def test_only_where_a_file_can_be_given_the_shell_may_complete_one(client: CommandLine) -> None:
    for line in ("result nix", "context show nix", "binary delete nix", "data delete nix", "logout nix"):
        assert completed(f"jobserver {line}") == NOTHING, line
    for line in ("submit w.Count --cp nix", "run w.Count --wheel nix", "upload words nix"):
        assert completed(f"jobserver {line}") == {}, line


# -- in real shells -------------------------------------------------------------------------------


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._end, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
        self.process = subprocess.Popen(
            arguments, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True
        )
        os.close(end)
        self._words = Path(environment["HOME"], "words")
        self.shown = ""

    def type(self, keys: str, until: str) -> str:
        """Type keys, and return what is shown since, once it matches the pattern."""
        before = len(self.shown)
        os.write(self._end, keys.encode())
        deadline = time.monotonic() + PATIENCE
        while not re.search(until, self.shown[before:]):
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.shown
            self.shown += os.read(self._end, 65536).decode(errors="replace")
        return self.shown[before:]

    def words(self, line: str) -> list[str]:
        """Type a line and the tab key, and return the words that the line has then."""
        begin, end = "\x01", "\x05"  # the keys that move the cursor
        self.type(
            f"{line}\t{begin}typed=( {end} ); printf '%s\\n' \"${{typed[@]}}\" >~/words; echo do''ne\n",
            "done",
        )
        return self._words.read_text().splitlines()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._end)


@pytest.fixture
def environment(tmp_path: Path, jobserver: CommandLine) -> dict[str, str]:
    """The environment of a shell in which this is the command ``jobserver``."""
    program = tmp_path / "bin" / "jobserver"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{START}" "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "$ "}


Open = Callable[..., Terminal]


@pytest.fixture
def opened(environment: dict[str, str], client: CommandLine) -> Iterator[Open]:
    """Open a shell that talks to the server; it is gone when the test ends."""
    shells: list[Terminal] = []

    def open_shell(*arguments: str) -> Terminal:
        need(arguments[0])
        environment["JOBSERVER_URL"] = os.environ["JOBSERVER_URL"]
        shells.append(Terminal([*arguments], environment))
        return shells[-1]

    yield open_shell
    for shell in shells:
        shell.close()


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


@pytest.fixture
def bash(opened: Open) -> Terminal:
    shell = opened("bash", "--norc", "--noprofile", "-i")
    shell.type('eval "$(jobserver completion bash)"; echo rea""dy\n', "ready")
    return shell


@pytest.fixture
def zsh(opened: Open) -> Terminal:
    shell = opened("zsh", "-f", "-i")
    shell.type(
        'autoload -Uz compinit; compinit -u; eval "$(jobserver completion zsh)"; echo rea""dy\n', "ready"
    )
    return shell


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_completes_commands_and_names(
    client: CommandLine, server: JobServer, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    job_id = submitted(client)
    server.upload("two words", BinaryType.WHEEL, (tmp_path / "words-0.1-py3-none-any.whl").read_bytes())
    server.create_context("a@b+c").result(10)
    shell: Terminal = request.getfixturevalue(name)
    assert shell.words("jobserver context show a@") == ["jobserver", "context", "show", "a@b+c"]
    assert shell.words("jobserver logs @la") == ["jobserver", "logs", "@last"]
    assert shell.words(f"jobserver job show {job_id[:7]}") == ["jobserver", "job", "show", job_id]
    assert shell.words("jobserver submit words.Count --fol") == [
        "jobserver",
        "submit",
        "words.Count",
        "--follow",
    ]
    assert shell.words("jobserver jobs --status=RUN") == ["jobserver", "jobs", "--status=RUNNING"]
    assert shell.words("jobserver context show w") == ["jobserver", "context", "show", "warm"]
    for typed in ("tw", "'tw", '"tw', r"two\ ", "'two w", '"two w'):
        assert shell.words(f"jobserver binary delete {typed}") == [
            "jobserver",
            "binary",
            "delete",
            "two words",
        ]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_completes_files_where_there_are_no_names(
    client: CommandLine, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "server.conf").touch()
    shell: Terminal = request.getfixturevalue(name)
    for command in ("result", "context show", "binary delete", "jobs --server"):
        line = f"jobserver {command} {tmp_path}/ser"
        assert shell.words(line) == line.split()
    assert shell.words(f"jobserver submit w.Count --cp {tmp_path}/ser")[-1] == f"{tmp_path}/server.conf"
    found = shell.words(f"jobserver serve --config {tmp_path}/ser")
    assert found == ["jobserver", "serve", "--config", f"{tmp_path}/server.conf"]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_shows_the_descriptions_of_several_names(
    client: CommandLine, name: str, request: pytest.FixtureRequest
) -> None:
    for _ in range(2):
        assert client("result", submitted(client), "--wait").code == 0
    shell: Terminal = request.getfixturevalue(name)
    shell.type("jobserver result \t\t", r"(?s)(?=.*the newest job)(?=.*FINISHED Count \d)")


def test_fish_completes_commands_and_names(
    client: CommandLine, server: JobServer, environment: dict[str, str], tmp_path: Path
) -> None:
    need("fish")
    server.upload("two words", BinaryType.WHEEL, (tmp_path / "words-0.1-py3-none-any.whl").read_bytes())
    job_id = submitted(client)
    lines = (
        "jobserver logs @la",
        f"jobserver job show {job_id[:7]}",
        "jobserver serve --conf",
        "jobserver jobs --status=RUN",
        r"jobserver binary delete two\ w",
        'jobserver binary delete "two w',
        f"jobserver result {tmp_path}/words-",  # not a file
        f"jobserver run words.Count --wheel {tmp_path}/words-",
    )
    asked = "; ".join(f"complete -C {shlex.quote(line)}" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"jobserver completion fish | source; {asked}"],
        env={**environment, "JOBSERVER_URL": os.environ["JOBSERVER_URL"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    last, job, option, value, escaped, quoted, file = done.stdout.splitlines()
    assert last == "@last\tthe newest job"
    assert job.startswith(f"{job_id}\t")
    assert option.startswith("--config\t")
    assert value == "--status=RUNNING"
    assert escaped.split("\t")[0].endswith("words")
    assert quoted.split("\t")[0].endswith("words")
    assert file.split("\t")[0] == f"{tmp_path}/words-0.1-py3-none-any.whl"
