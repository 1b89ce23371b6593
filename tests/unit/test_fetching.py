"""Neither a host nor a caller can block the fetches of others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conditions import WAIT, wait_until
from jobserver_core.config.settings import FetcherSettings
from jobserver_core.errors import FetchError, MalformedUrl, ServerClosed
from jobserver_core.ports import Cancellation, Fetched, Fetcher
from jobserver_core.ports.checked import checked
from jobserver_core.ports.fetcher import ProgressCallback
from jobserver_core.running.fetching import MAX_WAITING, PROGRESS, FetchedFiles, FetchService
from jobserver_core.shutdown import Admission
from jobserver_core.testing.clock import ManualClock
from jobserver_core.uris import Uri


class HeldFetcher(Fetcher):
    """Holds every fetch until the test lets it go, or it is cancelled."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.started: list[str] = []
        self.progress: dict[str, ProgressCallback] = {}
        self.cancelled: list[str] = []
        self.released: list[str] = []
        self._deaf = deaf
        self._gates: dict[str, threading.Event] = {}
        self._failures: dict[str, BaseException] = {}

    def check(self, uri: str) -> None:
        if Uri.parse(uri).host == "denied":
            raise MalformedUrl(url=uri, reason="denied")

    @contextmanager
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Fetched]:
        assert progress is not None
        assert cancellation is not None
        gate = self._gates.setdefault(uri, threading.Event())
        if not self._deaf:
            cancellation.subscribe(lambda _reason: gate.set())
        self.progress[uri] = progress
        self.started.append(uri)
        gate.wait(60)
        if cancellation.reason is not None:
            self.cancelled.append(uri)
        if cancellation.reason is not None and not self._deaf:
            raise FetchError(url=uri, reason=cancellation.reason)
        if uri in self._failures:
            raise self._failures[uri]
        try:
            yield Fetched(path=Path(uri), digest="0" * 64, size=1)
        finally:
            self.released.append(uri)

    def let_go(self, *uris: str) -> None:
        for uri in uris:
            self._gates.setdefault(uri, threading.Event()).set()

    def fail(self, uri: str, error: BaseException) -> None:
        self._failures[uri] = error
        self.let_go(uri)

    def let_all_go(self) -> None:
        self.let_go(*self._gates)


SETTINGS = FetcherSettings(concurrency=6, per_host=2, per_caller=4, stall_timeout=30.0, timeout=300.0)


class World:
    def __init__(self, fetcher: HeldFetcher, settings: FetcherSettings = SETTINGS) -> None:
        self.fetcher = fetcher
        self.clock = ManualClock()
        self.service = FetchService(checked(Fetcher, fetcher), self.clock, settings, Admission())
        self.begun: list[FetchedFiles] = []

    def begin(self, *uris: str, caller: str = "") -> FetchedFiles:
        files = self.service.begin(uris, caller)
        self.begun.append(files)
        return files

    def started(self, count: int) -> list[str]:
        """Wait until this many fetches have started, check that no other one starts, and return them."""
        wait_until(lambda: len(self.fetcher.started) >= count)
        assert len(self.fetcher.started) == count
        return list(self.fetcher.started)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1.0)

    def close(self) -> None:
        for files in self.begun:
            files.close()
        self.fetcher.let_all_go()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("jobserver-fetch")])


@pytest.fixture
def world() -> Iterator[World]:
    world = World(HeldFetcher())
    yield world
    world.close()


@pytest.fixture
def deaf() -> Iterator[World]:
    """A world whose fetcher does not react to a cancellation."""
    world = World(HeldFetcher(deaf=True))
    yield world
    world.close()


def failure(files: FetchedFiles) -> str:
    with pytest.raises(FetchError) as caught:
        files.ready.result(WAIT)
    return caught.value.reason


# -- places ----------------------------------------------------------------------------------------


def test_files_exist_from_ready_until_closed(world: World) -> None:
    files = world.begin("http://a/1", "http://b/2", "http://a/1")
    world.started(2)
    assert not files.ready.done()
    assert files.missing == ["http://a/1", "http://b/2"]
    world.fetcher.let_go("http://a/1", "http://b/2")
    files.ready.result(WAIT)
    assert sorted(files) == ["http://a/1", "http://b/2"]
    assert files["http://a/1"].path == Path("http://a/1")
    assert world.fetcher.released == []
    files.close()
    files.close()
    assert sorted(world.fetcher.released) == ["http://a/1", "http://b/2"]


