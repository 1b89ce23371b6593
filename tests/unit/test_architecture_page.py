"""The page about the architecture names only code that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"`([A-Za-z_][\w./]*)`", PAGE)))
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for directory in ("jobserver_core", "backends", "adapters", "tests", "benchmarks")
    for path in (ROOT / directory).rglob("*.py")
}
CODE = "\n".join(SOURCES.values())
EXAMPLES = {"Truestory"}
"""What the page quotes that is no name in the code."""


@pytest.mark.parametrize("file", [name for name in NAMED if name.endswith(".py")])
def test_every_file_exists(file: str) -> None:
    assert any(f"/{path}".endswith(f"/{file}") for path in SOURCES)


@pytest.mark.parametrize(
    "name", [name for name in NAMED if re.fullmatch(r"_?[A-Z]\w*", name) and name not in EXAMPLES]
)
def test_every_name_exists(name: str) -> None:
    assert re.search(rf"\b{name}\b", CODE)


@pytest.mark.parametrize("name", [name for name in NAMED if re.fullmatch(r"_?[A-Z]\w*\.\w+", name)])
def test_every_member_is_defined_in_its_class(name: str) -> None:
    owner, member = name.split(".")
    body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", CODE, re.DOTALL | re.MULTILINE)
    assert body is not None
    assert re.search(rf"\bdef {member}\b|^    {member}: |\bself\.{member}\b.* = ", body[0], re.MULTILINE)
