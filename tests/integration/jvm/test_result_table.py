"""The documented conversion table is correct, in both languages, on Spark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_core.models.failures import FailureKind
from jobserver_core.results import UnusableResult, opened
from jobserver_core.results.library_values import CONVERTERS

pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore:coroutine 'coroutine' was never awaited"),
    pytest.mark.filterwarnings("ignore:the matrix subclass is not the recommended way"),
]

DOCUMENT = (Path(__file__).parents[3] / "docs" / "reference" / "results.md").read_text(encoding="utf-8")
SCALA_JOB = """package table

%s

object Examples {
  def runJob(spark: org.apache.spark.sql.SparkSession, config: java.util.Map[String, Object]): Any =
    config.get("example").toString.toInt match {
%s
    }
}
"""


@attrs.frozen
class Example:
    """One piece of code of the table; ``json`` is None where the result is refused, with which ``words``."""

    code: str
    json: str | None = None
    words: str = ""


def examples(column: int) -> list[Example]:
    """The examples of a column: 1 for Python, 2 for Scala."""
    found = []
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) != 4 or cells[0] in ("A job returns", "---"):
            continue
        expected = re.fullmatch("`(.*)`", cells[3])
        for code in re.findall("`([^`]*)`", cells[column]):
            found.append(Example(code, expected[1]) if expected else Example(code, words=cells[3]))
    return found


PYTHON, SCALA = examples(1), examples(2)


def names(language: str) -> str:
    block = re.search(f"```{language}\n(.*?)```", DOCUMENT.partition("## The names")[2], re.DOTALL)
    assert block is not None
    return block[1]


def exact(text: str | bytes) -> Any:
    return json.loads(
        text, parse_float=Decimal, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )


def test_the_table_has_examples_of_every_library_that_has_rules() -> None:
    assert min(len(PYTHON), len(SCALA)) > 100
    for library in CONVERTERS:
        name = {"py4j": "_jvm"}.get(library, library)
        assert any(name in example.code for example in PYTHON), library


@pytest.fixture(scope="module")
def python_names(spark: Any, bench: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": __name__, "spark": spark}
    exec(names("python"), found)
    return found


@pytest.mark.parametrize("example", PYTHON, ids=lambda example: example.code)
def test_a_python_result_matches_the_table(python_names: dict[str, Any], example: Example) -> None:
    value = eval(example.code, python_names)
    if example.json is None:
        with pytest.raises(UnusableResult, match=re.escape(example.words)):
            list(opened(value)[1])
        return
    stream, pieces = opened(value)
    assert (stream, exact(b"".join(pieces))) == (False, exact(example.json))


@pytest.mark.parametrize(
    "example", [e for e in PYTHON if e.json is not None], ids=lambda example: example.code
)
def test_a_nested_python_value_is_converted_like_a_top_level_one(
    python_names: dict[str, Any], example: Example
) -> None:
    assert example.json is not None
    value = {"in": [eval(example.code, python_names)]}
    assert exact(b"".join(opened(value)[1])) == {"in": [exact(example.json)]}


@pytest.fixture(scope="module")
def scala_jar(compile_jar: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = "\n".join(f"      case {number} => {example.code}" for number, example in enumerate(SCALA))
    nested = "\n".join(
        f'      case {number + len(SCALA)} => java.util.Map.of("in", List[Any]({example.code}))'
        for number, example in enumerate(SCALA)
    )
    source = tmp_path_factory.mktemp("table") / "Examples.scala"
    source.write_text(SCALA_JOB % (names("scala"), f"{cases}\n{nested}"), encoding="utf-8")
    return compile_jar("table", source)


@pytest.mark.parametrize("number", range(len(SCALA)), ids=lambda number: SCALA[number].code)
def test_a_jvm_result_matches_the_table(bench: Any, scala_jar: Path, number: int) -> None:
    example = SCALA[number]
    request = bench.request("table.Examples", scala_jar, kind="session", config={"example": number})
    outcome = bench.jobs.run(request)
    if example.json is None:
        assert outcome.failure == FailureKind.RESULT
        assert example.words in outcome.error.message
        return
    assert (outcome.error, outcome.result) == (None, "json")
    assert exact(bench.content(request, outcome)) == exact(example.json)


@pytest.mark.parametrize(
    "number",
    [number for number, example in enumerate(SCALA) if example.json is not None],
    ids=lambda number: SCALA[number].code,
)
def test_a_nested_jvm_value_is_converted_like_a_top_level_one(
    bench: Any, scala_jar: Path, number: int
) -> None:
    config = {"example": number + len(SCALA)}
    request = bench.request("table.Examples", scala_jar, kind="session", config=config)
    outcome = bench.jobs.run(request)
    assert (outcome.error, outcome.result) == (None, "json")
    assert exact(bench.content(request, outcome)) == {"in": [exact(SCALA[number].json or "")]}
