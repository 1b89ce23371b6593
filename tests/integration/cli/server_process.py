"""``jobserver serve`` as a separate process, with a launcher from a plugin."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from conditions import WAIT
from jobserver_cli.exits import ExitCode

__all__ = ["CONFIG", "Serve", "Serving"]


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
            assert self._changed.wait_for(lambda: words in "".join(self.lines), WAIT), self.lines

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> ExitCode:
        """Return the exit code, once there is one."""
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return ExitCode(code)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        self._reader.join(WAIT)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


Serve = Callable[..., Serving]
