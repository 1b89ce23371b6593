"""The metadata contract's part about what calls return."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobProgress, JobQuery, QueueLimits
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports.checked import checked
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, at
from jobserver_core.testing.metadata.access import StoreAccess


@attrs.frozen
class StoredRecords:
    """One record of each kind, and every way to read it."""

    binary: Binary
    context: Context
    job: Job
    delivery: Delivery

    def reads(self, store: MetadataStore) -> dict[str, Callable[[], object]]:
        """Return the reading methods of a store, by name."""
        return {
            "binary": partial(store.binary, self.binary.name),
            "binaries": store.binaries,
            "binary_versions": partial(store.binary_versions, self.binary.name),
            "context": partial(store.context, self.context.id),
            "context_named": partial(store.context_named, self.context.name),
            "contexts": partial(store.contexts, ContextQuery()),
            "job": partial(store.job, self.job.id),
            "job_with_key": partial(store.job_with_key, "key"),
            "job_config": partial(store.job_config, self.job.id),
            "job_result": partial(store.job_result, self.job.id),
            "jobs": partial(store.jobs, JobQuery()),
            "delivery": partial(store.delivery, self.delivery.id),
            "deliveries_of": partial(store.deliveries_of, self.job.id),
            "due_deliveries": partial(store.due_deliveries, now=at(9), limit=9),
            "deliveries_in": partial(store.deliveries_in, DeliveryState.DELIVERED, limit=9),
            "servers": store.servers,
            "request": partial(store.request, "request"),
            "requests_to": partial(store.requests_to, "server"),
            "unreferenced": partial(store.unreferenced, [self.binary.digest]),
        }

    def read(self, store: MetadataStore) -> dict[str, object]:
        """Return the results of all reading methods."""
        return {name: call() for name, call in self.reads(store).items()}


class ReturnsContract(StoreAccess):
    """Each call returns what the port declares, so that a mistake is named once, and by its call."""

    def test_every_call_returns_what_the_port_declares(self, store: MetadataStore) -> None:
        store = checked(MetadataStore, store)  # as in a server, its errors say what is wrong
        binary, context = a_binary("b"), a_context("c")
        job = a_job(binary, context_id=context.id, context_name=context.name, idempotency_key="key")
        waiting = a_job(context_id=context.id, context_name=context.name)
        delivery = a_delivery(job)
        ended = attrs.evolve(job, state=JobState.FINISHED, ended_at=at(1), has_result=True)
        request = ServerRequest(id="request", recipient="server", created_at=at(), payload="")
        records = StoredRecords(binary, context, job, delivery)
        end_job = partial(store.advance_job, ended, expected=JobState.STARTED)
        end_context = attrs.evolve(context, state=ContextState.FINISHED, ended_at=at(1))
        sent = attrs.evolve(delivery, state=DeliveryState.DELIVERED, attempts=1)
        before: list[Callable[[], object]] = [
            partial(store.register_server, "s", started_at=at(0), address="", lease=9),
            partial(store.renew_server, "s", lease=900),
            partial(store.drain_server, "s"),
            partial(store.add_binary, binary),
            partial(store.add_context, context),
            partial(store.add_job, job, config="{}"),
            partial(store.enqueue_job, waiting, config="{}", limits=QueueLimits(slots=1, places=1)),
            partial(store.record_progress, job.id, JobProgress(tasks_done=1)),
            partial(end_job, result=a_result(), delivery=delivery),
            partial(store.pin_blob, "pin", server_id="s", digest=binary.digest),
            partial(store.unpin_blobs, ["pin"]),
            partial(store.begin_removal, ["0" * 64], server_id="s", lease=9),
            partial(store.end_removal, ["0" * 64], server_id="s"),
            partial(store.add_request, request),
            partial(store.answer_request, "request", "yes"),
            partial(store.notify, "notice"),
            store.usage,
            store.check,
            store.defer_syncs,
            store.sync,
        ]
        after: list[Callable[[], object]] = [
            partial(store.advance_delivery, sent, expected=DeliveryState.PENDING),
            partial(store.advance_context, end_context, expected=ContextState.STARTED),
            partial(store.newest_excess_job, jobs=0, result_bytes=0),
            partial(store.delete_jobs, ended_before=at(2), limit=9),
            partial(store.delete_contexts, ended_before=at(2), limit=9),
            partial(store.delete_old_binaries, uploaded_before=at(1), keep=1, limit=1),
            partial(store.delete_binary, "b"),
            partial(store.remove_request, "request"),
            partial(store.delete_requests, created_before=at(9)),
            partial(store.remove_server, "s"),
        ]
        reads = list(records.reads(store).values())
        wrong = [
            problem
            for calls in (before, reads, after, reads)
            for call in calls
            if (problem := _problem(call))
        ]
        assert not wrong, "; ".join(dict.fromkeys(wrong))


def _problem(call: Callable[[], object]) -> str | None:
    """Return what is wrong about a call of a checked store, if anything is."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - no error is right here
        return f"{error}"
    return None
