"""Hosts that connect to their server: strangers, other versions, and broken protocols."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import attrs
import pytest

from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import LaunchError
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd, ContextSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher.connections import HostChannel, HostConnections
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.environments import Unpacking
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.host_process import HostProcess
from jobserver_pyspark.launcher.hosted_context import HostedContext, LauncherResources
from jobserver_pyspark.launcher.leftovers import Leftovers
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.spare_hosts import SpareHosts
from jobserver_pyspark.launcher.spare_pools import SparePools
from jobserver_pyspark.processes import MARKER, marked, start_time
from jobserver_pyspark.protocol.converter import ProtocolError, encode
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed, new_nonce, proof_of
from jobserver_pyspark.protocol.messages import (
    PROTOCOL_VERSION,
    AcknowledgeJob,
    Connect,
    ContextDied,
    ContextResumed,
    Hello,
    HostToServer,
    JvmCommand,
    KillJob,
    Reattach,
    ReattachChallenge,
    ReattachProof,
    RefuseResult,
    ServerToHost,
    StartContext,
    SubmitJob,
)

CONNECT = """
import os, socket, sys
from jobserver_pyspark.protocol.converter import decode
from jobserver_pyspark.protocol.frames import Channel
from jobserver_pyspark.protocol.messages import *

connect = decode(ServerToHost, sys.stdin.buffer.readline())
connection = socket.create_connection((connect.host, connect.port))
server = Channel(connection, ServerToHost)
"""


def connect(connections: HostConnections) -> Channel[HostToServer, ServerToHost]:
    return Channel(socket.create_connection(connections.address), ServerToHost)


@pytest.fixture
def connections() -> Iterator[HostConnections]:
    made = HostConnections()
    yield made
    made.close()


def test_a_connection_without_the_secret_is_closed(connections: HostConnections) -> None:
    token, arrivals = connections.expect()
    for wrong in ("", "wrong", token[:-1]):
        stranger = connect(connections)
        stranger.send(Hello(protocol=PROTOCOL_VERSION, token=wrong))
        with pytest.raises(ChannelClosed):
            stranger.receive()
        stranger.close()
    assert arrivals.empty()
    friend = connect(connections)
    friend.send(Hello(protocol=PROTOCOL_VERSION, token=token))
    accepted = arrivals.get(timeout=30.0)
    assert isinstance(accepted, Channel)
    again = connect(connections)
    again.send(Hello(protocol=PROTOCOL_VERSION, token=token))
    with pytest.raises(ChannelClosed):
        again.receive()
    for channel in (friend, accepted, again):
        channel.close()


@pytest.mark.parametrize("version", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_a_host_of_another_version_is_closed_and_its_context_learns_why(
    connections: HostConnections, version: int
) -> None:
    token, arrivals = connections.expect()
    host = connect(connections)
    host.send(Hello(protocol=version, token=token))
    arrived = arrivals.get(timeout=30.0)
    assert isinstance(arrived, ProtocolError)
    assert f"speaks version {version} " in str(arrived)
    assert f"this server version {PROTOCOL_VERSION}" in str(arrived)
    with pytest.raises(ChannelClosed):
        host.receive()
    host.close()


def spec_in(directory: Path) -> ContextSpec:
    return ContextSpec(
        id="c", name="c", log_path=directory / "log", work_dir=directory / "work", data_dir=directory
    )


def plan_in(directory: Path, spec: ContextSpec) -> HostPlan:
    (directory / "jars").mkdir()
    return make_plan(
        spec,
        read_settings({}, default_master="local[1]"),
        Installation(python=sys.executable, package=directory, version="4.3.0"),
        Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
        LauncherOptions(cache_dir=directory / "cache"),
        tmp_dir=directory / "work" / "tmp",
        log_limit=10_000,
        result_limit=0,
        class_data=[],
    )


def run_host(script: str, directory: Path) -> tuple[ContextEnd, ErrorInfo, int]:
    """Start a context with a script as its host; return how it ended, why, and the host's process id."""
    spec = spec_in(directory)
    plan = plan_in(directory, spec)
    program = f"import os; open({str(directory / 'pid')!r}, 'w').write(str(os.getpid()))\n{CONNECT}{script}"
    environment = {**plan.environment, "PYTHONPATH": ":".join(filter(None, sys.path))}
    plan = HostPlan(command=[sys.executable, "-c", program], environment=environment, spec=plan.spec)
    end, error = run_context(directory, spec, lambda _context, _unpacking: plan)
    return end, error, int((directory / "pid").read_text())


