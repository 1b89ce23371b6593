"""The files of docs/howto/test-jobs-and-services.md, run by pytest as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "howto" / "test-jobs-and-services.md"
FILE = re.compile(r"^`([^`\n]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ON_SPARK = "test_on_spark.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    text = DOCUMENT.read_text(encoding="utf-8")
    files = FILE.findall(text)
    assert len(files) == text.count("```python") == 10
    for name, content in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def passed(project: Path, *arguments: str) -> int:
    """Run pytest in a project, all of whose tests must pass; return how many there are."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=280, check=False)
    [count] = re.findall(
        r"^(\d+) passed(?:, \d+ skipped)?(?:, \d+ warnings?)? in", done.stdout, re.MULTILINE
    ) or ["0"]
    assert done.returncode == 0, done.stdout + done.stderr
    return int(count)


@pytest.mark.real
def test_what_needs_no_spark_passes_without_spark(project: Path) -> None:
    (project / "pyspark.py").write_text("raise ImportError('a test without Spark imports it')")
    assert passed(project, f"--ignore={ON_SPARK}") > 20


@pytest.mark.spark
def test_what_needs_spark_passes(project: Path) -> None:
    assert passed(project, ON_SPARK) == 3
