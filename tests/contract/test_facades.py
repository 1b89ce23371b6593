"""One suite for the embedded server and its clients, so that code can move between them.

Each test is a coroutine. :func:`done` awaits what only the asynchronous client has to be awaited for.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import io
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from conditions import wait_until
from jobserver_client import AsyncClient, Client, ClientClosed
from jobserver_core import (
    BinaryInUse,
    BinaryNotFound,
    BinaryType,
    Conflict,
    ContextChanged,
    ContextExists,
    ContextFailed,
    ContextNotFound,
    ContextState,
    ContextStopping,
    DataFileNotFound,
    FailureKind,
    IdempotencyMismatch,
    InvalidCallbackUrl,
    InvalidConfig,
    InvalidFirstLetter,
    InvalidName,
    InvalidRequest,
    InvalidSetting,
    JobAlreadyFinal,
    JobChanged,
    JobFailed,
    JobKilled,
    JobNotFound,
    JobQuery,
    JobRequest,
    JobServer,
    JobState,
    MalformedUrl,
    NotAnArchive,
    NotFound,
    ResultKind,
    ResultTimeout,
    Settings,
)
from jobserver_core.memory import MemoryTransport
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd
from jobserver_core.testing.builders import a_context
from jobserver_http import running
from serving import WAIT, ScriptedLauncher, a_request, a_server, archive, packaged

pytestmark = pytest.mark.real

Facade = Any
"""A JobServer, a Client or an AsyncClient."""
Scenario = Callable[[Facade], Coroutine[Any, Any, None]]
ON_ANY_PORT = Settings.from_mapping({"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}}})


async def done(value: Any) -> Any:
    """Return the outcome of a call: awaited if it is a coroutine of the asynchronous client."""
    return await value if inspect.iscoroutine(value) else value


async def on_async_client(url: str, scenario: Scenario) -> None:
    async with AsyncClient(url) as client:
        await scenario(client)


@pytest.fixture(params=["embedded", "client", "async-client"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Run a scenario with one of the facades, on a server with the given ports and the binary ``words``."""

    def run(scenario: Scenario, **ports: Any) -> None:
        server = a_server(settings=ON_ANY_PORT, **ports)
        with running(server) as url:
            server.upload("words", BinaryType.EGG, archive())
            if request.param == "embedded":
                asyncio.run(scenario(server))
            elif request.param == "client":
                with Client(url) as client:
                    asyncio.run(scenario(client))
            else:
                asyncio.run(on_async_client(url, scenario))

    yield run
    assert not [one.name for one in threading.enumerate() if one.name.startswith("jobserver-client")]


Play = Callable[..., None]


