"""A limited number of contexts start at once. The others wait in a queue and can be stopped there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import (
    ContextChanged,
    ContextQuery,
    ContextState,
    Event,
    FailureKind,
    JobServer,
    JobState,
    Settings,
    errors,
)
from jobserver_core.memory import InlineLauncher
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, ScriptedHandle, ScriptedLauncher, a_request, a_server, upload


class NamedLauncher(ScriptedLauncher):
    """Records the names of the contexts to start, and refuses some settings."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.broken: BaseException | None = None

    def validate(self, settings: Mapping[str, Any]) -> None:
        if "wrong" in settings:
            raise errors.InvalidSetting(key="wrong", message="is never right")

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> Any:
        if self.broken:
            raise self.broken.with_traceback(None)  # not of all calls so far, which would be logged
        self.names.append(spec.name)
        return super().start_context(spec, listener)


class Scene:
    """A server that starts two contexts at once, with a launcher and a clock that the test moves."""

    def __init__(self, **contexts: Any) -> None:
        self.launcher = NamedLauncher()
        self.clock = ManualClock()
        limits = {"concurrent-starts": 2, "creation-timeout": "1 minute", **contexts}
        settings = Settings.from_mapping({"jobserver": {"contexts": limits}})
        self.server: JobServer = a_server(launcher=self.launcher, clock=self.clock, settings=settings).start()
        upload(self.server)

    def create(self, *names: str) -> None:
        for name in names:
            self.server.create_context(name)

    def ready(self, name: str) -> None:
        index = self.launcher.names.index(name)
        self.launcher.listeners[index].context_ready(application_id=None, url=None)

    def end(self, name: str, end: ContextEnd = ContextEnd.STOPPED) -> None:
        self.launcher.listeners[self.launcher.names.index(name)].context_ended(end)

    def handle(self, name: str) -> ScriptedHandle:
        return self.launcher.handles[self.launcher.names.index(name)]

    def state(self, name: str) -> ContextState:
        return self.server.context(name).state

    @property
    def counts(self) -> tuple[int, int]:
        status = self.server.start_queue()
        return status.starting, status.queued


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.launcher.close()
    scene.server.close(0)


def test_contexts_beyond_the_limit_are_launched_in_the_order_in_which_they_came(scene: Scene) -> None:
    scene.create("a", "b", "c", "d", "e")
    assert scene.launcher.names == ["a", "b"]
    assert scene.counts == (2, 3)
    assert scene.server.start_queue().waiting == {"c", "d", "e"}
    assert scene.state("e") is ContextState.STARTED
    scene.ready("b")
    assert scene.launcher.names == ["a", "b", "c"]
    scene.end("a", ContextEnd.FAILED)
    assert scene.launcher.names == ["a", "b", "c", "d"]
    scene.ready("c")
    scene.ready("d")
    scene.ready("e")
    assert scene.counts == (0, 0)
    assert {scene.state(name) for name in "bcde"} == {ContextState.RUNNING}


def locked_out(scene: Scene, name: str, seconds: float) -> None:
    """Let time pass while the lock of a context is held, as by a write that hangs."""
    [context] = [context for context in scene.server._services.registry.all() if context.record.name == name]
    clock = threading.Thread(target=scene.clock.advance, args=(seconds,), daemon=True)
    with context._context.lock:
        clock.start()
        clock.join(WAIT)
        assert not clock.is_alive(), "the clock's other timers are late"


def test_a_start_that_takes_too_long_delays_no_timer_while_the_store_hangs(scene: Scene) -> None:
    scene.create("a")
    locked_out(scene, "a", 60)
    wait_until(lambda: scene.handle("a").calls == [("kill", None)])


def test_a_turn_that_does_not_come_in_time_delays_no_timer_while_the_store_hangs() -> None:
    scene = Scene(**{"creation-timeout": "1 day", "start-queue-timeout": "5 minutes"})
    scene.create("a", "b", "late")
    locked_out(scene, "late", 300)
    wait_until(lambda: scene.state("late") is ContextState.ERROR)
    scene.launcher.close()
    scene.server.close(0)


def test_ad_hoc_contexts_wait_in_the_same_queue(scene: Scene) -> None:
    scene.create("a")
    first, second = (scene.server.submit(a_request("w.Any")) for _ in range(2))
    assert scene.launcher.names == ["a", first.job.context_name]
    scene.ready("a")
    assert scene.launcher.names[-1] == second.job.context_name
    scene.ready(second.job.context_name)
    assert scene.handle(second.job.context_name).calls == [("submit", second.id)]


