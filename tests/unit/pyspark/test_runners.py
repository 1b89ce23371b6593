"""A runner as the host sees it, with the test at the other end of its channel."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from jobserver_pyspark.host.runners import RunnerProcess
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import HostToRunner, Restored, RunnerToHost, WarmedUp


class World:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.peer = Channel[RunnerToHost, HostToRunner](theirs, HostToRunner)
        self.channel = Channel[HostToRunner, RunnerToHost](ours, RunnerToHost)
        output: Any = type("NoOutput", (), {"write": None})
        self.runner = RunnerProcess(1, self.channel, output)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.peer.close()
    world.channel.close()


def test_a_runner_says_whether_it_may_serve_another_job(world: World) -> None:
    for unfit in (None, "it has threads"):
        world.peer.send(Restored(unfit=unfit))
        assert world.runner.wait_until_restored(10) == unfit
    world.peer.send(WarmedUp())
    assert world.runner.wait_until_restored(10) == "it broke the protocol"


def test_a_runner_that_does_not_restore_its_state_in_time_serves_no_other_job(world: World) -> None:
    assert world.runner.wait_until_restored(0.01) == "it did not restore its state within 0.01 s"


def test_a_runner_that_restored_its_state_may_keep_silent_afterwards(world: World) -> None:
    world.peer.send(Restored(unfit=None))
    assert world.runner.wait_until_restored(0.01) is None
    assert world.channel._socket.gettimeout() is None


def test_a_runner_that_ends_instead_is_noticed(world: World) -> None:
    world.peer.close()
    with pytest.raises(ChannelClosed):
        world.runner.wait_until_restored(10)
