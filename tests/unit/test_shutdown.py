"""How an orderly shutdown affects jobs and callers, and that nothing can delay it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import (
    ContextState,
    FailureKind,
    JobHandle,
    JobServer,
    JobState,
    Settings,
    assembly,
    errors,
)
from jobserver_core.memory import InlineLauncher, MemoryBlobStore, MemoryMetadataStore
from jobserver_core.ports import ContextEnd
from serving import FUNCTIONS, WAIT, ScriptedLauncher, a_request, a_server, upload

ONE_SLOT = {"jobserver": {"jobs": {"max-jobs-per-context": 1}}}


class World:
    """The stores that outlive a server, and the servers over them."""

    def __init__(self) -> None:
        self.metadata = MemoryMetadataStore()
        self.blobs = MemoryBlobStore()
        self.servers: list[JobServer] = []

    def boot(self, launcher: Any = None, **settings: Any) -> JobServer:
        server = a_server(
            metadata=self.metadata,
            blobs=self.blobs,
            launcher=launcher or InlineLauncher(FUNCTIONS),
            settings=Settings.from_mapping({**ONE_SLOT, **settings}),
        ).start()
        self.servers.append(server)
        if not server.binaries():
            upload(server)
        return server

    def full(self, server: JobServer) -> tuple[JobHandle, JobHandle]:
        """Return a job that occupies a context's only slot, and one that waits for it."""
        server.create_context("shared", {"num-cpu-cores": 3}).result(WAIT)
        runs = server.submit(a_request("w.Sleep", context="shared"))
        runs.started.result(WAIT)
        return runs, server.submit(a_request("w.Echo", {"value": "done"}, context="shared"))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for server in world.servers:
        server.close()


def test_a_job_that_waits_for_a_slot_outlives_the_server_and_runs_under_the_next_one(world: World) -> None:
    first = world.boot()
    runs, waits = world.full(first)
    first.close()
    assert runs.finished.result(0).failure is FailureKind.CONTEXT_LOST
    stored = world.metadata.job(waits.id)
    assert stored is not None
    assert stored.state is JobState.STARTED
    assert stored.waiting
    with pytest.raises(
        errors.JobPostponed, match=f"job {waits.id} has not started. It remains accepted, and runs"
    ):
        waits.result(0)

    second = world.boot()
    assert second.job_handle(waits.id).result(WAIT) == "done"
    context = second.context("shared")
    assert context.id != stored.context_id
    assert context.settings["num-cpu-cores"] == 3
    assert context.state is ContextState.RUNNING, "a context that is not made for one job stays"


def test_a_job_that_waited_runs_in_the_context_of_that_name_that_the_configuration_starts(
    world: World,
) -> None:
    first = world.boot()
    _, waits = world.full(first)
    first.close()
    second = world.boot(**{"spark.contexts": {"shared": {"num-cpu-cores": 1}}})
    assert second.job_handle(waits.id).result(WAIT) == "done"
    assert [context.settings["num-cpu-cores"] for context in second.contexts()] == [1]


def test_the_jobs_that_waited_for_one_context_share_one_again(world: World) -> None:
    first = world.boot()
    world.full(first)
    more = [first.submit(a_request("w.Echo", {"value": n}, context="shared")) for n in range(3)]
    first.close()
    second = world.boot()
    assert [second.job_handle(job.id).result(WAIT) for job in more] == [0, 1, 2]
    assert [context.name for context in second.contexts()] == ["shared"]


def test_a_job_whose_own_context_has_not_started_outlives_the_server(world: World) -> None:
    first = world.boot(InlineLauncher(FUNCTIONS, start_delay=3600))
    jobs = [
        first.submit(a_request("w.Echo", {"value": n})) for n in range(5)
    ]  # some of them in the start queue
    first.close()
    for job in jobs:
        with pytest.raises(errors.JobPostponed):
            job.finished.result(0)
    second = world.boot()
    assert [second.job_handle(job.id).result(WAIT) for job in jobs] == [0, 1, 2, 3, 4]


def test_a_draining_server_begins_no_job_when_a_slot_becomes_free(world: World) -> None:
    server = world.boot()
    runs, waits = world.full(server)
    server.drain()
    server.kill_job(runs.id).result(WAIT)
    assert server.begun_jobs == 0
    assert server.job(waits.id).waiting