def test_the_time_limit_of_a_start_counts_from_its_launch(scene: Scene) -> None:
    scene.create("a", "b", "late")
    scene.clock.advance(59)
    scene.ready("a")
    scene.clock.advance(59)
    assert scene.handle("late").calls == []
    scene.clock.advance(1)
    wait_until(lambda: scene.handle("late").calls == [("kill", None)])
    scene.end("late", ContextEnd.KILLED)
    error = scene.server.context("late").error
    assert error is not None
    assert error.message == (
        "context late was not ready after 60 s: on a slow or busy machine, raise "
        "jobserver.contexts.creation-timeout, and run 'jobserver prepare' once for faster starts"
    )


def test_a_context_whose_master_cannot_be_reached_says_so_first(scene: Scene) -> None:
    scene.create("late")
    log = "WARN Client: Failed to connect to master a:7077\nCaused by: Connection refused\n"
    scene.launcher.specs[0].log_path.write_text(log)
    scene.clock.advance(60)
    wait_until(lambda: scene.handle("late").calls == [("kill", None)])
    scene.end("late", ContextEnd.KILLED)
    error = scene.server.context("late").error
    assert error is not None
    assert error.message == (
        "context late was not ready after 60 s: Spark cannot connect to its master spark://a:7077; start it, "
        "or correct spark.master; its log ends with: Caused by: Connection refused"
    )


@pytest.mark.parametrize("prepares", [90, 3600])
def test_a_start_is_not_given_up_while_its_environment_is_unpacked_within_limits(prepares: int) -> None:
    scene = Scene(**{"creation-timeout": "1 minute", "start-queue-timeout": "5 minutes"})
    scene.create("slow")
    handle = scene.handle("slow")
    handle.preparing = "unpacking an environment"
    ends = {90: 120, 3600: 300}[prepares]  # a minute after a minute that it prepared in, or for no longer
    for second in range(0, ends, 30):
        assert handle.calls == []
        handle.preparing = "unpacking an environment" if second < prepares else ""
        scene.clock.advance(30)
    wait_until(lambda: handle.calls == [("kill", None)])
    scene.launcher.close()
    scene.server.close(0)


def test_waiting_for_a_turn_has_a_time_limit_of_its_own_that_names_its_settings() -> None:
    scene = Scene(**{"creation-timeout": "1 day", "start-queue-timeout": "5 minutes"})
    scene.create("a", "b")
    waiter = scene.server.create_context("c")
    job = scene.server.submit(a_request("w.Any"))
    scene.clock.advance(300)
    with pytest.raises(errors.ContextFailed, match=r"waited 300 s .* 2 contexts start at once and \d others"):
        waiter.result(WAIT)
    assert scene.state("c") is ContextState.ERROR
    ended = job.finished.result(WAIT)
    assert ended.failure is FailureKind.CONTEXT_INIT
    assert ended.error is not None
    assert "jobserver.contexts.start-queue-timeout" in ended.error.message
    scene.ready("a")
    assert scene.launcher.names == ["a", "b"]
    scene.launcher.close()
    scene.server.close(0)


@pytest.mark.parametrize("force", [False, True])
def test_a_waiting_context_ends_at_once_when_stopped_or_killed(scene: Scene, force: bool) -> None:
    scene.create("a", "b", "c", "d")
    end = scene.server.kill_context if force else scene.server.stop_context
    expected = ContextState.KILLED if force else ContextState.FINISHED
    assert end("c").result(0).state is expected
    assert scene.counts == (2, 1)
    scene.ready("a")
    assert scene.launcher.names == ["a", "b", "d"]


def test_a_job_is_killed_together_with_its_context_that_waits(scene: Scene) -> None:
    scene.create("a", "b")
    job = scene.server.submit(a_request("w.Any"))
    assert scene.server.kill_job(job.id).result(0).state is JobState.KILLED
    assert scene.state(job.job.context_name) is ContextState.FINISHED
    assert scene.counts == (2, 0)


