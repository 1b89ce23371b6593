"""The limits on what all contexts together may use: contexts, cores, and memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from conditions import wait_until
from jobserver_core import (
    CapacityReached,
    ContextState,
    ContextTooLarge,
    InvalidSetting,
    JobServer,
    Resources,
    ResourceUsage,
    Settings,
    SparePool,
)
from jobserver_core.memory import InlineLauncher
from jobserver_core.models.json_values import JsonMapping
from serving import FUNCTIONS, WAIT, a_request, a_server, upload

GIB = 2**30


def limited(limits: Mapping[str, object], launcher: InlineLauncher | None = None) -> JobServer:
    settings = Settings.from_mapping({"jobserver": {"contexts": dict(limits)}})
    return a_server(settings=settings, launcher=launcher or InlineLauncher(FUNCTIONS))


class LauncherWithSpares(InlineLauncher):
    """Has a pool of spares."""

    def __init__(self, size: int, resources: Resources) -> None:
        super().__init__(FUNCTIONS)
        self.pool = SparePool(name="small", size=size, resources=resources)

    def spare_pools(self) -> Sequence[SparePool]:
        return [self.pool]


class UnboundedLauncher(InlineLauncher):
    """Cannot know what a context uses."""

    def resources(self, settings: JsonMapping) -> Resources:
        return Resources(cores=None, memory=None)


def used(server: JobServer) -> dict[str, int | None]:
    return {usage.resource: usage.used for usage in server.resource_usage()}


def test_a_context_that_would_exceed_the_cores_is_refused_until_another_one_ends() -> None:
    with limited({"max-cores": 8}) as server:
        server.create_context("big", {"num-cpu-cores": 6}).result(WAIT)
        with pytest.raises(CapacityReached) as caught:
            server.create_context("more", {"num-cpu-cores": 4})
        assert caught.value == CapacityReached(
            resource="cores", setting="jobserver.contexts.max-cores", requested=4, used=6, limit=8
        )
        assert str(caught.value) == (
            "core limit reached: the context asks for 4 cores, and 6 cores of 8 cores are in use "
            "(jobserver.contexts.max-cores); stop a context or try again later"
        )
        assert [context.name for context in server.contexts()] == ["big"]
        server.create_context("fits", {"num-cpu-cores": 2}).result(WAIT)
        server.stop_context("big").result(WAIT)
        server.create_context("more", {"num-cpu-cores": 4}).result(WAIT)
        assert used(server) == {"contexts": 2, "cores": 6, "memory": 0}


def test_a_context_that_would_exceed_the_memory_is_refused_with_readable_sizes() -> None:
    with limited({"max-memory": "4 GiB"}) as server:
        server.create_context("big", {"memory-per-node": "3 GiB"}).result(WAIT)
        with pytest.raises(CapacityReached, match=r"asks for 1\.5 GiB, and 3 GiB of 4 GiB are"):
            server.create_context("more", {"memory-per-node": "1536 MiB"})
        server.create_context("fits", {"memory-per-node": "512 MiB"}).result(WAIT)
        assert server.resource_usage()[2] == ResourceUsage(
            resource="memory", used=3 * GIB + GIB // 2, limit=4 * GIB
        )


def test_a_context_that_can_never_fit_is_invalid_input() -> None:
    with limited({"max-cores": 8}) as server:
        with pytest.raises(ContextTooLarge) as caught:
            server.create_context("huge", {"num-cpu-cores": 9})
        assert str(caught.value) == (
            "the context asks for 9 cores; jobserver.contexts.max-cores allows 8 cores for all contexts "
            "together"
        )
        assert server.contexts() == []


def test_a_context_without_a_bound_is_refused_only_where_there_is_a_limit() -> None:
    with (
        limited({"max-memory": "4 GiB"}, UnboundedLauncher(FUNCTIONS)) as server,
        pytest.raises(ContextTooLarge, match="has no upper bound for its memory"),
    ):
        server.create_context("any")
    with limited({}, UnboundedLauncher(FUNCTIONS)) as server:
        server.create_context("any").result(WAIT)
        assert used(server) == {"contexts": 1, "cores": None, "memory": None}


def test_an_ad_hoc_job_that_finds_no_cores_is_refused_and_leaves_nothing() -> None:
    with limited({"max-cores": 2}) as server:
        upload(server)
        server.create_context("all", {"num-cpu-cores": 2}).result(WAIT)
        with pytest.raises(CapacityReached):
            server.submit(a_request("w.Echo", "value = 1"))
        assert server.load.refused == 1
        assert server.jobs().jobs == ()
        assert [context.name for context in server.contexts()] == ["all"]
        server.stop_context("all").result(WAIT)
        assert server.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1
        wait_until(lambda: used(server)["cores"] == 0)


def test_of_many_creates_at_once_as_many_are_accepted_as_fit() -> None:
    callers = 16
    barrier = threading.Barrier(callers)
    with limited({"max-cores": 5}) as server:

        def create(number: int) -> bool:
            barrier.wait(WAIT)
            try:
                server.create_context(f"c{number}").result(WAIT)
            except CapacityReached:
                return False
            return True

        with ThreadPoolExecutor(callers) as threads:
            accepted = list(threads.map(create, range(callers)))
        assert sum(accepted) == 5
        assert used(server)["cores"] == 5


def test_pools_of_spares_count_in_full() -> None:
    launcher = LauncherWithSpares(2, Resources(cores=2, memory=GIB))
    with limited({"max-contexts": 4, "max-cores": 8, "max-memory": "10 GiB"}, launcher) as server:
        assert used(server) == {"contexts": 2, "cores": 4, "memory": 2 * GIB}
        with pytest.raises(
            ContextTooLarge, match="8 cores for all contexts together, of which spare contexts"
        ):
            server.create_context("big", {"num-cpu-cores": 5})
        server.create_context("fits", {"num-cpu-cores": 4}).result(WAIT)
        with pytest.raises(CapacityReached, match="8 cores of 8 cores"):
            server.create_context("more")


@pytest.mark.parametrize(
    ("limits", "resources", "reason"),
    [
        ({"max-contexts": 2}, Resources(), "ask for 2 contexts, but jobserver.contexts.max-contexts allows"),
        (
            {"max-cores": 3},
            Resources(cores=2),
            "ask for 4 cores, but jobserver.contexts.max-cores allows only 3",
        ),
        ({"max-memory": "1 GiB"}, Resources(memory=None), "no upper bound for their memory"),
    ],
)
def test_pools_that_leave_no_room_are_an_invalid_setting(
    limits: Mapping[str, object], resources: Resources, reason: str
) -> None:
    with pytest.raises(InvalidSetting, match=reason):
        limited(limits, LauncherWithSpares(2, resources))


def test_contexts_of_the_configuration_that_do_not_fit_are_not_started() -> None:
    settings = Settings.from_mapping(
        {
            "spark.contexts": {"one": {"num-cpu-cores": 3}, "two": {"num-cpu-cores": 3}},
            "jobserver.contexts.max-cores": 4,
        }
    )
    with a_server(settings=settings) as server:
        wait_until(lambda: [context.state for context in server.contexts()] == [ContextState.RUNNING])
        assert [context.name for context in server.contexts()] == ["one"]


def test_contexts_that_outlived_their_server_count_even_beyond_a_lower_limit() -> None:
    launcher = InlineLauncher(FUNCTIONS)
    first = limited({"reattach-timeout": "1 minute"}, launcher).start()
    first.create_context("old", {"num-cpu-cores": 6}).result(WAIT)
    metadata = first._services.metadata
    first.close(contexts="detach")
    settings = Settings.from_mapping({"jobserver.contexts": {"reattach-timeout": "1 minute", "max-cores": 4}})
    with a_server(settings=settings, launcher=launcher, metadata=metadata) as server:
        assert used(server)["cores"] == 6
        with pytest.raises(CapacityReached, match="6 cores of 4 cores"):
            server.create_context("new")


@pytest.mark.parametrize(("key", "value"), [("memory-per-node", "lots"), ("num-cpu-cores", "many")])
def test_an_invalid_size_of_a_context_in_memory_names_its_setting(key: str, value: str) -> None:
    with a_server() as server:
        with pytest.raises(InvalidSetting, match=key):
            server.create_context("x", {key: value})
        assert server.contexts() == []