def test_a_job_runs_and_its_handle_has_the_result(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        await (await done(facade.create_context("warm")))
        handle = await done(facade.submit(a_request("w.Count", "input.string = a b a", context="warm")))
        assert await done(handle.result(WAIT)) == {"a": 2, "b": 1}
        assert await handle == {"a": 2, "b": 1}
        assert handle.done()
        job = await done(facade.job(handle.id))
        assert (job.state, job.class_name, job.context_name) == (JobState.FINISHED, "w.Count", "warm")
        assert (job.id, job.failure, job.error, job.waiting) == (handle.id, None, None, False)
        assert job.submitted_at <= job.dispatched_at <= job.ended_at
        [code] = job.class_path
        assert (code.source, code.type) == ("words", BinaryType.EGG)

    play(scenario)


def test_a_configuration_may_be_a_mapping(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", {"value": {"a": [1, None, "é"]}})))
        assert await handle == {"a": [1, None, "é"]}
        assert await done(facade.job_config(handle.id)) == '{"value":{"a":[1,null,"\\u00e9"]}}'

    play(scenario)


def test_settings_of_an_ad_hoc_context_may_come_with_text_or_json(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        for config in ("value = 1", '{"value": 1}', {"value": 1}):
            request = a_request("w.Echo", config, context_settings={"inline.fail": "no luck"})
            handle = await done(facade.submit(request))
            with pytest.raises(JobFailed, match="no luck") as caught:
                await handle
            assert caught.value.failure is FailureKind.CONTEXT_INIT

    play(scenario)


def test_a_failed_job_raises_its_error_with_the_kind_of_failure(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Fail", "message = broken")))
        with pytest.raises(JobFailed, match="broken") as caught:
            await handle
        error = caught.value
        assert (error.job_id, error.failure) == (handle.id, FailureKind.RAISED)
        assert str(error) == f"job {handle.id}: ValueError: broken"
        assert handle.id in repr(handle)
        assert error.error.error_class == "ValueError"
        assert "ValueError: broken" in error.error.stack
        assert await done(facade.open_result(handle.id)) is None

    play(scenario)


@pytest.mark.parametrize(
    ("name", "failure"),
    [("w.Refuse", FailureKind.VALIDATION), ("w.Nothing", FailureKind.CLASS_NOT_FOUND)],
)
def test_a_job_that_fails_before_its_code_runs_has_a_handle(
    play: Play, name: str, failure: FailureKind
) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request(name)))
        with pytest.raises(JobFailed) as caught:
            await done(handle.result(WAIT))
        assert (caught.value.job_id, caught.value.failure) == (handle.id, failure)
        if failure is FailureKind.CLASS_NOT_FOUND:
            assert str(caught.value) == f"job {handle.id}: class w.Nothing not found in words"

    play(scenario)


def test_a_wait_that_takes_too_long_is_a_timeout_and_a_kill_ends_the_job(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Sleep")))
        assert (await done(handle.started.result(WAIT))).id == handle.id
        with pytest.raises(ResultTimeout, match=rf"^job {handle.id} not done after 0\.05 s$"):
            await done(handle.result(0.05))
        assert not handle.done()
        killed = await (await done(facade.kill_job(handle.id)))
        assert killed.state is JobState.KILLED
        with pytest.raises(JobKilled, match=f"^job {handle.id} was killed$"):
            await done(handle.result(WAIT))
        with pytest.raises(JobAlreadyFinal):
            await done(facade.kill_job(handle.id))

    play(scenario)


def test_many_jobs_are_awaited_at_once(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        await (await done(facade.create_context("warm")))
        numbers = list(range(100))  # as many as may wait
        requests = [a_request("w.Echo", f"value = {number}", context="warm") for number in numbers]
        handles = [await done(facade.submit(request)) for request in requests]
        assert await asyncio.gather(*handles) == numbers

    play(scenario)


def test_a_done_callback_may_use_the_handle(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 7")))
        called = threading.Event()
        handle.add_done_callback(lambda ended: called.set() if ended.done() else None)
        await asyncio.to_thread(called.wait, WAIT)
        assert called.is_set()

    play(scenario)


blocking = pytest.mark.parametrize("play", ["embedded", "client"], indirect=True)
"""The facades that have a thread for done callbacks. The asynchronous client calls them in its event loop."""


@blocking
def test_a_done_callback_may_submit_a_job_and_wait_for_it(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        results: Queue[Any] = Queue()

        def submit_next(ended: Any) -> None:
            request = a_request("w.Echo", {"value": ended.result(0) + 1}, context="warm")
            results.put(facade.submit(request).result(WAIT))

        facade.create_context("warm").result(WAIT)
        handle = facade.submit(a_request("w.Echo", "value = 7", context="warm"))
        handle.add_done_callback(submit_next)
        assert await asyncio.to_thread(results.get, timeout=WAIT) == 8

    play(scenario)


@blocking
def test_a_done_callback_that_blocks_delays_only_other_callbacks(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        blocked, released, called = threading.Event(), threading.Event(), []

        def block(_ended: Any) -> None:
            blocked.set()
            released.wait(2 * WAIT)
            called.append(1)

        facade.create_context("warm").result(WAIT)
        handle = facade.submit(a_request("w.Echo", "value = 7", context="warm"))
        handle.add_done_callback(block)
        handle.add_done_callback(lambda _ended: called.append(2))
        try:
            assert await asyncio.to_thread(blocked.wait, WAIT)
            assert await asyncio.wait_for(handle, WAIT) == 7
            other = facade.submit(a_request("w.Echo", "value = 8", context="warm"))
            assert await asyncio.wait_for(other, WAIT) == 8
            sleeping = facade.submit(a_request("w.Sleep", context="warm"))
            sleeping.started.result(WAIT)
            assert facade.kill_job(sleeping.id).result(WAIT).state is JobState.KILLED
            assert facade.stop_context("warm").result(WAIT).state is ContextState.FINISHED
            assert called == []
        finally:
            released.set()
        await asyncio.to_thread(wait_until, lambda: called == [1, 2])

    play(scenario)


async def _asynchronous(_value: object) -> None: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (3, "must be a function, not int"),
        (lambda: 1, "must take one argument: too many positional arguments"),
        (_asynchronous, "must not be declared with async def; "),
    ],
)
def test_what_cannot_be_called_back_is_refused_at_once(play: Play, function: Any, problem: str) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 7")))
        for waiter in (handle, handle.finished):
            with pytest.raises(InvalidRequest, match=f"^the done callback {problem}"):
                waiter.add_done_callback(function)
        with pytest.raises(InvalidRequest, match=f"^the subscriber {problem}"):
            await done(facade.subscribe(function))
        await handle

    play(scenario)


def test_a_handle_becomes_a_future_of_asyncio(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 7")))
        ended, _ = await asyncio.wait({asyncio.ensure_future(handle)}, timeout=WAIT)
        assert [future.result() for future in ended] == [7]

    play(scenario)


def test_a_negative_timeout_is_refused(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 7")))
        for waiter in (handle, handle.finished):
            with pytest.raises(InvalidRequest, match=r"^timeout must be 0 or more, got -1$"):
                await done(waiter.result(-1))
        assert await handle == 7

    play(scenario)


def test_asyncio_cannot_wait_for_the_handle_itself(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 7")))
        with pytest.raises(InvalidRequest, match=r"asyncio\.ensure_future"):
            await asyncio.wait_for(asyncio.wait({handle}), WAIT)
        assert await handle == 7

    play(scenario)


def test_a_streamed_result_is_read_in_chunks_or_as_bytes(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Stream", "n = 6")))
        assert await handle == b"0,1,2,3,4,5,"
        reader = await done(facade.open_result(handle.id))
        assert (reader.kind, reader.size) == (ResultKind.STREAM, 12)
        is_async = hasattr(reader, "__aiter__")
        chunks = [chunk async for chunk in reader] if is_async else list(reader)
        assert b"".join(chunks) == b"0,1,2,3,4,5,"
        await done(reader.close())

    play(scenario)


def test_a_closed_reader_of_a_result_says_that_it_is_closed(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        for job_class, config in (("w.Stream", "n = 6"), ("w.Echo", "value = 1")):
            handle = await done(facade.submit(a_request(job_class, config)))
            await handle
            reader = await done(facade.open_result(handle.id))
            await done(reader.close())
            reads = [reader.value]
            reads.append(reader.__anext__ if hasattr(reader, "__aiter__") else reader.read)
            for read in reads:
                with pytest.raises(Conflict, match="this reader is closed; open the result again"):
                    await done(read())

    play(scenario)


@pytest.mark.parametrize(("job_class", "config"), [("w.Stream", "n = 6"), ("w.Echo", "value = abc")])
def test_a_reader_that_has_read_a_part_has_no_value(play: Play, job_class: str, config: str) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request(job_class, config)))
        whole = await handle
        reader = await done(facade.open_result(handle.id))
        assert await (anext(reader) if hasattr(reader, "__aiter__") else asyncio.to_thread(reader.read, 3))
        with pytest.raises(Conflict, match="a part of this result has been read; open the result again"):
            await done(reader.value())
        await done(reader.close())
        reader = await done(facade.open_result(handle.id))
        assert await done(reader.value()) == whole

    play(scenario)


@blocking
def test_a_reader_of_a_result_reads_as_a_file_does(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = facade.submit(a_request("w.Stream", "n = 6"))
        await handle
        with facade.open_result(handle.id) as reader:
            assert (reader.read(5), reader.read(0), reader.read(-1)) == (b"0,1,2", b"", b",3,4,5,")
            assert (reader.read(-1), reader.read()) == (b"", b"")
            for size in ("5", None, 1.5, True):
                with pytest.raises(InvalidRequest, match="size must be a number of bytes, or -1 for all"):
                    reader.read(size)

    play(scenario)


@pytest.mark.parametrize("call", ["job", "context"])
def test_an_error_about_an_empty_name_shows_that_it_is_empty(play: Play, call: str) -> None:
    async def scenario(facade: Facade) -> None:
        with pytest.raises(NotFound, match=rf"^{call} '' not found"):
            await done(getattr(facade, call)(""))

    play(scenario)


def test_a_client_belongs_to_one_event_loop_and_says_so() -> None:
    """The handles of an embedded server can be awaited in any loop."""
    belongs = "belongs to the event loop in which it was opened"

    def elsewhere(call: Callable[[], Any]) -> None:
        async def awaiting() -> None:
            found = call()
            if inspect.isawaitable(found):
                await asyncio.wait_for(found, WAIT)

        with pytest.raises(Conflict, match=belongs):
            asyncio.run(awaiting())

    async def scenario(facade: Facade) -> None:
        ended = await facade.submit(a_request("w.Stream", "n = 6"))
        await ended
        fresh = await facade.submit(a_request("w.Echo", "value = 1"))
        reader = await facade.open_result(ended.id)
        async with reader:
            for call in (
                ended.result,
                fresh.result,
                ended.finished.result,
                reader.value,
                lambda: facade.open_result(ended.id),
                lambda: facade.submit(a_request("w.Echo")),
                lambda: facade.subscribe(print),
                lambda: anext(facade.logs(ended.id)),
                facade.close,
            ):
                await asyncio.to_thread(elsewhere, call)
            with pytest.raises(Conflict, match=belongs):
                await asyncio.to_thread(fresh.done)
            assert await reader.value() == await ended
        assert await fresh == 1

    with running(a_server(settings=ON_ANY_PORT)) as url:
        with Client(url) as client:
            client.upload("words", BinaryType.EGG, archive())
        asyncio.run(on_async_client(url, scenario))


@pytest.mark.parametrize("transports", [(), (MemoryTransport(),)], ids=["none", "memory"])
def test_a_client_says_how_to_call_a_function_when_a_job_has_ended(transports: tuple[Any, ...]) -> None:
    """Not with ``call:``, by which an embedded server calls a function of its own process."""
    request = a_request("w.Echo", callback_url="call:billing")

    async def submitted(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.submit(request)

    server = a_server(settings=ON_ANY_PORT, transports=transports)
    with running(server) as url, Client(url) as client:
        client.upload("words", BinaryType.EGG, archive())
        for submit in (lambda: client.submit(request), lambda: asyncio.run(submitted(url))):
            with pytest.raises(InvalidCallbackUrl, match=r"; to call a function .*add_done_callback") as no:
                submit()
            assert "transport" not in str(no.value), "which only the server has"
        with pytest.raises(
            InvalidCallbackUrl, match=r"must be one of: [^;]*$|has no transport for callbacks"
        ):
            client.submit(a_request("w.Echo", callback_url="ftp://h/x"))


def test_a_closed_client_has_no_results() -> None:
    async def scenario(url: str) -> None:
        async with AsyncClient(url) as client:
            handle = await client.submit(a_request("w.Echo", "value = 1"))
            await handle
        for read in (handle.result, lambda: client.open_result(handle.id)):
            with pytest.raises(ClientClosed):
                await read()

    with running(a_server(settings=ON_ANY_PORT)) as url:
        with Client(url) as client:
            client.upload("words", BinaryType.EGG, archive())
        asyncio.run(scenario(url))


def test_a_repeated_submit_with_a_key_returns_the_first_job(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        request = a_request("w.Echo", "value = 1", idempotency_key="once")
        first = await done(facade.submit(request))
        assert (await done(facade.submit(request))).id == first.id
        with pytest.raises(IdempotencyMismatch) as caught:
            await done(facade.submit(a_request("w.Echo", "value = 2", idempotency_key="once")))
        assert (caught.value.key, caught.value.job_id) == ("once", first.id)

    play(scenario)


def test_jobs_are_listed_in_pages_and_selected(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        for value in (1, 2, 3):
            await (await done(facade.submit(a_request("w.Echo", f"value = {value}"))))
        failed = await done(facade.submit(a_request("w.Fail")))
        with pytest.raises(JobFailed):
            await failed
        page = await done(facade.jobs(JobQuery(limit=3)))
        assert [job.class_name for job in page.jobs] == ["w.Fail", "w.Echo", "w.Echo"]
        rest = await done(facade.jobs(JobQuery(limit=3, after=page.next)))
        assert (len(rest), list(rest), rest.next) == (1, list(rest.jobs), None)
        of_state = await done(facade.jobs(JobQuery(states=(JobState.ERROR,))))
        assert [job.id for job in of_state.jobs] == [failed.id]
        assert of_state.jobs[0].failure is FailureKind.RAISED
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        assert (await done(facade.jobs(JobQuery(since=later)))).jobs == ()
        assert len((await done(facade.jobs(JobQuery(class_name="w.Echo", until=later)))).jobs) == 3

    play(scenario)


def test_contexts_are_created_listed_and_stopped(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        context = await (await done(facade.create_context("warm", {"num-cpu-cores": 2})))
        assert (context.name, context.state) == ("warm", ContextState.RUNNING)
        assert [one.id for one in await done(facade.contexts())] == [context.id]
        with pytest.raises(ContextExists) as caught:
            await (await done(facade.create_context("warm")))
        assert caught.value == ContextExists(name="warm")
        stopped = await (await done(facade.stop_context("warm")))
        assert (stopped.id, stopped.state.final) == (context.id, True)
        with pytest.raises(ContextNotFound):
            await (await done(facade.stop_context("warm")))
        assert (await done(facade.context("warm"))).state.final
        assert await done(facade.contexts()) == []
        await (await done(facade.create_context("other")))
        killed = await (await done(facade.kill_context("other")))
        assert killed.state.final

    play(scenario)


def test_ended_contexts_are_listed_newest_first_up_to_a_limit(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        assert await done(facade.ended_contexts()) == []
        ids = []
        for name in ("warm", "other", "warm"):
            ids.append((await (await done(facade.create_context(name)))).id)
            await (await done(facade.stop_context(name)))
        await (await done(facade.create_context("living")))
        ended = await done(facade.ended_contexts())
        assert [(one.id, one.state) for one in ended] == [(one, ContextState.FINISHED) for one in ids[::-1]]
        assert [one.id for one in await done(facade.ended_contexts(2))] == ids[:0:-1]

    play(scenario)


def test_a_context_that_was_started_again_leads_to_the_one_before_it(play: Play) -> None:
    launcher = ScriptedLauncher(at_start=lambda told: told.context_ready(application_id=None, url=None))

    async def scenario(facade: Facade) -> None:
        settings = {"supervise": True, "restart-backoff": "1 ms"}
        first = await (await done(facade.create_context("fleet", settings)))
        assert await done(facade.context_before(first)) is None
        launcher.listeners[0].context_ended(ContextEnd.FAILED, ErrorInfo(message="killed by signal 9"))
        await asyncio.to_thread(wait_until, lambda: len(launcher.listeners) == 2)
        second = await done(facade.context("fleet"))
        before = await done(facade.context_before(second))
        launcher.listeners[1].context_ended(ContextEnd.STOPPED)
        assert (second.restarts, before.id, before.state) == (1, first.id, ContextState.ERROR)
        assert before.error.message == "killed by signal 9"

    play(scenario, launcher=launcher)


def test_a_context_that_cannot_start_raises_its_error(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        with pytest.raises(ContextFailed, match="no memory") as caught:
            await (await done(facade.create_context("bad", {"inline": {"fail": "no memory"}})))
        assert caught.value.name == "bad"

    play(scenario)


def test_a_context_that_somebody_else_starts_can_be_waited_for(play: Play) -> None:
    launcher = ScriptedLauncher()

    async def scenario(facade: Facade) -> None:
        creating = await done(facade.create_context("warm"))
        await asyncio.to_thread(wait_until, lambda: len(launcher.listeners) == 1)
        waiter = await done(facade.context_waiter("warm"))
        with pytest.raises(ResultTimeout, match=r"^context warm not done after 0\.05 s$"):
            await done(waiter.result(0.05))
        launcher.listeners[0].context_ready(application_id="app-1", url=None)
        context = await done(waiter.result(WAIT))
        assert (context.name, context.state) == ("warm", ContextState.RUNNING)
        assert (await (await done(facade.context_waiter("warm")))).id == context.id, "it is ready"
        assert (await creating).id == context.id
        stopping = await done(facade.stop_context("warm"))
        await asyncio.to_thread(wait_until, lambda: launcher.handles[0].calls)
        with pytest.raises(ContextStopping) as refused:
            await done(facade.context_waiter("warm"))
        assert refused.value == ContextStopping(name="warm")
        launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        await stopping
        with pytest.raises(ContextNotFound) as missing:
            await done(facade.context_waiter("warm"))
        assert missing.value == ContextNotFound(name="warm")

    play(scenario, launcher=launcher)


def test_a_wait_for_a_context_that_fails_raises_its_error(play: Play) -> None:
    launcher = ScriptedLauncher()

    async def scenario(facade: Facade) -> None:
        creating = await done(facade.create_context("warm"))
        await asyncio.to_thread(wait_until, lambda: len(launcher.listeners) == 1)
        waiter = await done(facade.context_waiter("warm"))
        assert not waiter.done()
        launcher.listeners[0].context_ended(ContextEnd.FAILED, ErrorInfo(message="no memory"))
        for one in (waiter, creating):
            with pytest.raises(ContextFailed) as caught:
                await done(one.result(WAIT))
            assert (caught.value.name, caught.value.error.message) == ("warm", "no memory")
        for refused in (facade.context_waiter, facade.stop_context):
            with pytest.raises(
                ContextNotFound, match=r"^context warm not found: it failed at .*: no memory$"
            ):
                await done(refused("warm"))

    play(scenario, launcher=launcher)


def test_binaries_are_uploaded_listed_and_deleted(play: Play, tmp_path: Path) -> None:
    async def scenario(facade: Facade) -> None:
        first = await done(facade.upload("code", BinaryType.WHEEL, packaged("1.2.0")))
        file = tmp_path / "code.egg"
        file.write_bytes(archive("x = 2"))
        with file.open("rb") as data:
            second = await done(facade.upload("code", BinaryType.EGG, data))
        assert (second.name, second.type, second.size) == ("code", BinaryType.EGG, file.stat().st_size)
        assert await done(facade.binary_versions("code")) == [second, first]
        assert (first.package, second.package) == ("words 1.2.0", None)
        assert (await done(facade.binary("code"))).digest == second.digest
        assert [one.name for one in await done(facade.binaries())] == ["code", "words"]
        removed = await done(facade.delete_binary("code"))
        assert {one.id for one in removed} == {first.id, second.id}
        with pytest.raises(BinaryNotFound):
            await done(facade.binary("code"))

    play(scenario)


def test_a_binary_of_a_running_job_is_not_deleted(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Sleep")))
        with pytest.raises(BinaryInUse) as caught:
            await done(facade.delete_binary("words"))
        assert caught.value == BinaryInUse(name="words", job_ids=(handle.id,))
        await (await done(facade.kill_job(handle.id)))

    play(scenario)


def test_data_files_are_added_listed_and_deleted(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        for data in (b"abc", io.BytesIO(b"abc")):
            file = await done(facade.add_data_file("birds", data))
            assert (file.path.read_bytes(), file.size) == (b"abc", 3)
            listed = await done(facade.data_files())
            assert [str(getattr(one, "path", one)) for one in listed] == [str(file.path)]
            await done(facade.delete_data_file(str(file.path)))
        with pytest.raises(DataFileNotFound):
            await done(facade.delete_data_file("nothing"))
        named = [("birds.csv.gz", None), ("birds", ".csv.gz"), ("birds", None)]
        files = [await done(facade.add_data_file(name, b"abc", ending=ending)) for name, ending in named]
        assert [file.path.name.startswith("birds-") for file in files] == [True, True, True]
        assert ["".join(file.path.suffixes[-2:]) for file in files[:2]] == [".csv.gz", ".csv.gz"]
        assert files[2].path.suffix == ".dat"
        with pytest.raises(InvalidName, match="one or two extensions"):
            await done(facade.add_data_file("birds", b"abc", ending=""))
        await done(facade.reset_data_files())
        assert await done(facade.data_files()) == []

    play(scenario)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda facade: facade.job("none"), JobNotFound),
        (lambda facade: facade.job_handle("none"), JobNotFound),
        (lambda facade: facade.job_config("none"), JobNotFound),
        (lambda facade: facade.open_result("none"), JobNotFound),
        (lambda facade: facade.deliveries("none"), JobNotFound),
        (lambda facade: facade.kill_job("none"), JobNotFound),
        (lambda facade: facade.context("none"), ContextNotFound),
        (lambda facade: facade.context_waiter("none"), ContextNotFound),
        (lambda facade: facade.binary_versions("none"), BinaryNotFound),
        (lambda facade: facade.upload("code", BinaryType.EGG, b"PK no"), NotAnArchive),
        (lambda facade: facade.submit(a_request("w.Echo", "a = {")), InvalidConfig),
        (lambda facade: facade.submit(a_request("w.Echo", context="none")), ContextNotFound),
        (lambda facade: facade.jobs(JobQuery(after="x")), InvalidRequest),
    ],
)
def test_errors_are_the_same_exceptions(play: Play, act: Callable[[Facade], Any], kind: type) -> None:
    async def scenario(facade: Facade) -> None:
        with pytest.raises(kind) as caught:
            await done(act(facade))
        assert type(caught.value) is kind

    play(scenario)


CONTENT = (
    'the content of an upload must be bytes, a file opened with open(path, "rb"), or an iterable of bytes'
)
MAPPING = 'must be a mapping of context settings, such as {"memory-per-node": "2g"}'
JSON_ONLY = "a job's configuration must hold only JSON values:"
NO_JSON = "cannot be represented in JSON"
HANDLE = "a job's ID must be a string (handle.id or job.id), not Named"
SECONDS = "must be a number of seconds, such as 30 or 0.5, got"


class Named:
    """What has an ID, as handles and jobs do."""

    id = "x"


BY_JOB_ID: list[Callable[[Any], Any]] = [
    lambda facade: facade.job(Named()),
    lambda facade: facade.job_handle(Named()),
    lambda facade: facade.job_config(Named()),
    lambda facade: facade.open_result(Named()),
    lambda facade: facade.deliveries(Named()),
    lambda facade: facade.kill_job(Named()),
]
"""Calls that take a job's ID, with something else."""
BY_NAME: list[tuple[str, Callable[[Any], Any]]] = [
    ("a context's name", lambda facade: facade.context(None)),
    ("a context's name", lambda facade: facade.context_waiter(None)),
    ("a context's name", lambda facade: facade.stop_context(None)),
    ("a context's name", lambda facade: facade.kill_context(None)),
    ("a binary's name", lambda facade: facade.binary(None)),
    ("a binary's name", lambda facade: facade.binary_versions(None)),
    ("a binary's name", lambda facade: facade.delete_binary(None)),
]
"""Calls that take a name, without one. Stores may take None for any name."""


@pytest.mark.parametrize(
    ("slip", "kind", "message"),
    [
        (
            lambda facade: facade.upload("x", "pip", archive()),
            InvalidRequest,
            "unknown type of binary 'pip'; expected one of Jar, Egg, Wheel",
        ),
        (lambda facade: facade.upload("x", "egg", "x.egg"), InvalidRequest, f"{CONTENT}, not str"),
        (lambda facade: facade.upload("x", "egg", [1]), InvalidRequest, f"{CONTENT}, not an iterable of int"),
        (
            lambda facade: facade.add_data_file("x", io.StringIO("a")),
            InvalidRequest,
            f"{CONTENT}, not a file in text mode",
        ),
        (
            lambda facade: facade.upload(5, "egg", archive()),
            InvalidName,
            "binary name '5' is not allowed: it must be a string, not int",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", [1])),
            InvalidConfig,
            "a job's configuration must be HOCON text or a mapping, not list",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", {"value": {1}})),
            InvalidConfig,
            f"{JSON_ONLY} key 'value': a value of type set {NO_JSON}; use a list, such as sorted(value)",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", {"input": {"paths": ["a", Path("b")]}})),
            InvalidConfig,
            f"{JSON_ONLY} key 'input.paths[1]': a value of type PosixPath {NO_JSON}; use str(path)",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", max_run_time="30 s")),
            InvalidRequest,
            f"max_run_time {SECONDS} '30 s'",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", max_run_time=10**400)),
            InvalidRequest,
            f"max_run_time {SECONDS} one that is too large",
        ),
        (
            lambda facade: facade.submit(a_request("w.Echo", context_settings=["a"])),
            InvalidRequest,
            f"context_settings {MAPPING}, not list",
        ),
        (
            lambda facade: facade.submit(JobRequest(class_name="w.Echo", class_path=5)),  # type: ignore[arg-type]
            InvalidRequest,
            "a class path must be a list of names of binaries and URIs, or one comma-separated string",
        ),
        (
            lambda facade: facade.submit({"a": 1}),
            InvalidRequest,
            "the request must be a JobRequest, not dict",
        ),
        (
            lambda facade: facade.jobs(JobQuery(states=["RUNING"])),  # type: ignore[list-item]
            InvalidRequest,
            "unknown job state 'RUNING'; expected one of "
            "STARTED, RUNNING, RESTARTING, FINISHED, ERROR, KILLED",
        ),
        (
            lambda facade: facade.jobs(JobQuery(since="1h")),  # type: ignore[arg-type]
            InvalidRequest,
            "since must be a datetime with a time zone, got '1h'",
        ),
        (lambda facade: facade.jobs("RUNNING"), InvalidRequest, "the query must be a JobQuery, not str"),
        (
            lambda facade: facade.create_context("c", "a = 1"),
            InvalidRequest,
            f"settings {MAPPING}, not str",
        ),
        (
            lambda facade: facade.create_context("c", {"a": object()}),
            InvalidSetting,
            "setting 'spark.context-settings.a': must hold only JSON values: a value of type object "
            f"{NO_JSON}; use a string, a number, a boolean, None, a list or a mapping",
        ),
        (lambda facade: facade.job(None), InvalidRequest, "a job's ID must be a string, not NoneType"),
        *((call, InvalidRequest, HANDLE) for call in BY_JOB_ID),
        *((call, InvalidRequest, f"{what} must be a string, not NoneType") for what, call in BY_NAME),
        (
            lambda facade: facade.context(a_context()),
            InvalidRequest,
            "a context's name must be a string (context.name), not Context",
        ),
        (
            lambda facade: facade.delete_data_file(None),
            InvalidRequest,
            "a data file's name must be a string or a path, not NoneType",
        ),
        (
            lambda facade: facade.context_before("warm"),
            InvalidRequest,
            "the context must be a Context, not str",
        ),
        (lambda facade: facade.ended_contexts("5"), InvalidRequest, "limit must be an integer, not str"),
        (lambda facade: facade.ended_contexts(0), InvalidRequest, "limit must be 1 to 10000, got 0"),
    ],
)
def test_a_slip_in_a_type_is_the_same_error_everywhere(
    play: Play, slip: Callable[[Facade], Any], kind: type, message: str
) -> None:
    async def scenario(facade: Facade) -> None:
        with pytest.raises(kind) as caught:
            await done(slip(facade))
        assert type(caught.value) is kind
        assert str(caught.value).startswith(message)

    play(scenario)


def test_a_timeout_that_is_no_number_is_refused(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        handle = await done(facade.submit(a_request("w.Echo", "value = 1")))
        with pytest.raises(InvalidRequest, match=f"timeout {SECONDS} '5'"):
            await done(handle.result("5"))

    play(scenario)


def test_what_has_only_one_meaning_is_accepted(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        data = archive()
        for content in (bytearray(data), iter([data[:20], b"", data[20:]]), io.BytesIO(data)):
            assert (await done(facade.upload("more", "egg", content))).size == len(data)
        handle = await done(facade.submit(a_request("w.Echo", "value = 1")))
        assert await handle == 1
        for states in ("finished", JobState.FINISHED, ["FINISHED"], (JobState.FINISHED,)):
            page = await done(facade.jobs(JobQuery(states=states)))
            assert [job.id for job in page.jobs] == [handle.id]
        file = await done(facade.add_data_file("x", b"1"))
        await done(facade.delete_data_file(file.path))

    play(scenario)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "none/config"])
def test_names_that_a_path_cannot_contain_are_names_of_nothing(play: Play, name: str) -> None:
    async def scenario(facade: Facade) -> None:
        for look, kind in (
            (facade.job, JobNotFound),
            (facade.job_config, JobNotFound),
            (facade.kill_job, JobNotFound),
            (facade.context, ContextNotFound),
            (facade.stop_context, ContextNotFound),
            (facade.binary_versions, BinaryNotFound),
            (facade.delete_binary, BinaryNotFound),
        ):
            with pytest.raises(kind):
                await done(look(name))
        with pytest.raises(InvalidName):
            await done((await done(facade.create_context(name))).result(WAIT))
        with pytest.raises(InvalidName):
            await done(facade.upload(name, BinaryType.EGG, archive()))
        with pytest.raises(InvalidName):
            await done(facade.add_data_file(name, b"x"))

    play(scenario)


def test_errors_of_a_start_name_the_cause(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        with pytest.raises(InvalidFirstLetter) as caught:
            await (await done(facade.create_context("1st")))
        assert caught.value.name == "1st"
        with pytest.raises(MalformedUrl):
            await (await done(facade.create_context("warm", {"dependent-jar-uris": ["gopher://x/y.jar"]})))

    play(scenario)


def test_storage_is_reported_and_pruned(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        kinds = {usage.kind: usage for usage in await done(facade.storage())}
        assert kinds["binaries"].count == 1
        assert all(isinstance(count, int) for count in (await done(facade.prune())).values())

    play(scenario)


def test_the_servers_are_listed(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        [server] = await done(facade.servers())
        assert (server.state, server.contexts) == ("alive", 0)
        assert server.version == importlib.metadata.version("jobserver-core")

    play(scenario)


METHODS = """
    upload binaries binary binary_versions delete_binary
    create_context context_waiter contexts ended_contexts context context_before
    stop_context kill_context reset_contexts
    submit jobs job job_handle job_config open_result deliveries kill_job
    add_data_file data_files delete_data_file reset_data_files
    subscribe storage prune servers close
"""


@pytest.mark.parametrize("facade", [JobServer, Client, AsyncClient])
def test_every_facade_has_the_methods_for_those_who_use_a_server(facade: type) -> None:
    assert set(METHODS.split()) <= set(dir(facade))


DIFFERENCES = {"stop_context", "kill_context", "kill_job", "reset_contexts", "data_files", "close"}
"""The methods whose signatures differ; the guide to the client lists how."""


@pytest.mark.parametrize("method", sorted(set(METHODS.split()) - DIFFERENCES))
def test_a_function_for_both_can_be_checked_by_type(method: str) -> None:
    embedded = inspect.signature(getattr(JobServer, method))
    assert inspect.signature(getattr(Client, method)) == embedded


def test_events_reach_subscribers_from_the_moment_they_subscribe(play: Play) -> None:
    async def scenario(facade: Facade) -> None:
        seen: list[Any] = []
        subscription = await done(facade.subscribe(seen.append))
        handle = await done(facade.submit(a_request("w.Echo", "value = 1")))

        def ended() -> bool:
            return any(isinstance(e, JobChanged) and e.job.state is JobState.FINISHED for e in seen)

        await asyncio.to_thread(wait_until, ended, lambda: seen)
        assert any(isinstance(e, ContextChanged) for e in seen)
        assert {e.job.id for e in seen if isinstance(e, JobChanged)} == {handle.id}
        subscription.close()

    play(scenario)
