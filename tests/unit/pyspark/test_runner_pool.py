"""The runners that wait for jobs, with runners that are no processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conditions import wait_until
from jobserver_pyspark.host.runner_pool import RunnerPool
from jobserver_pyspark.host.runners import RunnerLost

WORDS, OTHER = ("words",), ("other",)


class Spec:
    """What the pool reads of the spec of a context."""

    context_type = "session"
    spare_runners = 1


class Runner:
    """A runner that notes what is asked of it, and fails one call; it ends at once when it is killed."""

    def __init__(self, class_path_key: tuple[str, ...] | None = None, *, fails: str | None = None) -> None:
        self.class_path_key = class_path_key
        self._fails = fails
        self.exited = threading.Event()
        self.calls: list[str] = []

    def kill(self) -> None:
        self.exited.set()

    def __getattr__(self, name: str) -> Any:
        def call(*_arguments: object) -> None:
            self.calls.append(name)
            if name == self._fails:
                raise RunnerLost(f"{name} failed")

        return call


class Zygote:
    """Makes runners, and remembers them. The first one fails the call ``first_fails``."""

    def __init__(self) -> None:
        self.made: list[Runner] = []
        self.first_fails: str | None = None

    def fork(self) -> Runner:
        self.made.append(Runner(fails=None if self.made else self.first_fails))
        return self.made[-1]


class World:
    def __init__(self) -> None:
        self.zygote = Zygote()
        self.busy = False
        self.warnings: list[str] = []
        ports: Any = {"driver": None, "zygote": self.zygote, "pump": None}
        spec: Any = Spec()
        self.pool = RunnerPool(spec, spares=1, busy=lambda: self.busy, warn=self.warnings.append, **ports)

    def start(self) -> Runner:
        """Return the first spare, once it is ready for jobs."""
        self.pool.start()
        self.pool.session_ready.set()
        self.pool.warm_up()
        return self.zygote.made[0]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.pool.close()


def test_a_job_gets_the_spare_runner_and_another_spare_replaces_it(world: World) -> None:
    first = world.start()
    assert world.pool.take(WORDS, fresh=False) is first
    wait_until(lambda: len(world.zygote.made) == 2)
    wait_until(lambda: "prepare" in world.zygote.made[1].calls)
    assert world.pool.take(OTHER, fresh=False) is world.zygote.made[1]


def test_a_job_gets_an_idle_runner_of_its_class_path_and_no_other_one(world: World) -> None:
    words, other = Runner(WORDS), Runner(OTHER)
    for runner in (words, other):
        world.pool.keep(runner)  # type: ignore[arg-type]
    assert world.pool.take(WORDS, fresh=False) is words
    assert world.pool.take(WORDS, fresh=False) is world.zygote.made[0]
    assert world.pool.take(OTHER, fresh=False) is other


def test_a_job_that_needs_a_fresh_process_gets_no_idle_runner(world: World) -> None:
    world.pool.keep(Runner(WORDS))  # type: ignore[arg-type]
    assert world.pool.take(WORDS, fresh=True) is world.zygote.made[0]


def test_runners_that_have_ended_are_discarded_and_not_taken(world: World) -> None:
    dead = Runner(WORDS)
    world.pool.keep(dead)  # type: ignore[arg-type]
    dead.kill()
    assert world.pool.take(WORDS, fresh=False) is not dead
    assert dead.calls == ["close", "detach"]


def test_a_runner_that_cannot_be_attached_is_discarded(world: World) -> None:
    world.zygote.first_fails = "attach"
    with pytest.raises(RunnerLost, match="attach failed"):
        world.pool.take(WORDS, fresh=False)
    (runner,) = world.zygote.made
    assert (runner.exited.is_set(), runner.calls) == (True, ["attach", "close", "detach"])


def test_a_first_worker_that_does_not_start_costs_only_its_runner(world: World) -> None:
    world.zygote.first_fails = "warm_up"
    world.pool.start()
    world.pool.session_ready.set()
    wait_until(lambda: len(world.zygote.made) == 2)
    runner = world.zygote.made[0]
    assert (runner.exited.is_set(), runner.calls) == (True, ["attach", "warm_up", "close", "detach"])
    assert world.warnings == ["the first Python worker did not start: warm_up failed"]


def test_a_spare_that_cannot_be_prepared_is_discarded(world: World) -> None:
    first = world.start()
    spare = Runner(fails="prepare")
    world.zygote.fork = lambda: spare  # type: ignore[method-assign]
    assert world.pool.take(WORDS, fresh=False) is first
    wait_until(lambda: "detach" in spare.calls)
    assert (spare.exited.is_set(), spare.calls) == (True, ["attach", "prepare", "close", "detach"])
    wait_until(lambda: world.warnings == ["a spare runner could not be started: prepare failed"])


def test_no_more_than_sixteen_runners_are_idle_and_the_oldest_go_first(world: World) -> None:
    runners = [Runner(WORDS) for _ in range(18)]
    for runner in runners:
        world.pool.keep(runner)  # type: ignore[arg-type]
    assert [runner.exited.is_set() for runner in runners] == [True] * 2 + [False] * 16


def test_closing_kills_every_runner_without_a_job(world: World) -> None:
    spare, idle = world.start(), Runner(WORDS)
    world.pool.keep(idle)  # type: ignore[arg-type]
    world.pool.close()
    assert spare.exited.is_set()
    assert idle.exited.is_set()
