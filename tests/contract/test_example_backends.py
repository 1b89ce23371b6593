"""The example backends pass the contracts of their ports."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import socketserver
import sqlite3
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import pytest

from jobserver_core.config.loading import describe
from jobserver_core.config.settings import Settings
from jobserver_core.errors import MalformedUrl
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports import BlobStore, Fetcher, JobCode, Launcher, MetadataStore, Transport
from jobserver_core.testing.blobs import PersistentBlobStoreContract, moved_away, replaced_by_a_file
from jobserver_core.testing.contract import wait_until
from jobserver_core.testing.fetcher import FetcherContract, files_in
from jobserver_core.testing.launcher import LauncherContract
from jobserver_core.testing.metadata import PersistentMetadataStoreContract, renamed
from jobserver_core.testing.options import BackendOptions
from jobserver_core.testing.recording import end_holders, is_locked
from jobserver_core.testing.transport import AnsweringReceiver, AnsweringTransportContract, Received, message
from jobserver_http import Authenticator, Credentials
from jobserver_http.testing import AuthenticatorContract

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[2] / "examples" / "backends"


def example(name: str) -> ModuleType:
    """Import an example the way a reader who copied the file would."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- launcher ---------------------------------------------------------------------------------------

subprocess_launcher = example("subprocess_launcher")

JOBS = """
import fcntl, os, subprocess, sys, time

class Echo:
    def run(self, config):
        return config["value"]

class Print:
    def run(self, config):
        print(config["text"])
        print(config["error"], file=sys.stderr)

class Raise:
    def run(self, config):
        raise RuntimeError(config["message"])

class Refuse:
    def validate(self, config):
        raise ValueError(config["message"])

class Endless:
    def run(self, config):
        while True:
            time.sleep(60)

class Stream:
    def run(self, config):
        return (chunk.encode() for chunk in config["chunks"])

class Astream(Stream):
    pass  # the example does not await what a job returns

class Crash:
    def run(self, config):
        os._exit(3)

class Hold:
    def run(self, config):
        with open(config["lock"], "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            null = subprocess.DEVNULL
            detached = {"start_new_session": True, "stdin": null, "stdout": null, "stderr": null}
            options = detached if config.get("detached") else {}
            subprocess.Popen(["sleep", "3600"], pass_fds=[file.fileno()], **options)
            while not config.get("return"):
                time.sleep(60)
"""


def wheel(directory: Path, module: str, source: str) -> JobCode:
    path = directory / f"{uuid4()}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", source)
    return JobCode(path=path, type=BinaryType.WHEEL, digest="0" * 64, source=module)


class TestSubprocessLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Iterator[Launcher]:
        self.jobs = wheel(tmp_path, "contract_jobs", JOBS)
        launcher = subprocess_launcher.SubprocessLauncher()
        yield launcher
        self.close(launcher)

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=subprocess_launcher.SubprocessLauncher, accepted=[{}], refused=[])

    def class_name(self, kind: str) -> str:
        return f"{kind}_label.Label" if kind in {"shared", "ordered"} else f"contract_jobs.{kind.title()}"

    def class_path(self) -> tuple[JobCode, ...]:
        return (self.jobs,)

    def label_code(self, directory: Path, kind: str, text: str) -> JobCode:
        source = f"class Label:\n    def run(self, config):\n        return {text!r}\n"
        return wheel(directory, f"{kind}_label", source)

    def settings(self) -> dict[str, Any]:
        return {}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        return {"process": {"python": "/nowhere/python"}}, "/nowhere/python"

    def unready_settings(self, directory: Path) -> dict[str, Any]:
        python = directory / "sleeping-python"
        python.write_text("#!/bin/sh\nexec sleep 3600\n")
        python.chmod(0o700)
        return {"process": {"python": str(python)}}

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"process": {"pyhton": sys.executable}}, "process.pyhton"


def serve_until_killed(directory: Path) -> None:
    suite = TestSubprocessLauncher()
    suite.jobs = wheel(directory, "contract_jobs", JOBS)
    launcher = subprocess_launcher.SubprocessLauncher()
    suite.hold(suite.started(launcher, directory, suite.settings()), detached=True)
    (directory / "held").touch()
    threading.Event().wait()


def test_nothing_of_a_job_survives_a_server_that_is_killed(tmp_path: Path) -> None:
    server = multiprocessing.get_context("spawn").Process(target=serve_until_killed, args=(tmp_path,))
    server.start()
    try:
        wait_until((tmp_path / "held").exists, "the job of the server holds its lock")
    finally:
        server.kill()
        server.join()
    (lock,) = tmp_path.glob("*.lock")
    try:
        wait_until(lambda: not is_locked(lock), "the end of the job's processes")
    finally:
        end_holders(lock)


# -- blob store -------------------------------------------------------------------------------------

directory_blobs = example("directory_blobs")


