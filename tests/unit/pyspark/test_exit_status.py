from __future__ import annotations

import signal

import pytest

from jobserver_pyspark.processes import describe_exit, killed_from_outside

BY_SIGKILL = "was killed from outside (signal 9): by a user, or by the system because memory ran out"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            -signal.SIGKILL,
            "was killed from outside (signal 9): by a user, or by the system because memory ran out",
        ),
        (-signal.SIGTERM, "was killed from outside (signal 15)"),
        (128 + signal.SIGTERM, "was killed from outside (signal 15)"),
        (128 + signal.SIGINT, "was killed from outside (signal 2)"),
    ],
)
def test_signals_that_only_others_send_mean_that_a_process_was_killed(status: int, text: str) -> None:
    assert killed_from_outside(status)
    assert describe_exit(status) == text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, "ended by itself (exit status None)"),
        (0, "ended by itself (exit status 0)"),
        (3, "ended by itself (exit status 3)"),
        (-signal.SIGSEGV, "ended by itself (signal 11)"),
        (128 + signal.SIGABRT, "ended by itself (exit status 134)"),
    ],
)
def test_exit_codes_and_crashes_count_as_ending_by_itself(status: int | None, text: str) -> None:
    assert not killed_from_outside(status)
    assert describe_exit(status) == text
