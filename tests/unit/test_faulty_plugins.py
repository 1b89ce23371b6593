"""Backends are plug-ins: whatever one raises or returns against its port names it, and is handled."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import ContextState, JobRequest, JobServer, JobState, errors
from jobserver_core.memory import (
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import (
    Backend,
    Blob,
    BlobStore,
    BlobWriter,
    ContextHandle,
    Fetched,
    Fetcher,
    Launcher,
    Message,
    MetadataStore,
    Transport,
)
from jobserver_core.ports.checked import checked, unchecked
from serving import FUNCTIONS, WAIT, a_request, a_server, archive, upload

PORTS: tuple[type[Backend], ...] = (MetadataStore, BlobStore, Fetcher, Launcher, Transport)


def replaced(part: Any, **methods: Any) -> Any:
    """Return an object of a subclass named ``Faulty`` with other methods, in the state of the part."""
    kind = type(part)
    made = object.__new__(type("Faulty", (kind,), methods))
    made.__dict__.update(part.__dict__)
    return made


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_arguments: Any, **_named: Any) -> Any:
        raise error

    return call


def returning(value: Any) -> Callable[..., Any]:
    return lambda *_arguments, **_named: value


# -- the end of a job -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("boom"), errors.Unavailable(message="boom")])
def test_the_end_of_a_job_is_stored_later_if_the_store_raises_any_exception(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(MemoryMetadataStore):
        faults = 3

        def advance_job(self, job: Any, **rest: Any) -> None:
            if job.state.final and self.faults:
                self.faults -= 1
                raise error
            super().advance_job(job, **rest)

    with a_server(metadata=Faulty()) as server:
        upload(server)
        job = server.submit(a_request("w.Echo", {"value": 5}))
        assert job.result(WAIT) == 5
        assert server.job(job.id).state is JobState.FINISHED
    fault = f"advance_job of the metadata store Faulty raised {type(error).__name__}: {error}"
    (stack,) = [record for record in caplog.records if record.getMessage() == fault]
    assert stack.levelno == logging.ERROR
    assert "in advance_job" in caplog.text
    assert f"cannot store a change, retrying until it is stored: {fault}" in caplog.text


LARGE = {"value": "x" * 3 * 1024**2}
"""The configuration of a job whose result is too large for memory, so a blob store gets it in parts."""


@pytest.mark.parametrize("error", [errors.BlobNotFound(digest="0" * 64), errors.Unavailable(message="busy")])
def test_a_job_whose_result_cannot_be_stored_ends_whatever_the_store_raises(error: Exception) -> None:
    blobs = FaultyBlobs(commit=raising(error))
    with a_server(blobs=blobs) as server:
        upload(server)
        blobs.broken = True
        job = server.submit(a_request("w.Echo", LARGE))
        with pytest.raises(errors.JobFailed, match="the result could not be stored"):
            job.result(WAIT)
        assert server.job(job.id).state is JobState.ERROR


def test_a_job_ends_with_its_context_although_nothing_can_be_released(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blobs = FaultyBlobs(discard=raising(errors.StorageError(message="the disk is on fire")))
    with a_server(blobs=blobs, fetcher=UnreleasedFiles({"https://h/a.zip": archive()})) as server:
        server.create_context("warm").result(WAIT)
        blobs.broken = True
        job = server.submit(
            JobRequest(class_name="w.Echo", class_path="https://h/a.zip", context="warm", config=LARGE)
        )
        assert job.finished.result(WAIT).state is JobState.FINISHED
        assert server.stop_context("warm").result(WAIT).state is ContextState.FINISHED
    for what in ("a part of a result", "the file of blob", "fetched files"):
        assert re.search(f"{what}.* could not be released", caplog.text)


def test_an_upload_is_accepted_although_its_writer_cannot_be_released() -> None:
    blobs = FaultyBlobs(discard=raising(KeyError("boom")))
    with a_server(blobs=blobs) as server:
        blobs.broken = True
        assert server.upload("words", BinaryType.EGG, archive()) == server.binary("words")


class UnreleasedFiles(MemoryFetcher):
    """Raises an exception when a file is no longer needed."""

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            yield fetched
        raise KeyError("boom")


class FaultyBlobs(MemoryBlobStore):
    """Replaces calls of the writers by others, and does not release a file, while it is ``broken``."""

    def __init__(self, **calls: Callable[..., Any]) -> None:
        super().__init__()
        self.broken = False
        self.calls = calls

    def create(self) -> BlobWriter:
        writer = super().create()
        return replaced(writer, **self.calls) if self.broken else writer

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        with super().local_path(digest) as path:
            yield path
        if self.broken:
            raise KeyError("boom")


# -- what calls raise ------------------------------------------------------------------------------------


CALLS: list[tuple[str, Any, str, Callable[[JobServer], object], type[errors.JobServerError]]] = [
    ("metadata", MemoryMetadataStore, "add_binary", upload, errors.StorageError),
    ("metadata", MemoryMetadataStore, "jobs", lambda server: server.jobs(), errors.StorageError),
    ("metadata", MemoryMetadataStore, "binary", lambda server: server.binary("words"), errors.StorageError),
    ("metadata", MemoryMetadataStore, "contexts", lambda s: s.ended_contexts(), errors.StorageError),
    ("metadata", MemoryMetadataStore, "usage", lambda server: server.storage(), errors.StorageError),
    ("blobs", MemoryBlobStore, "create", upload, errors.StorageError),
    ("blobs", MemoryBlobStore, "open", upload, errors.StorageError),
    ("launcher", InlineLauncher, "validate", lambda s: s.create_context("new"), errors.LaunchError),
    ("launcher", InlineLauncher, "resources", lambda s: s.create_context("new"), errors.LaunchError),
    ("launcher", InlineLauncher, "start_context", lambda s: s.create_context("new"), errors.LaunchError),
    (
        "fetcher",
        MemoryFetcher,
        "check",
        lambda s: s.create_context("new", {"dependent-jar-uris": ["memory://h/a.jar"]}),
        errors.FetchError,
    ),
    (
        "transport",
        MemoryTransport,
        "check",
        lambda server: server.submit(a_request("w.Echo", callback_url="memory://receiver/x")),
        errors.TransportError,
    ),
]
WORDS = {"metadata": "metadata store", "blobs": "blob store"}


@pytest.mark.parametrize("fault", [KeyError("boom"), SystemExit("boom"), asyncio.CancelledError("boom")])
@pytest.mark.parametrize(("port", "kind", "method", "call", "error"), CALLS)
def test_an_exception_at_any_call_is_an_error_of_the_port_that_names_the_plug_in(
    port: str,
    kind: Any,
    method: str,
    call: Callable[[JobServer], object],
    error: type[errors.JobServerError],
    fault: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = False

    def faulty(self: Any, *arguments: Any, **named: Any) -> Any:
        if broken:
            raise fault
        return getattr(super(type(self), self), method)(*arguments, **named)

    methods = {"validate": returning(None), method: faulty} if kind is InlineLauncher else {method: faulty}
    made = replaced(kind(FUNCTIONS) if kind is InlineLauncher else kind(), **methods)
    parts: dict[str, Any] = {"transports": [made]} if port == "transport" else {port: made}
    with a_server(**parts) as server:
        upload(server)
        broken = True
        with pytest.raises(error) as raised:
            call(server)
        broken = False
    text = f"{method} of the {WORDS.get(port, port)} Faulty raised {type(fault).__name__}: {fault}"
    assert text in str(raised.value)
    assert text in caplog.text
    assert "in faulty" in caplog.text  # the traceback


# -- what calls return -----------------------------------------------------------------------------------


async def _never_awaited() -> None:
    pass


@pytest.mark.parametrize(
    ("part", "method", "value", "call", "message"),
    [
        (
            MemoryMetadataStore(),
            "binary",
            {},
            lambda store: store.binary("words"),
            "binary of the metadata store Faulty returned dict instead of Binary or None",
        ),
        (
            MemoryMetadataStore(),
            "contexts",
            None,
            lambda store: store.contexts(ContextQuery()),
            "contexts of the metadata store Faulty returned None instead of a list of Context",
        ),
        (
            MemoryMetadataStore(),
            "binaries",
            [{}],
            lambda store: store.binaries(),
            "binaries of the metadata store Faulty returned a list of dict instead of a list of Binary",
        ),
        (
            MemoryMetadataStore(),
            "jobs",
            [],
            lambda store: store.jobs(JobQuery()),
            "jobs of the metadata store Faulty returned list instead of JobPage",
        ),
        (
            MemoryMetadataStore(),
            "drain_server",
            None,
            lambda store: store.drain_server("id"),
            "drain_server of the metadata store Faulty returned None instead of bool",
        ),
        (
            MemoryBlobStore(),
            "size",
            True,
            lambda store: store.size("0" * 64),
            "size of the blob store Faulty returned bool instead of int or None",
        ),
        (
            MemoryBlobStore(),
            "usage",
            (1, 2, 3),
            lambda store: store.usage(),
            "usage of the blob store Faulty returned a tuple of int instead of (int, int)",
        ),
        (
            MemoryBlobStore(),
            "open",
            io.StringIO("x"),
            lambda store: store.open("0" * 64),
            "open of the blob store Faulty returned a file in text mode instead of a file in binary mode",
        ),
        (
            MemoryBlobStore(),
            "digests",
            iter([b"x"]),
            lambda store: list(store.digests(modified_before=datetime.max)),
            "digests of the blob store Faulty returned a list of bytes instead of an iterator of str",
        ),
        (
            MemoryBlobStore(),
            "local_path",
            5,
            lambda store: store.local_path("0" * 64),
            "local_path of the blob store Faulty returned int instead of a with block for Path",
        ),
        (
            InlineLauncher(),
            "resources",
            {"cores": 1},
            lambda launcher: launcher.resources({}),
            "resources of the launcher Faulty returned dict instead of Resources",
        ),
        (
            InlineLauncher(),
            "survivors",
            "x",
            lambda launcher: launcher.survivors(),
            "survivors of the launcher Faulty returned str instead of a sequence of ContextSpec",
        ),
        (
            MemoryTransport(),
            "send",
            (200, ""),
            lambda transport: transport.send(A_MESSAGE, timeout=1),
            "send of the transport Faulty returned a tuple of int and str instead of Answer",
        ),
        (
            MemoryFetcher(),
            "check",
            _never_awaited(),
            lambda fetcher: fetcher.check("memory://h/x"),
            "cannot fetch memory://h/x: check of the fetcher Faulty returned coroutine instead of None; "
            "declare it without async",
        ),
    ],
)
def test_a_value_of_another_type_names_the_call_the_plug_in_and_the_right_type(
    part: Any, method: str, value: Any, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(errors.BackendError) as raised:
        call(_checked(replaced(part, **{method: returning(value)})))
    assert str(raised.value) == message


A_MESSAGE = Message(delivery_id="d", job_id="j", url="https://h/x", attempt=1, timestamp=1, body=b"{}")


def _checked(part: Any) -> Any:
    (port,) = [port for port in PORTS if isinstance(part, port)]
    return checked(port, part)


# -- objects that calls return ---------------------------------------------------------------------------


class FaultyWriter(BlobWriter):
    """Raises the error, or returns the value, that a test has set."""

    digest: Any = "0" * 64

    def __init__(self, **calls: Callable[..., Any]) -> None:
        self.discarded = False
        self.calls = calls

    def write(self, data: bytes) -> None:
        self.calls.get("write", returning(None))(data)

    def commit(self) -> Blob:
        blob: Blob = self.calls.get("commit", returning(Blob(digest="0" * 64, size=1)))()
        return blob

    def discard(self) -> None:
        self.discarded = True


def test_the_writer_of_a_blob_store_is_checked() -> None:
    def store(**calls: Callable[..., Any]) -> BlobWriter:
        writer = FaultyWriter(**calls)
        return checked(BlobStore, replaced(MemoryBlobStore(), create=returning(writer))).create()

    with pytest.raises(errors.StorageError) as raised, store(commit=returning(("0", 1))) as writer:
        writer.commit()
    message = "commit of the blob store Faulty returned a tuple of str and int instead of Blob"
    assert str(raised.value) == message
    assert unchecked_writer(writer).discarded
    with pytest.raises(errors.StorageError, match="write of the blob store Faulty raised OSError: full"):
        store(write=raising(OSError("full"))).write(b"x")
    writer = store()
    unchecked_writer(writer).digest = b"0"
    with pytest.raises(
        errors.StorageError, match="digest of the blob store Faulty returned bytes instead of str"
    ):
        _ = writer.digest


def unchecked_writer(writer: BlobWriter) -> FaultyWriter:
    part = vars(writer)["_part"]
    assert isinstance(part, FaultyWriter)
    return part


def test_an_upload_into_a_store_whose_commit_returns_something_else_names_the_store() -> None:
    writer = FaultyWriter(commit=returning(("0" * 64, 5)))
    with a_server(blobs=replaced(MemoryBlobStore(), create=returning(writer))) as server:
        with pytest.raises(errors.StorageError, match="commit of the blob store Faulty returned a tuple"):
            server.upload("words", BinaryType.EGG, archive())
        assert server.binaries() == []


class TornFile(io.BytesIO):
    def read(self, size: int | None = -1) -> Any:
        if size == 2:
            return "text"
        raise OSError("the disk is on fire")


def test_an_open_blob_is_checked() -> None:
    file = TornFile(b"abc")
    with checked(BlobStore, replaced(MemoryBlobStore(), open=returning(file))).open("0" * 64) as opened:
        assert (opened.seek(1), opened.tell(), opened.seekable()) == (1, 1, True)
        with pytest.raises(errors.StorageError) as raised:
            opened.read()
        assert str(raised.value) == "read of the blob store Faulty raised OSError: the disk is on fire"
        with pytest.raises(errors.StorageError, match="read of the blob store Faulty returned str instead"):
            opened.read(2)
    assert file.closed


def test_an_iteration_over_blobs_is_checked() -> None:
    def digests(self: Any, **_named: Any) -> Iterator[str]:
        yield "a"
        raise KeyError("b")

    found = checked(BlobStore, replaced(MemoryBlobStore(), digests=digests)).digests(
        modified_before=datetime.max
    )
    assert next(found) == "a"
    with pytest.raises(errors.StorageError, match="digests of the blob store Faulty raised KeyError: 'b'"):
        next(found)


def fetcher(block: Callable[[], AbstractContextManager[Any]]) -> Fetcher:
    return checked(Fetcher, replaced(MemoryFetcher(), fetch=lambda _self, _uri, **_named: block()))


def test_a_fetch_is_checked_at_both_ends_of_its_block() -> None:
    good = Fetched(path=Path("x"), digest="0" * 64, size=1)

    @contextmanager
    def block(*, before: str = "", after: str = "", value: Any = good) -> Iterator[Any]:
        if before:
            raise KeyError(before)
        yield value
        if after:
            raise KeyError(after)

    with pytest.raises(errors.FetchError, match="fetch of the fetcher Faulty raised KeyError: 'x'"):
        fetcher(lambda: block(before="x")).fetch("memory://h/a").__enter__()
    with (
        pytest.raises(errors.FetchError, match="raised KeyError: 'y'"),
        fetcher(lambda: block(after="y")).fetch("memory://h/a"),
    ):
        pass
    with pytest.raises(errors.FetchError, match="fetch of the fetcher Faulty returned PosixPath instead of"):
        fetcher(lambda: block(value=Path("x"))).fetch("memory://h/a").__enter__()
    with fetcher(block).fetch("memory://h/a") as fetched:
        assert fetched is good
    with pytest.raises(ZeroDivisionError), fetcher(block).fetch("memory://h/a"):
        _ = 1 / 0


def test_neither_an_error_nor_the_log_shows_secrets_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    url = "https://user:geheim@h/a.jar?token=geheim"

    def fetch(_self: Any, uri: str, **_named: Any) -> Any:
        raise OSError(f"cannot reach {uri}")

    with pytest.raises(errors.FetchError) as raised:
        checked(Fetcher, replaced(MemoryFetcher(), fetch=fetch)).fetch(url)
    logging.getLogger("a.caller").error("failed", exc_info=raised.value)
    assert "cannot reach https://***@h/a.jar" in str(raised.value)
    assert "in fetch" in caplog.text
    assert "geheim" not in f"{caplog.text} {raised.value}"


def test_the_handle_of_a_context_is_checked() -> None:
    class Bad(ContextHandle):
        preparing: Any = None

        def submit(self, job: Any) -> None: ...

        def kill_job(self, job_id: str) -> None: ...

        def stop(self, timeout: float) -> None:
            raise errors.InvalidRequest(message="no")

        def kill(self) -> None:
            raise KeyError("x")

    launcher = checked(Launcher, replaced(InlineLauncher(), start_context=returning(Bad())))
    handle = launcher.start_context(None, None)  # type: ignore[arg-type]
    with pytest.raises(errors.LaunchError, match="kill of the launcher Faulty raised KeyError: 'x'"):
        handle.kill()
    with pytest.raises(errors.LaunchError, match="stop of the launcher Faulty raised InvalidRequest: no"):
        handle.stop(1)
    with pytest.raises(errors.LaunchError, match="preparing of the launcher Faulty returned None"):
        _ = handle.preparing


def test_a_handle_that_cannot_say_what_it_prepares_is_not_logged_at_each_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(InlineLauncher):
        def start_context(self, *arguments: Any) -> ContextHandle:
            handle: ContextHandle = replaced(
                super().start_context(*arguments), preparing=property(raising(KeyError("boom")))
            )
            return handle

    with a_server(launcher=Faulty(FUNCTIONS)) as server:
        context = server.create_context("warm").result(WAIT)
        for _ in range(5):
            assert server.context_loads()[context.id].preparing == ""
    assert len([one for one in caplog.records if "preparing of the launcher" in one.getMessage()]) == 1


# -- stand-ins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", PORTS)
def test_a_stand_in_checks_every_call_of_its_port(port: type[Backend]) -> None:
    parts = (MemoryMetadataStore(), MemoryBlobStore(), MemoryFetcher(), InlineLauncher(), MemoryTransport())
    (part,) = [part for part in parts if isinstance(part, port)]
    stand_in = checked(port, part)
    public = {name for name in dir(port) if not name.startswith("_")}
    assert public - vars(type(stand_in)).keys() == {"kind", "check_options", "from_settings"}
    assert checked(port, stand_in) is stand_in
    assert unchecked(stand_in) is part
    assert type(stand_in).__name__ == type(part).__name__
    assert isinstance(stand_in, port)


def test_a_server_calls_every_part_through_a_stand_in() -> None:
    parts: dict[str, Any] = {
        "metadata": MemoryMetadataStore(),
        "blobs": MemoryBlobStore(),
        "fetcher": MemoryFetcher(),
        "launcher": InlineLauncher(),
    }
    with JobServer.in_memory(transports=[MemoryTransport()], **parts) as server:
        for name, part in parts.items():
            assert unchecked(getattr(server._services, name)) is part
            assert getattr(server._services, name) is not part
        (transport,) = server._services.transports
        assert unchecked(transport) is not transport


def test_expected_errors_and_an_interruption_reach_the_caller_unchanged() -> None:
    for error in (errors.StorageError(message="full"), errors.BlobNotFound(digest="x"), KeyboardInterrupt()):
        store = checked(BlobStore, replaced(MemoryBlobStore(), delete=raising(error)))
        with pytest.raises(type(error)) as raised:
            store.delete("x")
        assert raised.value is error


def test_a_fault_that_recurs_is_logged_with_its_traceback_only_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = checked(BlobStore, replaced(MemoryBlobStore(), check=raising(KeyError("x"))))
    for _ in range(5):
        with pytest.raises(errors.StorageError):
            store.check()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/tmp/x"}, "path must be a pathlib.Path, not str"),
        ({"digest": None}, "digest must be a SHA-256 in lower-case hexadecimal, got None"),
        ({"size": None}, "size must be a number of bytes, not NoneType"),
        ({"size": True}, "size must be a number of bytes, not bool"),
        ({"size": -1}, "size must not be negative, got -1"),
    ],
)
def test_a_fetched_file_checks_its_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Fetched(**{"path": Path("x"), "digest": "0" * 64, "size": 1, **fields})


def test_a_launcher_whose_settings_check_fails_refuses_the_context_but_not_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(InlineLauncher):
        def validate(self, settings: JsonMapping) -> None:
            if settings.get("bad"):
                raise ValueError("boom")

    def names(server: JobServer) -> Iterable[str]:
        return [context.name for context in server.contexts()]

    with a_server(launcher=Faulty(FUNCTIONS)) as server:
        with pytest.raises(errors.LaunchError, match="validate of the launcher Faulty raised ValueError"):
            server.create_context("bad", {"bad": 1})
        server.create_context("good").result(WAIT)
        wait_until(lambda: names(server) == ["good"])
