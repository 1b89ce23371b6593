"""The project of docs/howto/python-jobs.md, packaged as a reader does it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from documents import blocks

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "howto" / "python-jobs.md"


@pytest.mark.real
def test_the_wheel_of_the_page_is_built_where_the_next_command_uploads_it(tmp_path: Path) -> None:
    (configuration,) = (block.text for block in blocks(DOCUMENT) if block.kind == "toml")
    (tmp_path / "pyproject.toml").write_text(configuration, encoding="utf-8")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").touch()
    (commands,) = (block.text.splitlines() for block in blocks(DOCUMENT) if "pip wheel" in block.text)
    build, upload = map(shlex.split, commands[:2])
    subprocess.run([sys.executable, "-m", *build], cwd=tmp_path, check=True, timeout=120)
    assert upload[:2] == ["jobserver", "upload"]
    assert (tmp_path / upload[-1]).is_file()
    for mentioned in re.findall(r"`sha256sum (.+?)`", DOCUMENT.read_text(encoding="utf-8")):
        assert list(tmp_path.glob(mentioned)) == [tmp_path / upload[-1]]
