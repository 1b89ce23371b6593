"""The listener with which launchers are tested."""

from __future__ import annotations

import pytest

from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd
from jobserver_core.testing.launcher import RecordingListener


def test_waiting_for_an_event_of_a_context_that_has_ended_fails_at_once_with_the_reason() -> None:
    listener = RecordingListener()
    listener.context_ended(ContextEnd.FAILED, ErrorInfo(message="no such queue", error_class="YarnException"))
    with pytest.raises(AssertionError, match=r"the context ended without .*'ready'.*no such queue"):
        listener.wait_for("ready", timeout=5.0)


def test_events_before_the_end_of_a_context_are_found_after_it() -> None:
    listener = RecordingListener()
    listener.context_ready(application_id="app-1", url=None)
    listener.context_ended(ContextEnd.STOPPED)
    assert listener.wait_for("ready", timeout=5.0) == ("ready", "app-1", None)
    assert listener.wait_for("context-ended", timeout=5.0)[1] is ContextEnd.STOPPED
