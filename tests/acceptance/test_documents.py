"""The documents say what is so: their Python runs, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
RUN = [
    "docs/howto/embed.md",
    "docs/howto/mount-in-fastapi.md",
    "docs/howto/secure-the-server.md",
    "docs/howto/test-without-spark.md",
    "docs/howto/write-a-backend.md",
]
BLOCK = re.compile(r"^([ ]*)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


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
    text = document.read_text(encoding="utf-8")
    dead = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert dead == []
