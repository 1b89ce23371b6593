"""Many more submits than a context has room for: each job finishes, or its submit is refused in words."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobserver_core import ContextLoad, JobHandle, JobState, Settings, errors
from jobserver_core.memory import InlineJob, InlineLauncher
from jobserver_core.running.jobs import SHEDDING
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, a_request, a_server, upload

SUBMITS = 1000
PLACES = 100
SLOTS = 4


def test_a_flood_ends_with_each_job_finished_or_refused_and_all_users_served() -> None:
    gate = threading.Event()

    def gated(job: InlineJob) -> str:
        while not gate.wait(0.01):
            job.check()
        return "done"

    refusals: list[str] = []
    clock = ManualClock()
    limits = {"max-jobs-per-context": SLOTS, "max-queued-jobs": PLACES}
    server = a_server(
        clock=clock,
        launcher=InlineLauncher({"w.Gated": gated}),
        settings=Settings.from_mapping({"jobserver.jobs": limits}),
    )

    def submit(number: int) -> tuple[str, JobHandle | None]:
        user = "flood" if number % 10 < 8 else f"user{number % 10}"
        try:
            return user, server.submit(a_request("w.Gated", context="shared", submitted_by=user))
        except errors.NoSlots as error:
            refusals.append(str(error))
            return user, None

    with server:
        upload(server)
        server.create_context("shared").result(WAIT)
        with ThreadPoolExecutor(8) as threads:
            submitted = list(threads.map(submit, range(SUBMITS)))
        accepted = [(user, handle) for user, handle in submitted if handle is not None]
        assert server.load.running == SLOTS
        assert server.load.waiting == len(accepted) - SLOTS
        assert server.load.refused == SUBMITS - len(accepted)
        assert server.load.shedding
        waiting = len(accepted) - SLOTS
        assert list(server.context_loads().values()) == [ContextLoad(running=SLOTS, waiting=waiting)]
        assert all("has no free job slot" in refusal for refusal in refusals)
        by_user = Counter(user for user, _ in accepted)
        assert min(by_user["user8"], by_user["user9"]) >= PLACES // 10
        assert by_user["flood"] <= PLACES // 2 + SLOTS
        gate.set()
        states = Counter(handle.finished.result(WAIT).state for _, handle in accepted)
        assert states == {JobState.FINISHED: len(accepted)}
        clock.advance(SHEDDING)
        assert not server.load.shedding
        assert server.load.refused == SUBMITS - len(accepted)


def test_a_submit_that_finds_no_room_for_its_own_context_counts_as_refused() -> None:
    settings = Settings.from_mapping({"jobserver.contexts.max-contexts": 1})
    with a_server(settings=settings) as server:
        upload(server)
        server.create_context("one").result(WAIT)
        for expected in (1, 2):
            with pytest.raises(errors.Unavailable):
                server.submit(a_request("w.Sleep"))
            assert server.load.refused == expected


def test_a_closing_server_sheds_no_load() -> None:
    with a_server() as server:
        upload(server)
        server.drain()
        with pytest.raises(errors.ServerClosed):
            server.submit(a_request("w.Echo"))
        assert server.load.refused == 0