def test_a_job_that_waits_can_be_killed_while_the_server_drains(world: World) -> None:
    server = world.boot()
    _, waits = world.full(server)
    server.drain()
    assert server.kill_job(waits.id).result(WAIT).state is JobState.KILLED


def test_jobs_of_a_context_that_is_deleted_while_the_server_drains_end_with_it(world: World) -> None:
    server = world.boot()
    _, waits = world.full(server)
    server.drain()
    server.stop_context("shared").result(WAIT)
    assert waits.finished.result(0).failure is FailureKind.CONTEXT_LOST


def test_waiting_jobs_survive_a_context_that_dies_while_the_server_drains(world: World) -> None:
    launcher = ScriptedLauncher()
    server = world.boot(launcher)
    server.create_context("shared")
    launcher.listeners[0].context_ready(application_id=None, url=None)
    runs, waits = (server.submit(a_request("w.Any", context="shared")) for _ in range(2))
    server.drain()
    launcher.listeners[0].context_ended(ContextEnd.FAILED)  # as when a signal goes to the whole control group
    assert runs.finished.result(0).failure is FailureKind.CONTEXT_LOST
    assert server.job(waits.id).waiting


def test_waiting_jobs_survive_a_crash(world: World) -> None:
    first = world.boot()
    runs, waits = world.full(first)
    second = world.boot()  # the first one did not close
    assert second.job(runs.id).failure is FailureKind.CONTEXT_LOST
    assert second.job_handle(waits.id).result(WAIT) == "done"


class Hanging:
    """Something that does not return before the test ends."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.entered = threading.Event()
        self.calls = 0

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        self.calls += 1
        self.entered.set()
        self.over.wait()


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(assembly, "FORCE", 0.1)
    monkeypatch.setattr(assembly, "RELEASE", 0.1)
    hanging = Hanging()
    yield hanging
    hanging.over.set()


def close(server: JobServer) -> None:
    closing = threading.Thread(target=server.close, args=(1.0,), daemon=True)
    closing.start()
    closing.join(WAIT)
    assert not closing.is_alive(), "the shutdown hangs"


@pytest.mark.parametrize(
    ("port", "method", "what"),
    [
        ("launcher", "close", "the launcher"),
        ("metadata", "close", "the metadata store"),
        ("blobs", "close", "the blob store"),
        ("fetcher", "close", "the fetcher"),
    ],
)
def test_a_backend_that_hangs_does_not_delay_the_shutdown(
    hang: Hanging, caplog: pytest.LogCaptureFixture, port: str, method: str, what: str
) -> None:
    closed: list[str] = []
    server = a_server().start()
    env = server._services
    for name in ("launcher", "fetcher", "metadata", "blobs"):
        original: Callable[[], None] = getattr(getattr(env, name), method)

        def noted(name: str = name, original: Callable[[], None] = original) -> None:
            closed.append(name)
            original()

        setattr(getattr(env, name), method, hang if name == port else noted)
    close(server)
    assert hang.entered.is_set()
    assert f"closing {what} takes too long" in caplog.text
    assert sorted([*closed, port]) == ["blobs", "fetcher", "launcher", "metadata"]


def test_a_backend_that_hangs_costs_its_time_once_however_often_the_server_is_closed(
    hang: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InlineLauncher, "close", hang)
    backends = {port: {"backend": "memory"} for port in ("metadata", "blobs", "fetcher", "launcher")}
    settings = {"data-dir": str(tmp_path), "callbacks": {"transports": []}, **backends}
    server = JobServer.from_settings(Settings.from_mapping({"jobserver": settings})).start()
    for _ in range(3):  # as the command does: by a signal, and when each of two blocks ends
        close(server)
    assert hang.calls == 1
    close(JobServer.from_settings(server.settings))  # the data directory is free


def test_contexts_that_cannot_be_stored_as_stopping_do_not_keep_the_launcher_alive(
    hang: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(MemoryMetadataStore):
        stuck = False

        def advance_context(self, *args: Any, **kwargs: Any) -> Any:
            if self.stuck:
                hang()
            return super().advance_context(*args, **kwargs)

    launched = threading.Event()

    class Noticing(InlineLauncher):
        def close(self) -> None:
            launched.set()

    metadata = Stuck()
    server = a_server(metadata=metadata, launcher=Noticing(FUNCTIONS)).start()
    server.create_context("shared").result(WAIT)
    metadata.stuck = True
    close(server)
    assert launched.is_set()
    metadata.stuck = False
