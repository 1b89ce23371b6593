"""The in-memory launcher converts results by the rules of Python jobs on Spark, and prints as Python does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import FailureKind, JobServer
from jobserver_core.errors import JobFailed
from jobserver_core.memory import InlineJob, InlineLauncher, JobRefused
from serving import WAIT, a_request, upload

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "results.md").read_text(encoding="utf-8")
LIBRARIES = re.compile(
    r"pandas|numpy|pyarrow|pyspark|spark\.|Colour|Unnamed|Data\(|Attrs|Model|Named|Table|ThreadPool"
)


def examples() -> Iterator[tuple[str, str]]:
    """The examples of Python in the documented table that need neither a library nor a class of their own."""
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 4 and (expected := re.fullmatch("`(.*)`", cells[3])):
            for code in re.findall("`([^`]*)`", cells[1]):
                if not LIBRARIES.search(code):
                    yield code, expected[1]


def evaluated(code: str) -> Any:
    modules = ("array", "collections", "datetime", "decimal", "fractions", "pathlib", "types", "uuid")
    return eval(code, {name: __import__(name) for name in modules})


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    def value(job: InlineJob) -> Any:
        return evaluated(job.config["code"])

    with JobServer.in_memory(launcher=InlineLauncher({"w.Value": value})) as server:
        upload(server)
        server.create_context("warm").result(WAIT)
        yield server


def result(server: JobServer, code: str) -> str:
    handle = server.submit(a_request("w.Value", {"code": code}, context="warm"))
    handle.finished.result(WAIT)
    handle.result(WAIT)
    reader = server.open_result(handle.id)
    assert reader is not None
    with reader:
        return reader.read().decode()


def test_the_table_has_many_examples_without_libraries() -> None:
    assert len(list(examples())) > 30


@pytest.mark.parametrize(("code", "expected"), list(examples()))
def test_a_result_is_what_the_table_says(server: JobServer, code: str, expected: str) -> None:
    assert result(server, code) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("iter(['a'])", '["a"]'),
        ("iter([])", "[]"),
        ("[float('nan')]", '["NaN"]'),
        ("iter([b'a', b'b'])", "ab"),
    ],
)
def test_an_iterator_is_a_list_unless_it_has_bytes(server: JobServer, code: str, expected: str) -> None:
    assert result(server, code) == expected


def test_what_an_inline_job_returns_and_its_validation_are_awaited() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async def refused(job: InlineJob) -> None:
        if job.config:
            raise JobRefused("takes no configuration")

    async def value() -> Any:
        return numbers()

    def returns(job: InlineJob) -> Any:
        return value()

    returns.validate = refused  # type: ignore[attr-defined]
    with JobServer.in_memory(launcher=InlineLauncher({"w.Value": returns})) as server:
        upload(server)
        assert server.submit(a_request("w.Value", {})).result(WAIT) == [1]
        with pytest.raises(JobFailed, match="takes no configuration"):
            server.submit(a_request("w.Value", {"a": 1})).result(WAIT)


@pytest.mark.parametrize(
    ("code", "words"),
    [("iter([b'a', 'b'])", "chunk 1 is of type str"), ("{1: 0, '1': 0}", "both '1' in JSON")],
)
def test_what_cannot_be_a_result_is_an_error_of_the_result(server: JobServer, code: str, words: str) -> None:
    handle = server.submit(a_request("w.Value", {"code": code}, context="warm"))
    with pytest.raises(JobFailed, match=words) as caught:
        handle.result(WAIT)
    assert caught.value.failure is FailureKind.RESULT


def test_a_job_prints_several_values_as_print_does() -> None:
    launcher = InlineLauncher({"w.Say": lambda job: job.print("read", 3, None)})
    with JobServer.in_memory(launcher=launcher) as server:
        upload(server)
        handle = server.submit(a_request("w.Say"))
        handle.result(WAIT)
        assert server.job_log(handle.id).read_text(encoding="utf-8") == "read 3 None\n"
