from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.ports import ContextEnd, ContextHandle, JobOutcome, JobSpec
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.installation.class_data import ArchiveMaker, ClassData, _run
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.installation.training_session import TrainingSession

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
    maker.begin(Never(), lambda _options: None)  # type: ignore[arg-type]
    maker.stop()
    maker.join(threading.TIMEOUT_MAX)
    assert not any(thread.name == "class data" for thread in threading.enumerate())


def class_data(cache: Path, python: str) -> ClassData:
    """The archive of an installation whose JDK has the archive of its own classes."""
    home = cache / "java"
    (home / "lib" / "server").mkdir(parents=True, exist_ok=True)
    (home / "lib" / "server" / "classes.jsa").touch()
    java = Java(program=home / "bin" / "java", version=17, identity=python)
    spark = Installation(python=python, package=cache, version="4.0.0")
    return ClassData(spark, java, cache)


@pytest.mark.parametrize(
    ("variable", "shared"),
    [("SPARK_CONF_DIR", True), ("HADOOP_CONF_DIR", True), ("SPARK_DIST_CLASSPATH", False)],
)
def test_one_archive_fits_all_directories_of_configuration_but_not_more_jars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, shared: bool
) -> None:
    monkeypatch.delenv(variable, raising=False)
    assert class_data(tmp_path, "one").make(written)
    monkeypatch.setenv(variable, str(tmp_path))
    assert class_data(tmp_path, "one").exists is shared


def written(options: list[str]) -> None:
    """Act as a JVM that ends in good order."""
    [archive] = [option.partition("=")[2] for option in options if "ArchiveClassesAtExit" in option]
    Path(archive).touch()


def failing(options: list[str]) -> None:
    raise LaunchError(message="its job failed: no room")


def test_a_new_archive_removes_those_that_no_context_has_used_for_a_month(tmp_path: Path) -> None:
    unused, used, new = (class_data(tmp_path, name) for name in ("one", "two", "three"))
    assert unused.make(written)
    assert used.make(written)
    for data in (unused, used):
        os.utime(data.path, (0, time.time() - 31 * 24 * 3600))
    assert used.options() == [f"-XX:SharedArchiveFile={used.path}", *used.options()[1:]]
    assert new.make(written)
    assert (unused.exists, used.exists, new.exists) == (False, True, True)
    assert unused.options() == []


def test_what_a_killed_process_left_of_an_archive_is_removed_by_the_next(tmp_path: Path) -> None:
    data, other = class_data(tmp_path, "one"), class_data(tmp_path, "two")
    data.path.parent.mkdir()
    left = [data.path.with_suffix(suffix) for suffix in (".1.part", ".base.1.part")]
    kept = other.path.with_suffix(".1.part")  # another process may be writing it
    for path in (*left, kept):
        path.touch()
    assert data.make(written)
    assert [path.exists() for path in (*left, kept)] == [False, False, True]


def test_an_old_archive_that_cannot_be_removed_does_not_fail_a_new_one(tmp_path: Path) -> None:
    unused, new = class_data(tmp_path, "one"), class_data(tmp_path, "two")
    assert unused.make(written)
    stuck = unused.path.with_name("stuck.jsa")
    stuck.mkdir()
    for path in (unused.path, stuck):
        os.utime(path, (0, time.time() - 31 * 24 * 3600))
    assert new.make(written)
    assert (unused.exists, stuck.exists()) == (False, True)


def test_an_archive_that_another_process_creates_is_waited_for(tmp_path: Path) -> None:
    first, second = class_data(tmp_path, "one"), class_data(tmp_path, "one")
    begun, go_on = threading.Event(), threading.Event()

    def slow(options: list[str]) -> None:
        begun.set()
        assert go_on.wait(60)
        written(options)

    thread = threading.Thread(target=first.make, args=(slow,))
    thread.start()
    assert begun.wait(60)
    assert not second.make(written), "it does not wait"
    waiting = threading.Timer(0.1, go_on.set)
    waiting.start()
    assert second.make(failing, wait=True)
    thread.join()
    waiting.join()


