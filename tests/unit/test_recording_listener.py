"""The listener with which launchers are tested."""

from __future__ import annotations

import pytest

from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.testing.launcher import RecordingListener


def test_waiting_for_an_event_of_a_context_that_has_ended_fails_at_once_with_the_reason() -> None:
    listener = RecordingListener()
    listener.context_ended(ContextEnd.FAILED, ErrorInfo(message="no such queue", error_class="YarnException"))
    with pytest.raises(AssertionError, match=r"the context ended without context_ready; .*no such queue"):
        listener.wait_for("context_ready", timeout=5.0)


def test_events_before_the_end_of_a_context_are_found_after_it() -> None:
    listener = RecordingListener()
    listener.context_ready(application_id="app-1", url=None)
    listener.context_ended(ContextEnd.STOPPED)
    assert listener.wait_for("context_ready", timeout=5.0) == ("context_ready", "app-1", None)
    assert listener.wait_for("context_ended", timeout=5.0)[1] is ContextEnd.STOPPED


def test_a_report_that_never_comes_is_named_and_later_waits_for_it_are_shorter() -> None:
    missed: set[str] = set()
    with pytest.raises(AssertionError, match=r"^job_ended of job 7 was not reported within 0.02 s; "):
        RecordingListener(missed=missed).wait_for("job_ended", "7", timeout=0.02)
    later = RecordingListener(missed=missed)
    with pytest.raises(AssertionError, match=r"within 0.005 s \(shortened, because an earlier test"):
        later.wait_for("job_ended", "8", timeout=0.02)
    with pytest.raises(AssertionError, match=r"^context_ready was not reported within 0.02 s; "):
        later.wait_for("context_ready", timeout=0.02)


def test_reports_about_a_job_in_a_wrong_order_are_faults() -> None:
    listener = RecordingListener()
    listener.job_progress("j", JobProgress())
    listener.job_running("j")
    listener.job_progress("j", JobProgress())
    listener.open_result("j", stream=True)
    listener.job_progress("j", JobProgress())  # while the result is written
    listener.job_ended("j", JobOutcome())
    listener.job_ended("j", JobOutcome())
    assert listener.faults == [
        "job_progress of job j came as the first report; only job_running or job_ended may come then",
        "job_ended of job j came after job_ended; nothing may follow",
    ]


def test_progress_of_another_type_is_a_fault() -> None:
    listener = RecordingListener()
    listener.job_running("j")
    listener.job_progress("j", 0.5)  # type: ignore[arg-type]
    assert listener.faults == ["job_progress('j', 0.5): the second has to be a JobProgress"]
