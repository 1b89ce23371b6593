"""README and tutorial: runs their commands and compares the output with the documented one."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PATIENCE = 280.0
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
NOT_RUN = ("installs packages: not run by the tests", "run by a test of its own")


@attrs.frozen
class Block:
    """A block of a document: its language (``sh``, ``text``, ``python``), text, and the note before it."""

    kind: str
    text: str
    note: str | None


def blocks(document: Path) -> list[Block]:
    found = BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["note"]) for match in found]


def agrees(promised: str, printed: str) -> bool:
    """Whether the output matches the documented one, in which an ellipsis matches anything."""
    pattern = ".*".join(re.escape(part) for part in promised.strip().split("…"))
    return re.search(pattern, printed, re.DOTALL) is not None


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """The environment of a new user: an empty home, nothing configured except longer timeouts."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
    with tempfile.TemporaryDirectory(prefix="js") as directory:
        home = Path(directory, "home")
        home.mkdir()
        # Its meter is for terminals; here it would be between the answers.
        (home / ".curlrc").write_text("silent\nshow-error\n", encoding="utf-8")
        config = Path(directory, "patient.conf")
        config.write_text("jobserver.contexts.creation-timeout = 4 minutes\n", encoding="utf-8")
        path = os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]])
        patience = {"JOBSERVER_CONFIG": str(config)}
        yield {**clean, **patience, "PATH": path, "HOME": str(home), "TMPDIR": directory}


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_of_the_repository(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (document.parent / link).is_file()] == []


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=lambda path: path.name)
def test_every_command_that_is_printed_can_be_read_by_the_shell(document: Path) -> None:
    for block in blocks(document):
        if block.kind == "sh":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
        elif block.kind == "python":
            ast.parse(block.text)


def test_the_commands_of_the_readme_that_install_name_extras_and_tasks_that_there_are() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for block in blocks(README):
        for extra in re.findall(r"'\.\[(\w+)\]'", block.text):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
        for task in re.findall(r"poe ([\w-]+)", block.text):
            assert f"[tool.poe.tasks.{task}]" in project


@pytest.mark.spark
def test_the_commands_of_the_readme_work(environment: dict[str, str], tmp_path: Path) -> None:
    run = [block for block in blocks(README) if block.kind == "sh" and block.note not in NOT_RUN]
    assert len(run) == 1
    for block in run:
        text = block.text.replace("jobserver doctor", "jobserver doctor --port 0")  # 8090 may be taken here
        subprocess.run(
            ["bash", "-e", "-c", text], env=environment, cwd=tmp_path, check=True, timeout=PATIENCE
        )


@pytest.mark.spark
@pytest.mark.slow
def test_the_python_of_the_readme_works(environment: dict[str, str]) -> None:
    [block] = [block for block in blocks(README) if block.kind == "python"]
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(ast.literal_eval, done.stdout.splitlines())
    assert first == {"a": 2, "b": 2, "c": 1, "see": 1}
    assert second == {"to": 2, "be": 2, "or": 1, "not": 1}


class Reader:
    """Runs the commands of the tutorial in one directory, against a server that it started."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory
        self._server: subprocess.Popen[str] | None = None
        self._url = ""
        self.printed = ""

    def read(self, block: Block) -> None:
        if block.kind == "text":
            assert agrees(block.text, self.printed), (block.text, self.printed)
        elif block.note == "runs in the background":
            self._serve(block.text)
        elif block.note not in NOT_RUN:
            self._type(block.text, 1 if block.note == "ends with 1" else 0)

    def _serve(self, command: str) -> None:
        # Do not use port 8090, which may be in use on this machine.
        self._server = subprocess.Popen(
            [*command.split(), "--port", "0"],
            env=self._environment,
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout is not None
        self._url = self._server.stdout.readline().strip()
        self._environment = {**self._environment, "JOBSERVER_URL": self._url}

    def _type(self, text: str, code: int) -> None:
        typed = text.replace("localhost:8090", self._url)
        if not self._url:
            typed = typed.replace("jobserver doctor", "jobserver doctor --port 0")
        done = subprocess.run(
            ["bash", "-e", "-c", typed],
            env=self._environment,
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        self.printed = done.stdout
        assert done.returncode == code, (text, done.stdout)

    def stop(self) -> int | None:
        """Interrupt the server as Ctrl-C does, and return its exit code."""
        if self._server is None:
            return None
        self._server.send_signal(signal.SIGINT)
        try:
            return self._server.wait(PATIENCE)
        finally:
            self._server.kill()
            assert self._server.stdout is not None
            self._server.stdout.close()


@pytest.mark.spark
@pytest.mark.slow
def test_the_tutorial_works_as_printed(environment: dict[str, str], tmp_path: Path) -> None:
    assert shutil.which("curl"), "the tutorial needs curl"
    reader = Reader(environment, tmp_path)
    try:
        for block in blocks(TUTORIAL):
            reader.read(block)
    finally:
        ended = reader.stop()
    assert ended == 0