def test_an_archive_that_is_not_made_is_logged_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jobserver_pyspark")
    maker = ArchiveMaker(delay=0)
    maker.begin(class_data(tmp_path, "one"), failing)
    maker.join(time.monotonic() + 60)
    [message] = caplog.messages
    assert "contexts start more slowly" in message
    assert message.endswith("tries again after its next start: its job failed: no room")


def test_a_training_without_an_archive_is_an_error(tmp_path: Path) -> None:
    data = class_data(tmp_path, "one")
    with pytest.raises(LaunchError, match="the JVM has not written it"):
        data.make(lambda _options: None)
    assert not data.exists


class Trained(ContextHandle):
    """A context that ends when the test ends it, and reports the outcome of its job that the test gave it."""

    def __init__(self, session: TrainingSession, outcome: JobOutcome) -> None:
        self._session = session
        self._outcome = outcome
        self.killed = False

    def submit(self, job: JobSpec) -> None:
        self._session.job_ended(job.id, self._outcome)

    def kill_job(self, job_id: str) -> None:
        raise AssertionError("nobody kills the training job")

    def stop(self, timeout: float) -> None:
        self._session.context_ended(ContextEnd.STOPPED)

    def kill(self) -> None:
        self.killed = True
        self._session.context_ended(ContextEnd.KILLED)


def training(tmp_path: Path, timeout: float = 60.0) -> TrainingSession:
    return TrainingSession(tmp_path, "python", timeout)


def test_a_training_runs_a_job_and_stops_its_context(tmp_path: Path) -> None:
    session = training(tmp_path)
    session.context_ready(application_id=None, url=None)
    handle = Trained(session, JobOutcome())
    session.follow(handle)
    assert not handle.killed


def test_a_training_whose_job_fails_says_why(tmp_path: Path) -> None:
    session = training(tmp_path)
    session.context_ready(application_id=None, url=None)
    handle = Trained(session, JobOutcome(error=ErrorInfo(message="no room"), failure=FailureKind.RAISED))
    with pytest.raises(LaunchError, match="its job failed: no room"):
        session.follow(handle)
    assert handle.killed


def test_a_training_whose_context_fails_says_why(tmp_path: Path) -> None:
    session = training(tmp_path)
    session.context_ended(ContextEnd.FAILED, ErrorInfo(message="the JVM ended"))
    with pytest.raises(LaunchError, match="the JVM ended"):
        session.follow(Trained(session, JobOutcome()))


def test_a_training_whose_context_takes_too_long_ends_it_and_quotes_its_log(tmp_path: Path) -> None:
    session = training(tmp_path, timeout=0.01)
    session.spec.log_path.write_text("INFO loading\n")
    handle = Trained(session, JobOutcome())
    with pytest.raises(LaunchError, match=r"did not start within 0\.01 s; its log ends with: INFO loading"):
        session.follow(handle)
    assert handle.killed


def test_an_archive_that_another_process_makes_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jobserver_pyspark")
    maker, other = ArchiveMaker(delay=0), ArchiveMaker(delay=0)
    begun, go_on = threading.Event(), threading.Event()

    def slow(options: list[str]) -> None:
        begun.set()
        assert go_on.wait(60)
        written(options)

    maker.begin(class_data(tmp_path, "one"), slow)
    assert begun.wait(60)
    other.begin(class_data(tmp_path, "one"), written)
    other.join(time.monotonic() + 60)
    assert caplog.messages == []
    go_on.set()
    maker.join(time.monotonic() + 60)
    assert caplog.messages == [f"created the archive of classes {class_data(tmp_path, 'one').path}"]


def test_the_next_server_removes_what_a_killed_training_left(tmp_path: Path) -> None:
    (tmp_path / "training" / "tmp1" / "data").mkdir(parents=True)
    launcher = PySparkLauncher(tmp_path)
    launcher.sweep()
    launcher.close()
    wait_until(lambda: not (tmp_path / "training").exists())
