"""Hosts that outlive their server: the connection and the reports are real, and there is no JVM."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest

from conditions import WAIT, wait_until
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import LaunchError
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import ContextEnd, ContextHandle, ContextSpec, JobCode, JobOutcome, JobSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher import leftovers
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.hosted_jobs import HostedJobs
from jobserver_pyspark.launcher.leftovers import Leftovers
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.packages import PackageLease
from jobserver_pyspark.protocol.frames import Channel
from jobserver_pyspark.protocol.messages import (
    HostToServer,
    JobEnded,
    JobRunning,
    KillJob,
    ProgressReport,
    Reattach,
    ReattachChallenge,
    ResultChunk,
    ServerToHost,
    SubmitJob,
)

pytestmark = pytest.mark.real

BIG = 300_000

HOST = """
import json, os, shutil, sys, threading, time
from pathlib import Path
from jobserver_pyspark.host import redial as dialing
from jobserver_pyspark.host.redial import open_channel, redial
from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.protocol.converter import decode
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import *

connect = decode(ServerToHost, sys.stdin.buffer.readline())
server = open_channel((connect.host, connect.port), 30.0)
server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))
spec = server.receive().spec
reports = JobReports(server, spec, lambda: True)
ready = ContextReady(application_id="app-1", url=None)
dialing.PROTOCOL_VERSION += json.loads(spec.settings).get("spark", {}).get("newer", 0)


def run(job_id, config):
    reports.send(JobRunning(job_id=job_id))
    if "before" in config:
        reports.send(ResultChunk(job_id=job_id, stream=True, data=config["before"].encode()))
    while "gate" in config and not Path(config["gate"]).exists():
        time.sleep(0.005)
    for text in config["chunks"]:
        reports.send(ResultChunk(job_id=job_id, stream=True, data=text.encode()))
    reports.end(JobEnded(job_id=job_id))


def serve(server):
    while True:
        message = server.receive()
        if isinstance(message, SubmitJob):
            reports.begin(message.job_id)
            config = json.loads(bytes(message.config))
            threading.Thread(target=run, args=(message.job_id, config), daemon=True).start()
        elif isinstance(message, KillJob):
            reports.end(JobEnded(job_id=message.job_id, killed=True))
        elif isinstance(message, AcknowledgeJob):
            reports.acknowledge(message.job_id)


server.send(ready)
while server is not None:
    try:
        serve(server)
    except ChannelClosed:
        server.close()
    server = redial(spec.reattachment, spec.marker, connect.token)
    if server is not None:
        server.send(ContextResumed(ready=ready, jobs=reports.kept))
        reports.resume(server)
shutil.rmtree(spec.work_dir)
"""


class JvmlessLauncher(PySparkLauncher):
    """Starts hosts that have no JVM."""

    def __init__(
        self, folder: Path, *, reattach_timeout: float = WAIT, options: LauncherOptions | None = None
    ) -> None:
        super().__init__(folder / "pyspark", reattach_timeout=reattach_timeout, options=options)
        self._folder = folder

    def _plan(self, spec: ContextSpec, settings: Any, *_unused: Any) -> HostPlan:
        (self._folder / "jars").mkdir(exist_ok=True)
        plan = make_plan(
            spec,
            settings,
            Installation(python=sys.executable, package=self._folder, version="4.3.0"),
            Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
            LauncherOptions(cache_dir=self._folder / "cache"),
            tmp_dir=spec.work_dir / "tmp",
            log_limit=10_000,
            result_limit=0,
            class_data=[],
            reattachment=self._reattachment,
        )
        environment = {**plan.environment, "PYTHONPATH": ":".join(filter(None, sys.path))}
        return HostPlan(command=[sys.executable, "-c", HOST], environment=environment, spec=plan.spec)


class HangingListener(RecordingListener):
    """Hangs when a job runs, as with a store that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging = threading.Event()
        self.go_on = threading.Event()

    def job_running(self, job_id: str) -> None:
        self.hanging.set()
        assert self.go_on.wait(WAIT)
        super().job_running(job_id)


