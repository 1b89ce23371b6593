from __future__ import annotations

import socket
from pathlib import Path

import pytest
from launcher_world import Context, Start

from jobserver_pyspark.connections import Connections
from jobserver_pyspark.host.frames import Channel, ChannelClosed

pytestmark = pytest.mark.spark

ALLOWED = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"}
ALLOWED |= {"LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
OURS = {"JOBSERVER_CONTEXT", "JOBSERVER_FALLBACK_PATH", "JOBSERVER_JOB_ID", "PYTHONPATH", "PYSPARK_PYTHON"}
OURS |= {"PYSPARK_DRIVER_PYTHON", "JAVA_HOME", "TMPDIR"}
SPARKS = {"SPARK_AUTH_SOCKET_TIMEOUT", "SPARK_BUFFER_SIZE"}


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch, start: Start, tmp_path: Path) -> Context:
    """A context of a server with a secret in its environment and a file that is open and inheritable."""
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    return start().wait_ready()


def test_secrets_of_the_server_do_not_reach_jobs(secretive: Context) -> None:
    seen = secretive.run("work.Environment").value
    assert set(seen["job"]) <= ALLOWED | OURS | SPARKS
    for environment in (seen["job"], seen["executor"]):
        assert "hunter2" not in environment.values()
        assert not [name for name in environment if "GATEWAY" in name]


def test_files_of_the_server_do_not_reach_jobs(secretive: Context, tmp_path: Path) -> None:
    opened = secretive.run("work.Environment").value["files"]
    mine = [target for target in opened.values() if target.startswith(str(tmp_path))]
    assert mine == []
    assert len(opened) < 20


def test_no_secret_is_on_a_command_line_or_in_an_environment(secretive: Context) -> None:
    order = secretive.handle
    token = "token"
    assert order is not None
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if secretive.spec.id.encode() not in (entry / "environ").read_bytes():
                continue
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        assert token.encode() not in said
        assert b"GATEWAY_SECRET" not in said


def test_a_connection_without_the_secret_is_closed() -> None:
    connections = Connections()
    token, arrivals = connections.expect()
    try:
        for told in ("", "wrong", token[:-1]):
            stranger = Channel(socket.create_connection(connections.address))
            stranger.send("hello", token=told)
            with pytest.raises(ChannelClosed):
                stranger.receive()
            stranger.close()
        assert arrivals.empty()
        friend = Channel(socket.create_connection(connections.address))
        friend.send("hello", token=token)
        accepted = arrivals.get(timeout=5.0)
        assert accepted is not None
        again = Channel(socket.create_connection(connections.address))
        again.send("hello", token=token)
        with pytest.raises(ChannelClosed):
            again.receive()
        for channel in (friend, accepted, again):
            channel.close()
    finally:
        connections.close()


def test_everything_listens_on_loopback_only(secretive: Context) -> None:
    listening = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if secretive.spec.id.encode() in (entry / "environ").read_bytes():
                listening |= _listening(entry)
        except OSError:
            continue
    assert listening
    assert all(address in ("0100007F", "0000000000000000FFFF00000100007F") for address in listening)


def _listening(entry: Path) -> set[str]:
    """The addresses, in the kernel's hexadecimal, that a process listens on."""
    inodes = set()
    for fd in (entry / "fd").iterdir():
        try:
            target = fd.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (entry / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found
