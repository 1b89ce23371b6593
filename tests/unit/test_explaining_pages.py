"""The pages that explain the code name only code that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
PAGES = [
    *ROOT.glob("docs/explanation/*.md"),
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/howto/write-a-backend.md",
]
NAMED = sorted({name for page in PAGES for name in re.findall(r"`([A-Za-z_][\w./]*)`", page.read_text())})
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for directory in ("jobserver_core", "backends", "adapters", "tests", "benchmarks", "examples")
    for path in (ROOT / directory).rglob("*.py")
}
PACKAGES = {
    name: text
    for name, text in SOURCES.items()
    if name.startswith(("jobserver_core/", "backends/", "adapters/"))
}
CODE = "\n".join(PACKAGES.values())
SCALA = {path.stem: path.read_text() for path in (ROOT / "backends/jobserver_pyspark/jvm").rglob("*.scala")}
FOREIGN = {"Truestory", "ConfigTree", "OrderedDict", "PythonRDD", "StreamingContext", "Thread", "TypeError"}
FOREIGN |= {"Changelog", "Documentation", "Issues", "Link", "None", "Repository"}
"""What the pages quote that is a name of a library, or none in the code."""


DEFINED = {
    name
    for names in re.findall(r"^ *(?:class|(?:async )?def) (\w+)|^ *(\w+)(?:: .+)? = ", CODE, re.MULTILINE)
    for name in names
}
"""The names of classes, functions and variables."""
DEFINED |= {name for text in SCALA.values() for name in re.findall(r"\b(?:class|object|trait) (\w+)", text)}


@pytest.mark.parametrize("file", [name for name in NAMED if name.endswith(".py")])
def test_every_file_exists(file: str) -> None:
    assert any(f"/{path}".endswith(f"/{file}") for path in SOURCES)


@pytest.mark.parametrize(
    "name", [name for name in NAMED if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name) and name not in FOREIGN]
)
def test_every_name_is_defined(name: str) -> None:
    assert name in DEFINED


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMED
        if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*\.\w+", name) and name.partition(".")[0] not in FOREIGN
    ],
)
def test_every_member_is_defined_in_its_class(name: str) -> None:
    owner, member = name.split(".")
    if re.search(rf"\bdef {member}\b", SCALA.get(owner, "")):
        return
    body = re.search(rf"^class {owner}\b.*?(?=^\S|\Z)", CODE, re.DOTALL | re.MULTILINE)
    assert body is not None
    assert re.search(
        rf"\bdef {member}\b|^    {member}(?:: | = )|\bself\.{member}\b.* = ", body[0], re.MULTILINE
    )


LOCKS = re.compile(r"threading\.(?:R?Lock|Condition)\b")
HOST = "backends/jobserver_pyspark/"
HOST_LOCKS = PAGE.partition("A host process has its own locks")[2].partition("These mechanisms")[0]


def test_the_table_of_a_hosts_locks_has_the_classes_with_locks_and_no_others() -> None:
    found = set()
    for name, text in PACKAGES.items():
        if name.startswith((f"{HOST}host/", f"{HOST}jvm/", f"{HOST}protocol/")):
            bodies = re.findall(r"^class (\w+)(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
            found |= {owner for owner, body in bodies if LOCKS.search(body)}
    rows = [line.split("|")[2] for line in HOST_LOCKS.splitlines() if line.startswith("| ")][2:]
    assert {owner for row in rows for owner in re.findall(r"`(_?[A-Z]\w*)[.`]", row)} == found
