"""What a server answers before it is started, while it shuts down, and after it has closed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conditions import WAIT, wait_until
from jobserver_core import (
    BinaryType,
    Conflict,
    ContextChanged,
    ContextQuery,
    ContextState,
    InvalidRequest,
    JobServer,
    LaunchError,
    Preparation,
    ResultTimeout,
    ServerClosed,
)
from jobserver_core.memory import InlineLauncher
from jobserver_core.testing.builders import a_context
from serving import a_request, a_server, archive, upload

Uses = dict[str, Callable[[JobServer], object]]
RUNNING: Uses = {
    "submit": lambda server: server.submit(a_request("w.Echo")),
    "begin_submit": lambda server: server.begin_submit(a_request("w.Echo")),
    "job_handle": lambda server: server.job_handle("j"),
    "kill_job": lambda server: server.kill_job("j"),
    "create_context": lambda server: server.create_context("etl"),
    "begin_context": lambda server: server.begin_context("etl"),
    "stop_context": lambda server: server.stop_context("etl"),
    "kill_context": lambda server: server.kill_context("etl"),
    "reset_contexts": lambda server: server.reset_contexts(),
    "prune": lambda server: server.prune(),
    "context_waiter": lambda server: server.context_waiter("etl"),
    "check_accepting": lambda server: server.check_accepting(),
}
FILES: Uses = {
    "upload": lambda server: server.upload("words", BinaryType.EGG, archive()),
    "begin_upload": lambda server: server.begin_upload("words", BinaryType.EGG),
    "delete_binary": lambda server: server.delete_binary("words"),
    "add_data_file": lambda server: server.add_data_file("sales.csv", b"1"),
    "begin_data_file": lambda server: server.begin_data_file("sales.csv"),
    "delete_data_file": lambda server: server.delete_data_file("sales.csv"),
    "reset_data_files": lambda server: server.reset_data_files(),
}
CHANGES = RUNNING | FILES
READS: Uses = {
    "jobs": lambda server: server.jobs(),
    "job": lambda server: server.job("j"),
    "job_config": lambda server: server.job_config("j"),
    "open_result": lambda server: server.open_result("j"),
    "deliveries": lambda server: server.deliveries("j"),
    "job_log": lambda server: server.job_log("j"),
    "open_job_log": lambda server: server.open_job_log("j"),
    "context_log": lambda server: server.context_log("etl"),
    "open_context_log": lambda server: server.open_context_log("etl"),
    "contexts": lambda server: server.contexts(),
    "context": lambda server: server.context("etl"),
    "ended_contexts": lambda server: server.ended_contexts(),
    "context_before": lambda server: server.context_before(a_context()),
    "context_loads": lambda server: server.context_loads(),
    "failed_contexts": lambda server: server.failed_contexts(),
    "start_queue": lambda server: server.start_queue(),
    "resource_usage": lambda server: server.resource_usage(),
    "spare_pools": lambda server: server.spare_pools(),
    "load": lambda server: server.load,
    "takeovers": lambda server: server.takeovers,
    "binaries": lambda server: server.binaries(),
    "binary": lambda server: server.binary("words"),
    "binary_versions": lambda server: server.binary_versions("words"),
    "data_files": lambda server: server.data_files(),
    "storage": lambda server: server.storage(),
    "servers": lambda server: server.servers(),
    "check": lambda server: server.check(),
    "check_storage": lambda server: server.check_storage(),
    "parse_config": lambda server: server.parse_config("a = 1"),
}
ALWAYS = {"close", "drain", "begun_jobs", "detaches", "id"}
"""What can be called after the end: for those who wait for it, or call it twice."""
ELSEWHERE = {"start", "subscribe", "in_memory", "from_settings"}
"""Covered by tests of their own, or not methods of a server."""
REFUSED_WHILE_CLOSING = CHANGES.keys() - {
    "job_handle",
    "context_waiter",
    "kill_job",
    "stop_context",
    "kill_context",
    "delete_binary",
    "delete_data_file",
}


@pytest.fixture
def server() -> Iterator[JobServer]:
    created = a_server()
    yield created
    created.close()


@pytest.mark.parametrize("name", RUNNING)
def test_a_server_that_was_not_started_runs_nothing_and_says_so(server: JobServer, name: str) -> None:
    expected = r"the job server is not started; use it in a with block, or call start\(\) first"
    with pytest.raises(Conflict, match=expected):
        CHANGES[name](server)


def test_a_server_that_was_not_started_stores_files_reads_records_and_can_be_subscribed_to(
    server: JobServer,
) -> None:
    events: list[Any] = []
    with server.subscribe(events.append):
        server.upload("words", BinaryType.EGG, archive())
        server.delete_binary("words")
        server.add_data_file("sales.csv", b"1")
        assert (server.jobs().jobs, server.contexts(), server.binaries()) == ((), [], [])
        assert server.check() == {"metadata": None, "blobs": None, "data-files": None, "launcher": None}
        server.start()
        server.create_context("etl").result(WAIT)
    assert events


@pytest.mark.parametrize("name", sorted(REFUSED_WHILE_CLOSING))
def test_a_server_that_drains_says_that_it_is_shutting_down(server: JobServer, name: str) -> None:
    server.start().drain()
    with pytest.raises(ServerClosed, match="the job server is shutting down and accepts no new work"):
        CHANGES[name](server)


@pytest.mark.parametrize("name", CHANGES | READS)
def test_a_server_that_has_closed_says_that_it_is_closed(server: JobServer, name: str) -> None:
    server.start().close()
    with pytest.raises(ServerClosed, match="the job server is closed; create a new one"):
        (CHANGES | READS)[name](server)


def test_a_server_accepts_jobs_once_its_start_is_complete() -> None:
    class Slow(InlineLauncher):
        def sweep(self) -> None:
            with pytest.raises(Conflict, match=r"^the job server is starting$"):
                server.check_accepting()
            swept.append(True)

    swept: list[bool] = []
    server = a_server(launcher=Slow())
    with server:
        server.check_accepting()
    assert swept == [True]


FORGET = """
import gc, os, sys
from jobserver_core import JobServer
from jobserver_core.testing.server import InMemoryJobServer

