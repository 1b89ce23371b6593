"""Setting the wall clock back does not affect the order of records, durations or timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conditions import wait_until
from jobserver_core import BinaryType, JobServer
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.ports import ContextEnd, SteadyClock
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, ScriptedLauncher, Successors, a_request, a_server, archive, report_result, upload

HOUR = 3600.0


class Scene(Successors):
    """A server with one context and a clock that tests set."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__(clock=self.clock)
        self.boot()

    def boot(self, **ports: Any) -> JobServer:
        server = super().boot(**ports)
        upload(server)
        server.create_context("shared")
        self.launchers[-1].listeners[0].context_ready(application_id=None, url=None)
        return server

    def submit(self, **rest: str) -> str:
        return self.servers[-1].submit(a_request("w.Any", context="shared", **rest)).id

    def finish(self, job_id: str) -> None:
        listener = self.launchers[-1].listeners[0]
        listener.job_running(job_id)
        report_result(listener, job_id, b"1")


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_jobs_are_listed_newest_first_even_if_the_clock_was_set_back(scene: Scene) -> None:
    ids = []
    for step in (0.0, -HOUR, 0.0, -HOUR, HOUR / 2, 0.0):
        scene.clock.set_wall(step)
        scene.clock.advance(1)
        ids.append(scene.submit())
    assert [job.id for job in scene.servers[-1].jobs().jobs] == ids[::-1]


def test_the_last_upload_is_the_newest_version_even_if_the_clock_was_set_back(scene: Scene) -> None:
    scene.clock.set_wall(-HOUR)
    last = scene.servers[-1].upload("words", BinaryType.EGG, archive("later"))
    assert scene.servers[-1].binary("words") == last
    assert scene.servers[-1].binary_versions("words")[0] == last


def test_the_last_context_of_a_name_is_the_newest_even_if_the_clock_was_set_back(scene: Scene) -> None:
    server, launcher = scene.servers[-1], scene.launchers[-1]
    launcher.listeners[0].context_ended(ContextEnd.FAILED)
    scene.clock.set_wall(-HOUR)
    server.create_context("shared")
    launcher.listeners[1].context_ended(ContextEnd.STOPPED)
    assert server.context("shared").id == server.contexts(ContextQuery())[0].id
    assert len({context.id for context in server.contexts(ContextQuery())}) == 2
    assert server.context("shared").started_at >= server.contexts(ContextQuery())[1].started_at
    ended = server.context("shared").ended_at
    assert ended is not None
    assert ended >= server.context("shared").started_at


def test_a_duration_is_right_even_if_the_clock_was_set_back(scene: Scene) -> None:
    job_id = scene.submit()
    scene.clock.advance(10)
    scene.clock.set_wall(-HOUR)
    scene.clock.advance(10)
    scene.finish(job_id)
    assert scene.servers[-1].job(job_id).seconds == pytest.approx(20, rel=0.02)


def test_order_holds_across_a_restart_with_the_clock_set_back(scene: Scene) -> None:
    before = [scene.submit(), scene.submit()]
    scene.clock.advance(1)
    scene.clock.set_wall(-HOUR)
    server = scene.boot()
    scene.clock.advance(1)
    after = scene.submit()
    listed = [job.id for job in server.jobs().jobs]
    assert listed[0] == after
    assert set(listed[1:]) == set(before)
    assert all((server.job(job_id).seconds or 0) >= 0 for job_id in before)


def test_a_callback_is_repeated_on_time_and_signed_with_the_real_time(scene: Scene) -> None:
    scene.transport.answer("memory://receiver/x", 503)
    job_id = scene.submit(callback_url="memory://receiver/x")
    scene.clock.advance(1)
    scene.clock.set_wall(-HOUR)
    scene.finish(job_id)
    assert scene.transport.wait_for(lambda transport: len(transport.messages) == 1, WAIT)
    assert scene.transport.messages[0].timestamp == int(scene.clock.now().timestamp())
    assert scene.servers[-1]._services.callbacks.drain(WAIT)
    scene.clock.advance(scene.servers[-1].settings.callbacks.retry_delay * 1.02)
    assert scene.transport.wait_for(lambda transport: len(transport.messages) == 2, WAIT)


def test_a_context_times_out_even_if_the_clock_is_set_back() -> None:
    launcher, clock = ScriptedLauncher(), ManualClock()
    server = a_server(launcher=launcher, clock=clock).start()
    server.create_context("slow")
    clock.set_wall(-HOUR)
    clock.advance(server.settings.contexts.creation_timeout + 1)
    wait_until(lambda: launcher.handles[0].calls == [("kill", None)])
    launcher.close()
    server.close(0)


# -- the clock itself ----------------------------------------------------------------------------------


def test_a_steady_clock_is_the_wall_clock_while_that_goes_forward() -> None:
    clock = ManualClock()
    steady = SteadyClock(clock)
    for seconds in (0.0, 0.001, 5.0, 1e6):
        clock.advance(seconds)
        assert steady.now() == clock.now()
    clock.set_wall(HOUR)
    assert steady.now() == clock.now()


def test_a_steady_clock_catches_up_with_a_wall_clock_that_was_set_back() -> None:
    clock = ManualClock()
    steady = SteadyClock(clock)
    before = steady.now()
    clock.set_wall(-60)
    assert steady.now() == before
    assert steady.wall() == clock.now()
    clock.advance(1000)
    assert steady.now() - before == pytest.approx(timedelta(seconds=990), abs=timedelta(milliseconds=1))
    clock.advance(5001)
    assert steady.now() == clock.now()


def test_a_time_that_was_wrong_by_more_than_a_day_is_not_kept() -> None:
    clock = ManualClock()
    steady = SteadyClock(clock)
    clock.set_wall(400 * 86_400)
    wrong = steady.now()
    clock.set_wall(-400 * 86_400)
    assert steady.now() == clock.now() < wrong
    steady.continue_after(wrong)
    assert steady.now() == clock.now()


def test_time_continues_after_the_records_of_an_earlier_run() -> None:
    clock = ManualClock()
    steady = SteadyClock(clock)
    newest = clock.now() + timedelta(hours=1)
    steady.continue_after(newest)
    assert steady.now() == newest
    steady.continue_after(clock.now() - timedelta(days=3))
    assert steady.now() >= newest


@given(steps=st.lists(st.tuples(st.floats(-HOUR, HOUR), st.floats(0, 100)), max_size=20))
def test_time_never_goes_back_when_the_wall_clock_does(steps: list[tuple[float, float]]) -> None:
    clock = ManualClock()
    steady = SteadyClock(clock)
    latest = steady.now()
    for step, passes in steps:
        clock.set_wall(step)
        clock.advance(passes)
        assert steady.now() >= latest
        assert steady.now() >= clock.now()
        latest = steady.now()
