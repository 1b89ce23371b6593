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
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers

__all__ = ["leftover_records", "remove_leftovers", "spark_server"]


def leftover_records(data_dir: Path) -> list[LeftoverRecord]:
    """Return the records of what contexts of a server have left, or still have."""
    return list(Leftovers(data_dir / "pyspark" / "contexts").all())


def remove_leftovers(data_dir: Path) -> None:
    """Remove what contexts of a killed server left on this machine, as the next server there would."""
    for record in leftover_records(data_dir):
        assert record.end_local()
        assert record.remove_files()


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
