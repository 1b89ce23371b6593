"""The public interface: the names that users import, and everything reachable from them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import jobserver_core
from jobserver_core import JobServer, Settings, errors, ports

ROOT = Path(__file__).resolve().parents[2]
# The ports are a separate public module. Only code that loads settings needs to parse them.
PUBLIC_ELSEWHERE = {*ports.__all__, "SettingType"}


def classes_in(hint: Any) -> Iterator[type]:
    """Find this package's classes in a type annotation, arguments of generics included."""
    if isinstance(hint, (list, tuple)):
        for part in hint:
            yield from classes_in(part)
    elif typing.get_origin(hint) is not None:
        yield from classes_in(typing.get_origin(hint))
        yield from classes_in(typing.get_args(hint))
    elif isinstance(hint, type) and hint.__module__.startswith("jobserver_core"):
        yield hint


def members_of(owner: type) -> Iterator[type]:
    """Find the classes that a class's public methods, properties and fields take and return."""
    for name, member in inspect.getmembers(owner):
        function = member.fget if isinstance(member, property) else member
        if inspect.isroutine(function) and not name.startswith("_") and hasattr(function, "__annotations__"):
            hints = typing.get_type_hints(function, localns={"Settings": Settings})
            yield from classes_in(list(hints.values()))
    if attrs.has(owner):
        attrs.resolve_types(owner)
        yield from classes_in([field.type for field in attrs.fields(owner) if not field.name.startswith("_")])


def reachable(start: type) -> dict[type, str]:
    """Return every class that can be reached, and from where."""
    found = {start: "the start"}
    left = [start]
    while left:
        owner = left.pop()
        for kind in members_of(owner):
            if kind not in found and not kind.__name__.startswith("_"):
                found[kind] = owner.__name__
                left.append(kind)
    return found


def test_everything_that_the_server_accepts_and_returns_is_exported() -> None:
    found = reachable(JobServer)
    missing = {
        kind.__name__: origin
        for kind, origin in found.items()
        if kind.__name__ not in jobserver_core.__all__ and kind.__name__ not in PUBLIC_ELSEWHERE
    }
    assert not missing
    names = {kind.__name__ for kind in found}
    assert {"Upload", "DataUpload", "ResultReader", "Subscription", "Preparation", "JobHandle"} <= names


def test_type_checkers_can_read_the_lists_of_public_names() -> None:
    star = re.findall(r"from (jobserver_core\.[\w.]+) import \*", inspect.getsource(jobserver_core))
    assert "jobserver_core.errors" in star
    for module in map(importlib.import_module, star):
        lists = [
            node.value
            for node in ast.parse(inspect.getsource(module)).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert all(isinstance(names, ast.List) for names in lists), module.__name__


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) <= set(jobserver_core.__all__)


@pytest.mark.parametrize("name", jobserver_core.__all__)
def test_an_exported_name_is_public_where_it_is_defined(name: str) -> None:
    value = getattr(jobserver_core, name)
    union = name == "Event"  # which knows neither its name nor its module
    home = sys.modules["jobserver_core.events" if union else value.__module__]
    assert union or value.__name__ == name
    assert name in home.__all__


def test_the_exported_names_are_sorted_and_listed_by_dir() -> None:
    assert sorted(jobserver_core.__all__) == jobserver_core.__all__ == dir(jobserver_core)


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'jobserver_core' has no attribute 'Nothing'"):
        jobserver_core.Nothing  # noqa: B018 - reading it is the test


def test_importing_the_package_imports_none_of_its_modules() -> None:
    code = "import sys, jobserver_core; print([m for m in sys.modules if m.startswith('jobserver_core.')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_documents_import_only_public_names(document: Path) -> None:
    public = ("ports", "memory", "testing")
    for line in document.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:1] == ["from"] and words[1].startswith("jobserver_core"):
            _, _, inner = words[1].partition(".")
            assert not inner or inner.split(".")[0] in public, line
            if not inner:
                names = {name.strip("(),") for name in words[3:]} - {"errors", "", "#"}
                assert names <= set(jobserver_core.__all__), line
