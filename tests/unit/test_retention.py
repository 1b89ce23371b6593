"""What a sweep removes, what it never removes, and that it does not block others."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import BinaryType, JobServer, JobState, Settings, errors
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore
from jobserver_core.ports import ContextEnd, JobOutcome
from jobserver_core.running import retention
from jobserver_core.running.retention import GRACE
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, ScriptedLauncher, a_request, a_server, archive, report_result, upload

DAY = 86_400


class World:
    """A server whose clock is moved by hand, a hundred years after its files were written."""

    def __init__(self, settings: dict[str, Any], data_dir: Path, **ports: Any) -> None:
        self.clock = ManualClock(start=ManualClock().now() + timedelta(days=365 * 100))
        self.launcher = ScriptedLauncher()
        self.metadata = MemoryMetadataStore()
        self.blobs = MemoryBlobStore(clock=self.clock)
        self.server: JobServer = a_server(
            clock=self.clock,
            launcher=self.launcher,
            metadata=ports.pop("metadata", self.metadata),
            blobs=self.blobs,
            settings=Settings.from_mapping({"jobserver": settings}),
            data_dir=data_dir,
            **ports,
        ).start()
        self.server._services.sweeper.close()
        self.server._services.sweeper._closed.clear()
        upload(self.server)

    def run(self, context: str | None = None, *, end: bool = True) -> str:
        """Run a job to its end, by default in an ad-hoc context, and return its ID."""
        job = self.server.submit(a_request("w.Any", context=context))
        listener = self.launcher.listeners[-1]
        if context is None:
            listener.context_ready(application_id=None, url=None)
        listener.job_running(job.id)
        directory = self.server._services.data_directory
        directory.job_log(job.id).write_text(LOG)
        directory.context_log(job.job.context_id).write_text(LOG)
        if end:
            report_result(listener, job.id, b"1")
            if context is None:
                listener.context_ended(ContextEnd.STOPPED)
        return job.id

    def logs(self) -> set[str]:
        directory = self.server._services.data_directory
        paths = [path for logs in (directory.job_logs, directory.context_logs) for path in logs.iterdir()]
        return {path.stem for path in paths if path.read_text() == LOG}

    def sweep(self) -> None:
        self.server._services.sweeper.sweep()

    def close(self) -> None:
        self.launcher.close()
        self.server.close(0)


Make = Callable[..., World]
LOG = "log " * 100


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    worlds: list[World] = []

    def make(settings: dict[str, Any] | None = None, **ports: Any) -> World:
        worlds.append(World(settings or {}, tmp_path / "data", **ports))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_contexts_go_with_the_jobs_they_served_and_so_do_the_logs_of_both(make: Make) -> None:
    world = make({"jobs": {"retention": "1 day"}})
    old = world.server.job(world.run())
    world.clock.advance(DAY)
    young = world.server.job(world.run())
    world.clock.advance(60)
    world.sweep()
    assert [job.id for job in world.server.jobs().jobs] == [young.id]
    assert world.metadata.context(old.context_id) is None
    assert world.metadata.context(young.context_id) is not None
    assert world.logs() == {young.id, young.context_id}


def test_a_living_context_and_its_log_stay_however_old_they_are(make: Make) -> None:
    world = make({"jobs": {"retention": "1 day"}})
    world.server.create_context("shared")
    world.launcher.listeners[0].context_ready(application_id=None, url=None)
    job_id = world.run("shared")
    context = world.server.context("shared")
    world.clock.advance(100 * DAY)
    world.sweep()
    with pytest.raises(errors.JobNotFound):
        world.server.job(job_id)
    assert world.server.context("shared") == context
    assert world.logs() == {context.id}


def test_a_job_that_still_runs_keeps_its_context_and_logs(make: Make) -> None:
    world = make({"jobs": {"retention": "1 day"}})
    job = world.server.job(world.run(end=False))
    world.clock.advance(100 * DAY)
    world.sweep()
    assert world.server.job(job.id).state is JobState.RUNNING
    assert world.logs() == {job.id, job.context_id}


def test_without_a_retention_jobs_contexts_and_logs_stay(make: Make) -> None:
    world = make({"jobs": {"retention": None, "max-kept": None}, "data-files": {"retention": None}})
    job = world.server.job(world.run())
    world.clock.advance(10_000 * DAY)
    world.sweep()
    assert world.server.job(job.id) == job
    assert world.metadata.context(job.context_id) is not None
    assert world.logs() == {job.id, job.context_id}


def test_many_jobs_are_removed_in_small_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    steps: list[int] = []

    class Watched(MemoryMetadataStore):
        def delete_jobs(self, **rest: Any) -> int:
            steps.append(super().delete_jobs(**rest))
            return steps[-1]

    world = make({"jobs": {"retention": "1 day"}}, metadata=Watched())
    for _ in range(13):
        world.run()
    world.clock.advance(2 * DAY)
    steps.clear()
    world.sweep()
    assert steps == [10, 3]
    assert world.server.jobs().jobs == ()
    assert world.logs() == set()


def test_old_versions_go_but_the_newest_few_and_those_in_use(make: Make) -> None:
    world = make({"binaries": {"versions": 2, "retention": "7 days"}})
    used = world.server.binary("words")
    job_id = world.run(end=False)
    versions = [world.server.upload("words", BinaryType.EGG, archive(str(n))) for n in range(4)]
    world.clock.advance(8 * DAY)
    world.sweep()
    assert [b.id for b in world.server.binary_versions("words")] == [versions[3].id, versions[2].id, used.id]
    assert world.blobs.size(versions[0].digest) is None
    assert world.blobs.size(used.digest) is not None
    world.launcher.listeners[-1].job_ended(job_id, JobOutcome())
    world.sweep()
    assert [b.id for b in world.server.binary_versions("words")] == [versions[3].id, versions[2].id]


def test_old_versions_go_by_default_after_thirty_days_but_ten(make: Make) -> None:
    world = make()
    for number in range(12):
        world.server.upload("words", BinaryType.EGG, archive(str(number)))
    world.clock.advance(29 * DAY)
    world.sweep()
    assert len(world.server.binary_versions("words")) == 13
    world.clock.advance(2 * DAY)
    world.sweep()
    assert len(world.server.binary_versions("words")) == 10


def test_old_versions_stay_where_that_is_configured(make: Make) -> None:
    world = make({"binaries": {"versions": 1, "retention": None}})
    world.server.upload("words", BinaryType.EGG, archive("new"))
    world.clock.advance(10_000 * DAY)
    world.sweep()
    assert len(world.server.binary_versions("words")) == 2


def test_data_files_go_when_a_retention_is_configured(make: Make) -> None:
    world = make({"data-files": {"retention": "1 day"}})
    old, young = world.server.add_data_file("old", b"x"), world.server.add_data_file("young", b"x")
    now = world.clock.now().timestamp()
    os.utime(old.path, (now - DAY - 60,) * 2)
    os.utime(young.path, (now - DAY + 60,) * 2)
    world.sweep()
    assert [file.path for file in world.server.data_files()] == [young.path]


def test_without_a_retention_data_files_stay(make: Make) -> None:
    world = make({"jobs": {"retention": None, "max-kept": None}, "data-files": {"retention": None}})
    world.server.add_data_file("old", b"x")
    world.clock.advance(10_000 * DAY)
    world.sweep()
    assert len(world.server.data_files()) == 1


def test_one_step_that_fails_does_not_keep_the_others_from_their_work(make: Make) -> None:
    class Failing(MemoryMetadataStore):
        def delete_jobs(self, **rest: Any) -> int:
            raise errors.StorageError(message="disk full")

    world = make({"jobs": {"retention": "1 day"}, "binaries": {"versions": 1}}, metadata=Failing())
    world.server.upload("words", BinaryType.EGG, archive("new"))
    world.clock.advance(31 * DAY)
    world.sweep()
    assert len(world.server.binary_versions("words")) == 1


def test_a_clock_that_is_set_back_removes_nothing_early(make: Make) -> None:
    world = make({"jobs": {"retention": "30 minutes"}})
    world.clock.set_wall(-3600)
    job = world.server.job(world.run())
    gone = world.server.upload("gone", BinaryType.EGG, archive("gone"))
    world.server.delete_binary("gone")
    world.clock.advance(5 * 60)
    world.sweep()
    assert world.server.job(job.id) == job
    assert world.blobs.size(gone.digest) is not None
    world.clock.advance(30 * 60)
    world.sweep()
    with pytest.raises(errors.JobNotFound):
        world.server.job(job.id)
    assert timedelta(minutes=35) > GRACE
    assert world.blobs.size(gone.digest) is None


# -- limits of number and size -----------------------------------------------------------------------

FOREVER = {"retention": None, "max-kept": None, "max-result-storage": None, "max-log-storage": None}


def test_the_oldest_jobs_are_removed_when_there_are_too_many(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-kept": 3}})
    ids = []
    for _ in range(5):
        ids.append(world.run())
        world.clock.advance(1)
    removed = world.server.prune()
    assert [job.id for job in world.server.jobs().jobs] == ids[:1:-1]
    assert (removed["jobs"], removed["contexts"], removed["logs"]) == (2, 2, 4)
    assert world.server.prune() == {}


def test_jobs_that_run_do_not_count_and_are_not_removed(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-kept": 0}})
    running = world.run(end=False)
    world.run()
    assert world.server.prune()["jobs"] == 1
    assert [job.id for job in world.server.jobs().jobs] == [running]


def test_the_oldest_jobs_are_removed_when_their_results_are_too_large_together(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-result-storage": 2}})
    ids = []
    for _ in range(4):  # each has a result of one byte
        ids.append(world.run())
        world.clock.advance(1)
    world.clock.advance(GRACE.total_seconds())
    assert world.server.prune()["jobs"] == 2
    assert [job.id for job in world.server.jobs().jobs] == ids[:1:-1]


def test_a_job_whose_result_alone_is_too_large_stays_until_it_can_have_been_read(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-result-storage": 0}})
    job_id = world.run()
    world.clock.advance(GRACE.total_seconds() - 1)
    assert world.server.prune() == {}
    assert world.server.job_handle(job_id).result(0) == 1
    world.clock.advance(2)
    assert world.server.prune()["jobs"] == 1


def test_logs_are_limited_although_a_directory_of_logs_was_removed(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-log-storage": 0}})
    world.run()
    shutil.rmtree(world.server._services.data_directory.context_logs)
    assert world.server.prune() == {"logs": 1}


def test_the_oldest_logs_of_what_has_ended_are_removed_when_they_are_too_large(make: Make) -> None:
    world = make({"jobs": {**FOREVER, "max-log-storage": 1200}})
    running = world.server.job(world.run(end=False))
    old, young = world.server.job(world.run()), world.server.job(world.run())
    directory = world.server._services.data_directory
    for age, job in enumerate((young, old, running)):
        for path in (directory.job_log(job.id), directory.context_log(job.context_id)):
            os.utime(path, (1000 - age, 1000 - age))
    assert world.server.prune() == {"logs": 4}
    assert world.logs() == {running.id, running.context_id}
    assert {job.id for job in world.server.jobs().jobs} == {running.id, old.id, young.id}
    with world.server.open_job_log(old.id) as log:
        assert log.read().startswith(b"(removed: ")
    assert world.server.prune() == {}


def test_the_oldest_data_files_are_removed_when_they_are_too_large_together(make: Make) -> None:
    world = make({"data-files": {"retention": None, "max-storage": 10}})
    for number in range(4):
        path = world.server.add_data_file(f"file{number}", b"x" * 4).path
        os.utime(path, (1000 + number, 1000 + number))
    assert world.server.prune() == {"data-files": 2}
    assert [file.path.name[:5] for file in world.server.data_files()] == ["file2", "file3"]


def test_a_prune_reports_blobs_and_waits_for_a_sweep_that_runs(make: Make) -> None:
    world = make({"jobs": FOREVER})
    world.blobs.put([b"nobody's"])
    world.clock.advance(GRACE.total_seconds() + 1)
    assert world.server.prune() == {"blobs": 1}
    sweeper = world.server._services.sweeper
    removed: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: removed.append(world.server.prune()))
    with sweeper._sweeping:
        thread.start()
        assert removed == []
    thread.join(WAIT)
    assert removed == [{}]


def test_storage_shows_what_uses_how_much_and_what_limits_it(make: Make) -> None:
    world = make()
    world.run()
    world.server.add_data_file("a", b"x" * 7)
    usage = {kind.kind: kind for kind in world.server.storage()}
    assert (usage["jobs"].count, usage["contexts"].count) == (1, 1)
    assert (usage["results"].count, usage["results"].size) == (1, 1)
    assert (usage["logs"].count, usage["logs"].size) == (2, 2 * len(LOG))
    assert (usage["data-files"].count, usage["data-files"].size) == (1, 7)
    assert (usage["binaries"].count, usage["blobs"].count) == (1, 1)
    assert usage["binaries"].size == usage["blobs"].size
    assert usage["jobs"].limits == {"jobserver.jobs.retention": "30 days", "jobserver.jobs.max-kept": 100_000}


def test_a_closing_server_does_not_prune(make: Make) -> None:
    world = make()
    world.server.drain()
    with pytest.raises(errors.ServerClosed):
        world.server.prune()
