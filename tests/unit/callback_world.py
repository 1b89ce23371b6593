"""An environment for callback tests: everything in memory, and a manual clock."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

from jobserver_core.callbacks.service import CallbackService
from jobserver_core.config.settings import CallbackSettings
from jobserver_core.errors import StorageError
from jobserver_core.events import DeliveryChanged, Event
from jobserver_core.memory import MemoryBlobStore, MemoryMetadataStore, MemoryTransport
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobResult, ResultKind
from jobserver_core.models.lifecycle import DeliveryState, JobState
from jobserver_core.ports import BlobStore, Ids, MetadataStore, Transport
from jobserver_core.ports.checked import checked
from jobserver_core.testing.clock import ManualClock

__all__ = [
    "ABANDONED",
    "DELIVERED",
    "PENDING",
    "SENDING",
    "URL",
    "CountedIds",
    "FailingMetadata",
    "World",
    "callback_threads",
    "url_of",
]

URL = "https://receiver.example/done"
PENDING, SENDING = DeliveryState.PENDING, DeliveryState.SENDING
DELIVERED, ABANDONED = DeliveryState.DELIVERED, DeliveryState.ABANDONED


def url_of(receiver: int) -> str:
    return f"https://receiver-{receiver}.example/done"


class CountedIds(Ids):
    """Ids that sort in the order in which they were made."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self) -> str:
        return f"id-{next(self._numbers):06}"


class FailingMetadata(MemoryMetadataStore):
    """A metadata store whose methods fail on demand: ``failing["advance_delivery"] = 2`` fails twice.

    With ``after`` the call does its work before it fails, as when the answer of a database is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, int] = {}
        self.after = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(found) or not self.__dict__.get("failing", {}).get(name):
            return found

        def fail(*args: Any, **kwargs: Any) -> Any:
            self.failing[name] -= 1
            if self.after:
                found(*args, **kwargs)
            raise StorageError(message="the disk is on fire")

        return fail


class World:
    """Everything that a callback needs, and its outcome."""

    def __init__(
        self,
        *,
        metadata: MemoryMetadataStore | None = None,
        blobs: MemoryBlobStore | None = None,
        transports: Sequence[Transport] | None = None,
        clock: ManualClock | None = None,
        ids: Ids | None = None,
        **settings: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.metadata = metadata or MemoryMetadataStore()
        self.blobs = blobs or MemoryBlobStore()
        self.transport = MemoryTransport()
        self.ids = ids or CountedIds()
        self.events: list[Delivery] = []
        self.settings = CallbackSettings(**settings)
        chosen = [self.transport] if transports is None else transports
        self.service = CallbackService(
            metadata=checked(MetadataStore, self.metadata),
            blobs=checked(BlobStore, self.blobs),
            transports=[checked(Transport, one) for one in chosen],
            clock=self.clock,
            ids=self.ids,
            settings=self.settings,
            publish=self._published,
            server_id="server-1",
        )

    def _published(self, event: Event) -> None:
        assert isinstance(event, DeliveryChanged)
        self.events.append(event.delivery)

    def after_crash(self, **changes: Any) -> World:
        """Return the world that another process finds over the same stores; this one is left as it is."""
        kept = {"metadata": self.metadata, "blobs": self.blobs, "clock": self.clock, "ids": self.ids}
        return World(**{**kept, **changes})

    def __enter__(self) -> World:
        self.service.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.transport.close()
        self.service.close(5)

    def end_job(
        self,
        url: str | None = URL,
        *,
        result: JobResult | str | None = "42",
        error: ErrorInfo | None = None,
        state: JobState | None = None,
        told: bool = True,
    ) -> Delivery | None:
        """Store an ended job with its delivery, as the job service does, then notify the dispatcher."""
        job_id = self.ids.new()
        if isinstance(result, str):
            result = JobResult(kind=ResultKind.INLINE, size=len(result.encode()), text=result)
        state = state or (JobState.ERROR if error else JobState.FINISHED)
        made: dict[str, Any] = {
            "id": job_id,
            "class_name": "a.Job",
            "class_path": (),
            "context_id": "c",
            "context_name": "context",
            "submitted_at": self.clock.now(),
            "callback_url": url,
        }
        self.metadata.add_job(Job(**made), config="{}")
        ended = Job(
            **made,
            state=state,
            ended_at=self.clock.now(),
            error=error,
            failure=FailureKind.RAISED if error else None,
            has_result=state is JobState.FINISHED and result is not None,
        )
        delivery = self.service.new_delivery(ended)
        stored = result if ended.has_result else None
        self.metadata.advance_job(ended, expected=JobState.STARTED, result=stored, delivery=delivery)
        if delivery is not None and told:
            self.service.publish_new(delivery)
        return delivery

    def settle(self) -> None:
        """Wait until nothing is under way and nothing is due."""
        assert self.service.drain(10), "callbacks are still under way"

    def run_for(self, seconds: float) -> None:
        """Let time pass, stopping wherever something is due."""
        self.settle()
        while timers := [wait for wait in self.clock.timers if wait <= seconds]:
            self.clock.advance(timers[0])
            seconds -= timers[0]
            self.settle()
        self.clock.advance(seconds)
        self.settle()

    def stored(self, delivery: Delivery | None) -> Delivery:
        """Return a delivery as it is stored now."""
        assert delivery is not None
        found = self.metadata.delivery(delivery.id)
        assert found is not None
        return found

    def states(self) -> dict[DeliveryState, int]:
        """Count all deliveries by state."""
        found = {state: len(self.metadata.deliveries_in(state, limit=100_000)) for state in DeliveryState}
        return {state: count for state, count in found.items() if count}


def callback_threads() -> list[str]:
    """Return the names of the threads that work on callbacks."""
    return [t.name for t in threading.enumerate() if t.name.startswith("jobserver-callbacks")]