def test_a_class_path_that_cannot_be_fetched_releases_the_files_that_came_before(world: World) -> None:
    files = world.begin("http://a/1", "http://b/2")
    world.started(2)
    world.fetcher.let_go("http://a/1")
    wait_until(lambda: files.missing == ["http://b/2"])
    world.fetcher.fail("http://b/2", FetchError(url="http://b/2", reason="404"))
    assert failure(files) == "404"
    assert world.fetcher.released == []
    files.close()
    assert world.fetcher.released == ["http://a/1"]


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError("x"), SystemExit("x")])
def test_a_fetcher_that_fails_in_an_unexpected_way_leaves_nobody_waiting(
    world: World, error: BaseException
) -> None:
    files = world.begin("http://a/1")
    world.fetcher.fail("http://a/1", error)
    fault = f"fetch of the fetcher HeldFetcher raised {type(error).__name__}: {error}"
    assert failure(files) == fault


def test_nothing_to_fetch_is_ready_at_once(world: World) -> None:
    assert world.begin().ready.done()
    assert world.clock.timers == []


def test_one_host_uses_no_more_than_its_slots_and_does_not_block_another(world: World) -> None:
    for number in range(5):
        world.begin(f"http://slow/{number}")
    world.begin("http://quick/x")
    assert world.started(3) == ["http://slow/0", "http://slow/1", "http://quick/x"]
    world.fetcher.let_go("http://slow/0")
    assert world.started(4)[-1] == "http://slow/2"


def test_another_port_is_not_another_host(world: World) -> None:
    for port in range(1, 6):
        world.begin(f"http://slow:{port}/x")
    world.started(2)


def test_one_caller_uses_no_more_than_its_slots(world: World) -> None:
    for number in range(6):
        world.begin(f"http://host{number}/x", caller="mallory")
    world.begin("http://host0/y", caller="alice")
    assert world.started(5)[-1] == "http://host0/y"


def test_callers_without_a_name_are_not_limited(world: World) -> None:
    for number in range(6):
        world.begin(f"http://host{number}/x")
    world.started(6)


def test_all_hosts_together_use_no_more_than_all_slots(world: World) -> None:
    for number in range(9):
        world.begin(f"http://host{number}/x")
    world.started(6)
    world.fetcher.let_go("http://host3/x")
    assert world.started(7)[-1] == "http://host6/x"


def test_too_many_waiting_requests_are_refused_at_once(world: World) -> None:
    with pytest.raises(FetchError, match="try again later"):
        world.begin(*(f"http://slow/{number}" for number in range(MAX_WAITING + 1)), caller="mallory")
    assert world.fetcher.started == []


def test_the_server_itself_may_wait_for_any_number_of_fetches(world: World) -> None:
    world.begin(*(f"http://slow/{number}" for number in range(MAX_WAITING + 1)))
    world.started(2)


def test_a_class_path_with_a_forbidden_uri_fetches_nothing(world: World) -> None:
    with pytest.raises(MalformedUrl, match="denied"):
        world.begin("http://a/1", "http://denied/2")
    assert world.fetcher.started == []


# -- fetches that stall ----------------------------------------------------------------------------


def test_progress_of_one_scheme_without_hosts_does_not_count_for_another(world: World) -> None:
    hanging = [world.begin(f"slow:///{number}") for number in range(3)]
    world.begin("quick:///x")
    world.started(3)
    for done in range(1, 31):
        world.pass_time(1)
        world.fetcher.progress["quick:///x"](done * PROGRESS, None)
    assert failure(hanging[2]) == "2 other fetches from slow received next to nothing in 30 s"


def test_fetches_that_hang_end_with_the_reason_and_so_do_those_that_wait_for_their_host(world: World) -> None:
    hanging = [world.begin(f"http://slow/{number}") for number in range(5)]
    world.started(2)
    world.pass_time(29)
    assert not any(files.ready.done() for files in hanging)
    world.pass_time(1)
    reasons = [failure(files) for files in hanging]
    assert reasons[:2] == ["it received less than 32 KiB in 30 s"] * 2
    assert reasons[2:] == ["2 other fetches from slow received next to nothing in 30 s"] * 3
    wait_until(lambda: sorted(world.fetcher.cancelled) == ["http://slow/0", "http://slow/1"])
    world.started(2)


def test_a_byte_a_second_does_not_count_as_progress(world: World) -> None:
    files = world.begin("http://drip/x")
    world.started(1)
    for done in range(1, 31):
        world.fetcher.progress["http://drip/x"](done, None)
        world.pass_time(1)
    assert failure(files) == "it received less than 32 KiB in 30 s"


def test_a_slow_fetch_continues_while_it_makes_progress(world: World) -> None:
    files = world.begin("http://slow/x")
    world.started(1)
    for done in range(1, 5):
        world.pass_time(25)
        world.fetcher.progress["http://slow/x"](done * PROGRESS, None)
    assert not files.ready.done()
    world.fetcher.let_go("http://slow/x")
    files.ready.result(WAIT)


