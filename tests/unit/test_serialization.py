"""Models and errors survive a round trip through JSON; invalid input is refused with a reason."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core import errors
from jobserver_core.models.binaries import BinaryType, ClassPathEntry
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobRequest
from jobserver_core.models.json_values import plain
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.serialization import dumps, loads, structure, unstructure
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, an_entry, at

FULL_JOB = a_job(
    a_binary("count words"),
    state=JobState.ERROR,
    dispatched_at=at(1),
    running_at=at(2, microseconds=1),
    ended_at=at(3),
    kill_requested=True,
    failure=FailureKind.CONTEXT_LOST,
    error=ErrorInfo(message="NUL \0, lone \ud800, 🙂", error_class="builtins.ValueError", stack="a\nb"),
    has_result=True,
    progress=JobProgress(stages_done=1, stages_total=2, tasks_done=3, tasks_total=4),
    callback_url="https://example.org/done",
    idempotency_key="once",
    fingerprint="f",
)
MODELS = [
    FULL_JOB,
    a_job(),
    a_binary(type=BinaryType.WHEEL),
    an_entry(),
    a_context(settings={"spark": {"cores": 2, "on": True, "none": None, "list": [1, "ü"]}}),
    a_context(state=ContextState.ERROR, error=ErrorInfo(message="no"), ended_at=at(9), url="http://ui"),
    a_result("null"),
    a_delivery(state=DeliveryState.ABANDONED, attempts=5, last_status=500, ended_at=at(1)),
    JobRequest(class_name="a.B", class_path=(ClassPathEntry(name="x"),), config={"a": [1]}),
    JobRequest(class_name="a.B", class_path=(ClassPathEntry(uri="file:///x.egg"),), config="a = 1"),
    JobQuery(states=(JobState.RUNNING,), since=at(0), limit=7),
    JobPage(jobs=(FULL_JOB,), next="cursor"),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_model_survives_json_as_an_equal_one(model: Any) -> None:
    assert loads(dumps(model), type(model)) == model


def test_json_output_is_always_plain_ascii() -> None:
    assert dumps(FULL_JOB).isascii()


def test_a_time_is_written_in_utc_with_microseconds() -> None:
    local = datetime(2016, 6, 19, 16, 27, 12, 196000, tzinfo=timezone(timedelta(hours=5.5)))
    written = unstructure(a_job(submitted_at=local))["submitted_at"]
    assert written == "2016-06-19T10:57:12.196000+00:00"


def _value(cls: type[errors.JobServerError], name: str) -> Any:
    special = {
        "error": ErrorInfo(message="m", stack="s"),
        "failure": FailureKind.RAISED,
        "resource": "cores",
        "state": JobState.KILLED if cls is errors.JobAlreadyFinal else "RUNNING",
    }
    return special.get(name, ("x", "y") if name in PLURAL else f"a {name}")


PLURAL = {"supported", "job_ids", "allowed", "available"}
NUMBERS = {
    "line": 3,
    "column": 4,
    "limit": 5,
    "running": 6,
    "seconds": 1.5,
    "requested": 4,
    "used": 7,
    "reserved": 2,
}


@pytest.mark.parametrize("name", errors.__all__)
def test_every_public_error_survives_json_as_an_equal_one(name: str) -> None:
    cls = getattr(errors, name)
    error = cls(**{field: NUMBERS.get(field, _value(cls, field)) for field in cls.field_names})
    back: errors.JobServerError = loads(dumps(error), errors.JobServerError)
    assert back == error
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": "DONE"}, "'DONE' is not a valid JobState @ $.state"),
        ({"submitted_at": "2016-06-19T10:57:12"}, "with an offset"),
        ({"submitted_at": 7}, "submitted_at"),
        ({"id": 7}, "expected str, got 7 @ $.id"),
        ({"has_result": 1}, "expected bool, got 1 @ $.has_result"),
        ({"progress": {"stages_done": True}}, "expected int, got True @ $.progress.stages_done"),
        ({"progress": {"stages_done": -1}}, "stages_done must not be negative"),
        ({"surprise": 1}, "surprise"),
        ({"class_path": [{"source": "x"}]}, "required field missing @ $.class_path[0].digest"),
    ],
)
def test_reading_an_invalid_job_is_a_value_error_that_says_where(
    change: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        structure({**unstructure(FULL_JOB), **change}, Job)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "7",
        "{}",
        "not json",
        '{"type":"Exception","fields":{}}',
        '{"type":"NoSlots","fields":{"context":"a"}}',
        '{"type":"__builtins__","fields":{}}',
    ],
)
def test_reading_an_invalid_error_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting value|not a JobServerError|unknown error"):
        loads(text, errors.JobServerError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_all_settings_survive_json(tree: dict[str, Any]) -> None:
    context = a_context(settings=tree)
    assert loads(dumps(context), type(context)) == context


def test_plain_copies_deeply_and_makes_tuples_lists() -> None:
    inner = [1]
    copied = plain({"a": (1, {"b": inner})})
    inner.append(2)
    assert copied == {"a": [1, {"b": [1]}]}


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, [{"b": b"bytes"}], {"a": {1, 2}}])
def test_plain_refuses_values_that_json_cannot_represent(value: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be represented in JSON|keys must be strings"):
        plain(value)


def test_infinity_survives_because_python_writes_it() -> None:
    context = a_context(settings={"x": math.inf})
    assert json.loads(dumps(context))["settings"]["x"] == math.inf


def test_importing_the_library_does_not_import_cattrs() -> None:
    code = "import sys, jobserver_core, jobserver_core.ports; print('cattrs' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