def test_a_context_that_is_stopped_while_it_starts_keeps_its_slot_until_it_has_ended(scene: Scene) -> None:
    scene.create("a", "b", "c")
    scene.server.stop_context("a")
    scene.ready("a")
    assert scene.launcher.names == ["a", "b"]
    scene.end("a")
    assert scene.launcher.names == ["a", "b", "c"]


def test_closing_the_server_ends_waiting_contexts_and_launches_nothing_more() -> None:
    launched: list[str] = []
    events: list[tuple[str, ContextState]] = []

    class NeverReady(InlineLauncher):
        def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
            launched.append(spec.name)
            return super().start_context(spec, listener)

    settings = Settings.from_mapping({"jobserver.contexts.concurrent-starts": 2})
    server = a_server(launcher=NeverReady(start_delay=3600), settings=settings).start()
    for name in "abcd":
        server.create_context(name)

    def note(event: Event) -> None:
        if isinstance(event, ContextChanged):
            events.append((event.context.name, event.context.state))

    with server.subscribe(note):
        server.close(WAIT)
    assert launched == ["a", "b"]
    assert {event for event in events if event[1].final} == {(name, ContextState.FINISHED) for name in "abcd"}


def test_settings_that_can_never_work_are_refused_without_waiting(scene: Scene) -> None:
    scene.create("a", "b", "c")
    with pytest.raises(errors.InvalidSetting, match="is never right"):
        scene.server.create_context("d", {"wrong": True})
    assert scene.counts == (2, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"wrong": True},
        {"stop-context-on-job-error": "perhaps"},
        {"cp": {"a": 1}},
        {"cp": {}},
        {"cp": False},
        {"cp": [None]},
        {"dependent-jar-uris": 5},
        {"dependent-jar-uris": [["a"]]},
    ],
)
def test_settings_that_can_never_work_leave_no_record_and_fetch_nothing(
    scene: Scene, settings: dict[str, Any]
) -> None:
    settings = {"cp": "http://files.example/never-fetched.jar", **settings}
    with pytest.raises(errors.InvalidSetting):
        scene.server.create_context("named", settings)
    with pytest.raises(errors.InvalidSetting):
        scene.server.submit(a_request("w.Any", context_settings=settings))
    assert scene.server.contexts(ContextQuery()) == []
    assert scene.server.jobs().jobs == ()
    assert scene.launcher.names == []
    scene.create("named")
    assert scene.launcher.names == ["named"]


def test_configured_contexts_with_settings_that_can_never_work_are_logged_and_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    launcher = NamedLauncher()
    settings = Settings.from_mapping({"spark.contexts": {"bad": {"wrong": True}, "good": {}}})
    with a_server(launcher=launcher, settings=settings) as server:
        assert [context.name for context in server.contexts(ContextQuery())] == ["good"]
        why = "^context bad not found: the configured context could not be started: setting 'wrong'"
        with pytest.raises(errors.ContextNotFound, match=why):
            server.context("bad")
        upload(server)
        with pytest.raises(errors.ContextNotFound, match=why):
            server.submit(a_request("w.Any", context="bad"))
        with pytest.raises(errors.ContextNotFound, match=r"^context worse not found$"):
            server.context("worse")
        server.create_context("bad")
        server.stop_context("bad")
        launcher.listeners[-1].context_ended(ContextEnd.STOPPED)
        with pytest.raises(errors.ContextNotFound, match=r"^context bad not found$"):
            server.submit(a_request("w.Any", context="bad"))
        launcher.close()
    assert "the configured context bad could not be started: setting 'wrong'" in caplog.text


@pytest.mark.parametrize("error", [errors.LaunchError(message="no Java"), SystemExit("no Java")])
def test_a_failed_launch_passes_its_slot_to_the_next_one(scene: Scene, error: BaseException) -> None:
    waiters = [scene.server.create_context(f"context-{number}") for number in range(500)]
    scene.launcher.broken = error
    scene.ready("context-0")
    with pytest.raises(errors.ContextFailed, match="no Java"):
        waiters[-1].result(0)
    assert scene.counts == (1, 0)


def test_contexts_of_the_configuration_wait_their_turn_as_well() -> None:
    launcher = NamedLauncher()
    settings = Settings.from_mapping(
        {"jobserver.contexts.concurrent-starts": 1, "spark.contexts": {"a": {}, "b": {}, "c": {}}}
    )
    server = a_server(launcher=launcher, settings=settings).start()
    assert launcher.names == ["a"]
    launcher.listeners[0].context_ready(application_id=None, url=None)
    assert launcher.names == ["a", "b"]
    launcher.close()
    server.close(0)


