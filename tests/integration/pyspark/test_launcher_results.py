from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from launcher_world import Context, Start

from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import JobOutcome, ResultSink
from jobserver_core.testing.launcher import RecordingListener

pytestmark = pytest.mark.spark


def test_everything_that_a_job_returns_becomes_json(context: Context) -> None:
    value = context.run("results.Everything").value
    assert value == {
        "rows": [{"n": 1, "s": "a"}, {"n": 2, "s": None}],
        "tuple": [1, "two", None],
        "set": [1, 2, 3],
        "keys": {"1": "one", "null": "none", "(1, 2)": "pair"},
        "dataclass": {"x": 1, "y": 2.5},
        "namedtuple": {"left": 1, "right": 2},
        "decimal": 1.1,
        "date": "2026-01-02",
        "bytes": "text",
        "nan": ["NaN", "Infinity", "-Infinity"],
        "numpy": [1, 0.5, [0, 1, 2], [[1.0, 0.0], [0.0, 1.0]]],
        "pandas": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        "arrow": [{"a": 1}, {"a": None}],
        "big": 2**70,
        "object": "Exception: its text",
    }


def test_a_decimal_keeps_every_digit_and_rows_all_their_values(context: Context) -> None:
    done = context.run("results.Exact")
    assert done.data == b'{"decimal":12345678901234567.890,"twice":[[1,"left",2,"right"]]}'


@pytest.mark.parametrize("name", ["results.Asynchronous", "results.AsynchronousElements"])
def test_asynchronous_jobs_run_to_completion(context: Context, name: str) -> None:
    assert context.run(name, {"n": 3}).value == [0, 1, 2]
    assert context.run(name, {"n": -1}).outcome.failure is FailureKind.VALIDATION


@pytest.mark.parametrize(
    ("name", "failure", "text"),
    [
        ("results.Mixed", FailureKind.RESULT, "a streamed result is bytes only"),
        ("results.Lost", FailureKind.RESULT, "are both '1' in JSON"),
        ("results.Distributed", FailureKind.RESULT, "collect() or take(n)"),
        ("results.Endless", FailureKind.RESULT, "nested more than"),
        ("results.BreaksOff", FailureKind.RAISED, "the source ran dry"),
    ],
)
def test_a_result_that_cannot_be_serialized_fails_the_job(
    context: Context, name: str, failure: FailureKind, text: str
) -> None:
    outcome = context.run(name).outcome
    assert outcome.failure is failure
    assert outcome.error is not None
    assert text in outcome.error.message
    assert (outcome.error.error_class == "ResultRefused") == (failure is FailureKind.RESULT)


class _Measuring(ResultSink):
    def __init__(self) -> None:
        self.size = 0
        self.hash = hashlib.sha256()
        self.largest = 0
        self.memory = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self.largest = max(self.largest, len(data))
        if self.size % (64 << 20) < len(data):
            self.memory = max(self.memory, _memory_of_hosts())


def _memory_of_hosts() -> int:
    """The largest resident size, in bytes, of a context host or a job process of this user."""
    found = [0]
    for entry in Path("/proc").iterdir():
        try:
            if b"jobserver_pyspark.host" in (entry / "cmdline").read_bytes():
                pages = int((entry / "statm").read_text().split()[1])
                found.append(pages * 4096)
        except (OSError, ValueError, IndexError):
            continue
    return max(found)


class _MeasuringListener(RecordingListener):
    def __init__(self) -> None:
        super().__init__()
        self.sinks: dict[str, _Measuring] = {}

    def open_result(self, job_id: str, *, stream: bool) -> ResultSink:
        return self.sinks.setdefault(job_id, _Measuring())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.Large", "results.LargeStream"])
def test_a_gigabyte_of_result_passes_in_bounded_memory(start: Start, name: str) -> None:
    listener = _MeasuringListener()
    context = start(listener=listener).wait_ready()
    job = context.submit(name, {"megabytes": 1024})
    assert listener.outcome(job.id, timeout=240.0) == JobOutcome()
    sink = listener.sinks[job.id]
    assert sink.size >= 1 << 30
    assert sink.largest <= 1 << 20
    assert sink.memory < 250 << 20


def test_results_of_every_size_arrive_whole(context: Context) -> None:
    job = context.submit("results.Large", {"megabytes": 3})
    data = context.end_of(job).data
    value: Any = json.loads(data)
    assert [len(part) for part in value] == [1024] * 3
    assert {text for part in value for text in part} == {"x" * 1021}
