"""What a release needs: one version, complete metadata, documented extras."""

from __future__ import annotations

import ast
import re
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
[VERSION] = re.findall(r'^version = "(.*)"$', PROJECT, re.MULTILINE)
TAG = re.compile(r"(?:jobserver(?:-executor)?:|newTag: \"|jobserver_core-)(\d[\w.]*\w)")
INSTALL = ROOT / "docs" / "howto" / "install.md"
OF_DEVELOPERS = {"test", "docs", "dev"}


def written_versions() -> dict[str, set[str]]:
    """Return the versions of images and wheels that the documentation and the deployment name, by file."""
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
    ]
    found = {str(path.relative_to(ROOT)): set(TAG.findall(path.read_text("utf-8"))) for path in files}
    return {path: versions for path, versions in found.items() if versions}


def test_documents_and_manifests_name_the_version_of_the_project() -> None:
    written = written_versions()
    assert "deploy/kubernetes/base/kustomization.yaml" in written
    assert {path: versions for path, versions in written.items() if versions != {VERSION}} == {}


def test_the_code_takes_its_version_from_the_metadata() -> None:
    literal = re.compile(rf"[\"']{re.escape(VERSION)}[\"']|__version__\s*=")
    for package in ("jobserver_core", "adapters", "backends"):
        for path in (ROOT / package).rglob("*.py"):
            assert not literal.search(path.read_text(encoding="utf-8")), path


def test_the_changelog_has_a_section_for_the_version_or_is_about_to_get_one() -> None:
    first = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert first == "Unreleased" or first.startswith(VERSION)


def test_the_metadata_says_what_the_package_is() -> None:
    found = metadata("jobserver-core")
    for field in ("Summary", "License-Expression", "License-File", "Requires-Python", "Keywords"):
        assert found[field], field
    assert found["Description-Content-Type"] == "text/markdown"
    classifiers = found.get_all("Classifier") or []
    minors = [
        int(match[1])
        for one in classifiers
        if (match := re.fullmatch(r".* Python :: 3\.(\d+)", one)) is not None
    ]
    supported = (ROOT / "docs" / "explanation" / "compatibility.md").read_text(encoding="utf-8")
    assert f"| Python | 3.{min(minors)} to 3.{max(minors)}, on Linux |" in supported
    assert found["Requires-Python"] == f">=3.{min(minors)}"


def documented_extras() -> dict[str, set[str]]:
    """Return the extras of the guide, and what each brings: other extras and packages."""
    table = INSTALL.read_text(encoding="utf-8").partition("## Extras")[2].partition("\nTypical")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]* \| ([^|]*) \|$", table, re.MULTILINE)
    return {extra: {name.strip(" `") for name in brings.split(",")} for extra, brings in rows}


def declared_extras() -> dict[str, set[str]]:
    """Return the same of the project: what each extra lists, without versions."""
    section = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    found = {}
    for extra, listed in re.findall(r"^([\w-]+) = (\[.*?\])$", section, re.DOTALL | re.MULTILINE):
        names: set[str] = set()
        for requirement in ast.literal_eval(listed):
            [(name, others)] = re.findall(r"^([\w-]+)(?:\[([^]]*)\])?", requirement)
            names.update(others.split(",") if name == "jobserver-core" else [name])
        found[extra] = names
    return {extra: names for extra, names in found.items() if extra not in OF_DEVELOPERS}


def test_every_extra_is_documented_with_what_it_brings() -> None:
    assert "all" in documented_extras()
    assert documented_extras() == declared_extras()


def test_the_extra_all_has_everything_that_is_listed_below_the_special_ones() -> None:
    order = list(documented_extras())
    assert order[0] == "all"
    special = set(order) - documented_extras()["all"] - {"all", "net"}
    assert set(order[1 : 1 + len(special)]) == special


def test_pages_that_install_the_package_by_name_lead_to_the_page_that_says_how() -> None:
    """Nothing is on an index yet, so the command alone would fail."""
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page != INSTALL]
    installing = [page for page in pages if "pip install 'jobserver-core" in page.read_text(encoding="utf-8")]
    assert installing
    lacking = [page.name for page in installing if "install.md" not in page.read_text(encoding="utf-8")]
    assert lacking == []


def test_commands_that_install_name_extras_that_there_are() -> None:
    known = {*declared_extras(), *OF_DEVELOPERS}
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *examples()]
    for file in files:
        for extras in re.findall(
            r"(?:jobserver-core|\.whl|'\.)\[([\w,]+)\]", file.read_text(encoding="utf-8")
        ):
            assert set(extras.split(",")) <= known, file


def examples() -> list[Path]:
    return [
        path for path in (ROOT / "examples").rglob("*") if path.suffix in (".md", ".py", ".toml", ".ipynb")
    ]
