"""The documents are correct: their Python runs, their links work, and the index lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import jobserver_core
from jobserver_core import errors

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md"), *ROOT.glob("*.md")]
)
RUN = [
    "docs/howto/embed.md",
    "docs/howto/mount-in-fastapi.md",
    "docs/howto/secure-the-server.md",
    "docs/howto/use-the-client.md",
    "docs/howto/write-a-backend.md",
]
BLOCK = re.compile(r"^([ ]*)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^[ ]*```.*?^[ ]*```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(document: Path) -> str:
    """Return a document without its code, where brackets and parentheses are not links."""
    return CODE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    """Return the links of a document to files or headings that do not exist."""
    dead = []
    for path, anchor in LINK.findall(prose(document)):
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(f"{path}#{anchor}")
    return dead


@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_document_runs(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert blocks
    names: dict[str, object] = {"__name__": "document"}
    for indent, block in blocks:
        source = "\n".join(line.removeprefix(indent) for line in block.splitlines())
        exec(compile(source, name, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    assert dead_links(document) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "# One page\n[a](page.md#one-page) [b](#two) [c](gone.md) `[d](code)`\n", encoding="utf-8"
    )
    assert dead_links(document) == ["#two", "gone.md#"]


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / path).resolve() for path, _ in LINK.findall(prose(index))}
    assert set((ROOT / "docs").rglob("*.md")) - listed == {index}


def test_the_navigation_of_the_site_lists_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = {ROOT / "docs" / path for path in re.findall(r"\S+\.md", navigation)}
    assert listed == set((ROOT / "docs").rglob("*.md"))


def test_the_library_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "library.md").read_text(encoding="utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    elsewhere = {"Event", "Secret", *errors.__all__}  # a union of classes on it; settings; one entry for all
    sections = {name for name in jobserver_core.__all__ if re.fullmatch(r"\w+(Settings|Limits)", name)}
    assert set(jobserver_core.__all__) - elsewhere - sections - listed == set()