def test_a_subscriber_that_ends_a_context_while_another_gets_its_turn_blocks_nothing(scene: Scene) -> None:
    scene.create("a", "b", "c")

    def end_the_other(_event: object) -> None:
        scene.launcher.listeners[1].context_ended(ContextEnd.FAILED)

    with scene.server.subscribe(end_the_other):
        scene.ready("a")
    assert scene.launcher.names == ["a", "b", "c"]
    assert scene.counts == (1, 0)


class Crowd(Scene):
    """A scene in which callers create contexts that are named after them."""

    def create_as(self, caller: str, *numbers: int) -> None:
        for number in numbers:
            preparation = self.server.begin_context(f"{caller}-{number}", caller=f"user {caller}")
            with preparation:
                preparation.finish()

    def finish_all(self) -> list[str]:
        """Let each context be ready in the order of their launches, and return that order."""
        for index in range(1000):
            if index == len(self.launcher.names):
                break
            self.ready(self.launcher.names[index])
        return self.launcher.names


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(**{"concurrent-starts": 1})
    yield crowd
    crowd.launcher.close()
    crowd.server.close(0)


def test_fifty_contexts_of_one_user_do_not_delay_the_first_ones_of_others(crowd: Crowd) -> None:
    crowd.create_as("mallory", *range(50))
    crowd.create_as("ann", 1, 2)
    crowd.create_as("bob", 1)
    assert crowd.finish_all()[:7] == [
        "mallory-0",
        "mallory-1",
        "ann-1",
        "bob-1",
        "mallory-2",
        "ann-2",
        "mallory-3",
    ]
    assert [name for name in crowd.launcher.names if name.startswith("mallory")] == [
        f"mallory-{number}" for number in range(50)
    ]
    assert crowd.counts == (0, 0)


def test_a_free_slot_goes_to_the_user_with_the_fewest_contexts_that_start() -> None:
    crowd = Crowd(**{"concurrent-starts": 3})
    crowd.create_as("mallory", *range(10))
    crowd.create_as("ann", 1, 2)
    crowd.ready("mallory-0")
    assert crowd.launcher.names[3:] == ["ann-1"]
    crowd.ready("mallory-1")
    assert crowd.launcher.names[4:] == ["mallory-3"]  # one of each starts, and mallory's turn was longer ago
    crowd.ready("mallory-2")
    assert crowd.launcher.names[5:] == ["ann-2"]
    crowd.launcher.close()
    crowd.server.close(0)


def test_jobs_without_a_context_take_turns_by_user_as_well(crowd: Crowd) -> None:
    crowd.create_as("mallory", *range(5))
    with crowd.server.begin_submit(a_request("w.Any"), caller="user ann") as preparation:
        job = preparation.finish()
    assert crowd.finish_all()[:3] == ["mallory-0", "mallory-1", job.job.context_name]


def test_anonymous_starts_share_one_turn(crowd: Crowd) -> None:
    crowd.create("a", "b", "c")
    crowd.create_as("ann", 1)
    assert crowd.finish_all() == ["a", "b", "ann-1", "c"]


def test_a_user_whose_waiting_contexts_are_stopped_gets_no_turn(crowd: Crowd) -> None:
    crowd.create_as("mallory", 0, 1, 2)
    crowd.create_as("ann", 1)
    for name in ("mallory-1", "mallory-2"):
        assert crowd.server.stop_context(name).result(0).state is ContextState.FINISHED
    assert crowd.counts == (1, 1)
    assert crowd.finish_all() == ["mallory-0", "ann-1"]


def test_a_launcher_that_waits_in_its_start_for_longer_than_the_limit_is_logged(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.create("prompt")
    scene.clock.advance(61)
    assert "start_context" not in caplog.text
    start = scene.launcher.start_context

    def start_slowly(spec: ContextSpec, listener: ContextListener) -> Any:
        scene.clock.advance(61)
        return start(spec, listener)

    scene.launcher.start_context = start_slowly  # type: ignore[method-assign]
    scene.create("slow")
    assert (
        "context slow: start_context of the launcher NamedLauncher has not returned within 60 s "
        "(jobserver.contexts.creation-timeout); it has to return at once"
    ) in caplog.text
