"""Documents as their readers use them: commands run in order, with the output that they promise."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from conditions import SPARK_WAIT, wait_until

__all__ = ["Block", "Reader", "agrees", "blocks", "new_user"]

_BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
_NOT_RUN = ("not run by the tests", "run by a test of its own")


@attrs.frozen
class Block:
    """A block of a document: its language (``sh``, ``text``, ``python``), text, and the note before it."""

    kind: str
    text: str
    note: str

    @property
    def is_run(self) -> bool:
        """Whether these are commands that can be run here."""
        return self.kind == "sh" and not self.note.endswith(_NOT_RUN)


def blocks(document: Path) -> list[Block]:
    """Return the blocks of a document that name their language."""
    found = _BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["note"] or "") for match in found]


def agrees(promised: str, printed: str) -> bool:
    """Whether the output matches the documented one, in which an ellipsis matches anything."""
    pattern = ".*".join(re.escape(part) for part in promised.strip().split("…"))
    return re.search(pattern, printed, re.DOTALL) is not None


@contextmanager
def new_user() -> Iterator[dict[str, str]]:
    """Yield the environment of a new user: an empty home, nothing configured except longer timeouts."""
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


class Reader:
    """Runs the commands of a document in one directory, against the servers that it starts.

    The ports in documents may be in use on this machine, so servers get others. ``url`` is that of a job
    server that runs already.
    """

    def __init__(self, environment: dict[str, str], directory: Path, *, url: str = "") -> None:
        self._environment = environment
        self._directory = directory
        self._server: subprocess.Popen[str] | None = None
        self._replaced: dict[str, str] = {}
        self.printed = ""
        if url:
            self._use(url)

    def read(self, block: Block) -> None:
        """Run the commands of a block, or compare it with what the last ones have printed."""
        if block.kind == "text":
            assert agrees(block.text, self.printed), (block.text, self.printed)
        elif block.note == "runs in the background":
            self._serve(block.text.strip())
        elif block.is_run:
            self._type(block.text, 1 if block.note == "ends with 1" else 0)

    def _use(self, url: str) -> None:
        self._replaced["localhost:8090"] = url.removeprefix("http://")
        self._environment = {**self._environment, "JOBSERVER_URL": url}

    def _serve(self, command: str) -> None:
        own = command.startswith("jobserver serve")
        port = "0" if own else self._other_port()
        words = shlex.split(command if own else command.replace("8000", port))
        self._server = subprocess.Popen(
            [*words, "--port", "0"] if own else words,
            env=self._environment,
            cwd=self._directory,
            stdout=subprocess.PIPE if own else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._server.stdout is not None:
            self._use(self._server.stdout.readline().strip())
        else:
            wait_until(lambda: self._answers(int(port)), f"{command} listens", SPARK_WAIT)

    def _other_port(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self._replaced["localhost:8000"] = f"localhost:{port}"
        return port

    def _answers(self, port: int) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, "the server has ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    def _type(self, text: str, code: int) -> None:
        typed = text
        for promised, actual in self._replaced.items():
            typed = typed.replace(promised, actual)
        if "localhost:8090" not in self._replaced:
            typed = typed.replace("jobserver doctor\n", "jobserver doctor --port 0\n")
        done = subprocess.run(
            ["bash", "-e", "-c", typed],
            env=self._environment,
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SPARK_WAIT,
        )
        self.printed = done.stdout
        assert done.returncode == code, (text, done.stdout)

    def stop(self) -> int | None:
        """Interrupt the server as Ctrl-C does, and return its exit code."""
        if self._server is None:
            return None
        self._server.send_signal(signal.SIGINT)
        try:
            return self._server.wait(SPARK_WAIT)
        finally:
            self._server.kill()
            if self._server.stdout is not None:
                self._server.stdout.close()
