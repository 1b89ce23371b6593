"""A server in memory that the command talks to over real HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from command_line import JOBS, CommandLine, wheel
from jobserver_core import BinaryType, JobServer
from jobserver_core.config.loading import load_settings
from jobserver_core.memory import InlineLauncher
from jobserver_http import running


@pytest.fixture
def jobserver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command, with no server."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def server() -> JobServer:
    """A job server in memory, which the command of :func:`client` talks to."""
    settings = load_settings(
        overrides={
            "jobserver.http.port": 0,
            "jobserver.http.drain-timeout": "0 s",
            "jobserver.jobs.kill-timeout": "0.1 s",
            "jobserver.contexts.deletion-timeout": "0.5 s",
        }
    )
    return JobServer.in_memory(launcher=InlineLauncher(JOBS), settings=settings)


@pytest.fixture
def client(server: JobServer, jobserver: CommandLine, tmp_path: Path) -> Iterator[CommandLine]:
    """The command, with a server that has the binary ``words`` and the context ``warm``."""
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        with wheel(tmp_path).open("rb") as file:
            server.upload("words", BinaryType.WHEEL, file)
        server.create_context("warm").result(10)
        yield jobserver


@pytest.fixture
def start_guarded(tmp_path: Path) -> Callable[[str, str], AbstractContextManager[str]]:
    """Start a server that requires a login, given the lines of its password file and its token file."""

    def start(passwords: str, tokens: str) -> AbstractContextManager[str]:
        password_file, token_file = tmp_path / "passwords", tmp_path / "tokens"
        password_file.write_text(passwords)
        token_file.write_text(tokens)
        settings = load_settings(
            overrides={
                "jobserver.http.port": 0,
                "jobserver.auth.backend": "file",
                "jobserver.auth.password-file": password_file,
                "jobserver.auth.token-file": token_file,
            }
        )
        return running(JobServer.in_memory(settings=settings))

    return start
