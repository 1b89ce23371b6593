"""README and tutorial: runs their commands and compares the output with the documented one."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conditions import SPARK_WAIT
from documents import Reader, blocks, new_user

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with new_user() as found:
        yield found


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_of_the_repository(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (document.parent / link).is_file()] == []


@pytest.mark.parametrize("document", [README, TUTORIAL], ids=lambda path: path.name)
def test_every_command_that_is_printed_can_be_read_by_the_shell(document: Path) -> None:
    for block in blocks(document):
        if block.kind == "sh":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
        elif block.kind == "python":
            ast.parse(block.text)


def test_the_commands_of_the_readme_that_install_name_extras_and_tasks_that_there_are() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for block in blocks(README):
        for extra in re.findall(r"'\.\[(\w+)\]'", block.text):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
        for task in re.findall(r"poe ([\w-]+)", block.text):
            assert f"[tool.poe.tasks.{task}]" in project


@pytest.mark.spark
def test_the_commands_of_the_readme_work(environment: dict[str, str], tmp_path: Path) -> None:
    run = [block for block in blocks(README) if block.is_run]
    assert len(run) == 1
    for block in run:
        text = block.text.replace("jobserver doctor", "jobserver doctor --port 0")  # 8090 may be taken here
        subprocess.run(
            ["bash", "-e", "-c", text], env=environment, cwd=tmp_path, check=True, timeout=SPARK_WAIT
        )


@pytest.mark.spark
@pytest.mark.slow
def test_the_python_of_the_readme_works(environment: dict[str, str]) -> None:
    [block] = [block for block in blocks(README) if block.kind == "python"]
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SPARK_WAIT,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(ast.literal_eval, done.stdout.splitlines())
    assert first == {"a": 2, "b": 2, "c": 1, "see": 1}
    assert second == {"to": 2, "be": 2, "or": 1, "not": 1}


@pytest.mark.spark
@pytest.mark.slow
def test_the_tutorial_works_as_printed(environment: dict[str, str], tmp_path: Path) -> None:
    assert shutil.which("curl"), "the tutorial needs curl"
    reader = Reader(environment, tmp_path)
    try:
        for block in blocks(TUTORIAL):
            reader.read(block)
    finally:
        ended = reader.stop()
    assert ended == 0
