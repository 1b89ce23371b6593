"""A state machine that drives a job server through random histories and checks invariants.

The launcher does nothing by itself: the machine decides what happens in a context and when. The
stores are the subclass's, and outlive the servers, which crash now and then.
"""

from __future__ import annotations

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from conditions import wait_until
from jobserver_core import (
    BinaryType,
    ContextState,
    ErrorInfo,
    FailureKind,
    Job,
    JobServer,
    JobState,
    Settings,
    errors,
    parse_class_path,
)
from jobserver_core.memory import MemoryBlobStore, MemoryTransport
from jobserver_core.models.lifecycle import CONTEXTS, JOBS
from jobserver_core.ports import BlobStore, ContextEnd, ContextListener, JobOutcome, MetadataStore
from jobserver_core.testing.clock import ManualClock
from serving import ScriptedLauncher, a_request, a_server, archive, report_result

SLOTS = 2
NAMES = st.sampled_from(["one", "two"])
CONTEXT_NAMES = st.sampled_from(["red", "blue"])
URL = "memory://receiver/x"


class JobServerHistory(RuleBasedStateMachine):
    """Uploads, contexts, submits, kills, deletes, crashes: in any order."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.metadata = self.open_metadata()
        self.blobs: BlobStore = MemoryBlobStore()
        self.final: dict[str, Job] = {}
        self.results: dict[str, bytes] = {}
        self.cancelled: set[str] = set()
        self.accepted: list[str] = []
        self.boot()

    # -- supplied by subclasses --------------------------------------------------------------------

    def open_metadata(self) -> MetadataStore:
        """Open the store; after a crash the same one again."""
        raise TypeError("a history needs a metadata store")

    # -- servers -----------------------------------------------------------------------------------

    def boot(self) -> None:
        limits = {"max-jobs-per-context": SLOTS, "max-queued-jobs": 2}
        self.launcher = ScriptedLauncher()
        self.server: JobServer = a_server(
            metadata=self.metadata,
            blobs=self.blobs,
            launcher=self.launcher,
            transports=[MemoryTransport()],
            clock=ManualClock(),
            settings=Settings.from_mapping({"jobserver": {"jobs": limits}}),
        ).start()

    @precondition(lambda self: self.live())
    @rule()
    def crash(self) -> None:
        """The server ends without a word while it has jobs, and another one starts over the same stores."""
        before = {job_id: self.server.job(job_id) for job_id in self.accepted}
        cancelled = {
            job_id
            for job_id, job in before.items()
            if job.kill_requested or self.server.context(job.context_name).stop_requested
        }
        self.cancelled |= {job_id for job_id in cancelled if not before[job_id].state.final}
        self.forsake()
        self.metadata = self.open_metadata()
        self.boot()
        for job_id, job in before.items():
            now = self.server.job(job_id)
            again = job.waiting and job_id not in self.cancelled and now.context_id != job.context_id
            assert now.state.final or (again and now.state is JobState.RESTARTING)

    def forsake(self) -> None:
        """Let go of the crashed server's threads and files without letting it store anything."""
        self.server._close_was_called = True  # nobody has forgotten it
        self.launcher.specs.clear()
        self.launcher.listeners.clear()
        for live, _context in self.server._services.jobs._live.values():
            live._files.close()
        self.server._services.clock.close()
        self.server._services.callbacks.close(0)
        self.server._services.sweeper.close()
        self.server._services.resources.close()

    def teardown(self) -> None:
        self.forsake()
        self.metadata.close()
        self.blobs.close()

    # -- binaries ----------------------------------------------------------------------------------

    @initialize(target=jobs, count=st.integers(0, SLOTS + 1))
    def start_a_context_with_jobs(self, count: int) -> MultipleResults[str]:
        for name in ("one", "two"):
            self.server.upload(name, BinaryType.EGG, archive(name))
        self.server.create_context("red")
        self.launcher.listeners[0].context_ready(application_id="app", url=None)
        for _ in range(count):
            request = attrs.evolve(a_request("w.Any", context="red"), class_path=parse_class_path("one"))
            self.accepted.append(self.server.submit(request).id)
        return multiple(*self.accepted)

    @rule(name=NAMES, content=st.sampled_from("abc"))
    def upload(self, name: str, content: str) -> None:
        binary = self.server.upload(name, BinaryType.EGG, archive(content))
        assert self.server.binary(name) == binary

    @rule(name=NAMES)
    def delete_binary(self, name: str) -> None:
        known = any(binary.name == name for binary in self.server.binaries())
        users = [job.id for job in self.live() if any(entry.source == name for entry in job.class_path)]
        try:
            self.server.delete_binary(name)
        except errors.BinaryNotFound:
            assert not known
        except errors.BinaryInUse as error:
            in_use = sorted(error.job_ids)
            assert in_use == sorted(users)
        else:
            assert known
            assert not users

    # -- contexts ----------------------------------------------------------------------------------

    @rule(name=CONTEXT_NAMES)
    def create_context(self, name: str) -> None:
        lives = any(context.name == name for context in self.server.contexts())
        try:
            self.server.create_context(name)
        except errors.ContextExists:
            assert lives
        else:
            assert not lives

    @rule(name=CONTEXT_NAMES, force=st.booleans())
    def delete_context(self, name: str, *, force: bool) -> None:
        jobs = [job.id for job in self.live() if job.context_name == name]
        try:
            self.server.kill_context(name) if force else self.server.stop_context(name)
        except errors.ContextNotFound:
            assert all(context.name != name for context in self.server.contexts())
        # A context that waits for its turn to start ends at once, and its jobs with it.
        self.cancelled |= {job_id for job_id in jobs if self.server.job(job_id).state.final}

    @precondition(lambda self: self.launcher.listeners)
    @rule(data=st.data())
    def context_becomes_ready(self, data: st.DataObject) -> None:
        self.a_listener(data).context_ready(application_id="app", url=None)

    @precondition(lambda self: self.launcher.listeners)
    @rule(data=st.data(), end=st.sampled_from(ContextEnd))
    def context_ends(self, data: st.DataObject, end: ContextEnd) -> None:
        spec = data.draw(st.sampled_from(self.launcher.specs))
        jobs = [job.id for job in self.live() if job.context_id == spec.id]
        self.cancelled |= {job_id for job_id in jobs if self.is_cancelled(job_id)}
        self.launcher.listeners[self.launcher.specs.index(spec)].context_ended(end)

    def a_listener(self, data: st.DataObject) -> ContextListener:
        return data.draw(st.sampled_from(self.launcher.listeners))

    # -- jobs --------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        binary=NAMES,
        context=st.sampled_from([None, "red", "red", "red", "blue"]),
        callback=st.booleans(),
        key=st.none() | st.sampled_from("kl"),
    )
    def submit(self, binary: str, context: str | None, *, callback: bool, key: str | None) -> str | None:
        request = a_request(
            "w.Any",
            context=context,
            callback_url=URL if callback else None,
            idempotency_key=key,
        )
        request = attrs.evolve(request, class_path=parse_class_path(binary))
        count = len(self.accepted)
        try:
            job = self.server.submit(request)
        except (
            errors.BinaryNotFound,
            errors.ContextNotFound,
            errors.ContextStopping,
            errors.NoSlots,
            errors.IdempotencyMismatch,
        ):
            assert len(self.all_jobs()) == count
            return None
        if job.id not in self.accepted:
            self.accepted.append(job.id)
        return job.id

    def listener_of(self, job_id: str) -> ContextListener | None:
        job = self.server.job(job_id)
        for spec, listener in zip(self.launcher.specs, self.launcher.listeners, strict=True):
            if spec.id == job.context_id:
                return listener
        return None

    @rule(job_id=jobs)
    def job_runs(self, job_id: str | None) -> None:
        listener = self.listener_of(job_id) if job_id else None
        if job_id and listener:
            listener.job_running(job_id)

    @rule(job_id=jobs, result=st.binary(max_size=3))
    def job_finishes(self, job_id: str | None, result: bytes) -> None:
        listener = self.listener_of(job_id) if job_id else None
        if not job_id or not listener or not self.dispatched(job_id):
            return
        report_result(listener, job_id, result, stream=True)
        self.results[job_id] = result
        assert self.server.job(job_id).state is JobState.FINISHED

    @rule(job_id=jobs, killed=st.booleans())
    def job_ends(self, job_id: str | None, *, killed: bool) -> None:
        listener = self.listener_of(job_id) if job_id else None
        if not job_id or not listener or not self.dispatched(job_id):
            return
        if self.is_cancelled(job_id):
            self.cancelled.add(job_id)
        error = JobOutcome(error=ErrorInfo(message="boom"), failure=FailureKind.RAISED)
        listener.job_ended(job_id, JobOutcome(killed=True) if killed else error)

    @rule(job_id=jobs)
    def kill(self, job_id: str | None) -> None:
        if not job_id:
            return
        try:
            waiter = self.server.kill_job(job_id)
        except errors.JobAlreadyFinal:
            assert self.server.job(job_id).state.final
        else:
            self.cancelled |= {job_id} if waiter.done() else set()

    def dispatched(self, job_id: str) -> bool:
        job = self.server.job(job_id)
        return not job.state.final and not job.waiting

    def is_cancelled(self, job_id: str) -> bool:
        job = self.server.job(job_id)
        return job.kill_requested or self.server.context(job.context_name).stop_requested

    # -- invariants --------------------------------------------------------------------------------

    def all_jobs(self) -> tuple[Job, ...]:
        return self.server.jobs().jobs

    def live(self) -> list[Job]:
        return [job for job in self.all_jobs() if not job.state.final]

    @invariant()
    def every_context_whose_turn_it_is_is_launched(self) -> None:
        """Another thread may launch it; what can happen next in a history depends on it."""
        wait_until(self.all_launched)

    def all_launched(self) -> bool:
        launched = {spec.id for spec in self.launcher.specs}
        waiting = self.server.start_queue().waiting
        return all(context.id in launched or context.name in waiting for context in self.server.contexts())

    @invariant()
    def nothing_accepted_is_lost(self) -> None:
        assert sorted(job.id for job in self.all_jobs()) == sorted(self.accepted)

    @invariant()
    def what_was_final_stays_as_it_was(self) -> None:
        for job in self.all_jobs():
            if job.state.final:
                assert self.final.setdefault(job.id, job) == job

    @invariant()
    def a_finished_job_has_its_result_and_no_other_has_one(self) -> None:
        for job in self.all_jobs():
            reader = self.server.open_result(job.id)
            assert (reader is not None) == (job.state is JobState.FINISHED) == job.has_result
            if reader is not None:
                assert reader.value() == self.results[job.id]

    @invariant()
    def every_end_that_nobody_asked_for_is_told_once(self) -> None:
        for job in self.all_jobs():
            told = bool(job.callback_url) and job.state.final
            if job.state is not JobState.FINISHED and job.id in self.cancelled:
                told = False
            assert len(self.server.deliveries(job.id)) == told

    @invariant()
    def jobs_wait_only_while_all_slots_are_taken(self) -> None:
        for context in self.server.contexts():
            jobs = [job for job in self.live() if job.context_id == context.id]
            waiting = [job for job in jobs if job.waiting]
            assert len(jobs) - len(waiting) <= SLOTS
            if context.state is ContextState.RUNNING and waiting:
                assert len(jobs) - len(waiting) == SLOTS

    @invariant()
    def a_live_job_has_a_live_context(self) -> None:
        alive = {context.id for context in self.server.contexts()}
        assert {job.context_id for job in self.live()} <= alive

    @invariant()
    def those_who_wait_see_what_is_stored(self) -> None:
        for job in self.all_jobs():
            assert self.server.job_handle(job.id).done() == job.state.final

    @invariant()
    def only_one_context_of_a_name_lives(self) -> None:
        names = [context.name for context in self.server.contexts()]
        assert len(names) == len(set(names))
        assert all(context.state in CONTEXTS.live_states for context in self.server.contexts())
        assert all(job.state in JOBS.live_states for job in self.live())
