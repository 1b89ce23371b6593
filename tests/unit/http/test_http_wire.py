from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.models.contexts import Context
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import Job, JobProgress
from jobserver_core.models.lifecycle import ContextState, JobState
from jobserver_http.access import Namespace
from jobserver_http.wire import context_record, duration, encoded, exception_object, job_record, timestamp

NOW = datetime(2016, 6, 19, 16, 27, 12, 196789, timezone(timedelta(hours=5, minutes=30)))
JOB = Job(
    id="5453779a",
    class_name="spark.jobserver.WordCountExample",
    class_path=(),
    context_id="c1",
    context_name="b7ea0eb5-spark.jobserver.WordCountExample",
    submitted_at=NOW,
    dispatched_at=NOW,
)
CONTEXT = Context(id="c1", name="alice~etl", owner="s", owned_since=NOW, started_at=NOW)


def test_times_have_milliseconds_and_an_offset() -> None:
    assert timestamp(NOW) == "2016-06-19T10:57:12.196Z"


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1900, 1, 1)))
def test_every_time_is_written_in_one_form(moment: datetime) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp(moment))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "Job not done yet"),
        (6.341, "6.341 secs"),
        (2, "2 secs"),
        (0.0004, "0.0 secs"),
        (-1.0, "0.0 secs"),
    ],
)
def test_durations_have_up_to_three_decimals(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_job_record_has_exactly_the_members_of_the_contract() -> None:
    assert job_record(JOB) == {
        "jobId": "5453779a",
        "startTime": "2016-06-19T10:57:12.196Z",
        "classPath": "spark.jobserver.WordCountExample",
        "context": "b7ea0eb5-spark.jobserver.WordCountExample",
        "contextId": "c1",
        "duration": "Job not done yet",
        "status": "STARTED",
    }


@pytest.mark.parametrize("state", [JobState.ERROR, JobState.KILLED])
def test_a_job_that_failed_has_its_error_object(state: JobState) -> None:
    error = ErrorInfo(message="no", error_class="ValueError", stack="Traceback")
    job = attrs.evolve(JOB, state=state, ended_at=NOW + timedelta(seconds=6.341), error=error)
    record = job_record(job)
    assert record["result"] == {"message": "no", "errorClass": "ValueError", "stack": "Traceback"}
    assert record["duration"] == "6.341 secs"


def test_extra_members_appear_only_when_they_have_a_value() -> None:
    waiting = attrs.evolve(JOB, dispatched_at=None)
    assert job_record(waiting)["waiting"] is True
    busy = attrs.evolve(JOB, state=JobState.RUNNING, kill_requested=True, progress=JobProgress(tasks_done=1))
    assert job_record(busy)["killRequested"] is True
    assert job_record(busy)["progress"] == {
        "stagesDone": 0,
        "stagesTotal": 0,
        "tasksDone": 1,
        "tasksTotal": 0,
    }


def test_a_live_context_has_an_empty_end_time_and_no_url_before_it_is_known() -> None:
    assert context_record(CONTEXT, Namespace("alice")) == {
        "id": "c1",
        "name": "etl",
        "startTime": "2016-06-19T10:57:12.196Z",
        "endTime": "Empty",
        "state": "STARTED",
    }


def test_a_context_that_ended_says_when_and_why() -> None:
    ended = attrs.evolve(
        CONTEXT, state=ContextState.ERROR, ended_at=NOW, url="http://ui", error=ErrorInfo(message="died")
    )
    record = context_record(ended)
    assert record["endTime"] == "2016-06-19T10:57:12.196Z"
    assert record["url"] == "http://ui"
    assert record["error"]["message"] == "died"


def test_a_server_exception_is_reported_without_its_frames() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        told = exception_object(error)
    assert told["errorClass"] == "json.decoder.JSONDecodeError"
    assert "File" not in told["stack"]
    assert __file__ not in json.dumps(told)


@given(st.text())
def test_any_string_can_be_sent_even_lone_surrogates(text: str) -> None:
    assert json.loads(encoded({"m": text + "\ud800"}))["m"] == text + "\ud800"