class TestDirectoryBlobStore(PersistentBlobStoreContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> BlobStore:
        self.directory = tmp_path / "store"
        return self.reopen()

    def reopen(self, blobs: BlobStore | None = None) -> BlobStore:
        store: BlobStore = directory_blobs.DirectoryBlobStore(self.directory)
        return store

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.blobs.options"
        return BackendOptions(
            backend=directory_blobs.DirectoryBlobStore,
            accepted=[{}, {f"{key}.path": "relative/blobs"}],
            refused=[({f"{key}.paht": "blobs"}, f"{key}.paht"), ({f"{key}.path": ["x"]}, f"{key}.path")],
        )

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        path = self.directory / "blobs" / digest
        return path.read_bytes() if path.exists() else None

    def leftovers(self, blobs: BlobStore) -> list[str]:
        return os.listdir(self.directory / "temporary")

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        at = (datetime.now(timezone.utc) - age).timestamp()
        os.utime(self.directory / "blobs" / digest, (at, at))

    def broken(self, blobs: BlobStore) -> AbstractContextManager[None]:
        return replaced_by_a_file(self.directory)

    def gone(self, blobs: BlobStore) -> AbstractContextManager[None]:
        return moved_away(self.directory)


# -- transport --------------------------------------------------------------------------------------

unix_socket_transport = example("unix_socket_transport")


class SocketReceiver(AnsweringReceiver):
    def __init__(self, path: str) -> None:
        self.url = f"unix://{path}"
        self.path = path
        self.lock = threading.Lock()
        self.got: list[Received] = []
        self.planned: list[dict[str, Any]] = []
        self.open = threading.Event()
        self.open.set()
        self.drips = False
        receiver = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                receiver.handle(self)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                return  # the transport did not wait for the answer

        self.server = Server(path, Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def handle(self, handler: socketserver.StreamRequestHandler) -> None:
        head = json.loads(handler.rfile.readline())
        body = handler.rfile.read(head["length"])
        headers = {name.lower(): value for name, value in head["headers"].items()}
        with self.lock:
            self.got.append(Received(delivery_id=head["delivery_id"], body=body, headers=headers))
            answer = self.planned.pop(0) if self.planned else {"status": 200}
        while not self.open.wait(0.05 if self.drips else 20) and self.drips:
            handler.wfile.write(b" ")
        handler.wfile.write(json.dumps(answer).encode() + b"\n")

    def received(self) -> list[Received]:
        with self.lock:
            return list(self.got)

    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        self.planned += [{"status": status, "retry_after": retry_after} for status in statuses]

    def hang(self) -> None:
        self.open.clear()

    def drip(self) -> None:
        self.drips = True
        self.hang()

    def answer_malformed(self) -> int:
        malformed: list[Any] = [
            {"no": "status"},
            {"status": "OK"},
            {"status": None},
            {"status": 10**20},
            {"status": 200, "retry_after": "5"},
            ["status"],
            None,
        ]
        self.planned += malformed
        return len(malformed)

    def release(self) -> None:
        self.open.set()

    def vanish(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
            os.unlink(self.path)


class TestUnixSocketTransport(AnsweringTransportContract):
    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=unix_socket_transport.UnixSocketTransport, accepted=[{}], refused=[])

    @pytest.fixture
    def transport(self) -> Transport:
        transport: Transport = unix_socket_transport.UnixSocketTransport()
        return transport

    @pytest.fixture
    def receiver(self) -> Iterator[SocketReceiver]:
        with tempfile.TemporaryDirectory(prefix="sock-") as directory:  # a socket's path must be short
            receiver = SocketReceiver(f"{directory}/s")
            yield receiver
            receiver.vanish()

    def test_an_answer_that_is_not_json_is_an_error(
        self, transport: Transport, receiver: SocketReceiver
    ) -> None:
        receiver.planned.append({"no": "status"})
        assert transport.send(message(receiver.url), timeout=10) == Answer(
            error="the receiver's answer is not JSON with a status"
        )

    def test_the_contract_finds_a_timeout_for_each_step(
        self, transport: Transport, receiver: SocketReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unix_socket_transport, "_remaining", lambda _deadline: 0.3)
        monkeypatch.setattr(self, "tolerance", 1.0)
        with pytest.raises(AssertionError, match="did not return within"):
            self.test_a_receiver_that_sends_single_bytes_is_an_answer_in_time(transport, receiver)


# -- fetcher ----------------------------------------------------------------------------------------

file_fetcher = example("file_fetcher")


class TestFileFetcher(FetcherContract):
    @pytest.fixture
    def fetcher(self, tmp_path: Path) -> Fetcher:
        self.directory, self.copies = tmp_path / "files", tmp_path / "copies"
        self.directory.mkdir()
        fetcher: Fetcher = file_fetcher.FileFetcher(self.directory, self.copies, max_size=self.max_size)
        return fetcher

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.fetcher.options"
        return BackendOptions(
            backend=file_fetcher.FileFetcher,
            accepted=[{f"{key}.directory": "files"}],
            refused=[({}, key), ({f"{key}.directory": "files", f"{key}.size": 1}, key)],
        )

    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return f"file://{quote(str(path))}"

    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        os.unlink(unquote(urlsplit(uri).path))

    def missing(self) -> str:
        return f"file://{self.directory}/missing.jar"

    def refused(self) -> list[str]:
        return [
            f"file://{self.directory}/../outside.jar",
            f"file://{self.directory}-not/x.jar",
            "http://host.example/x.jar",
        ]

    def files(self, fetcher: Fetcher) -> set[str]:
        return files_in(self.copies)

    def test_a_link_that_leads_outside_is_refused(self, fetcher: Fetcher, tmp_path: Path) -> None:
        (tmp_path / "outside.jar").write_bytes(b"outside")
        (self.directory / "link.jar").symlink_to(tmp_path / "outside.jar")
        with pytest.raises(MalformedUrl), fetcher.fetch(f"file://{self.directory}/link.jar"):
            pytest.fail("the block was entered")


# -- metadata store ---------------------------------------------------------------------------------

sqlite_metadata = example("sqlite_metadata")

COUNTS = {
    "binaries": "SELECT count(*) FROM binaries",
    "contexts": "SELECT count(*) FROM contexts",
    "jobs": "SELECT count(*) FROM jobs",
    "configs": "SELECT count(config) FROM jobs",
    "results": "SELECT count(result) FROM jobs",
    "deliveries": "SELECT count(*) FROM deliveries",
}


class TestSqliteMetadataStore(PersistentMetadataStoreContract):
    @pytest.fixture
    def store(self) -> Iterator[MetadataStore]:
        memory = "/dev/shm"  # syncing takes most of the time and is not tested here
        with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
            self.path = Path(directory, "metadata.sqlite")
            with closing(self.open_again()) as store:
                yield store

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.metadata.options"
        return BackendOptions(
            backend=sqlite_metadata.SqliteMetadataStore,
            accepted=[{}, {f"{key}.path": "relative.sqlite"}],
            refused=[({f"{key}.paht": "x.sqlite"}, f"{key}.paht"), ({f"{key}.path": ["x"]}, f"{key}.path")],
        )

    def open_again(self, store: MetadataStore | None = None) -> MetadataStore:
        opened: MetadataStore = sqlite_metadata.SqliteMetadataStore(self.path)
        return opened

    def broken(self, store: MetadataStore) -> AbstractContextManager[None]:
        tables = ("binaries", "contexts", "jobs", "deliveries", "servers", "requests", "pins", "removals")
        return renamed((*tables, "checks"), self._raw)

    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        return {kind: self._raw(statement) for kind, statement in COUNTS.items()}

    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        state: str | None = self._raw("SELECT state FROM jobs WHERE id = ?", job_id.encode())
        return state

    def _raw(self, statement: str, *values: object) -> Any:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute(statement, values).fetchone()
        return row[0] if row else None


# -- authenticator ----------------------------------------------------------------------------------

signed_token_authenticator = example("signed_token_authenticator")


class TestSignedTokenAuthenticator(AuthenticatorContract):
    @pytest.fixture
    def authenticator(self) -> Authenticator:
        self.made = signed_token_authenticator.SignedTokenAuthenticator("a key of many characters")
        made: Authenticator = self.made
        return made

    def backend_options(self, directory: Path) -> BackendOptions:
        key = "jobserver.auth.options"
        accepted = {f"{key}.signing-key": "a key of many characters"}
        return BackendOptions(
            backend=signed_token_authenticator.SignedTokenAuthenticator,
            accepted=[accepted],
            refused=[
                ({}, f"{key}.signing-key"),
                ({f"{key}.signing-key": "short"}, f"{key}.signing-key"),
                ({**accepted, f"{key}.revokd": []}, f"{key}.revokd"),
            ],
        )

    def valid(self) -> Credentials:
        token: str = self.made.token("alice", ["jobs:read"], 4_000_000_000)
        return Credentials(scheme="bearer", secret=token)

    def owner(self) -> tuple[str, frozenset[str]]:
        return "alice", frozenset({"jobs:read"})

    def revoke(self, authenticator: Authenticator) -> None:
        self.made.revoked.add("alice")

    def test_the_configuration_is_shown_without_the_key(self) -> None:
        key = {"jobserver.auth.options.signing-key": "a key of many characters"}
        shown = [one.value for one in describe(Settings.from_mapping(key, env={}))]
        assert {"signing-key": "***"} in shown
        assert "a key of many characters" not in str(shown)

    def test_an_expired_token_is_not_accepted(self, authenticator: Authenticator) -> None:
        token = self.made.token("alice", ["jobs:read"], 1)
        assert authenticator.authenticate(Credentials(scheme="bearer", secret=token)) is None
