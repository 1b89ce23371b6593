"""The metadata contract's part about stores that outlive their process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial

import attrs
import pytest

from jobserver_core.errors import (
    BinaryInUse,
    BinaryNotFound,
    ContextExists,
    DuplicateId,
    StaleState,
    StorageError,
)
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobProgress, JobQuery, QueueLimits
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import ServerRequest
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_context, a_delivery, a_job, a_result, at, digest_of
from jobserver_core.testing.contract import (
    assert_each_raises,
    assert_none_left,
    raised_by,
    threads_and_processes,
    wait_until,
)
from jobserver_core.testing.metadata.access import StoreAccess, add, added
from jobserver_core.testing.metadata.jobs import full_job
from jobserver_core.testing.metadata.pins import pinned_and_removed
from jobserver_core.testing.metadata.races import race, winner
from jobserver_core.testing.metadata.returns import StoredRecords


class PersistenceContract(StoreAccess):
    """A store that is opened again, or twice at once, is the same store."""

    @abstractmethod
    def open_again(self, store: MetadataStore) -> MetadataStore:
        """Return another store on the same data; the contract closes it, and may have closed the first."""

    @abstractmethod
    def broken(self, store: MetadataStore) -> AbstractContextManager[None]:
        """Make the data unusable inside the ``with`` block, for instance by renaming all tables."""

    def test_every_kind_of_record_is_there_after_opening_again(self, store: MetadataStore) -> None:
        binary, context, job = a_binary("b"), a_context("c", settings={"a": [1]}), full_job()
        delivery = a_delivery(job)
        add(store, binary, context)
        store.add_job(a_job(id=job.id), config="config")
        store.advance_job(job, expected=JobState.STARTED, result=a_result(), delivery=delivery)
        store.close()
        with closing(self.open_again(store)) as again:
            assert again.binaries() == [binary]
            assert again.contexts(ContextQuery()) == [context]
            assert (again.job(job.id), again.job_config(job.id)) == (job, "config")
            assert (again.job_result(job.id), again.delivery(delivery.id)) == (a_result(), delivery)

    def test_notices_reach_another_store_if_the_data_is_shared(self, store: MetadataStore) -> None:
        if not store.shared:
            pytest.skip("several servers cannot share this store")
        heard: list[str | None] = []
        with closing(self.open_again(store)) as again:
            again.listen(heard.append)

            def heard_it() -> bool:
                store.notify("hello")
                return "hello" in heard

            wait_until(heard_it)
        assert heard[0] is None  # what was sent before is lost

    def test_uniqueness_survives_opening_again(self, store: MetadataStore) -> None:
        context, job = a_context("c"), a_job(idempotency_key="key")
        add(store, context, job)
        store.close()
        with closing(self.open_again(store)) as again:
            with pytest.raises(ContextExists):
                again.add_context(a_context("c"))
            with pytest.raises(DuplicateId) as caught:
                again.add_job(a_job(idempotency_key="key"), config="{}")
            assert caught.value.holder == job.id

    def test_the_order_in_which_records_were_added_survives_opening_again(self, store: MetadataStore) -> None:
        store.add_binary(a_binary("b", id="first"))
        store.close()
        with closing(self.open_again(store)) as again:
            again.add_binary(a_binary("b", id="second"))
            assert [binary.id for binary in again.binary_versions("b")] == ["second", "first"]

    def test_a_cursor_survives_opening_again(self, store: MetadataStore) -> None:
        for number in range(3):
            store.add_job(a_job(id=str(number), submitted_at=at(number)), config="{}")
        cursor = store.jobs(JobQuery(limit=1)).next
        store.close()
        with closing(self.open_again(store)) as again:
            assert [job.id for job in again.jobs(JobQuery(after=cursor)).jobs] == ["1", "0"]

    def test_two_stores_on_the_same_data_see_each_others_writes(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            job = added(store, a_job())
            assert other.job(job.id) == job
            running = attrs.evolve(job, state=JobState.RUNNING)
            other.advance_job(running, expected=JobState.STARTED)
            assert store.job(job.id) == running
            with pytest.raises(StaleState):
                store.advance_job(running, expected=JobState.STARTED)

    def test_no_read_is_older_than_what_another_store_wrote(self, store: MetadataStore) -> None:
        binary, context = a_binary("b"), a_context("c")
        job = a_job(binary, context_id=context.id, idempotency_key="key")
        delivery = a_delivery(job)
        records = StoredRecords(binary, context, job, delivery)
        running = attrs.evolve(job, state=JobState.RUNNING)
        ended = attrs.evolve(job, state=JobState.FINISHED, ended_at=at(1), has_result=True)
        sent = attrs.evolve(delivery, state=DeliveryState.DELIVERED, attempts=1)
        request = ServerRequest(id="request", recipient="server", created_at=at(), payload="")
        with closing(self.open_again(store)) as other:
            changes: list[Callable[[], object]] = [
                partial(other.register_server, "s", started_at=at(0), address="", lease=9),
                partial(other.renew_server, "s", lease=900),
                partial(other.drain_server, "s"),
                partial(other.remove_server, "s"),
                partial(other.add_request, request),
                partial(other.answer_request, "request", "yes"),
                partial(other.remove_request, "request"),
                partial(other.add_binary, binary),
                partial(other.add_context, context),
                partial(other.add_job, job, config="config"),
                partial(other.advance_job, running, expected=JobState.STARTED),
                partial(other.record_progress, job.id, JobProgress(tasks_done=1)),
                partial(
                    other.advance_job,
                    ended,
                    expected=JobState.RUNNING,
                    result=a_result(),
                    delivery=delivery,
                ),
                partial(other.advance_delivery, sent, expected=DeliveryState.PENDING),
                partial(other.add_binary, attrs.evolve(binary, id="newer", uploaded_at=at(1))),
                partial(
                    other.advance_context,
                    attrs.evolve(context, state=ContextState.FINISHED, ended_at=at(1)),
                    expected=ContextState.STARTED,
                ),
                partial(other.delete_jobs, ended_before=at(2), limit=1),
                partial(other.delete_contexts, ended_before=at(2), limit=1),
                partial(other.delete_binary, "b"),
            ]
            before = empty = records.read(store)
            for change in changes:
                change()
                after = records.read(store)
                assert after != before, f"nothing was seen of {change}"
                with closing(self.open_again(store)) as new:
                    assert after == records.read(new)
                before = after
        assert before == empty

    def test_what_the_database_fails_at_is_a_storage_error(self, store: MetadataStore) -> None:
        binary, context, job = a_binary("b"), a_context("c"), a_job()
        store.add_job(job, config="{}")
        records = StoredRecords(binary, context, job, a_delivery(job))
        calls: dict[str, Callable[[], object]] = {
            **records.reads(store),
            "add_binary": partial(store.add_binary, binary),
            "delete_binary": partial(store.delete_binary, "b"),
            "delete_old_binaries": partial(store.delete_old_binaries, uploaded_before=at(1), keep=1, limit=1),
            "add_context": partial(store.add_context, context),
            "advance_context": partial(store.advance_context, context, expected=context.state),
            "delete_contexts": partial(store.delete_contexts, ended_before=at(1), limit=1),
            "add_job": partial(store.add_job, a_job(), config="{}"),
            "enqueue_job": partial(
                store.enqueue_job, a_job(), config="{}", limits=QueueLimits(slots=1, places=1)
            ),
            "advance_job": partial(store.advance_job, job, expected=job.state),
            "record_progress": partial(store.record_progress, job.id, JobProgress()),
            "delete_jobs": partial(store.delete_jobs, ended_before=at(1), limit=1),
            "newest_excess_job": partial(store.newest_excess_job, jobs=0, result_bytes=0),
            "register_server": partial(store.register_server, "s", started_at=at(0), address="", lease=9),
            "renew_server": partial(store.renew_server, "s", lease=9),
            "drain_server": partial(store.drain_server, "s"),
            "remove_server": partial(store.remove_server, "s"),
            "add_request": partial(
                store.add_request, ServerRequest(id="r", recipient="s", created_at=at(), payload="")
            ),
            "answer_request": partial(store.answer_request, "r", ""),
            "remove_request": partial(store.remove_request, "r"),
            "pin_blob": partial(store.pin_blob, "pin", server_id="s", digest=binary.digest),
            "unpin_blobs": partial(store.unpin_blobs, ["pin"]),
            "begin_removal": partial(store.begin_removal, [binary.digest], server_id="s", lease=9),
            "end_removal": partial(store.end_removal, [binary.digest], server_id="s"),
            "delete_requests": partial(store.delete_requests, created_before=at()),
            "advance_delivery": partial(
                store.advance_delivery, records.delivery, expected=DeliveryState.PENDING
            ),
            "usage": store.usage,
            "check": store.check,
        }
        if type(store).check is MetadataStore.check:  # it has nothing to check
            del calls["check"]
        with self.broken(store):
            raised = {name: raised_by(call) for name, call in calls.items()}
        assert_each_raises(StorageError, raised, "while the data is unusable")
        assert store.job(job.id) == job
        store.check()

    def test_no_thread_or_process_of_a_store_outlives_its_close(self, store: MetadataStore) -> None:
        before = threads_and_processes()
        other = self.open_again(store)
        other.listen(lambda _notice: None)
        other.add_job(a_job(), config="{}")
        other.close()
        assert_none_left(
            before, "close() has to end the threads and processes of the store, and wait for them"
        )

    def test_of_writers_through_two_stores_one_wins(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            for number in range(10):
                contexts = [a_context(f"c{number}") for _ in range(4)]
                outcomes = race(
                    *(partial((store, other)[n % 2].add_context, c) for n, c in enumerate(contexts))
                )
                won = contexts[winner(outcomes, ContextExists)]
                ends = [attrs.evolve(won, state=ContextState.ERROR, url=str(n)) for n in range(4)]
                outcomes = race(
                    *(
                        partial((store, other)[n % 2].advance_context, end, expected=ContextState.STARTED)
                        for n, end in enumerate(ends)
                    )
                )
                assert store.context(won.id) == ends[winner(outcomes, StaleState)] == other.context(won.id)

    def test_a_pin_and_a_removal_through_two_stores_never_miss_each_other(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            for number in range(20):
                pinned_and_removed(store, other, f"pin{number}", digest_of(str(number)))

    def test_a_delete_and_a_submit_through_two_stores_never_both_win(self, store: MetadataStore) -> None:
        with closing(self.open_again(store)) as other:
            for number in range(20):
                binary = added(store, a_binary(f"b{number}"))
                job = a_job(binary)
                deleted, submitted = race(
                    partial(store.delete_binary, binary.name), partial(other.add_job, job, config="{}")
                )
                lost = [BinaryInUse(name=binary.name, job_ids=(job.id,)), BinaryNotFound(name=binary.name)]
                assert (deleted, submitted) in [([binary], lost[1]), (lost[0], None)], (
                    f"exactly one of the delete and the submit has to succeed: {deleted}, {submitted}"
                )
