"""``jobserver serve`` as a separate process, with a launcher from a plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import CONFIG, Serve, Serving

from conditions import WAIT

TESTS = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a plugin: an installed distribution that brings the launcher ``words``."""
    info = tmp_path / "plugin" / "words_launcher-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: words-launcher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[jobserver.launcher]\nwords = command_line:WordsLauncher\nstuck = command_line:StuckLauncher\n"
        "leaving = command_line:LeavingLauncher\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    paths = os.pathsep.join([str(info.parent), str(TESTS)])
    return {**clean, "PYTHONPATH": paths, "TMPDIR": str(scratch)}


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
            timeout=WAIT,
            **options,
        )

    return run
