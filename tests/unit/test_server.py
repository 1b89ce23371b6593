"""Jobs on a server in memory, and the life of that server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from conditions import wait_until
from jobserver_core import (
    BinaryType,
    Context,
    ContextChanged,
    ContextQuery,
    ContextState,
    FailureKind,
    JobChanged,
    JobHandle,
    JobProgressed,
    JobQuery,
    JobRequest,
    JobServer,
    JobState,
    Settings,
    errors,
    parse_class_path,
)
from jobserver_core.memory import (
    InlineJob,
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
)
from serving import WAIT, a_request, a_server, archive, upload


@pytest.fixture
def server() -> Iterator[JobServer]:
    with a_server() as server:
        upload(server)
        yield server


def running(server: JobServer, class_name: str = "w.Sleep", **rest: Any) -> JobHandle:
    job = server.submit(a_request(class_name, **rest))
    wait_until(lambda: server.job(job.id).state is JobState.RUNNING)
    return job


# -- jobs ------------------------------------------------------------------------------------------


def test_the_sample_of_the_old_documentation_counts_words(server: JobServer) -> None:
    job = server.submit(a_request("w.Count", "input.string = a b c a b see"))
    assert job.result(WAIT) == {"a": 2, "b": 2, "c": 1, "see": 1}
    record = server.job(job.id)
    assert record.state is JobState.FINISHED
    assert record.context_name.endswith("-w.Count")
    assert len(record.context_name.split("-")[0]) == 8
    assert json.loads(server.job_config(job.id)) == {"input": {"string": "a b c a b see"}}
    assert record.seconds is not None


def test_an_ad_hoc_context_ends_with_its_job(server: JobServer) -> None:
    job = server.submit(a_request("w.Echo"))
    job.result(WAIT)
    wait_until(lambda: server.context(job.job.context_name).state is ContextState.FINISHED)
    assert server.contexts() == []


def test_a_result_can_be_null_large_or_streamed(server: JobServer) -> None:
    assert server.submit(a_request("w.Echo")).result(WAIT) is None
    large = "x" * 200_000
    job = server.submit(a_request("w.Echo", {"value": large}))
    assert job.result(WAIT) == large
    streamed = server.submit(a_request("w.Stream", {"n": 5}))
    assert streamed.result(WAIT) == b"0,1,2,3,4,"
    reader = server.open_result(streamed.id)
    assert reader is not None
    with reader:
        assert reader.read(3) == b"0,1"


def test_a_result_over_the_limit_fails_the_job_with_a_clear_message() -> None:
    settings = Settings.from_mapping({"jobserver": {"jobs": {"max-result-size": "100 B"}}})
    with a_server(settings=settings) as server:
        upload(server)
        job = server.submit(a_request("w.Stream", {"n": 1000}))
        with pytest.raises(errors.JobFailed, match="limit of 100 bytes") as caught:
            job.result(WAIT)
        assert caught.value.failure is FailureKind.RESULT


def test_a_job_that_raises_ends_in_error_with_its_exception(server: JobServer) -> None:
    job = server.submit(a_request("w.Fail", "message = out of words"))
    with pytest.raises(errors.JobFailed, match="out of words"):
        job.result(WAIT)
    record = server.job(job.id)
    assert record.failure is FailureKind.RAISED
    assert record.error is not None
    assert record.error.error_class == "ValueError"
    assert "Traceback" in record.error.stack


def test_a_job_that_refuses_its_configuration_never_runs(server: JobServer) -> None:
    job = server.submit(a_request("w.Refuse"))
    record = job.started.result(WAIT)
    assert record.failure is FailureKind.VALIDATION
    assert record.running_at is None


@pytest.mark.parametrize(
    ("class_name", "message"), [("w.Count", "'input'"), ("w.Refuse", "input.string is missing")]
)
def test_a_missing_value_whose_key_has_a_dot_comes_with_the_way_to_nest_it(
    server: JobServer, class_name: str, message: str
) -> None:
    def error_with(config: str) -> str:
        record = server.submit(a_request(class_name, config)).finished.result(WAIT)
        assert record.error is not None
        return record.error.message

    hint = (
        """the configuration has a key named 'input.string' with a dot; nest it: {"input": {"string": …}}"""
    )
    assert error_with('{"input.string": "a b"}') == f"{message}; {hint}"
    assert error_with('{"other.key": "a b"}') == message


def test_a_class_that_is_not_there_is_the_jobs_failure(server: JobServer) -> None:
    record = server.submit(a_request("w.Nothing")).finished.result(WAIT)
    assert record.failure is FailureKind.CLASS_NOT_FOUND


def test_a_job_can_be_awaited(server: JobServer) -> None:
    async def main() -> Any:
        return await server.submit(a_request("w.Count", "input.string = b"))

    assert asyncio.run(main()) == {"b": 1}


def test_two_hundred_waiters_cost_no_threads(server: JobServer) -> None:
    job = running(server)
    before = threading.active_count()

    async def main() -> list[JobState]:
        tasks = [asyncio.ensure_future(_state(job)) for _ in range(200)]
        await asyncio.sleep(0.01)
        assert threading.active_count() <= before + 1
        server.kill_job(job.id)
        return await asyncio.gather(*tasks)

    assert set(asyncio.run(main())) == {JobState.KILLED}


async def _state(job: JobHandle) -> JobState:
    return (await job.finished).state


def test_a_done_callback_gets_the_handle(server: JobServer) -> None:
    seen: list[Any] = []
    job = server.submit(a_request("w.Echo", {"value": 3}))
    job.add_done_callback(lambda handle: seen.append(handle.result()))
    wait_until(lambda: seen == [3])


def test_a_handle_can_be_obtained_again_before_and_after_the_job_ends(server: JobServer) -> None:
    job = running(server)
    again = server.job_handle(job.id)
    with pytest.raises(errors.ResultTimeout):
        again.result(0.01)
    server.kill_job(job.id)
    with pytest.raises(errors.JobKilled, match=f"job {job.id} was killed"):
        again.result(WAIT)
    with pytest.raises(errors.JobKilled):
        server.job_handle(job.id).result(0)
    with pytest.raises(errors.JobNotFound):
        server.job_handle("nobody")


@pytest.mark.parametrize(
    ("user", "by", "killed"), [("ann", "by user ann", "killed by user ann"), ("", "on request", "killed")]
)
def test_the_log_and_the_error_say_who_killed_a_job(
    server: JobServer, caplog: pytest.LogCaptureFixture, user: str, by: str, killed: str
) -> None:
    job = server.submit(a_request("w.Sleep"))
    with caplog.at_level("INFO", "jobserver_core.running.jobs"):
        record = server.kill_job(job.id, user=user).result(WAIT)
    assert f"job {job.id} is killed {by}" in caplog.messages
    assert record.error is not None
    assert record.error.message == f"Job {job.id} killed", "as in the HTTP contract"
    assert f"killed {record.error.stack}".strip() == killed
    with pytest.raises(errors.JobKilled, match=f"^job {job.id} was {killed}$"):
        job.result(WAIT)


def test_a_killed_job_is_killed_once(server: JobServer) -> None:
    job = running(server)
    assert server.kill_job(job.id).result(WAIT).state is JobState.KILLED
    with pytest.raises(errors.JobAlreadyFinal) as caught:
        server.kill_job(job.id)
    assert caught.value.state is JobState.KILLED
    with pytest.raises(errors.JobNotFound):
        server.kill_job("nobody")


def test_killing_with_force_ends_the_context_of_a_job_that_does_not_end() -> None:
    settings = Settings.from_mapping({"jobserver": {"jobs": {"kill-timeout": "50 ms"}}})
    stop = threading.Event()

    def deaf(_job: InlineJob) -> None:
        stop.wait(WAIT)

    launcher = InlineLauncher({"w.Deaf": deaf}, kill_grace=0.05)
    with a_server(settings=settings, launcher=launcher) as server:
        upload(server)
        job = running(server, "w.Deaf")
        try:
            assert server.kill_job(job.id, force=True).result(WAIT).state is JobState.KILLED
            wait_until(lambda: server.context(job.job.context_name).state is ContextState.KILLED)
        finally:
            stop.set()


def test_progress_is_reported_and_recorded(server: JobServer) -> None:
    seen: list[JobProgressed] = []
    with server.subscribe(lambda event: seen.append(event) if isinstance(event, JobProgressed) else None):
        job = server.submit(a_request("w.Progress"))
        job.result(WAIT)
    assert [event.job.progress.tasks_done for event in seen if event.job.progress] == [1]
    progress = server.job(job.id).progress
    assert progress is not None
    assert progress.tasks_total == 4


def test_events_come_in_the_order_of_the_states(server: JobServer) -> None:
    seen: list[tuple[str, bool]] = []
    done = threading.Event()

    def watch(event: object) -> None:
        if isinstance(event, JobChanged):
            seen.append((event.job.state.value, event.job.waiting))
            if event.job.state.final:
                done.set()

    with server.subscribe(watch):
        server.submit(a_request("w.Echo"))
        assert done.wait(WAIT)
    assert seen == [("STARTED", True), ("STARTED", False), ("RUNNING", False), ("FINISHED", False)]


def test_a_job_whose_exception_has_no_readable_message_fails() -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise OSError("the connection to the JVM is closed")

    def broken(_job: InlineJob) -> None:
        raise UnreadableError

    with a_server(launcher=InlineLauncher({"w.Broken": broken})) as server:
        upload(server)
        with pytest.raises(errors.JobFailed) as failed:
            server.submit(a_request("w.Broken")).result(WAIT)
    assert failed.value.failure is FailureKind.RAISED
    assert failed.value.error.message == "(its message cannot be read: OSError)"
    assert failed.value.error.error_class.endswith("UnreadableError")


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_subscriber_that_fails_disturbs_no_job(
    server: JobServer, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_event: object) -> None:
        raise error

    with server.subscribe(fail):
        job = server.submit(a_request("w.Echo", '{"value": 7}'))
        assert job.result(WAIT) == 7
    text = f"an event subscriber raised {error.__name__} at ContextChanged of "
    (record,) = [record for record in caplog.records if record.getMessage().startswith(text)]
    assert record.levelname == "ERROR"
    assert "in fail" in caplog.text


def test_a_context_that_is_stopped_while_it_is_recorded_publishes_its_states_in_order() -> None:
    stopped = threading.Event()

    def stop() -> None:
        server.stop_context("early").result(WAIT)
        stopped.set()

    class Stopping(MemoryMetadataStore):
        def add_context(self, context: Context) -> None:
            super().add_context(context)
            stopper.start()
            stopped.wait(0.1)  # it cannot be, and would be at once if it could

    seen: list[ContextState] = []
    stopper = threading.Thread(target=stop)
    with (
        a_server(metadata=Stopping()) as server,
        server.subscribe(
            lambda event: seen.append(event.context.state) if isinstance(event, ContextChanged) else None
        ),
    ):
        server.create_context("early")
        assert stopped.wait(WAIT)
        stopper.join()
    assert seen[0] is ContextState.STARTED
    assert seen[-2:] == [ContextState.STOPPING, ContextState.FINISHED]


def test_the_output_of_a_job_can_be_read_while_it_runs(server: JobServer) -> None:
    job = running(server)
    with server.open_job_log(job.id) as log:
        wait_until(lambda: b"sleeping" in log.read())
    assert "sleeping" in server.job_log(job.id).read_text()
    with pytest.raises(errors.JobNotFound):
        server.job_log("nobody")


@pytest.mark.parametrize(
    ("config", "error"),
    [("a = {", errors.InvalidConfig), ('include file("/etc/passwd")', errors.InvalidConfig)],
)
def test_a_configuration_that_cannot_be_parsed_records_nothing(
    server: JobServer, config: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        server.submit(a_request("w.Echo", config))
    assert server.jobs().jobs == ()


def test_json_that_a_user_sent_is_recorded_as_it_was_written(server: JobServer) -> None:
    text = '{ "value": {"name": "\\u00e9 é"},  "rate": 1.10, "list": [1e3, -0] }'
    for config in (text, server.parse_config(text)):
        job = server.submit(a_request("w.Echo", config=config))
        assert server.job_config(job.id) == text
        assert job.result(WAIT) == {"name": "é é"}


def test_json_with_a_repeated_key_is_recorded_as_hocon_means_it(server: JobServer) -> None:
    job = server.submit(a_request("w.Echo", config='{"a": {"b": 1}, "a": {"c": 2}}'))
    assert json.loads(server.job_config(job.id)) == {"a": {"b": 1, "c": 2}}


def test_a_small_result_is_known_without_the_store(server: JobServer) -> None:
    job = server.submit(a_request("w.Echo", config={"value": {"a": 1}}))
    job.finished.result(WAIT)
    assert job.inline_result is not None
    assert json.loads(job.inline_result) == {"a": 1} == job.result(0)


def test_a_streamed_result_is_not_kept_in_memory(server: JobServer) -> None:
    job = server.submit(a_request("w.Stream", config={"n": 3}))
    job.finished.result(WAIT)
    assert job.inline_result is None
    assert job.result(0) == b"0,1,2,"


def test_the_timeout_of_a_close_must_be_a_number_of_seconds(server: JobServer) -> None:
    for timeout in ("30 s", float("nan"), 10**400):
        with pytest.raises(errors.InvalidRequest, match="timeout must be a number of seconds"):
            server.close(timeout)  # type: ignore[arg-type]
    server.submit(a_request("w.Echo")).result(WAIT)
    server.close(float("inf"))


def test_a_config_of_values_that_are_not_json_is_refused(server: JobServer) -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(errors.InvalidConfig, match="only JSON values"):
            server.submit(a_request("w.Echo", {"value": value}))


def test_several_packages_of_a_job_are_refused_with_the_places_for_the_others(server: JobServer) -> None:
    request = JobRequest(class_name="w.Echo", class_path=parse_class_path("words,words"))
    with pytest.raises(
        errors.InvalidRequest, match=r"got 2; put the others into packages of the job or cp of"
    ):
        server.submit(request)


def test_a_python_job_imports_from_further_packages_which_are_in_its_record() -> None:
    fetcher = MemoryFetcher({"http://h/rates.whl": archive()})
    with a_server(fetcher=fetcher) as server:
        for name in ("words", "taxes"):
            server.upload(name, BinaryType.EGG, archive())
        request = JobRequest(class_name="w.Sources", class_path="words", packages="taxes, http://h/rates.whl")
        job = server.submit(request)
        assert job.result(WAIT) == ["words", "taxes", "http://h/rates.whl"]
        assert [entry.source for entry in server.job(job.id).class_path] == job.result(WAIT)


def test_packages_are_part_of_what_an_idempotency_key_stands_for(server: JobServer) -> None:
    server.upload("taxes", BinaryType.EGG, archive())
    request = JobRequest(class_name="w.Echo", class_path="words", idempotency_key="k", packages="taxes")
    job = server.submit(request)
    assert server.submit(request).id == job.id
    with pytest.raises(errors.IdempotencyMismatch):
        server.submit(attrs.evolve(request, packages=""))


@pytest.mark.parametrize(
    ("class_path", "packages", "message"),
    [
        ("words", "words,tools", "takes wheels, eggs and ZIP files, but tools is a jar; put it into cp of"),
        ("tools", "words", "packages are for Python jobs; a JVM job has all its jars in cp"),
    ],
)
def test_packages_that_a_job_cannot_import_from_are_refused(
    server: JobServer, class_path: str, packages: str, message: str
) -> None:
    server.upload("tools", BinaryType.JAR, archive())
    with pytest.raises(errors.InvalidRequest, match=message):
        server.submit(JobRequest(class_name="w.Echo", class_path=class_path, packages=packages))
    assert server.jobs().jobs == ()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"class_path": parse_class_path("nothing")}, errors.BinaryNotFound),
        ({"class_path": parse_class_path("words,words")}, errors.InvalidRequest),
        ({"class_path": parse_class_path("gopher://h/x.jar")}, errors.MalformedUrl),
        ({"packages": parse_class_path("nothing")}, errors.BinaryNotFound),
        ({"packages": parse_class_path("gopher://h/x.whl")}, errors.MalformedUrl),
        ({"class_path": parse_class_path("http://h/missing.jar")}, errors.FetchError),
        ({"context": "nowhere"}, errors.ContextNotFound),
        ({"context": ""}, errors.InvalidRequest),
        ({"callback_url": "gopher://h/x"}, errors.InvalidCallbackUrl),
    ],
)
def test_an_invalid_submit_records_nothing(
    server: JobServer, change: dict[str, Any], error: type[Exception]
) -> None:
    values = {"class_name": "w.Echo", "class_path": parse_class_path("words")}
    with pytest.raises(error):
        server.submit(JobRequest(**{**values, **change}))
    assert server.jobs().jobs == ()
    assert server.contexts(ContextQuery()) == []


def test_a_job_can_come_from_a_uri() -> None:
    fetcher = MemoryFetcher({"http://h/words.egg": archive(), "http://h/bad.egg": b"nonsense"})
    with a_server(fetcher=fetcher) as server:
        request = JobRequest(class_name="w.Echo", class_path=parse_class_path("http://h/words.egg"))
        job = server.submit(request)
        job.result(WAIT)
        (entry,) = server.job(job.id).class_path
        assert (entry.source, entry.type, entry.binary_id) == ("http://h/words.egg", BinaryType.EGG, None)
        with pytest.raises(errors.NotAnArchive):
            server.submit(JobRequest(class_name="w.Echo", class_path=parse_class_path("http://h/bad.egg")))


def test_the_same_idempotency_key_is_the_same_job(server: JobServer) -> None:
    first = server.submit(a_request("w.Echo", {"value": 1}, idempotency_key="k"))
    again = server.submit(a_request("w.Echo", {"value": 1}, idempotency_key="k"))
    assert again.id == first.id
    with pytest.raises(errors.IdempotencyMismatch, match=first.id):
        server.submit(a_request("w.Echo", {"value": 2}, idempotency_key="k"))
    first.result(WAIT)
    assert server.submit(a_request("w.Echo", {"value": 1}, idempotency_key="k")).result(WAIT) == 1
    assert len(server.jobs().jobs) == 1


@pytest.mark.parametrize(
    ("ann", "bob"),
    [
        ({"submitted_by": "ann"}, {"submitted_by": "bob"}),
        ({"submitted_by": "ann"}, {}),
        ({"context_owner": "ann"}, {"context_owner": "bob"}),
        ({"context": "etl", "submitted_by": "ann"}, {"context": "etl", "submitted_by": "bob"}),
    ],
)
def test_the_idempotency_key_of_another_user_is_refused_and_tells_nothing_about_the_job(
    server: JobServer, ann: dict[str, str], bob: dict[str, str]
) -> None:
    server.create_context("etl").result(WAIT)
    first = server.submit(a_request("w.Echo", idempotency_key="k", **ann))
    for class_name in ("w.Echo", "w.Other"):
        with pytest.raises(errors.IdempotencyMismatch) as caught:
            server.submit(a_request(class_name, idempotency_key="k", **bob))
        assert caught.value.job_id is None
        assert first.id not in str(caught.value)
    assert server.submit(a_request("w.Echo", idempotency_key="k", **ann)).id == first.id


def test_one_key_submitted_by_many_at_once_is_one_job(server: JobServer) -> None:
    ids: list[str] = []
    barrier = threading.Barrier(8)

    def submit() -> None:
        barrier.wait()
        ids.append(server.submit(a_request("w.Echo", idempotency_key="k")).id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert len(server.jobs().jobs) == 1
    wait_until(lambda: server.contexts() == [])


def test_jobs_are_listed_newest_first_page_by_page(server: JobServer) -> None:
    ids = []
    for _ in range(5):
        job = server.submit(a_request("w.Echo"))
        job.result(WAIT)
        ids.append(job.id)
    page = server.jobs(JobQuery(limit=3))
    rest = server.jobs(JobQuery(limit=3, after=page.next))
    assert [job.id for job in (*page.jobs, *rest.jobs)] == ids[::-1]
    assert rest.next is None


def test_the_configuration_for_all_jobs_is_overridden_by_that_of_a_job() -> None:
    settings = Settings.from_mapping({"jobserver": {"jobs": {"default-config": {"value": {"a": 1, "b": 1}}}}})
    with a_server(settings=settings) as server:
        upload(server)
        job = server.submit(a_request("w.Echo", "value.b = 2"))
        assert job.result(WAIT) == {"a": 1, "b": 2}
        assert json.loads(server.job_config(job.id)) == {"value": {"b": 2}}


# -- life ------------------------------------------------------------------------------------------


def test_a_draining_server_refuses_new_work_and_finishes_its_jobs(server: JobServer) -> None:
    server.create_context("shared").result(WAIT)
    job = running(server, context="shared")
    assert server.begun_jobs == 1
    server.drain()
    for refused in (
        lambda: server.submit(a_request("w.Echo")),
        lambda: server.submit(a_request("w.Echo", context="shared")),
        lambda: server.create_context("other"),
        server.reset_contexts,
        lambda: server.begin_upload("words", BinaryType.EGG),
        lambda: upload(server),
        lambda: server.add_data_file("data", b"x"),
        server.reset_data_files,
    ):
        with pytest.raises(errors.ServerClosed, match="accepts no new work"):
            refused()
    assert server.job(job.id).state is JobState.RUNNING
    assert server.kill_job(job.id).result(WAIT).state is JobState.KILLED
    wait_until(lambda: server.begun_jobs == 0)


def test_closing_ends_contexts_and_threads_and_removes_temporary_files() -> None:
    before = threading.active_count()
    server = a_server().start()
    upload(server)
    job = running(server)
    with server.open_job_log(job.id) as output:
        wait_until(output.read)
    log = server.job_log(job.id)
    server.close()
    server.close()
    assert job.finished.result(0).state is JobState.ERROR
    assert not log.exists()
    wait_until(lambda: threading.active_count() == before)


def test_a_health_check_names_the_failing_part() -> None:
    class Broken(MemoryMetadataStore):
        def check(self) -> None:
            raise errors.StorageError(message="disk full")

    with a_server(metadata=Broken()) as server:
        assert server.check() == {
            "metadata": "disk full",
            "blobs": None,
            "data-files": None,
            "launcher": None,
        }


def test_configured_binaries_are_uploaded_once(tmp_path: Path) -> None:
    path = tmp_path / "words.egg"
    path.write_bytes(archive())
    settings = Settings.from_mapping(
        {"jobserver": {"job-binary-paths": {"w": str(path), "x": "/nowhere.jar"}}}
    )
    metadata, blobs = MemoryMetadataStore(), MemoryBlobStore()
    for _ in range(2):
        with a_server(settings=settings, metadata=metadata, blobs=blobs) as server:
            assert [binary.name for binary in server.binaries()] == ["w"]
            assert len(server.binary_versions("w")) == 1
