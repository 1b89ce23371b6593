"""What a release needs: one version, complete metadata, documented extras."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
[VERSION] = re.findall(r'^version = "(.*)"$', PROJECT, re.MULTILINE)
TAG = re.compile(r"jobserver(?:-executor)?:(\d[\w.]*\w)|newTag: \"([^\"]+)\"")
OF_DEVELOPERS = {"test", "docs", "dev"}


def written_versions() -> dict[str, set[str]]:
    """Return the versions of images that the documentation and the deployment name, by file."""
    files = [
        *(ROOT / "docs").rglob("*.md"),
        *(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
    ]
    found = {
        str(path.relative_to(ROOT)): {one or other for one, other in TAG.findall(path.read_text("utf-8"))}
        for path in files
    }
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


def test_every_extra_is_documented() -> None:
    section = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)) - OF_DEVELOPERS
    assert "all" in extras
    table = (ROOT / "docs" / "howto" / "deploy.md").read_text(encoding="utf-8").partition("## Extras")[2]
    assert set(re.findall(r"^\| `([\w-]+)` ", table.partition("\n## ")[0], re.MULTILINE)) == extras
