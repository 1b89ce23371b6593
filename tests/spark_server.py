"""``jobserver serve`` with Spark, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from conditions import SPARK_WAIT

__all__ = ["spark_server"]


@contextmanager
def spark_server(
    directory: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    config: str = 'spark.master = "local[2]"\n',
) -> Iterator[str]:
    """Start a server that keeps everything in a directory, yield its URL, and stop it gracefully."""
    (directory / "jobserver.conf").write_text(config)
    command = [sys.executable, "-m", "jobserver_cli", "serve", "--config", str(directory / "jobserver.conf")]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--data-dir", str(directory / "data")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**environment, "NO_COLOR": "1"},
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, (directory / "log").read_text()
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(SPARK_WAIT) == 0, (directory / "log").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
