"""The diagrams in the documentation match the tables of states and the messages between processes.

To redraw those of states: ``python tests/unit/test_diagrams.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

from jobserver_core.models import lifecycle
from jobserver_pyspark.protocol import messages

EXPLANATIONS = Path(__file__).resolve().parents[2] / "docs" / "explanation"
DOCUMENT = EXPLANATIONS / "lifecycles.md"
ARCHITECTURE = EXPLANATIONS / "architecture.md"
MESSAGE = re.compile(r"^ +([SHR])->>([SHR]): (\w+)$", re.MULTILINE)
PROCESSES = {"S": "Server", "H": "Host", "R": "Runner"}
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


def test_the_messages_of_the_way_of_a_job_exist_and_have_the_direction_of_their_arrows() -> None:
    drawn_messages = MESSAGE.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(drawn_messages) >= 9
    for sender, receiver, name in drawn_messages:
        direction = getattr(messages, f"{PROCESSES[sender]}To{PROCESSES[receiver]}")
        assert issubclass(getattr(messages, name), direction), name


if __name__ == "__main__":
    DOCUMENT.write_text(drawn(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
