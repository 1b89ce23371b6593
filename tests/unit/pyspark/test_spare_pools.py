"""The pools of spares, with spares that are objects in memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_core import Settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.ports import ContextSpec
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher import spare_pools
from jobserver_pyspark.launcher.context_settings import ContextSettings, read_settings
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.spare_hosts import fingerprint
from jobserver_pyspark.launcher.spare_pools import (
    Pool,
    Spare,
    SpareFailed,
    SparePools,
    SpareStarter,
    read_pools,
)


class FakeSpare(Spare):
    def __init__(self, pool: str, fingerprint: str) -> None:
        super().__init__(pool, fingerprint)
        self.dead = False
        self.killed = False
        self.ended = False
        self.may_end = threading.Event()
        self.may_end.set()

    @property
    def alive(self) -> bool:
        return not self.dead

    def kill(self) -> None:
        self.killed = True

    def end(self) -> None:
        assert not self.ended
        assert self.may_end.wait(30.0)
        self.ended = True


class FakeStarter(SpareStarter[FakeSpare]):
    """Starts spares at once; ``gate`` delays that, and ``failure`` lets it fail."""

    def __init__(self) -> None:
        self.fingerprints: dict[str, str | None] = {}
        self.started: list[FakeSpare] = []
        self.living_at_start: list[int] = []
        self.attempts = 0
        self.failure: str | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def fingerprint(self, pool: Pool) -> str | None:
        return self.fingerprints.get(pool.name, f"of {pool.name}")

    def start(self, pool: Pool) -> FakeSpare:
        self.attempts += 1
        self.living_at_start.append(sum(not spare.ended for spare in self.started))
        self.gate.wait(10.0)
        if self.failure is not None:
            raise SpareFailed(self.failure)
        spare = FakeSpare(pool.name, self.fingerprint(pool) or "")
        self.started.append(spare)
        return spare

    def close(self) -> None:
        self.closed = True
        self.failure = "closed"
        self.gate.set()


class World:
    """Pools, with a clock that tests set."""

    def __init__(
        self,
        *sizes: int,
        may_start: Callable[[Pool], bool] = lambda _pool: True,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        settings = ContextSettings(master="local[1]", context_type="any")
        self.starter = FakeStarter()
        self.now = 1000.0
        self.pools = SparePools(
            [Pool(name="abc"[i], size=size, settings=settings) for i, size in enumerate(sizes)],
            self.starter,
            max_age=100.0,
            may_start=may_start,
            busy=busy,
            monotonic=lambda: self.now,
        )

    def fill(self) -> None:
        while self.pools.step() == 0.0:
            pass

    @property
    def ready(self) -> list[int]:
        return [pool.ready for pool in self.pools.status]


def test_pools_are_filled_one_spare_at_a_time() -> None:
    world = World(2, 1)
    assert world.ready == [0, 0]
    world.pools.step()
    assert world.ready == [1, 0]
    world.fill()
    assert world.ready == [2, 1]
    world.fill()
    assert world.starter.attempts == 3


def test_a_spare_is_handed_out_once_and_only_for_its_fingerprint() -> None:
    world = World(1, 1)
    world.fill()
    assert world.pools.take("of nobody") is None
    taken = world.pools.take("of b")
    assert taken is world.starter.started[1]
    assert world.pools.take("of b") is None
    assert world.ready == [1, 0]
    world.fill()
    assert world.ready == [1, 1]
    assert not taken.ended


def test_a_dead_spare_is_not_handed_out_and_is_replaced() -> None:
    world = World(1)
    world.fill()
    world.starter.started[0].dead = True
    assert world.ready == [0]
    assert world.pools.take("of a") is None
    world.fill()
    assert world.starter.started[0].ended
    assert world.pools.take("of a") is world.starter.started[1]


def test_an_old_spare_is_ended_before_its_replacement_starts() -> None:
    world = World(1)
    world.fill()
    world.now += 99.0
    world.fill()
    assert world.starter.attempts == 1
    world.now += 2.0
    world.fill()
    assert world.starter.started[0].ended
    assert world.ready == [1]
    assert world.starter.living_at_start == [0, 0]


def test_a_spare_is_replaced_when_its_pool_would_start_another_one() -> None:
    world = World(1)
    world.fill()
    world.starter.fingerprints["a"] = "of an upgraded Spark"
    world.fill()
    assert world.starter.started[0].ended
    assert world.pools.take("of an upgraded Spark") is not None


def test_a_pool_without_a_fingerprint_stays_empty() -> None:
    world = World(1, 1)
    world.starter.fingerprints["a"] = None
    world.fill()
    assert world.ready == [0, 1]


def test_no_spare_starts_while_the_machine_is_busy() -> None:
    busy = {"a", "b"}
    world = World(1, 1, may_start=lambda pool: pool.name not in busy)
    assert world.pools.step() > 0.0
    assert world.starter.attempts == 0
    busy.remove("b")
    world.fill()
    assert world.ready == [0, 1]


def test_a_missing_spare_waits_some_seconds_for_running_jobs() -> None:
    running = [True]
    world = World(1, busy=lambda: running[0])
    for _ in range(10):
        assert world.pools.step() == 1.0
        world.now += 1.0
    assert world.starter.attempts == 0
    world.fill()
    assert world.ready == [1]
    world.pools.take("of a")
    assert world.pools.step() == 1.0
    running[0] = False
    world.fill()
    assert world.ready == [1]


def test_failed_starts_are_repeated_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    world = World(1)
    world.starter.failure = "no memory"
    with caplog.at_level(logging.WARNING):
        world.fill()
    assert "the pool a could not be started: no memory" in caplog.text
    gaps, last = [], world.now
    for _ in range(2000):
        world.now += 1.0
        before = world.starter.attempts
        world.fill()
        if world.starter.attempts > before:
            gaps.append(world.now - last)
            last = world.now
    assert gaps[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(gaps) == 300.0
    world.starter.failure = None
    world.now += 300.0
    world.fill()
    assert world.ready == [1]


def test_a_failing_pool_does_not_keep_others_from_being_filled() -> None:
    world = World(1, 1)
    world.starter.failure = "broken"
    world.pools.step()
    world.starter.failure = None
    world.fill()
    assert world.ready == [0, 1]


def test_the_thread_replaces_a_taken_spare_and_ends_all_at_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_pools, "_PAUSE", 0.01)
    world = World(1)
    world.pools.begin()
    world.pools.begin()
    wait_until(lambda: world.ready == [1])
    assert world.pools.take("of a") is world.starter.started[0]
    wait_until(lambda: world.ready == [1])
    world.pools.close(time.monotonic() + 10.0)
    first, second = world.starter.started
    assert (first.ended, second.ended) == (False, True)
    assert world.pools.take("of a") is None
    assert world.starter.closed


def test_a_start_under_way_ends_with_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_pools, "_PAUSE", 0.01)
    world = World(1)
    world.starter.gate.clear()
    world.pools.begin()
    wait_until(lambda: world.pools.status[0].starting == 1)
    world.pools.close(time.monotonic() + 10.0)
    assert world.starter.started == []
    assert world.ready == [0]


def test_a_spare_that_became_ready_during_the_close_is_ended() -> None:
    world = World(1)
    original = world.starter.start

    def start(pool: Pool) -> FakeSpare:
        spare = original(pool)
        world.pools.close(time.monotonic())
        return spare

    world.starter.start = start  # type: ignore[method-assign]
    world.pools.step()
    assert world.starter.started[0].ended


def test_a_close_kills_all_spares_and_does_not_wait_for_one_past_its_deadline() -> None:
    world = World(3)
    world.fill()
    slow, *others = world.starter.started
    slow.may_end.clear()
    world.pools.close(time.monotonic() + 0.1)
    assert [spare.killed for spare in world.starter.started] == [True, True, True]
    assert not slow.ended
    wait_until(lambda: all(spare.ended for spare in others), "the others end, although one takes long")
    slow.may_end.set()
    wait_until(lambda: slow.ended)


def test_a_context_needs_the_memory_of_its_heap_and_some_more() -> None:
    pool = Pool(
        name="a",
        size=1,
        settings=ContextSettings(master="local[1]", context_type="any", conf={"spark.driver.memory": "2g"}),
    )
    assert pool.fits(3 * 2**30)
    assert not pool.fits(2 * 2**30)
    assert pool.fits(None)


# -- which contexts a spare fits -----------------------------------------------------------------------


def _plan(
    directory: Path, name: str, settings: dict[str, object], class_data: list[str]
) -> tuple[HostPlan, Path]:
    spec = ContextSpec(
        id=f"id-{name}",
        name=name,
        settings=settings,
        log_path=directory / f"{name}.log",
        work_dir=directory / name,
        data_dir=directory / f"data-{name}",
    )
    (directory / "jars").mkdir(exist_ok=True)
    plan = make_plan(
        spec,
        read_settings(settings, default_master="local[2]"),
        Installation(python="/usr/bin/python3", package=directory, version="4.3.0"),
        Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
        LauncherOptions(cache_dir=directory / "cache"),
        tmp_dir=spec.work_dir / "tmp",
        log_limit=10_000,
        result_limit=0,
        class_data=class_data,
    )
    return plan, spec.work_dir


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"job-max-run-time": "1 h", "idle-timeout": "5 m"}, True),
        ({"spark": {"app": {"name": "another"}}}, True),
        ({"spark": {"master": "local[2]"}}, True),
        ({"spark": {"master": "local[3]"}}, False),
        ({"num-cpu-cores": 1, "spark": {"master": "local[*]"}}, False),
        ({"spark": {"my": {"setting": 1}}}, False),
        ({"hadoop": {"fs": {"x": 1}}}, False),
        ({"memory-per-node": "600m"}, False),
        ({"context-factory": "spark.jobserver.python.PythonSessionContextFactory"}, False),
        ({"python": {"process": "fresh"}}, False),
        ({"python": {"paths": "/usr"}}, False),
    ],
)
def test_a_spare_fits_contexts_that_differ_in_what_only_jobs_read(
    tmp_path: Path, settings: dict[str, object], fits: bool
) -> None:
    spare = fingerprint(*_plan(tmp_path, "spare", {}, []))
    wanted = fingerprint(
        *_plan(tmp_path, "wanted", settings, ["-XX:SharedArchiveFile=/a.jsa", "-Xlog:cds=off"])
    )
    assert (wanted == spare) is fits


# -- settings ------------------------------------------------------------------------------------------


def _settings(pools: object, context_settings: object = None) -> Settings:
    return Settings.from_mapping(
        {
            "spark": {"master": "local[4]", "context-settings": context_settings or {}},
            "jobserver": {"contexts": {"pools": pools}},
        }
    )


def test_pools_have_their_settings_over_those_of_all_contexts() -> None:
    default, small = read_pools(
        _settings(
            {"default": None, "small": {"size": "2", "memory-per-node": "600m"}},
            {"memory-per-node": "700m", "num-cpu-cores": 2},
        )
    )
    assert (default.name, default.size, small.name, small.size) == ("default", 1, "small", 2)
    assert default.settings.conf["spark.driver.memory"] == "700m"
    assert small.settings.conf["spark.driver.memory"] == "600m"
    assert default.settings.master == small.settings.master == "local[4]"
    assert read_pools(_settings({})) == []


@pytest.mark.parametrize(
    ("pools", "key", "reason"),
    [
        ({"a": {"size": -1}}, "jobserver.contexts.pools.a.size", "from 0 to 64, got -1"),
        ({"a": {"size": True}}, "jobserver.contexts.pools.a.size", "got True"),
        ({"a": {"size": "many"}}, "jobserver.contexts.pools.a.size", "got 'many'"),
        ({"a": {"size": 40}, "b": {"size": 25}}, "jobserver.contexts.pools", "add up to 64"),
        ({"a": {"num-cpu-cors": 1}}, "jobserver.contexts.pools.a.num-cpu-cors", "no such setting"),
        ({"a": {"cp": "lib"}}, "jobserver.contexts.pools.a.cp", "cannot have a class path"),
    ],
)
def test_invalid_pools_are_refused_with_their_key(pools: object, key: str, reason: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_pools(_settings(pools))
    assert caught.value.key == key
    assert reason in caught.value.message