def run_context(
    directory: Path, spec: ContextSpec, plan_of: Callable[[HostedContext, Unpacking], HostPlan]
) -> tuple[ContextEnd, ErrorInfo]:
    """Start a context whose host ``plan_of`` describes; return how it ended, and why."""
    connections, leftovers = HostConnections(), Leftovers(directory / "contexts")
    resources = LauncherResources(
        connections=connections,
        leftovers=leftovers,
        unpacked=DiskCache(directory / "packages", limit=0),
        spares=SparePools(
            [],
            SpareHosts(
                directory / "spares", connections, leftovers, lambda spec, _settings: plan_in(directory, spec)
            ),
            max_age=60.0,
        ),
    )
    listener = RecordingListener()
    context = HostedContext(
        spec,
        listener,
        resources,
        make_plan=lambda unpacking: plan_of(context, unpacking),
        on_end=lambda _context: None,
    )
    context.begin()
    try:
        _, end, error = listener.wait_for("context_ended", timeout=60.0)
        assert context.join(30.0)
    finally:
        context.kill()
        connections.close()
    assert not list((directory / "contexts").glob("*"))
    assert not (directory / "work").exists()
    return end, error


def test_a_context_says_what_it_unpacks_while_it_does(tmp_path: Path) -> None:
    said: list[str] = []

    def plan_of(context: HostedContext, unpacking: Unpacking) -> HostPlan:
        said.append(context.preparing)
        with unpacking(Path("/srv/env.tar.gz")):
            said.append(context.preparing)
        said.append(context.preparing)
        raise LaunchError(message="there is no host")

    end, error = run_context(tmp_path, spec_in(tmp_path), plan_of)
    assert (end, error.message) == (ContextEnd.FAILED, "there is no host")
    assert said == ["", "unpacking /srv/env.tar.gz, once for all contexts", ""]


@pytest.mark.real
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "server.send(Hello(protocol=999, token=connect.token))\n"
            "try: server.receive()\n"
            "except Exception: os._exit(0)\n",
            "speaks version 999 of the launcher's protocol, and this server version",
        ),
        (
            "server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))\n"
            "server.receive()\n"
            "connection.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')\n"
            "sys.stdin.read()\n",
            "the context's host sent a frame of ",
        ),
        (
            "server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))\n"
            "server.receive()\n"
            "server.send(ContextReady(application_id=5, url=None))\n"
            "sys.stdin.read()\n",
            "ContextReady.application_id must be a string, got 5",
        ),
        (
            "server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))\n"
            "server.receive()\n"
            "server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))\n"
            "sys.stdin.read()\n",
            "the context's host sent Hello out of turn",
        ),
    ],
    ids=["another version", "no frame", "malformed", "out of turn"],
)
def test_a_host_that_breaks_the_protocol_is_ended_with_the_reason(
    script: str, reason: str, tmp_path: Path
) -> None:
    end, error, pid = run_host(script, tmp_path)
    assert end is ContextEnd.FAILED
    assert reason in error.message
    assert error.error_class == "jobserver_pyspark.protocol.converter.ProtocolError"
    assert start_time(pid) is None, "the host is still running"


