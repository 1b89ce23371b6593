"""The metadata contract's part about single jobs: records, configurations, results, progress."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import attrs
import pytest

from jobserver_core.errors import BinaryNotFound, DuplicateId, StaleState
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.jobs import Job, JobProgress, JobQuery, JobResult, ResultKind
from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_delivery, a_job, a_result, an_entry, at, digest_of
from jobserver_core.testing.contract import raising
from jobserver_core.testing.metadata.access import (
    FINAL_JOBS,
    LIVE_JOBS,
    ODD_TEXTS,
    StoreAccess,
    add,
    added,
    states,
)

PROGRESS = JobProgress(stages_done=1, stages_total=2, tasks_done=3, tasks_total=2**40)
RESULTS = [
    a_result(),
    a_result("null"),
    a_result('"ü🙂 \\u0000"'),
    JobResult(kind=ResultKind.INLINE, size=0, text=""),
    a_result(json.dumps("x" * 2**20)),
    JobResult(kind=ResultKind.STORED, size=2**40, digest=digest_of("stored")),
    JobResult(kind=ResultKind.STREAM, size=0, digest=digest_of("stream")),
]


def full_job(**changes: object) -> Job:
    """Return a job in which no field has its default."""
    entries = (
        an_entry(source="ftp://user@example.org/a%20ü.jar?x=1#y", type=BinaryType.JAR, size=0),
        an_entry(source="wheel", type=BinaryType.WHEEL, digest=digest_of("w"), size=2**40),
    )
    job = a_job(
        class_name="jobs.Wörk$Count",
        class_path=entries,
        context_id="context-7",
        context_name="alice~shared",
        state=JobState.ERROR,
        submitted_at=at(1, microseconds=1),
        dispatched_at=at(2, microseconds=2),
        running_at=at(3, microseconds=3),
        ended_at=at(4, microseconds=4),
        kill_requested=True,
        failure=FailureKind.CRASHED,
        error=ErrorInfo(message="no \0 \ud800 🙂", error_class="builtins.ValueError", stack="at x\n" * 1000),
        has_result=True,
        progress=PROGRESS,
        callback_url="https://example.org/done?a=1&b=ü",
        idempotency_key="once ü",
        fingerprint="f00",
        max_queue_time=0.1,
        max_run_time=86_400.123456,
        priority=-7,
        submitted_by="älice \0",
        restartable=True,
        restarts=2,
    )
    return attrs.evolve(job, **changes)  # type: ignore[arg-type]  # any field, of its own type


class JobsContract(StoreAccess):
    """Jobs: stored once, advanced by compare-and-set together with result and delivery."""

    def test_a_job_with_every_field_set_comes_back_equal_in_full(self, store: MetadataStore) -> None:
        job = added(store, full_job())
        assert store.job(job.id) == job
        assert store.jobs(JobQuery()).jobs == (job,)
        assert store.job_with_key("once ü") == job
        assert self.raw_job_state(store, job.id) == "ERROR"

    def test_a_job_with_nothing_but_defaults_comes_back_equal_in_full(self, store: MetadataStore) -> None:
        job = added(store, a_job())
        assert store.job(job.id) == job

    @pytest.mark.parametrize("field", [field.name for field in attrs.fields(Job) if field.name != "id"])
    def test_each_field_of_a_job_is_stored_on_its_own(self, store: MetadataStore, field: str) -> None:
        full = full_job()
        job = added(store, a_job(**{field: getattr(full, field)}))
        assert store.job(job.id) == job
        bare = added(store, a_job())
        changed = attrs.evolve(job, id=bare.id, idempotency_key=None)
        store.advance_job(changed, expected=JobState.STARTED)
        assert store.job(bare.id) == changed

    @pytest.mark.parametrize("failure", list(FailureKind))
    def test_every_kind_of_failure_comes_back(self, store: MetadataStore, failure: FailureKind) -> None:
        job = added(store, a_job(failure=failure))
        assert store.job(job.id) == job

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_strings_of_a_job_come_back_unchanged(self, store: MetadataStore, text: str) -> None:
        error = ErrorInfo(message=text, error_class=text, stack=text)
        job = a_job(
            class_path=(an_entry(source=text),),
            context_name=text,
            error=error,
            callback_url=text,
            idempotency_key=text,
            fingerprint=text,
        )
        store.add_job(job, config=text)
        assert store.job(job.id) == job
        assert store.job_with_key(text) == job
        assert store.job_config(job.id) == text

    def test_empty_strings_of_a_job_are_not_none(self, store: MetadataStore) -> None:
        empty, none = a_job(callback_url="", fingerprint="", error=ErrorInfo(message="")), a_job()
        for job in (empty, none):
            store.add_job(job, config="")
        assert store.job(empty.id) == empty
        assert store.job(none.id) == none

    @pytest.mark.parametrize("count", [0, 1, 30])
    def test_a_class_path_keeps_its_order_and_its_repetitions(self, store: MetadataStore, count: int) -> None:
        binary = added(store, a_binary("b"))
        entries = [an_entry(source=f"file:///{n * 7 % 10}.egg") for n in range(count)]
        job = added(store, a_job(class_path=tuple(entries + [an_entry(binary)] * min(count, 2))))
        assert store.job(job.id) == job

    def test_times_of_a_job_come_back_in_utc(self, store: MetadataStore) -> None:
        local = datetime(2016, 6, 19, 16, 27, 12, 999999, tzinfo=timezone(timedelta(hours=14)))
        times = ("submitted_at", "dispatched_at", "running_at", "ended_at")
        job = added(store, a_job(**dict.fromkeys(times, local)))
        stored = store.job(job.id)
        assert stored == job
        assert all(getattr(stored, time).utcoffset() == timedelta(0) for time in times), (
            f"a stored time is not in UTC: {stored}"
        )

    @pytest.mark.parametrize("text", ["job-0", *ODD_TEXTS])
    def test_an_unknown_job_has_no_record_no_configuration_and_no_result(
        self, store: MetadataStore, text: str
    ) -> None:
        store.add_job(a_job(idempotency_key="key"), config="{}")
        found = store.job(text), store.job_config(text), store.job_result(text), store.job_with_key(text)
        assert found == (None, None, None, None)

    @pytest.mark.parametrize("config", ['{"a": "ü🙂"}', " {} \n", json.dumps({"x": "y" * 2**20})])
    def test_a_configuration_comes_back_unchanged(self, store: MetadataStore, config: str) -> None:
        job = a_job()
        store.add_job(job, config=config)
        assert store.job_config(job.id) == config
        store.advance_job(attrs.evolve(job, state=JobState.KILLED), expected=JobState.STARTED)
        assert store.job_config(job.id) == config

    # -- what is refused -------------------------------------------------------------------------------

    def test_adding_a_job_with_a_known_id_raises_duplicate_id_and_changes_nothing(
        self, store: MetadataStore
    ) -> None:
        first = a_job(id="same")
        store.add_job(first, config="first")
        with raising(DuplicateId(kind="job", id="same", holder="same")):
            store.add_job(a_job(id="same", class_name="x.Y", idempotency_key="key"), config="second")
        assert (store.job("same"), store.job_config("same")) == (first, "first")
        assert store.job_with_key("key") is None

    def test_adding_a_job_with_a_known_idempotency_key_names_the_job_that_has_it(
        self, store: MetadataStore
    ) -> None:
        first, second = a_job(idempotency_key="key"), a_job(idempotency_key="key")
        store.add_job(first, config="{}")
        with raising(DuplicateId(kind="idempotency key", id="key", holder=first.id)):
            store.add_job(second, config="{}")
        assert (store.job(second.id), store.job_with_key("key")) == (None, first)
        counts = self.raw_counts(store)
        assert (counts["jobs"], counts["configs"]) == (1, 1)

    def test_a_repeated_submit_finds_its_key_even_after_its_binary_was_deleted(
        self, store: MetadataStore
    ) -> None:
        binary = added(store, a_binary("b"))
        add(store, a_job(binary, idempotency_key="key", state=JobState.FINISHED))
        store.delete_binary("b")
        with pytest.raises(DuplicateId):
            store.add_job(a_job(binary, idempotency_key="key"), config="{}")

    def test_idempotency_keys_that_differ_in_case_or_blanks_are_different(self, store: MetadataStore) -> None:
        jobs = [a_job(idempotency_key=key) for key in ("key", "KEY", "key ", " key", "kéy", "ke\u0301y")]
        add(store, *jobs)
        assert [store.job_with_key(str(job.idempotency_key)) for job in jobs] == jobs

    def test_any_number_of_jobs_have_no_idempotency_key(self, store: MetadataStore) -> None:
        for _ in range(3):
            store.add_job(a_job(), config="{}")
        assert self.raw_counts(store)["jobs"] == 3

    def test_a_job_of_a_deleted_version_raises_binary_not_found_and_stores_nothing(
        self, store: MetadataStore
    ) -> None:
        kept, deleted = a_binary("kept"), a_binary("deleted")
        add(store, kept, deleted)
        store.delete_binary("deleted")
        store.add_binary(a_binary("deleted"))
        job = a_job(kept, deleted, idempotency_key="key")
        with raising(BinaryNotFound(name="deleted")):
            store.add_job(job, config="{}")
        assert (store.job(job.id), store.job_with_key("key"), store.job_config(job.id)) == (None, None, None)
        counts = self.raw_counts(store)
        assert (counts["jobs"], counts["configs"]) == (0, 0)
        assert store.delete_binary("kept") == [kept]

    def test_a_job_of_an_older_version_is_stored(self, store: MetadataStore) -> None:
        older = added(store, a_binary("b", uploaded_at=at(1)))
        store.add_binary(a_binary("b", uploaded_at=at(2)))
        job = added(store, a_job(older))
        assert store.job(job.id) == job

    # -- compare-and-set -------------------------------------------------------------------------------

    @pytest.mark.parametrize("stored", list(JobState))
    @pytest.mark.parametrize("expected", list(JobState))
    def test_a_job_is_advanced_if_and_only_if_its_state_is_the_expected_one(
        self, store: MetadataStore, stored: JobState, expected: JobState
    ) -> None:
        before = added(store, a_job(state=stored))
        after = attrs.evolve(before, state=JobState.FINISHED, ended_at=at(9), has_result=True)
        delivery = a_delivery(after)
        if stored is expected:
            store.advance_job(after, expected=expected, result=a_result(), delivery=delivery)
            assert self._all_of(store, after) == (after, a_result(), [delivery])
            return
        with raising(StaleState(kind="job", id=before.id, expected=expected.value, found=stored.value)):
            store.advance_job(after, expected=expected, result=a_result(), delivery=delivery)
        assert self._all_of(store, before) == (before, None, [])
        assert self.raw_job_state(store, before.id) == stored.value

    def _all_of(self, store: MetadataStore, job: Job) -> tuple[Job | None, JobResult | None, list[Delivery]]:
        return store.job(job.id), store.job_result(job.id), store.deliveries_of(job.id)

    def test_advancing_an_unknown_job_raises_stale_state_that_found_none(self, store: MetadataStore) -> None:
        job = a_job()
        with raising(StaleState(kind="job", id=job.id, expected="STARTED", found=None)):
            store.advance_job(job, expected=JobState.STARTED, result=a_result(), delivery=a_delivery(job))
        assert set(self.raw_counts(store).values()) == {0}

    def test_advancing_a_job_stores_the_whole_record(self, store: MetadataStore) -> None:
        full = full_job()
        store.add_job(a_job(id=full.id), config="{}")
        store.advance_job(full, expected=JobState.STARTED)
        assert store.job(full.id) == full
        assert store.jobs(JobQuery()).jobs == (full,)
        assert store.job_with_key("once ü") == full
        bare = a_job(id=full.id, progress=JobProgress())
        store.advance_job(bare, expected=JobState.ERROR)
        assert store.job(full.id) == bare
        assert store.job_with_key("once ü") is None
        assert store.jobs(JobQuery(context_id=full.context_id)).jobs == ()

    def test_a_write_that_keeps_the_state_of_a_job_may_be_repeated(self, store: MetadataStore) -> None:
        job = added(store, a_job())
        for seconds in (1, 2):
            job = attrs.evolve(job, dispatched_at=at(seconds))
            store.advance_job(job, expected=JobState.STARTED)
            assert store.job(job.id) == job

    def test_a_taken_delivery_id_refuses_the_whole_advance(self, store: MetadataStore) -> None:
        first, second = a_job(), a_job()
        delivery = a_delivery(first)
        add(store, first, second)
        store.advance_job(first, expected=JobState.STARTED, delivery=delivery)
        ended = attrs.evolve(second, state=JobState.FINISHED)
        with raising(DuplicateId(kind="callback delivery", id=delivery.id, holder=delivery.id)):
            store.advance_job(
                ended,
                expected=JobState.STARTED,
                result=a_result(),
                delivery=a_delivery(second, id=delivery.id),
            )
        assert self._all_of(store, second) == (second, None, [])
        assert self._all_of(store, first) == (first, None, [delivery])

    def test_a_taken_idempotency_key_refuses_the_whole_advance(self, store: MetadataStore) -> None:
        first, second = a_job(idempotency_key="key"), a_job()
        add(store, first, second)
        stolen = attrs.evolve(second, idempotency_key="key", state=JobState.RUNNING)
        with raising(DuplicateId(kind="idempotency key", id="key", holder=first.id)):
            store.advance_job(stolen, expected=JobState.STARTED, delivery=a_delivery(second))
        assert self._all_of(store, second) == (second, None, [])

    # -- results ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result.kind.value}-{result.size}")
    def test_a_result_comes_back_equal_in_full(self, store: MetadataStore, result: JobResult) -> None:
        job = added(store, a_job(state=JobState.RUNNING))
        assert store.job_result(job.id) is None
        ended = attrs.evolve(job, state=JobState.FINISHED, has_result=True)
        store.advance_job(ended, expected=JobState.RUNNING, result=result)
        assert store.job_result(job.id) == result
        assert store.job(job.id) == ended

    def test_a_null_result_is_not_the_same_as_none(self, store: MetadataStore) -> None:
        null, none = a_job(has_result=True), a_job()
        for job, result in ((null, a_result("null")), (none, None)):
            store.add_job(job, config="{}")
            store.advance_job(job, expected=JobState.STARTED, result=result)
        assert (store.job_result(null.id), store.job_result(none.id)) == (a_result("null"), None)
        assert [job.has_result for job in (store.job(null.id), store.job(none.id)) if job] == [True, False]

    def test_a_result_stays_when_a_later_advance_has_none_and_is_replaced_when_it_has_one(
        self, store: MetadataStore
    ) -> None:
        job = added(store, a_job())
        store.advance_job(job, expected=JobState.STARTED, result=a_result("1"))
        store.advance_job(job, expected=JobState.STARTED)
        assert store.job_result(job.id) == a_result("1")
        stored = JobResult(kind=ResultKind.STORED, size=1, digest=digest_of("2"))
        store.advance_job(job, expected=JobState.STARTED, result=stored)
        assert store.job_result(job.id) == stored
        assert self.raw_counts(store)["results"] == 1

    # -- progress --------------------------------------------------------------------------------------

    @states(LIVE_JOBS)
    def test_progress_of_a_live_job_is_stored_and_changes_nothing_else(
        self, store: MetadataStore, state: JobState
    ) -> None:
        job, other = a_job(state=state), a_job(state=state)
        add(store, job, other)
        store.record_progress(job.id, JobProgress(tasks_done=9))
        store.record_progress(job.id, PROGRESS)
        assert store.job(job.id) == attrs.evolve(job, progress=PROGRESS)
        assert store.job(other.id) == other

    @states(FINAL_JOBS)
    def test_progress_of_a_final_job_is_ignored(self, store: MetadataStore, state: JobState) -> None:
        job = added(store, a_job(state=state))
        store.record_progress(job.id, PROGRESS)
        assert store.job(job.id) == job

    def test_progress_of_an_unknown_job_is_ignored(self, store: MetadataStore) -> None:
        store.record_progress("nobody", PROGRESS)
        assert self.raw_counts(store)["jobs"] == 0

    def test_progress_stays_when_an_advance_has_none_and_is_replaced_when_it_has_some(
        self, store: MetadataStore
    ) -> None:
        job = added(store, a_job())
        store.record_progress(job.id, PROGRESS)
        running = attrs.evolve(job, state=JobState.RUNNING)
        store.advance_job(running, expected=JobState.STARTED)
        assert store.job(job.id) == attrs.evolve(running, progress=PROGRESS)
        ended = attrs.evolve(job, state=JobState.FINISHED, progress=JobProgress(tasks_done=5))
        store.advance_job(ended, expected=JobState.RUNNING)
        assert store.job(job.id) == ended
