"""Faults in enqueuing jobs for contexts of other servers."""

import threading

import attrs
from faults import DEADLINE, Rendezvous

from jobserver_core.errors import ContextNotFound, ContextStopping, ServerClosed
from jobserver_core.models.jobs import Job, QueueLimits
from jobserver_core.models.lifecycle import ContextState
from metadata_faults.fault import Fault


class EnqueuesWithoutLimits(Fault):
    caught_by = "test_only_living_jobs_of_the_context_take_its_room"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(job, config=config, limits=attrs.evolve(limits, places=1000))


class EnqueuesForUnknownUsers(Fault):
    caught_by = "test_a_user_may_not_take_the_room_of_others"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(attrs.evolve(job, submitted_by=""), config=config, limits=limits)
        self._jobs[job.id] = job


class EnqueuesInEndedContexts(Fault):
    caught_by = "test_a_job_is_enqueued_only_in_a_context_that_accepts_jobs"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        try:
            super().enqueue_job(job, config=config, limits=limits)
        except (ContextNotFound, ContextStopping):
            self.add_job(job, config=config)


class EnqueuesInUnknownContexts(Fault):
    caught_by = "test_no_job_is_enqueued_in_an_unknown_context"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        if job.context_id not in self._contexts:
            self.add_job(job, config=config)
        else:
            super().enqueue_job(job, config=config, limits=limits)


class ForgetsTheConfigurationOfEnqueuedJobs(Fault):
    caught_by = "test_an_enqueued_job_is_stored_with_its_configuration"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(job, config="{}", limits=limits)


class EnqueuesWithoutBinaries(Fault):
    caught_by = "test_a_job_is_enqueued_only_with_the_binaries_of_its_class_path"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        super().enqueue_job(attrs.evolve(job, class_path=()), config=config, limits=limits)


class CountsAndEnqueuesInTwoSteps(Fault):
    caught_by = "test_of_many_that_enqueue_a_job_as_many_succeed_as_there_is_room"

    def __init__(self) -> None:
        super().__init__()
        self._compared = Rendezvous(4)

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        live = [key for key in self._live if self._jobs[key].context_id == job.context_id]
        limits.check("c", "", running=0, waiting=len(live), waiting_of_user=0)
        self._compared.wait()
        self.add_job(job, config=config)


class ComparesTheContextAndEnqueuesInTwoSteps(Fault):
    caught_by = "test_a_job_is_never_enqueued_after_the_end_of_its_context"

    def __init__(self) -> None:
        super().__init__()
        self._looked = threading.Event()

    def job(self, job_id: str) -> Job | None:
        found = super().job(job_id)
        self._looked.set()
        return found

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        self._looked.clear()
        if self._contexts[job.context_id].state.final:
            raise ContextNotFound(name=job.context_name)
        self._looked.wait(DEADLINE)
        self.add_job(job, config=config)


class EnqueuesInContextsThatAreAboutToBeEnded(Fault):
    caught_by = "test_no_job_is_enqueued_in_a_context_that_is_about_to_be_ended"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        try:
            super().enqueue_job(job, config=config, limits=limits)
        except ContextStopping:
            if self._contexts[job.context_id].state is ContextState.STOPPING:
                raise
            self.add_job(job, config=config)


class EnqueuesForServersThatDrain(Fault):
    caught_by = "test_no_job_is_enqueued_for_a_server_that_drains"

    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        try:
            super().enqueue_job(job, config=config, limits=limits)
        except ServerClosed:
            self.add_job(job, config=config)
