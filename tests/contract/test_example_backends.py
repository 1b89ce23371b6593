"""The examples for authors of backends keep the contracts of their ports."""

from __future__ import annotations

import importlib.util
import json
import os
import socketserver
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from test_blobs import replaced_by_a_file

from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports import BlobStore, JobCode, Launcher, Transport
from jobserver_core.testing.blobs import PersistentBlobStoreContract
from jobserver_core.testing.launcher import LauncherContract
from jobserver_core.testing.transport import AnsweringReceiver, AnsweringTransportContract, Received, message

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[2] / "examples" / "backends"


def example(name: str) -> ModuleType:
    """Import an example as a reader who copied the file would."""
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

class Crash:
    def run(self, config):
        os._exit(3)

class Hold:
    def run(self, config):
        with open(config["lock"], "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            subprocess.Popen(["sleep", "3600"], pass_fds=[file.fileno()])
            while not config.get("return"):
                time.sleep(60)
"""


def wheel(folder: Path, module: str, source: str) -> JobCode:
    path = folder / f"{uuid4()}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", source)
    return JobCode(path=path, type=BinaryType.WHEEL, digest="0" * 64, source=module)


class TestSubprocessLauncher(LauncherContract):
    @pytest.fixture
    def launcher(self, tmp_path: Path) -> Iterator[Launcher]:
        self.jobs = wheel(tmp_path, "contract_jobs", JOBS)
        launcher = subprocess_launcher.SubprocessLauncher()
        yield launcher
        launcher.close()

    def class_name(self, kind: str) -> str:
        return f"{kind}_label.Label" if kind in {"shared", "ordered"} else f"contract_jobs.{kind.title()}"

    def class_path(self) -> tuple[JobCode, ...]:
        return (self.jobs,)

    def label_code(self, folder: Path, kind: str, text: str) -> JobCode:
        source = f"class Label:\n    def run(self, config):\n        return {text!r}\n"
        return wheel(folder, f"{kind}_label", source)

    def settings(self) -> dict[str, Any]:
        return {}

    def failing_settings(self) -> tuple[dict[str, Any], str]:
        return {"process": {"python": "/nowhere/python"}}, "/nowhere/python"

    def refused_settings(self) -> tuple[dict[str, Any], str]:
        return {"process": {"pyhton": sys.executable}}, "process.pyhton"


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
        self.open.wait(20)
        handler.wfile.write(json.dumps(answer).encode() + b"\n")

    def received(self) -> list[Received]:
        with self.lock:
            return list(self.got)

    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        self.planned += [{"status": status, "retry_after": retry_after} for status in statuses]

    def hang(self) -> None:
        self.open.clear()

    def release(self) -> None:
        self.open.set()

    def vanish(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
            os.unlink(self.path)


class TestUnixSocketTransport(AnsweringTransportContract):
    @pytest.fixture
    def transport(self) -> Transport:
        transport: Transport = unix_socket_transport.UnixSocketTransport()
        return transport

    @pytest.fixture
    def receiver(self) -> Iterator[SocketReceiver]:
        with tempfile.TemporaryDirectory(prefix="sock-") as folder:  # a socket's path must be short
            receiver = SocketReceiver(f"{folder}/s")
            yield receiver
            receiver.vanish()

    def test_an_answer_that_is_not_json_is_an_error(
        self, transport: Transport, receiver: SocketReceiver
    ) -> None:
        receiver.planned.append({"no": "status"})
        assert transport.send(message(receiver.url), timeout=10) == Answer(
            error="the receiver's answer is not JSON with a status"
        )
