"""A job server in memory with a few inline jobs, for the tests of its services."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conditions import WAIT
from faulty_store import FaultyStore
from jobserver_core import BinaryType, JobHandle, JobRequest, JobServer, JobState, Settings, parse_class_path
from jobserver_core.events import Event, JobChanged
from jobserver_core.memory import (
    InlineJob,
    InlineLauncher,
    JobRefused,
    MemoryBlobStore,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobOutcome,
    JobSpec,
    Launcher,
)
from jobserver_core.running.contexts import ContextService
from jobserver_core.testing.clock import ManualClock


def archive(text: str = "x = 1") -> bytes:
    """Return a small Python package as a ZIP archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("words.py", text)
    return buffer.getvalue()


def packaged(version: str = "1.2.0") -> bytes:
    """Return a wheel that carries the name ``words`` and a version."""
    buffer = io.BytesIO(archive())
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(f"words-{version}.dist-info/METADATA", f"Name: words\nVersion: {version}\n")
    return buffer.getvalue()


def count(job: InlineJob) -> dict[str, int]:
    words = job.config["input"]["string"].split()
    return {word: words.count(word) for word in words}


def fail(job: InlineJob) -> Any:
    raise ValueError(job.config.get("message", "no"))


def sleep(job: InlineJob) -> Any:
    job.print("sleeping")
    job.sleep(3600)


def refuse(_job: InlineJob) -> Any:
    raise AssertionError("never runs")


def _refuse(_job: InlineJob) -> None:
    raise JobRefused("input.string is missing")


refuse.validate = _refuse  # type: ignore[attr-defined]


def stream(job: InlineJob) -> Iterator[bytes]:
    return (b"%d," % number for number in range(job.config["n"]))


def echo(job: InlineJob) -> Any:
    return job.config.get("value")


def progress(job: InlineJob) -> None:
    job.report(JobProgress(tasks_done=1, tasks_total=4))


FUNCTIONS = {
    "w.Count": count,
    "w.Fail": fail,
    "w.Sleep": sleep,
    "w.Refuse": refuse,
    "w.Stream": stream,
    "w.Echo": echo,
    "w.Sources": lambda job: [code.source for code in job.search_path],
    "w.Progress": progress,
}


def a_server(*, settings: Settings | None = None, start_delay: float = 0.0, **ports: Any) -> JobServer:
    """Return a server in memory that knows the jobs above; not started."""
    ports.setdefault("launcher", InlineLauncher(FUNCTIONS, start_delay=start_delay))
    return JobServer.in_memory(settings=settings, **ports)


def a_request(class_name: str, config: Any = "", **rest: Any) -> JobRequest:
    """Return a request for one of the jobs above."""
    return JobRequest(class_name=class_name, class_path=parse_class_path("words"), config=config, **rest)


def upload(server: JobServer) -> None:
    """Upload the binary that the requests name."""
    server.upload("words", BinaryType.EGG, archive())


class PatientClock(ManualClock):
    """A manual clock whose calls return only after the changes that they put on other threads."""

    @staticmethod
    def _run(call: Callable[[], None]) -> None:
        ManualClock._run(call)
        for thread in threading.enumerate():
            if thread.name.startswith("jobserver-retry"):
                thread.join(WAIT)


class ScriptedHandle(ContextHandle):
    """Records the calls of the core to a context."""

    preparing = ""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def submit(self, job: JobSpec) -> None:
        self.calls.append(("submit", job.id))

    def kill_job(self, job_id: str) -> None:
        self.calls.append(("kill_job", job_id))

    def stop(self, timeout: float) -> None:
        self.calls.append(("stop", timeout))

    def kill(self) -> None:
        self.calls.append(("kill", None))


class ScriptedLauncher(Launcher):
    """Does nothing by itself: the test reports events to the core, in any order."""

    def __init__(self, *, at_start: Callable[[ContextListener], None] = lambda _listener: None) -> None:
        self.specs: list[ContextSpec] = []
        self.listeners: list[ContextListener] = []
        self.handles: list[ScriptedHandle] = []
        self._at_start = at_start

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        self._at_start(listener)
        self.specs.append(spec)
        self.listeners.append(listener)
        self.handles.append(ScriptedHandle())
        return self.handles[-1]

    def close(self) -> None:
        for listener in self.listeners:
            listener.context_ended(ContextEnd.KILLED)


def report_result(listener: ContextListener, job_id: str, data: bytes, *, stream: bool = False) -> None:
    """Report that a job ended with a result."""
    listener.open_result(job_id, stream=stream).write(data)
    listener.job_ended(job_id, JobOutcome())


class Scene:
    """A server with one context and a scripted launcher; records the events that the server publishes.

    The default metadata store can fail on demand. The context is ready, unless ``ready`` is false.
    """

    def __init__(self, *, ready: bool = True, **ports: Any) -> None:
        self.launcher = ScriptedLauncher()
        self.clock = ManualClock()
        self.metadata = FaultyStore()
        self.transport = MemoryTransport()
        self.events: list[Event] = []
        given = {"metadata": self.metadata, "clock": self.clock, "transports": [self.transport], **ports}
        self.server = a_server(launcher=self.launcher, **given).start()
        self.server.subscribe(self.events.append)
        upload(self.server)
        self.created = self.server.create_context("shared")
        self.listener = self.launcher.listeners[0]
        self.handle = self.launcher.handles[0]
        if ready:
            self.listener.context_ready(application_id="app-1", url=None)

    def submit(self, **rest: Any) -> JobHandle:
        return self.server.submit(a_request("w.Any", context="shared", **rest))

    def finish(self, job: JobHandle, data: bytes = b"1", *, stream: bool = False) -> None:
        """Report that a job ended with a result."""
        report_result(self.listener, job.id, data, stream=stream)

    def states(self, job_id: str) -> list[JobState]:
        """Return the states of a job that were published, each once."""
        seen = [e.job.state for e in self.events if isinstance(e, JobChanged) and e.job.id == job_id]
        return list(dict.fromkeys(seen))


def shut_down_before_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next server that moves a job to another context stop that context before, as a shutdown."""
    replacement = ContextService.replacement

    def stopped(self: ContextService, *args: Any) -> Any:
        monkeypatch.undo()
        found = replacement(self, *args)
        self._registry.drain()
        self._registry.stop_all(WAIT)
        return found

    monkeypatch.setattr(ContextService, "replacement", stopped)


class Successors:
    """Stores in memory, and the servers that start on them, each as if the one before had crashed."""

    def __init__(self, **ports: Any) -> None:
        self.metadata, self.blobs = MemoryMetadataStore(), MemoryBlobStore()
        self.transport = MemoryTransport()
        self.launchers: list[ScriptedLauncher] = []
        self.servers: list[JobServer] = []
        self._ports = ports

    def boot(self, **ports: Any) -> JobServer:
        """Start a server; the one before is taken to have crashed."""
        self.launchers.append(ScriptedLauncher())
        server = a_server(
            metadata=self.metadata,
            blobs=self.blobs,
            launcher=self.launchers[-1],
            transports=[self.transport],
            **self._ports,
            **ports,
        )
        self.servers.append(server)
        return server.start()

    def close(self) -> None:
        for server, launcher in zip(self.servers, self.launchers, strict=True):
            server.drain()  # or contexts that end with their launcher would start again
            launcher.close()
            server.close(0)
