"""Servers that share one store, and a random history of submits, kills, pauses, crashes and takeovers.

The machine checks every write of a job and every run of its code:

- a job ends once, and its record never changes afterwards;
- its code runs at most once, and if it finished, exactly once;
- in the end every accepted job is final, a repeated key has one job, and every job that owes a callback has
  one delivery, which is final.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from conditions import wait_until
from jobserver_core import Job, JobServerError, JobState
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryBlobStore, MemoryMetadataStore
from jobserver_core.models.contexts import ContextQuery
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import CONTEXTS, JOBS
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.clock import ManualClock
from serving import a_request, upload
from several_servers import RECEIVER, Member

SERVERS = 3
LEASE = 10.0
NAMES = ("red", "green", "blue")


def shared_memory() -> tuple[Callable[[], MetadataStore], Callable[[str], None]]:
    """Return what opens a store in memory, always the same one, and what lets a lease in it expire."""
    clock = ManualClock()
    store = MemoryMetadataStore(shared=True, now=clock.now)

    def expire(server_id: str) -> None:
        others = [server.id for server in store.servers() if server.id != server_id]
        clock.advance(LEASE)
        for other in others:
            store.renew_server(other, lease=LEASE)

    return lambda: store, expire


class Torture:
    """One random history. ``open_store`` opens a store on the same data, ``expire`` ends a server's lease."""

    def __init__(
        self, seed: int, open_store: Callable[[], MetadataStore], expire: Callable[[str], None]
    ) -> None:
        self.dice = random.Random(seed)
        self.open_store = open_store
        self.expire = expire
        self.store = open_store()
        self.blobs = MemoryBlobStore()
        self.lock = threading.Lock()
        self.runs: Counter[str] = Counter()
        self.finals: dict[str, Job] = {}
        self.accepted: set[str] = set()
        self.killed: set[str] = set()
        self.keys: dict[str, set[str]] = {}
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.members: list[Member] = []
        self.gone: list[Member] = []
        self.launchers: list[InlineLauncher] = []

    def run(self, steps: int) -> Counter[str]:
        """Make random steps, then let everything come to rest, and check it; return what happened."""
        try:
            for _ in range(SERVERS):
                self.boot()
            upload(self.members[0].server)
            actions: list[tuple[int, Callable[[], None]]] = [
                (40, self.submit),
                (8, self.repeat),
                (6, self.create),
                (6, self.kill),
                (3, self.stop),
                (8, self.die),
                (2, self.kill_context),
                (10, self.renew),
                (4, self.pause),
                (4, self.pass_on),
                (2, self.crash),
                (2, self.close),
                (6, self.rest),
            ]
            for _ in range(steps):
                [(_, action)] = self.dice.choices(actions, [weight for weight, _ in actions])
                self.counts[action.__name__] += 1
                action()
                self.check_ended()
            self.settle()
            self.check()
            return self.counts
        finally:
            for member in [*self.members, *self.gone]:
                member.server.close(0)
            self.store.close()

    # -- steps -------------------------------------------------------------------------------------

    def boot(self) -> Member:
        launcher = InlineLauncher({"w.Any": self.code}, start_delay=self.dice.choice([0.0, 0.02]))
        self.launchers.append(launcher)
        member = Member(self.open_store(), self.blobs, launcher=launcher)
        self.members.append(member)
        member.server.start()
        return member

    def code(self, job: InlineJob) -> str:
        with self.lock:
            self.runs[job.id] += 1
        job.sleep(job.config["seconds"])
        return job.id

    def submit(self) -> None:
        self.submit_to(self.dice.choice(self.members), self.dice.choice([None, *NAMES]))

    def submit_to(self, member: Member, context: str | None = None) -> None:
        if context is not None:
            newest = self.store.context_named(context)
            self.counts["elsewhere"] += newest is not None and newest.owner != member.id
        callback = RECEIVER if self.dice.random() < 0.5 else None
        config = {"seconds": self.dice.choice([0, 0, 0.002, 0.01, 0.05, 0.2])}
        again = self.dice.random() < 0.5
        request = a_request("w.Any", config, context=context, callback_url=callback, restartable=again)
        try:
            self.accepted.add(member.server.submit(request).id)
        except JobServerError as error:
            self.counts[type(error).__name__] += 1

    def repeat(self) -> None:
        """Submit the same request to all servers at once."""
        key = f"key-{len(self.keys)}"
        found = self.keys[key] = set()
        request = a_request("w.Any", {"seconds": 0}, idempotency_key=key)

        def submit(member: Member) -> None:
            try:
                found.add(member.server.submit(request).id)
            except JobServerError as error:
                self.counts[type(error).__name__] += 1

        threads = [threading.Thread(target=submit, args=(member,)) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.accepted |= found

    def create(self) -> None:
        try:
            settings = {"supervise": self.dice.random() < 0.7, "max-restarts": self.dice.choice([1, "off"])}
            self.dice.choice(self.members).server.create_context(self.dice.choice(NAMES), settings)
        except JobServerError as error:
            self.counts[type(error).__name__] += 1

    def kill(self) -> None:
        if self.accepted:
            job = self.dice.choice(sorted(self.accepted))
            try:
                self.dice.choice(self.members).server.kill_job(job, force=self.dice.random() < 0.2)
                self.counts["killed"] += 1
                self.killed.add(job)
            except JobServerError as error:
                self.counts[type(error).__name__] += 1

    def stop(self) -> None:
        try:
            self.dice.choice(self.members).server.stop_context(self.dice.choice(NAMES))
            self.counts["stopped"] += 1
        except JobServerError as error:
            self.counts[type(error).__name__] += 1

    def kill_context(self) -> None:
        try:
            self.dice.choice(self.members).server.kill_context(self.dice.choice(NAMES))
            self.counts["context killed"] += 1
        except JobServerError as error:
            self.counts[type(error).__name__] += 1

    def die(self) -> None:
        """Let a context end by itself."""
        living = [context for launcher in self.launchers for context in launcher._contexts if context.lives]
        if living:
            self.dice.choice(sorted(living, key=lambda context: context.spec.id)).kill()

    def renew(self) -> None:
        self.dice.choice(self.members).renew()

    def pause(self) -> None:
        """Let a server miss its lease, let others take over, submit to it meanwhile, and wake it up."""
        paused, *others = self.dice.sample(self.members, len(self.members))
        self.expire(paused.id)
        for other in others[: self.dice.randint(1, len(others))]:
            other.renew()
        for _ in range(self.dice.randrange(4)):
            self.submit_to(paused)
        if self.dice.random() < 0.7:
            paused.renew()

    def pass_on(self) -> None:
        """Let jobs that have not begun be taken over, and taken over again, while no owner knows of it."""
        chain = self.dice.sample(self.members, len(self.members))
        for _ in range(self.dice.randint(1, 3)):
            self.submit_to(chain[0])
        for owner, heir in pairwise(chain):
            self.expire(owner.id)
            heir.renew()
        self.rest()
        for owner in chain[:-1]:
            owner.renew()

    def crash(self) -> None:
        """Never renew the lease of a server again. Its jobs go on, as those of a process that hangs."""
        member = self.dice.choice(self.members)
        self.members.remove(member)
        self.gone.append(member)
        self.expire(member.id)
        self.boot()

    def close(self) -> None:
        """Close a server gracefully, and let another one take over what waited there."""
        member = self.dice.choice(self.members)
        self.members.remove(member)
        member.server.drain()
        member.server.close(0)
        self.boot()
        threads = [threading.Thread(target=other.renew) for other in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def rest(self) -> None:
        time.sleep(self.dice.choice([0.001, 0.01, 0.03]))

    # -- checks ------------------------------------------------------------------------------------

    def check_ended(self) -> None:
        """Compare the final jobs with what they were when they ended."""
        for job in self.store.jobs(JobQuery(states=_FINAL_JOBS, limit=10_000)).jobs:
            before = self.finals.setdefault(job.id, job)
            if before != job:
                self.faults.append(f"a final job changed: {before} became {job}")

    def settle(self) -> None:
        """Let the servers that hang wake up, and wait until every job is final."""
        self.members += self.gone
        self.gone = []

        def over() -> bool:
            for member in self.members:
                member.renew()
            return not self.store.jobs(JobQuery(states=JOBS.live_states)).jobs

        wait_until(over, lambda: str(self.store.jobs(JobQuery(states=JOBS.live_states)).jobs))

        def delivered() -> bool:
            for member in self.members:
                member.renew()
            jobs = [job for job in self.accepted if self._delivery_states(job) - {"DELIVERED", "ABANDONED"}]
            return not jobs

        wait_until(delivered, "the end of all deliveries")
        self.check_ended()

    def _delivery_states(self, job_id: str) -> set[str]:
        return {delivery.state.value for delivery in self.store.deliveries_of(job_id)}

    def check(self) -> None:
        """Check that everything is accounted for."""
        jobs = {job.id: job for job in self.store.jobs(JobQuery(limit=10_000)).jobs}
        missing = self.accepted - jobs.keys()
        self.faults += [f"an accepted job is gone: {job}" for job in missing]
        for job in jobs.values():
            self.counts[job.state.value] += 1
            self.counts["restarts"] += job.restarts
            if self.runs[job.id] > 1 + job.restarts or (job.restarts and not job.restartable):
                self.faults.append(f"ran {self.runs[job.id]} times: {job}")
            if job.state is JobState.FINISHED and not self.runs[job.id]:
                self.faults.append(f"finished without a run: {job}")
            deliveries = self.store.deliveries_of(job.id)
            owed = job.callback_url is not None and job.state is JobState.FINISHED
            if len(deliveries) > 1 or (owed and not deliveries):
                self.faults.append(f"{len(deliveries)} deliveries of {job}")
        self.faults += [f"{key} has {len(found)} jobs" for key, found in self.keys.items() if len(found) > 1]
        for job in (jobs[key] for key in self.killed & jobs.keys()):
            if not job.kill_requested and job.state is not JobState.FINISHED and job.failure is None:
                self.faults.append(f"a kill was lost: {job}")
        if left := [r for member in self.members for r in self.store.requests_to(member.id)]:
            self.faults.append(f"requests without an answer: {left}")
        registered = {server.id for server in self.store.servers()}
        for context in self.store.contexts(ContextQuery(states=CONTEXTS.live_states)):
            if context.owner not in registered:
                self.faults.append(f"nobody owns {context}")
        assert not self.faults, "\n".join(self.faults[:20])


_FINAL_JOBS = tuple(state for state in JobState if state.final)
