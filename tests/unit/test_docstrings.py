"""Docstrings list errors in a section of their own, one on a line (CONTRIBUTING, habit 3)."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ROOT = Path(__file__).parents[2]
_IN_PROSE = re.compile(r"\bRaises +(?:an? +)?[A-Z`:]")
_ENTRY = re.compile(r"    [A-Z]\w+: [A-Z`:].*[.)`]$", re.DOTALL)


@cache
def docstrings() -> list[tuple[str, str]]:
    found = []
    for package in ("jobserver_core", "backends", "adapters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in definitions(ast.parse(path.read_text("utf-8"))):
                where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                found.append((where, ast.get_docstring(node) or ""))
    return found


def definitions(inside: ast.AST) -> Iterator[Definition]:
    """Yield classes and functions, without looking into expressions, which takes most of the time."""
    for node in ast.iter_child_nodes(inside):
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            if isinstance(node, Definition):
                yield node
            yield from definitions(node)


def entries(section: str) -> list[str]:
    """Return the entries of a section, each with the lines that continue it."""
    return re.split(r"\n(?=    \S)", section)


def test_errors_are_listed_in_a_section_and_not_in_the_prose() -> None:
    assert [where for where, text in docstrings() if _IN_PROSE.search(text)] == []


def test_a_section_of_errors_has_one_with_its_reason_on_each_line() -> None:
    sections = [
        (where, text.split("Raises:\n")[1].split("\n\n")[0])
        for where, text in docstrings()
        if "Raises:\n" in text
    ]
    assert sections
    malformed = [
        f"{where}: {entry}"
        for where, section in sections
        for entry in entries(section)
        if not _ENTRY.fullmatch(entry)
    ]
    assert malformed == []
