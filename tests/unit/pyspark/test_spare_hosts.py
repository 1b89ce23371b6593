"""Spares whose hosts are real processes without a JVM: what they leave when something fails."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import LaunchError
from jobserver_core.ports import ContextEnd, ContextSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher.connections import HostConnections
from jobserver_pyspark.launcher.context_settings import ContextSettings, read_settings
from jobserver_pyspark.launcher.environments import Unpacking
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.hosted_context import HostedContext, LauncherResources
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.spare_hosts import SpareHosts
from jobserver_pyspark.launcher.spare_pools import Pool, SpareFailed, SparePools
from jobserver_pyspark.processes import marked

HOST = """
import socket, sys
from jobserver_pyspark.protocol.converter import decode
from jobserver_pyspark.protocol.frames import Channel
from jobserver_pyspark.protocol.messages import *

connect = decode(ServerToHost, sys.stdin.buffer.readline())
server = Channel(socket.create_connection((connect.host, connect.port)), ServerToHost)
server.send(Hello(protocol=PROTOCOL_VERSION, token=connect.token))
server.receive()
server.send(SpareReady())
sys.stdin.read()
"""


class FullDisk(Leftovers):
    """Cannot store the record numbered ``failing``, from 0; ``recorded`` has all."""

    def __init__(self, directory: Path, failing: int | None = None) -> None:
        super().__init__(directory)
        self._failing = failing
        self.recorded: list[LeftoverRecord] = []

    def record(self, context_id: str, record: LeftoverRecord) -> None:
        self.recorded.append(record)
        if len(self.recorded) - 1 == self._failing:
            raise OSError(28, "No space left on device")
        super().record(context_id, record)


class Site:
    """A launcher's directories, and hosts that run ``command``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connections = HostConnections()
        self.command = [sys.executable, "-c", HOST]
        self.pool = Pool(name="a", size=2, settings=read_settings({}, default_master="local[1]"))
        (directory / "jars").mkdir()
        (directory / "short").mkdir()

    def plan(self, spec: ContextSpec, settings: ContextSettings) -> HostPlan:
        plan = make_plan(
            spec,
            settings,
            Installation(python=sys.executable, package=self.directory, version="4.3.0"),
            Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
            LauncherOptions(cache_dir=self.directory / "cache"),
            tmp_dir=self.directory / "short" / spec.id,
            log_limit=10_000,
            result_limit=0,
            class_data=[],
        )
        environment = {**plan.environment, "PYTHONPATH": ":".join(filter(None, sys.path))}
        return attrs.evolve(plan, command=self.command, environment=environment)

    def hosts(self, leftovers: Leftovers) -> SpareHosts:
        return SpareHosts(self.directory / "spares", self.connections, leftovers, self.plan)

    def left(self) -> list[Path]:
        places = ("spares", "short", "contexts")
        return [path for place in places for path in (self.directory / place).glob("*")]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.connections.close()


@pytest.mark.real
@pytest.mark.parametrize("failing", [0, 1], ids=["before the process", "after the process"])
def test_a_spare_that_cannot_be_recorded_leaves_nothing(site: Site, tmp_path: Path, failing: int) -> None:
    leftovers = FullDisk(tmp_path / "contexts", failing)
    with pytest.raises(SpareFailed, match="No space left"):
        site.hosts(leftovers).start(site.pool)
    assert len(leftovers.recorded) == failing + 1
    assert not marked(leftovers.recorded[0].marker)
    assert site.left() == []


@pytest.mark.real
def test_a_spare_whose_program_is_missing_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.command = [str(tmp_path / "absent")]
    leftovers = FullDisk(tmp_path / "contexts")
    with pytest.raises(SpareFailed, match="absent"):
        site.hosts(leftovers).start(site.pool)
    (record,) = leftovers.recorded
    assert tmp_path / "short" in [directory.parent for directory in record.directories]
    assert site.left() == []


@pytest.mark.real
def test_a_spare_that_ends_while_it_starts_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(SpareFailed):
        site.hosts(Leftovers(tmp_path / "contexts")).start(site.pool)
    assert site.left() == []


def test_a_record_that_cannot_be_stored_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "1.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        Leftovers(tmp_path).record("1", LeftoverRecord(marker="1:none", directories=()))
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


@pytest.mark.real
def test_a_context_that_is_killed_before_it_takes_a_spare_leaves_the_pool_full(
    site: Site, tmp_path: Path
) -> None:
    leftovers = Leftovers(tmp_path / "contexts")
    pools = SparePools([site.pool], site.hosts(leftovers), max_age=3600.0)
    try:
        while pools.step() == 0.0:
            pass
        assert pools.status[0].ready == 2
        resources = LauncherResources(
            connections=site.connections,
            leftovers=leftovers,
            unpacked=DiskCache(tmp_path / "packages", limit=0),
            spares=pools,
        )
        spec = ContextSpec(
            id="context-1",
            name="context",
            log_path=tmp_path / "log",
            work_dir=tmp_path / "work",
            data_dir=tmp_path,
        )
        planned, killed = threading.Event(), threading.Event()

        def plan(_unpacking: Unpacking) -> HostPlan:
            planned.set()
            assert killed.wait(30.0)
            return site.plan(spec, site.pool.settings)

        listener = RecordingListener()
        context = HostedContext(spec, listener, resources, make_plan=plan, on_end=lambda _context: None)
        context.begin()
        assert planned.wait(30.0)
        context.kill()
        killed.set()
        assert context.join(30.0)
        assert listener.wait_for("context_ended", timeout=1.0)[1] is ContextEnd.KILLED
        assert pools.status[0].ready == 2
    finally:
        pools.close(threading.TIMEOUT_MAX)
    assert site.left() == []


def test_a_pool_that_can_have_no_spare_is_logged_once_a_minute(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_spec: ContextSpec, _settings: ContextSettings) -> HostPlan:
        raise LaunchError(message="no Java")

    hosts = SpareHosts(tmp_path / "spares", site.connections, Leftovers(tmp_path / "contexts"), fail)
    pool = attrs.evolve(site.pool, name="without Java")
    with caplog.at_level(logging.WARNING):
        assert [hosts.fingerprint(pool) for _ in range(3)] == [None, None, None]
    assert caplog.text.count("the pool without Java can have no spare context: no Java") == 1