class World:
    """One context over several launchers on one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launchers: list[JvmlessLauncher] = []
        context_id = str(uuid4())
        self.spec = ContextSpec(
            id=context_id,
            name="survivor",
            log_path=folder / "log",
            work_dir=folder / "work" / context_id,
            data_dir=folder,
        )
        self.listener = RecordingListener()
        self.handle: ContextHandle

    def launcher(self, **settings: Any) -> JvmlessLauncher:
        self.launchers.append(JvmlessLauncher(self.folder, **settings))
        return self.launchers[-1]

    def start(self, settings: dict[str, Any] | None = None, **more: Any) -> None:
        self.spec = attrs.evolve(self.spec, settings=settings or {})
        self.handle = self.launcher(**more).start_context(self.spec, self.listener)
        self.listener.wait_for("context_ready", timeout=WAIT)

    def follow(self, jobs: list[JobSpec], **more: Any) -> None:
        """Detach from the context, and take it over with another launcher."""
        self.launchers[-1].detach()
        launcher = self.launcher(**more)
        (spec,) = launcher.survivors()
        self.listener = RecordingListener()
        self.handle = launcher.reattach(spec, jobs, self.listener)
        launcher.sweep()

    def job(self, code: JobCode | None = None, **config: Any) -> JobSpec:
        jar = JobCode(path=self.folder / "x.jar", type=BinaryType.JAR, digest="0" * 64, source="x")
        return JobSpec(
            id=str(uuid4()),
            class_name="Any",
            class_path=(code or jar,),
            config=json.dumps(config),
            log_path=self.folder / "job.log",
        )

    def wheel(self) -> JobCode:
        path = self.folder / "x-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.py", "VALUE = 1\n")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return JobCode(path=path, type=BinaryType.WHEEL, digest=digest, source=path.name)

    def submit(self, code: JobCode | None = None, **config: Any) -> JobSpec:
        job = self.job(code, **config)
        self.handle.submit(job)
        return job

    def result(self, job: JobSpec) -> str:
        assert self.listener.outcome(job.id, timeout=WAIT) == JobOutcome()
        stream, data = self.listener.results[job.id]
        assert stream
        return bytes(data).decode()

    @property
    def pid(self) -> int:
        (record,) = Leftovers(self.folder / "pyspark" / "contexts").all()
        assert record.pid is not None
        return record.pid


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for launcher in reversed(world.launchers):
        launcher.close()
    assert not list((tmp_path / "pyspark" / "contexts").glob("*"))
    assert not world.spec.work_dir.exists()
    assert world.listener.faults == []


def test_jobs_continue_and_their_reports_are_sent_again_in_full(world: World) -> None:
    world.start()
    gate = world.folder / "gate"
    ended = world.submit(chunks=["x" * BIG, "y"])
    acknowledged = world.submit(chunks=["z"])
    running = world.submit(before="b" * BIG, gate=str(gate), chunks=["after"])
    empty = world.submit(chunks=[""])
    for job in (ended, acknowledged, empty):
        world.result(job)
    world.handle.acknowledge(acknowledged.id)
    world.listener.wait_for("open_result", running.id, timeout=WAIT)
    arriving = world.job(chunks=["late"])

    world.follow([ended, running, empty, arriving])
    assert world.listener.wait_for("context_ready", timeout=WAIT) == ("context_ready", "app-1", None)
    assert world.result(ended) == "x" * BIG + "y"
    assert world.result(empty) == ""
    assert world.result(arriving) == "late"
    gate.touch()
    assert world.result(running) == "b" * BIG + "after"
    assert world.listener.of_job(acknowledged.id) == []
    for job in (ended, empty, arriving, running):
        assert world.listener.of_job(job.id) == ["job_running", "open_result", "job_ended"]


def test_a_job_is_killed_and_a_context_stopped_after_it_was_taken_over_twice(world: World) -> None:
    world.start()
    first = world.submit(gate=str(world.folder / "never"), chunks=[])
    second = world.submit(gate=str(world.folder / "never"), chunks=[])
    for _ in range(2):
        world.follow([first, second])
        world.listener.wait_for("job_running", second.id, timeout=WAIT)
    world.handle.kill_job(first.id)
    assert world.listener.outcome(first.id, timeout=WAIT) == JobOutcome(killed=True)
    world.handle.stop(0.0)
    assert world.listener.wait_for("context_ended", timeout=WAIT)[1] is ContextEnd.STOPPED


def test_a_kill_before_the_host_has_come_back_reaches_the_job(world: World) -> None:
    world.start()
    job = world.submit(gate=str(world.folder / "never"), chunks=[])
    world.listener.wait_for("job_running", job.id, timeout=WAIT)
    os.kill(world.pid, signal.SIGSTOP)
    world.follow([job])
    world.handle.kill_job(job.id)
    os.kill(world.pid, signal.SIGCONT)
    assert world.listener.outcome(job.id, timeout=WAIT) == JobOutcome(killed=True)


def test_a_job_that_the_new_server_does_not_know_is_killed_and_forgotten(world: World) -> None:
    world.start()
    job = world.submit(gate=str(world.folder / "never"), chunks=[])
    world.listener.wait_for("job_running", job.id, timeout=WAIT)
    world.follow([])
    world.listener.wait_for("context_ready", timeout=WAIT)
    world.result(world.submit(chunks=["other"]))
    world.follow([job])  # as if it had never arrived
    assert world.listener.wait_for("job_running", job.id, timeout=WAIT)


def test_a_host_of_another_version_is_ended_with_that_reason(world: World) -> None:
    world.start({"spark": {"newer": 1}})
    world.follow([])
    _, end, error = world.listener.wait_for("context_ended", timeout=WAIT)
    assert end is ContextEnd.FAILED
    assert "of the launcher's protocol" in error.message
    assert "cannot take the context over" in error.message


def test_a_host_that_dies_before_it_has_come_back_is_a_failed_context(world: World) -> None:
    world.start()
    pid = world.pid
    os.kill(pid, signal.SIGSTOP)
    world.follow([])
    os.kill(pid, signal.SIGKILL)
    _, end, error = world.listener.wait_for("context_ended", timeout=WAIT)
    assert end is ContextEnd.FAILED
    assert "could not be taken over: its host process ended" in error.message


def test_a_host_that_does_not_come_in_time_is_ended(world: World) -> None:
    world.start()
    os.kill(world.pid, signal.SIGSTOP)
    world.follow([], reattach_timeout=0.2)
    _, end, error = world.listener.wait_for("context_ended", timeout=WAIT)
    assert end is ContextEnd.FAILED
    assert "its host did not connect in 0.2 s" in error.message


def test_neither_the_end_of_a_context_nor_a_start_waits_until_its_files_are_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, go_on, remove = threading.Event(), threading.Event(), shutil.rmtree

    def slow(path: Path, **options: Any) -> None:
        removing.set()
        assert go_on.wait(WAIT), "something waits for the removal of files"
        remove(path, **options)

    monkeypatch.setattr(leftovers.shutil, "rmtree", slow)
    world.start()
    (world.spec.work_dir / "unpacked").mkdir()
    world.handle.kill()
    world.listener.wait_for("context_ended", timeout=WAIT)
    assert not world.spec.work_dir.exists()
    assert removing.wait(WAIT)
    world.launchers[-1].close()
    (aside,) = world.spec.work_dir.parent.iterdir()
    assert (aside / "unpacked").exists()

    launcher = world.launcher()
    assert launcher.survivors() == []
    removing.clear()
    launcher.sweep()
    assert removing.wait(WAIT)
    go_on.set()
    wait_until(lambda: not list(world.spec.work_dir.parent.iterdir()))
    wait_until(lambda: not list((world.folder / "pyspark" / "contexts").iterdir()))


def test_a_host_without_a_next_server_ends_by_itself_and_is_no_zombie(world: World) -> None:
    world.start(reattach_timeout=0.2)
    (record,) = world.launchers[-1]._leftovers.all()
    world.launchers[-1].detach()
    wait_until(lambda: not world.spec.work_dir.exists())
    wait_until(lambda: not Path(f"/proc/{record.pid}").exists(), "this process has reaped it")
    launcher = world.launcher()
    wait_until(lambda: not launcher.survivors())
    launcher.sweep()


def test_the_next_server_may_be_slow_to_start(world: World) -> None:
    world.start()
    assert (
        oct((world.folder / "pyspark" / "contexts" / f"{world.spec.id}.json").stat().st_mode & 0o777)
        == "0o600"
    )
    world.launchers[-1].detach()
    file = world.folder / "pyspark" / "server.json"
    file.write_text("{not JSON")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        host, port = stranger.getsockname()
        file.write_text(json.dumps({"host": host, "port": port}))
        stranger.settimeout(WAIT)
        connection, _ = stranger.accept()
    with connection:
        connection.settimeout(WAIT)
        channel: Channel[ServerToHost, HostToServer] = Channel(connection, HostToServer)
        hello = channel.receive()
        assert isinstance(hello, Reattach)
        channel.send(ReattachChallenge(nonce="n", proof="forged"))
        assert connection.recv(1) == b"", "the host proves itself only to its server"
    launcher = world.launcher()
    (spec,) = launcher.survivors()
    assert spec == world.spec
    world.listener = RecordingListener()
    world.handle = launcher.reattach(spec, [], world.listener)
    world.listener.wait_for("context_ready", timeout=WAIT)


def test_a_listener_that_hangs_does_not_cost_the_context_that_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.listener = hanging = HangingListener()
    world.start()
    gate = world.folder / "gate"
    job = world.submit(before="a", gate=str(gate), chunks=["b"])
    assert hanging.hanging.wait(WAIT)
    (launcher,) = world.launchers
    with monkeypatch.context() as patch:
        patch.setattr("jobserver_pyspark.launcher.launcher._CLOSE_TIMEOUT", 0.1)
        launcher.detach()
        launcher.close()
        world.handle.stop(0.0)
        world.handle.kill()
        world.follow([job])
    assert world.listener.wait_for("job_running", job.id, timeout=WAIT)
    gate.touch()
    assert world.result(job) == "ab"
    hanging.go_on.set()
    wait_until(lambda: not launcher._contexts)
    assert [event[0] for event in hanging.events] == ["context_ready", "job_running"]


def test_packages_of_running_jobs_outlive_the_server_that_unpacked_them(world: World) -> None:
    world.start(options=LauncherOptions(packages_size=0))
    gate = world.folder / "gate"
    job = world.submit(world.wheel(), gate=str(gate), chunks=["done"])
    world.listener.wait_for("job_running", job.id, timeout=WAIT)
    (package,) = (world.folder / "pyspark" / "packages" / "contents").iterdir()
    world.follow([job], options=LauncherOptions(packages_size=0))
    assert (package / "x.py").is_file()
    gate.touch()
    assert world.result(job) == "done"


def test_a_launcher_that_only_checks_settings_leaves_the_address_of_the_server(world: World) -> None:
    world.start()
    world.follow([])
    address = world.folder / "pyspark" / "server.json"
    published = address.read_bytes()
    checking = world.launcher()
    checking.validate({})
    checking.close()
    assert address.read_bytes() == published
    world.launchers[-2].close()
    assert not address.exists()


def test_an_address_that_cannot_be_written_ends_no_context(world: World) -> None:
    world.start()
    world.launchers[-1].detach()
    in_the_way = world.folder / "pyspark" / "server.json"
    in_the_way.mkdir()
    launcher = world.launcher()
    with pytest.raises(LaunchError, match=rf"cannot write {in_the_way}, .* 1 running contexts"):
        launcher.survivors()
    in_the_way.rmdir()
    launcher.close()
    world.follow([])
    assert world.listener.wait_for("context_ready", timeout=WAIT)


# -- the jobs of a context, without a host -------------------------------------------------------------


class JobsWithoutHost:
    """The jobs of a context, and the messages that were sent to its host."""

    def __init__(self, world: World, listener_lock: Any = None) -> None:
        self.lease = PackageLease(DiskCache(world.folder / "packages", limit=0))
        self.sent: list[ServerToHost] = []
        self.jobs = HostedJobs(
            world.spec,
            world.listener,
            self.lease,
            send=self.sent.append,
            listener_lock=listener_lock or threading.Lock(),
        )


@pytest.mark.parametrize("resumed", [False, True])
def test_a_kill_while_a_job_is_sent_follows_the_job(world: World, resumed: bool) -> None:
    without_host = JobsWithoutHost(world)
    jobs, sent, job = without_host.jobs, without_host.sent, world.job()

    def send(message: ServerToHost) -> None:
        if isinstance(message, SubmitJob):
            jobs.kill(job.id)
        sent.append(message)

    jobs._send = send
    if resumed:
        jobs.expect([job])
        jobs.resume([])
    else:
        jobs.submit(job)
    assert [type(message) for message in sent] == [SubmitJob, KillJob]


class LateLock:
    """A lock that is obtained only after the jobs were closed."""

    jobs: HostedJobs | None = None

    def __enter__(self) -> None:
        jobs, self.jobs = self.jobs, None
        if jobs is not None:
            jobs.close()

    def __exit__(self, *_exc: object) -> None:
        return


@pytest.mark.parametrize(
    "message",
    [
        JobRunning(job_id="j"),
        ProgressReport(job_id="j", stages_done=0, stages_total=1, tasks_done=0, tasks_total=1),
        ResultChunk(job_id="j", stream=False, data=b"1"),
        JobEnded(job_id="j", killed=True),
    ],
)
def test_a_report_that_waits_while_the_context_is_left_is_not_forwarded(
    world: World, message: HostToServer
) -> None:
    lock = LateLock()
    without_host = JobsWithoutHost(world, lock)
    without_host.jobs.expect([attrs.evolve(world.job(), id="j")])
    lock.jobs = without_host.jobs
    without_host.jobs.handle(message)
    assert world.listener.events == []
    assert without_host.sent == []


def test_a_context_that_was_left_kills_none_of_the_jobs_of_a_host_that_comes_back(world: World) -> None:
    without_host = JobsWithoutHost(world)
    job = world.job()
    without_host.jobs.expect([job])
    without_host.jobs.close()
    without_host.jobs.resume([job.id])
    assert without_host.sent == []


def test_packages_of_expected_jobs_are_kept_before_their_host_is_back(world: World) -> None:
    earlier, present = JobsWithoutHost(world), JobsWithoutHost(world)
    job = world.job(world.wheel())
    (package,) = earlier.lease.prepare(job.class_path)
    present.jobs.expect([job])
    earlier.lease.close()
    assert Path(package.directory).is_dir()
    present.lease.close()
    assert not Path(package.directory).exists()
