"""Several job servers in this process that share one store."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import DeliveryState, JobServer, Settings, StorageError
from jobserver_core.memory import MemoryBlobStore, MemoryTransport
from jobserver_core.ports import Launcher, MetadataStore
from jobserver_core.running.recovery import Recovery
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, ScriptedLauncher, a_request, a_server, report_result, upload

RECEIVER = "memory://receiver/x"
ONE_SLOT = Settings.from_mapping({"jobserver.jobs.max-jobs-per-context": 1})
RENEWAL = 3.0
"""Seconds between two renewals of the default lease."""


class FleetClock(ManualClock):
    """A manual clock of one server, whose calls return after the threads that they start."""

    @staticmethod
    def _run(call: Callable[[], None]) -> None:
        ManualClock._run(call)
        for prefix in (
            "jobserver-lease",
            "jobserver-removed",
            "jobserver-failover",
            "jobserver-notices",
            "jobserver-retry",
        ):
            for thread in threading.enumerate():
                if thread.name.startswith(prefix) and thread.ident is not None:  # of others, some only start
                    thread.join(WAIT)


class FailingBlobs(MemoryBlobStore):
    """Blobs in memory, one of which may be unreadable."""

    failing: str | None = None
    slow: str | None = None
    """A blob that arrives only once ``arrived`` is set."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.arrived = threading.Event()

    def local_path(self, digest: str) -> AbstractContextManager[Path]:
        if digest == self.failing:
            raise StorageError(message="the blob cannot be read")
        if digest == self.slow:
            assert self.arrived.wait(WAIT)
        return super().local_path(digest)


class Member:
    """One server of a fleet. Its clock stands still, as in a paused process, unless a test moves it."""

    def __init__(
        self,
        metadata: MetadataStore,
        blobs: MemoryBlobStore,
        *,
        launcher: Launcher | None = None,
        **ports: Any,
    ) -> None:
        self.clock = FleetClock()
        self.launcher = ScriptedLauncher()
        self.transport = MemoryTransport()
        self.server: JobServer = a_server(
            metadata=metadata,
            blobs=blobs,
            launcher=launcher or self.launcher,
            transports=[self.transport],
            clock=self.clock,
            **ports,
        )

    @property
    def id(self) -> str:
        return self.server._services.server_id

    @property
    def recovery(self) -> Recovery:
        return self.server._services.recovery

    @property
    def waits_for_room(self) -> int:
        """The number of jobs of lost contexts for which this server has no room."""
        return len(self.server._services.without_room._kept)

    def renew(self) -> None:
        """Let the time of one renewal pass."""
        self.clock.advance(RENEWAL)

    def ready(self, number: int = 0) -> None:
        """Report that a context is ready."""
        self.launcher.listeners[number].context_ready(application_id=None, url=None)

    def running_job(self, context: str, **rest: Any) -> str:
        """Submit a job to a context, which runs it at once, and return its id."""
        job = self.server.submit(a_request("w.Any", context=context, **rest))
        self.launcher.listeners[0].job_running(job.id)
        return job.id

    def close(self) -> None:
        self.launcher.close()
        self.transport.release(RECEIVER)
        self.server.close(0)


class Fleet:
    """Servers on one store. Subclasses supply stores, and a way to let leases expire."""

    @abstractmethod
    def open(self) -> MetadataStore:
        """Return another store on the same data."""

    @abstractmethod
    def expire(self, server_id: str) -> None:
        """Let a server's lease expire, on the store's clock."""

    @pytest.fixture
    def members(self) -> Iterator[list[Member]]:
        """The servers that were started; they are closed after the test."""
        members: list[Member] = []
        self.members, self.blobs = members, FailingBlobs()
        yield members
        for member in members:
            member.close()

    def boot(self, **ports: Any) -> Member:
        """Start one more server."""
        member = Member(self.open(), self.blobs, **ports)
        self.members.append(member)
        member.server.start()
        assert member.server._services.callbacks.drain(WAIT)  # it has looked for callbacks, and found none
        return member

    def owner_and_other(self, **ports: Any) -> tuple[Member, Member]:
        """Return a server with a context "shared", and another one."""
        owner, other = self.boot(**ports), self.boot(**ports)
        upload(owner.server)
        owner.server.create_context("shared")
        owner.ready()
        return owner, other

    def stuck_delivery(self, member: Member) -> str:
        """Return a delivery whose attempt never ends, because its server does not."""
        upload(member.server)
        member.server.create_context("shared")
        member.ready()
        member.transport.hang(RECEIVER)
        job = member.running_job("shared", callback_url=RECEIVER)
        finish(member, job)
        assert member.transport.wait_for(lambda transport: bool(transport.under_way), WAIT)
        [delivery] = member.server.deliveries(job)
        return delivery.id


def finish(member: Member, job_id: str) -> None:
    listener = member.launcher.listeners[0]
    listener.job_running(job_id)
    report_result(listener, job_id, b'"done"')


def wait_for_delivery(member: Member, delivery_id: str, state: DeliveryState) -> None:
    """Wait until the store has a delivery in a state, owned by this server."""

    def found() -> bool:
        delivery = member.server._services.metadata.delivery(delivery_id)
        return delivery is not None and (delivery.state, delivery.owner) == (state, member.id)

    wait_until(found, f"{state} of delivery {delivery_id}", WAIT)
