"""The search for processes by the directory in which they work, on which other tests rely."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_processes import end_processes_in, processes_in

from conditions import WAIT

pytestmark = pytest.mark.real


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works below ``directory``."""
    below = tmp_path / "directory" / "below"
    below.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"], cwd=below) as process:
        yield process
        process.kill()


def test_processes_are_found_and_ended_through_a_link_to_their_directory(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "directory")
    assert processes_in(link) == [sleeper.pid]
    assert processes_in(tmp_path / "other") == []
    end_processes_in(link)
    assert sleeper.wait(WAIT) == -9