@pytest.fixture
def host() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A connected host that has not received a spec yet, and its connection."""
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-m", "jobserver_pyspark.host"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        address, port = listener.getsockname()
        line, _ = encode(Connect(host=address, port=port, token="secret"))
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        listener.settimeout(60.0)
        connection, _ = listener.accept()
    connection.settimeout(60.0)
    yield process, connection
    connection.close()
    process.kill()
    process.communicate()


@pytest.mark.real
def test_a_host_says_its_version_and_ends_when_the_server_closes_the_connection(
    host: tuple[subprocess.Popen[bytes], socket.socket],
) -> None:
    process, connection = host
    channel = HostChannel(connection, HostToServer)
    assert channel.receive() == Hello(protocol=PROTOCOL_VERSION, token="secret")
    channel.close()
    assert process.wait(60.0) == 0
    assert process.communicate()[1] == b""


@pytest.mark.real
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\0\0\0\2\0\0\0\0{}", "the server sent a message of unknown kind None"),
        (
            b'\0\0\0\x16\0\0\0\0{"kind":"StopContext"}',
            "the server sent StopContext before it started a context",
        ),
    ],
)
def test_a_host_reports_that_its_server_breaks_the_protocol(
    host: tuple[subprocess.Popen[bytes], socket.socket], sent: bytes, reason: str
) -> None:
    process, connection = host
    channel = HostChannel(connection, HostToServer)
    assert isinstance(channel.receive(), Hello)
    connection.sendall(sent)
    failed = channel.receive()
    assert isinstance(failed, ContextDied)
    assert failed.error.message.startswith(reason)
    assert process.wait(60.0) == 1


@pytest.mark.real
@pytest.mark.parametrize(
    "message",
    [
        SubmitJob(
            job_id="j",
            class_name="c",
            python=True,
            log_path=Path("/never"),
            packages=(),
            jars=(),
            config=b"{}",
        ),
        KillJob(job_id="j"),
        RefuseResult(job_id="j", message="too large"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_host_that_is_not_ready_takes_acknowledgements_and_no_other_messages_about_jobs(
    host: tuple[subprocess.Popen[bytes], socket.socket], message: ServerToHost, tmp_path: Path
) -> None:
    process, connection = host
    channel = HostChannel(connection, HostToServer)
    assert isinstance(channel.receive(), Hello)
    spec = plan_in(tmp_path, spec_in(tmp_path)).spec
    spec.tmp_dir.mkdir(parents=True)
    never_ready = JvmCommand(command=("sleep", "600"), environment={MARKER: spec.marker})
    channel.send(StartContext(spec=replace(spec, jvm=never_ready)), AcknowledgeJob(job_id="killed"), message)
    failed = channel.receive()
    assert isinstance(failed, ContextDied)
    assert failed.error.message == f"the server sent {type(message).__name__} before ContextReady"
    assert process.wait(60.0) == 0
    assert not marked(spec.marker)


def test_what_a_returning_host_sends_right_behind_its_proof_arrives(connections: HostConnections) -> None:
    arrivals = connections.expect_returning("marker", "secret")
    host, nonce = connect(connections), new_nonce()
    host.send(Reattach(protocol=PROTOCOL_VERSION, marker="marker", nonce=nonce))
    challenge = host.receive()
    assert isinstance(challenge, ReattachChallenge)
    resumed = ContextResumed(ready=None, jobs=tuple(f"job {number}" for number in range(1000)))
    host.send(ReattachProof(proof=proof_of("host", "secret", nonce, challenge.nonce)), resumed)
    channel = arrivals.get(timeout=30.0)
    assert not isinstance(channel, ProtocolError)
    assert channel.receive() == resumed
    channel.close()
    host.close()


@pytest.mark.real
def test_the_directories_of_a_host_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spec = attrs.evolve(spec_in(tmp_path), work_dir=tmp_path / "pyspark" / "spares" / "s")
        plan = attrs.evolve(plan_in(tmp_path, spec), command=[sys.executable, "-c", ""])
        plan = attrs.evolve(plan, spec=replace(plan.spec, tmp_dir=spec.work_dir / "tmp"))
        host = HostProcess(plan, work_dir=spec.work_dir, log_path=tmp_path / "logs" / "log")
        host.reap()
        Leftovers(tmp_path / "launcher" / "contexts").record("c", plan.record(spec.work_dir))
    finally:
        os.umask(before)
    made = [path for name in ("pyspark", "logs", "launcher") for path in (tmp_path / name).rglob("*")]
    made += [tmp_path / name for name in ("pyspark", "logs", "launcher")]
    assert {path: oct(path.stat().st_mode & 0o077) for path in made if path.stat().st_mode & 0o077} == {}
