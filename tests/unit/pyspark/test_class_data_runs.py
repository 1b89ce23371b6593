from __future__ import annotations

import subprocess
import threading

import pytest

from jobserver_pyspark.installation.class_data import ArchiveMaker, _run

pytestmark = pytest.mark.real


def test_a_jvm_that_builds_an_archive_ends_when_it_is_cancelled() -> None:
    give_up = threading.Event()
    give_up.set()
    with pytest.raises(subprocess.CalledProcessError):
        _run(["sleep", "600"], 600, give_up)


def test_a_jvm_that_builds_an_archive_ends_when_it_takes_too_long() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _run(["sleep", "600"], 0.2, threading.Event())


def test_a_failing_jvm_is_reported_and_a_working_one_is_not() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _run(["false"], 60, threading.Event())
    _run(["true"], 60, threading.Event())


def test_a_class_data_training_stopped_before_it_begins_ends_at_once() -> None:
    class Never:
        exists = False
        path = None

        def make(self, train: object, *, give_up: threading.Event) -> bool:
            raise AssertionError("it was stopped before")

    maker = ArchiveMaker(delay=600)
    maker.begin(Never(), lambda _options: True)  # type: ignore[arg-type]
    maker.stop()
    maker.join(threading.TIMEOUT_MAX)
    assert not any(thread.name == "class data" for thread in threading.enumerate())