def forget():
    server = {server}
    {then}

forget()
gc.collect()
"""


@pytest.mark.parametrize(
    ("server", "then", "name"),
    [
        ("JobServer.in_memory()", "", "JobServer"),
        ("InMemoryJobServer.in_memory()", "server.start()", "InMemoryJobServer"),
        ("JobServer.in_memory()", "server.close()", None),
        ("JobServer.in_memory()", "server.__enter__().__exit__()", None),
        ("JobServer.in_memory()", "globals()['kept'] = server  # until the end of the process", None),
        (
            "JobServer.in_memory()",
            "child = os.fork()\n    if not child: return\n    server.close(); os.waitpid(child, 0)",
            None,
        ),
    ],
)
def test_a_server_that_nobody_has_closed_is_named_in_a_warning(
    server: str, then: str, name: str | None
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", FORGET.format(server=server, then=then)],
        capture_output=True,
        text=True,
        timeout=WAIT * 6,
        check=True,
    )
    expected = f"ResourceWarning: unclosed {name}: use it in a with block, or call close()"
    assert (expected in done.stderr, "Traceback" in done.stderr) == (name is not None, False), done.stderr
    assert done.stderr.count("unclosed") == (name is not None)


def test_every_public_method_is_refused_after_the_end() -> None:
    public = {name for name in dir(JobServer) if not name.startswith("_")}
    assert public == (CHANGES | READS).keys() | ALWAYS | ELSEWHERE


@pytest.mark.parametrize("store", ["memory", "sql"])
def test_handles_and_readers_of_a_server_that_has_closed_say_that_it_is_closed(
    store: str, tmp_path: Path
) -> None:
    ports: dict[str, Any] = {}
    if store == "sql":
        from jobserver_sql import SqlMetadataStore  # which no other test of this module needs, and is large

        ports["metadata"] = SqlMetadataStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    with a_server(**ports) as server:
        upload(server)
        handle = server.submit(a_request("w.Stream", "n = 6"))
        assert handle.result(WAIT) == b"0,1,2,3,4,5,"
        log = server.open_job_log(handle.id)
    for use in (handle.result, log.read):
        with pytest.raises(ServerClosed, match="the job server is closed; create a new one"):
            use()


@pytest.mark.parametrize("started", [True, False])
def test_a_server_that_has_closed_cannot_be_started_again_or_subscribed_to(
    server: JobServer, started: bool
) -> None:
    if started:
        server.start()
    server.close()
    for use in (server.start, server.__enter__, lambda: server.subscribe(print)):
        with pytest.raises(ServerClosed, match="the job server is closed; create a new one"):
            use()
    server.close()


@pytest.mark.slow
def test_a_close_waits_briefly_for_a_done_callback_that_blocks(caplog: pytest.LogCaptureFixture) -> None:
    released, blocked = threading.Event(), threading.Event()
    server = a_server().start()

    def block(_handle: object) -> None:
        blocked.set()
        released.wait(2 * WAIT)

    try:
        server.upload("words", BinaryType.EGG, archive())
        handle = server.submit(a_request("w.Echo", "value = 7"))
        handle.add_done_callback(block)
        assert blocked.wait(WAIT)
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        closing.join(WAIT)
        assert not closing.is_alive()
        assert "a function of add_done_callback takes too long" in caplog.text
    finally:
        released.set()
        server.close()


CLOSING = r"closing took \d+\.\d s: close\(\) was called in {}, which it may have waited for;"


@pytest.mark.slow
def test_a_close_in_a_subscriber_names_the_cause_of_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()
    server = a_server().start()

    def close(event: object) -> None:
        if isinstance(event, ContextChanged) and event.context.state is ContextState.RUNNING:
            server.close(0)
            closed.set()

    server.subscribe(close)
    server.create_context("etl")
    assert closed.wait(WAIT)
    assert re.search(CLOSING.format("a subscriber"), caplog.text)


@pytest.mark.slow
def test_a_wait_in_a_subscriber_names_the_cause_and_the_remedy_once(caplog: pytest.LogCaptureFixture) -> None:
    waited: list[str] = []

    def wait(event: object) -> None:
        if isinstance(event, ContextChanged) and event.context.state is ContextState.RUNNING:
            handle = server.submit(a_request("w.Sleep", context="etl"))
            with pytest.raises(ResultTimeout) as late:
                handle.result(1.5)
            waited.extend((handle.id, str(late.value)))

    with a_server() as server:
        upload(server)
        with server.subscribe(wait):
            server.create_context("etl").result(WAIT)
            wait_until(lambda: bool(waited))
        server.kill_job(waited[0]).result(WAIT)
    job_id, late = waited
    assert "1.5" in late
    assert [r.getMessage() for r in caplog.records if "a subscriber" in r.getMessage()] == [
        f"a subscriber has been waiting for job {job_id} for 1 s, and may have to return first; "
        "wait on another thread"
    ]


@pytest.mark.slow
def test_a_close_in_a_job_in_memory_names_the_cause_of_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()

    def close(_job: object) -> None:
        server.close(0)
        closed.set()

    server = a_server(launcher=InlineLauncher({"w.Close": close})).start()
    upload(server)
    server.submit(a_request("w.Close"))
    assert closed.wait(WAIT)
    assert re.search(CLOSING.format("a job"), caplog.text)


def test_a_done_callback_may_close_the_server(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()
    server = a_server().start()
    server.upload("words", BinaryType.EGG, archive())

    def close(_handle: object) -> None:
        server.close()
        closed.set()

    server.submit(a_request("w.Echo", "value = 7")).add_done_callback(close)
    assert closed.wait(WAIT)
    assert "takes too long" not in caplog.text


def test_a_slip_in_what_a_close_does_with_contexts_is_refused_and_closes_nothing(server: JobServer) -> None:
    with server.start():
        server.create_context("warm").result(WAIT)
        with pytest.raises(InvalidRequest, match="contexts must be 'stop' or 'detach', got 'detch'"):
            server.close(contexts="detch")  # type: ignore[arg-type]
        assert server.context("warm").state is ContextState.RUNNING


class _Unswept(InlineLauncher):
    """A launcher that cannot remove what an earlier run left behind."""

    closed = False

    def sweep(self) -> None:
        raise LaunchError(message="no space left on device")

    def close(self) -> None:
        super().close()
        self.closed = True


@pytest.mark.parametrize("name", ["start", *RUNNING])
def test_a_server_whose_start_has_failed_says_so_and_starts_nothing(name: str) -> None:
    launcher = _Unswept()
    server = a_server(launcher=launcher)
    with pytest.raises(LaunchError, match="no space left"):
        server.start()
    expected = (
        r"start of this job server failed \(LaunchError: no space left on device\); close it and create"
    )
    with pytest.raises(Conflict, match=expected):
        server.start() if name == "start" else RUNNING[name](server)
    assert server.jobs().jobs == ()
    server.close()
    assert launcher.closed


def test_a_with_block_closes_a_server_whose_start_fails() -> None:
    launcher = _Unswept()
    with pytest.raises(LaunchError, match="no space left"), a_server(launcher=launcher):
        raise AssertionError("the block was entered")
    assert launcher.closed


def test_what_was_being_prepared_when_the_server_closed_is_refused_as_closed(server: JobServer) -> None:
    server.start()
    server.upload("words", BinaryType.EGG, archive())
    with server.begin_submit(a_request("w.Echo")) as preparation:
        server.close()
        with pytest.raises(ServerClosed, match="is closed"):
            preparation.finish()


@pytest.mark.parametrize("begin", ["submit", "context"])
def test_a_preparation_is_finished_once_and_not_after_its_block(server: JobServer, begin: str) -> None:
    server.start()
    server.upload("words", BinaryType.EGG, archive())

    def prepare() -> Preparation[Any]:
        return server.begin_submit(a_request("w.Echo")) if begin == "submit" else server.begin_context("etl")

    with prepare() as left:
        pass
    with pytest.raises(Conflict, match="nothing was done: the preparation is closed; begin again"):
        left.finish()
    with prepare() as finished:
        finished.finish()
        for _ in range(2):
            with pytest.raises(Conflict, match=r"nothing was done: finish\(\) was called already"):
                finished.finish()
    with pytest.raises(Conflict, match="was called already"):
        finished.finish()
    assert (
        len(server.jobs().jobs) + len(server.contexts(ContextQuery())) == {"submit": 2, "context": 1}[begin]
    )


@pytest.mark.parametrize(
    "create",
    [
        JobServer.from_settings,
        lambda settings: JobServer.in_memory(settings=settings),
    ],
)
def test_settings_that_are_a_mapping_are_refused(create: Callable[[Any], JobServer]) -> None:
    expected = "settings must be Settings .use Settings.from_mapping or load_settings., not dict"
    with pytest.raises(InvalidRequest, match=expected):
        create({})


def test_only_what_can_be_called_can_subscribe(server: JobServer) -> None:
    with pytest.raises(InvalidRequest, match="the subscriber must be a function, not NoneType"):
        server.subscribe(None)  # type: ignore[arg-type]


def test_the_logs_and_files_of_a_server_that_has_closed_are_closed_with_it(server: JobServer) -> None:
    server.start()
    server.upload("words", BinaryType.EGG, archive())
    handle = server.submit(a_request("w.Echo", "value = 7"))
    handle.result(WAIT)
    name = server.job(handle.id).context_name
    log = server.open_job_log(handle.id)
    server.close()
    uses: list[Callable[[], object]] = [
        lambda: server.job_log(handle.id),
        lambda: server.context_log(name),
        log.read,
        lambda: server.open_context_log(name).read(),
        server.data_files,
    ]
    for use in uses:
        with pytest.raises(ServerClosed, match="the job server is closed; create a new one"):
            use()
