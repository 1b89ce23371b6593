"""``jobserver serve`` as a separate process, with a launcher from a plugin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_cli.exits import ExitCode

TESTS = Path(__file__).parents[2]
PATIENCE = 60.0

CONFIG = """
jobserver {
  metadata.backend = memory
  blobs.backend = memory
  fetcher.backend = memory
  launcher.backend = words
  http { port = 0, drain-timeout = 20 s }
  contexts.deletion-timeout = 1 s
}
spark.contexts { warm {} }
"""


class Serving:
    """A server process, its address, and its output."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobserver_cli", "serve", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    @property
    def errors(self) -> str:
        """The stderr output so far."""
        with self._changed:
            return "".join(self.lines)

    def wait_for(self, words: str) -> None:
        """Return once the words were printed on stderr."""
        with self._changed:
            assert self._changed.wait_for(lambda: words in "".join(self.lines), PATIENCE), self.lines

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> ExitCode:
        """Return the exit code, once there is one."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return ExitCode(code)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a plugin: an installed distribution that brings the launcher ``words``."""
    info = tmp_path / "plugin" / "words_launcher-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: words-launcher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[jobserver.launcher]\nwords = command_line:WordsLauncher\nstuck = command_line:StuckLauncher\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    paths = os.pathsep.join([str(info.parent), str(TESTS)])
    return {**clean, "PYTHONPATH": paths, "TMPDIR": str(scratch)}


Serve = Callable[..., Serving]


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Start servers; each is gone when the test ends."""
    started: list[Serving] = []

    def start(*arguments: str, config: str = "", data_dir: Path = tmp_path / "data") -> Serving:
        file = tmp_path / f"server-{len(started)}.conf"
        file.write_text(CONFIG + config, encoding="utf-8")
        options = ["--config", str(file), "--data-dir", str(data_dir), *arguments]
        started.append(Serving(options, environment))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def jobserver(environment: dict[str, str]) -> Callable[..., Any]:
    """Run the command as a separate process."""

    def run(*arguments: object, **options: Any) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "jobserver_cli", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            **options,
        )

    return run