def test_a_fetch_waits_for_a_busy_host_while_that_makes_progress(world: World) -> None:
    for number in range(2):
        world.begin(f"http://busy/{number}")
    waiting = world.begin("http://busy/2")
    world.started(2)
    for done in range(1, 5):
        for number in range(2):
            world.fetcher.progress[f"http://busy/{number}"](done * PROGRESS, None)
        world.pass_time(25)
    assert not waiting.ready.done()
    world.fetcher.let_go("http://busy/0")
    assert world.started(3)[-1] == "http://busy/2"
    world.pass_time(4)
    assert not waiting.ready.done()
    world.fetcher.let_go("http://busy/2")
    waiting.ready.result(WAIT)


def test_waiting_for_other_hosts_does_not_use_up_the_timeout(world: World) -> None:
    for number in range(6):
        world.begin(f"http://slow{number}/x")
    late = world.begin("http://good/x")
    world.started(6)
    world.pass_time(30)
    world.started(7)
    world.pass_time(28)
    assert not late.ready.done()
    world.fetcher.let_go("http://good/x")
    late.ready.result(WAIT)


def test_the_time_limit_also_applies_to_fetches_that_make_progress(world: World) -> None:
    files = world.begin("http://slow/x")
    world.started(1)
    for done in range(1, 31):
        world.fetcher.progress["http://slow/x"](done * PROGRESS, None)
        world.pass_time(10)
    assert failure(files) == "it took longer than 300 s"


def test_waiters_are_notified_even_if_the_fetcher_does_not_react(deaf: World) -> None:
    hanging = [deaf.begin(f"http://slow/{number}") for number in range(2)]
    deaf.started(2)
    deaf.pass_time(30)
    for files in hanging:
        failure(files)
    deaf.begin("http://slow/3")
    deaf.begin("http://other/x")
    assert deaf.started(3)[-1] == "http://other/x"  # hanging threads keep their slots
    deaf.fetcher.let_go("http://slow/0")
    assert deaf.started(4)[-1] == "http://slow/3"
    wait_until(lambda: deaf.fetcher.released == ["http://slow/0"])  # it arrived after all callers had left


def test_nothing_is_watched_when_nothing_is_fetched(world: World) -> None:
    files = world.begin("http://a/x")
    world.fetcher.let_go("http://a/x")
    files.ready.result(WAIT)
    wait_until(lambda: not world.service._running)
    world.pass_time(2)
    assert world.clock.timers == []


def test_the_memory_for_uris_is_bounded(world: World) -> None:
    for number in range(300):
        uri = f"http://host{number}/x"
        world.fetcher.let_go(uri)
        with world.begin(uri) as files:
            files.ready.result(WAIT)
    wait_until(lambda: not world.service._running)
    assert len(world.service._meters) <= 200


# -- callers that leave, fetches that fail ---------------------------------------------------------


def test_a_caller_that_leaves_frees_its_slot_at_once(world: World) -> None:
    leaving = [world.begin(f"http://slow/{number}") for number in range(4)]
    world.started(2)
    staying = world.begin("http://slow/mine")
    for files in leaving:
        files.close()
    assert world.started(3)[-1] == "http://slow/mine"
    world.fetcher.let_go("http://slow/mine")
    staying.ready.result(WAIT)
    wait_until(lambda: sorted(world.fetcher.cancelled) == ["http://slow/0", "http://slow/1"])


def test_the_first_failure_ends_the_other_fetches_of_a_class_path(world: World) -> None:
    files = world.begin("http://a/1", "http://b/2")
    world.started(2)
    world.fetcher.fail("http://a/1", FetchError(url="http://a/1", reason="HTTP 404"))
    assert failure(files) == "HTTP 404"
    wait_until(lambda: world.fetcher.cancelled == ["http://b/2"])


def test_a_defect_of_the_fetcher_is_a_failure(world: World, caplog: pytest.LogCaptureFixture) -> None:
    files = world.begin("http://a/1")
    world.fetcher.fail("http://a/1", RuntimeError("oops"))
    assert "oops" in failure(files)
    assert "oops" in caplog.text


def test_a_draining_server_cancels_every_fetch_and_starts_none(world: World) -> None:
    all_files = [world.begin(f"http://slow/{number}") for number in range(4)]
    world.started(2)
    world.service.close()
    for files in all_files:
        with pytest.raises(ServerClosed):
            files.ready.result(WAIT)
    wait_until(lambda: len(world.fetcher.cancelled) == 2)
    with pytest.raises(ServerClosed):
        world.begin("http://a/x")
    assert world.begin().ready.done()
