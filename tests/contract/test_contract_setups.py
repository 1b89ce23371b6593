"""A suite whose setup fails says why once, not with each of its tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest
from jobserver_http.testing import AuthenticatorContract

class TestMine(AuthenticatorContract):
"""
METHODS = """
    def valid(self): ...
    def owner(self): ...
    def revoke(self, authenticator): ...
"""
FIXTURE = """
    @pytest.fixture
    def authenticator(self):
        raise OSError("the directory does not answer")
"""


def run(directory: Path, body: str) -> str:
    file = directory / "test_mine.py"
    file.write_text(SUITE + body)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"COLUMNS": "500"}
    ended = subprocess.run(
        command, check=False, cwd=directory, env=environment, capture_output=True, text=True
    )
    return ended.stdout


@pytest.mark.real
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (METHODS + FIXTURE, "OSError: the directory does not answer"),
        (METHODS, "fixture 'authenticator' not found"),
        (FIXTURE, "TypeError: TestMine has to implement owner, revoke, valid"),
    ],
    ids=["a fixture that raises", "no fixture", "no methods"],
)
def test_a_setup_that_fails_for_all_tests_is_one_error(tmp_path: Path, body: str, error: str) -> None:
    shown = run(tmp_path, body)
    assert re.search(r"^\d+ skipped, 1 error in ", shown, re.MULTILINE), shown
    assert re.search(f"^E +{re.escape(error)}$", shown, re.MULTILINE), shown
    assert "its setup failed like that of test_" in shown, shown
