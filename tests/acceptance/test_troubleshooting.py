"""The guide to troubleshooting quotes messages of the code, and names settings that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import pytest

from jobserver_core.config.loading import setting_types

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "howto" / "troubleshoot.md"
PACKAGES = [ROOT / "jobserver_core", ROOT / "adapters", ROOT / "backends"]
OF_OTHERS = {
    "ModuleNotFoundError",
    "Python in worker has different version",
    "The value … in the config … is invalid",
}
"""Messages of Python and Spark."""


@attrs.frozen
class Row:
    """A row of the guide."""

    symptom: str
    cause: str
    fix: str


def rows() -> list[Row]:
    found = re.findall(r"^\| (.*?) \| (.*?) \| (.*) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return [Row(*cells) for cells in found if cells[0] not in ("symptom", "---")]


def quoted() -> Iterator[str]:
    """Yield the messages that symptoms quote; others are paths, states and names."""
    for row in rows():
        for text in re.findall(r"`([^`]+)`", row.symptom):
            if not re.fullmatch(r"[/A-Z][\w/.]*|[\d.]+", text) or text in OF_OTHERS:
                yield text


@cache
def texts() -> list[str]:
    """Return the texts in the code: the string literals of Python, and the Scala sources whole."""
    found = []
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                    found.append("\0".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
        found += [path.read_text(encoding="utf-8") for path in package.rglob("*.scala")]
    return found


def in_the_code(message: str) -> bool:
    """Whether one text of the code has all parts of a message. A number or an ellipsis stands for a value."""
    parts = [part for part in re.split(r"…|\d+", message) if part.strip()]
    return any(all(part.strip() in text for part in parts) for text in texts())


@pytest.mark.parametrize("message", sorted(set(quoted()) - OF_OTHERS))
def test_a_message_that_the_guide_quotes_is_one_of_the_code(message: str) -> None:
    assert in_the_code(message)


def test_a_message_that_nobody_writes_is_found_out() -> None:
    assert not in_the_code("context … was never ready after 60 s")
    assert len(set(quoted())) >= 10


def test_the_guide_has_the_fifteen_most_likely_symptoms_and_a_fix_for_each() -> None:
    assert len(rows()) >= 15
    assert all(row.cause and row.fix for row in rows())


def test_settings_that_the_guide_names_exist() -> None:
    known = set(setting_types())
    named = set(re.findall(r"`(jobserver\.[a-z.-]+[a-z])\b", GUIDE.read_text(encoding="utf-8")))
    assert named
    assert {
        name for name in named if name not in known and not any(key.startswith(f"{name}.") for key in known)
    } == set()
