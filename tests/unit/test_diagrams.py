"""The diagrams in the documentation match the tables.

To redraw them: ``python tests/unit/test_diagrams.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

from jobserver_core.models import lifecycle

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "lifecycles.md"
PLACE = re.compile(r"<!-- diagram: (\w+) -->\n(?:```mermaid\n.*?```\n)?", re.DOTALL)


def drawn(text: str) -> str:
    """Return the document with the diagrams of today's tables."""

    def diagram(place: re.Match[str]) -> str:
        table = getattr(lifecycle, place[1])
        return f"<!-- diagram: {place[1]} -->\n```mermaid\n{table.mermaid()}\n```\n"

    return PLACE.sub(diagram, text)


def test_the_diagrams_are_those_of_the_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert PLACE.findall(text) == ["CONTEXTS", "JOBS", "DELIVERIES"]
    assert text == drawn(text), "run: python tests/unit/test_diagrams.py"


if __name__ == "__main__":
    DOCUMENT.write_text(drawn(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
