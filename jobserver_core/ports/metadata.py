"""The metadata port: every record of the job server, and every change of state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from datetime import datetime

from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobResult
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.ports.backend import Backend

__all__ = ["MetadataStore"]


class MetadataStore(Backend):
    """Binaries, contexts, jobs with their results, and callback deliveries.

    Records go in and come out as frozen models, equal in full to what was stored; times keep
    microseconds and come back in UTC. Every method is one transaction: when it returns, what it
    did is durable and seen by all later calls; when it raises, nothing was changed. Durable means that
    the end of the process undoes nothing. A power cut may undo that a job was dispatched, runs or got
    further, but no record that was added, no final state, and no kill that was asked for. What the
    database itself fails at is a StorageError. Only after a StorageError may the change have been
    stored all the same, since a connection can break during a commit; callers repeat the write and
    recognise their own record, or take it back.

    ``advance_*`` are the compare-and-set writes. They store the whole record given, if and only
    if the stored state is ``expected``; else they raise StaleState (``found`` None for an unknown
    id). Of any number of writers that expect the same state, one wins, unless the write keeps the
    state. A store does not judge transitions: callers take states from
    :mod:`jobserver_core.models.lifecycle`.

    Lists are indexed: a page from a million records costs what it costs from a thousand.
    """

    kind = "metadata"

    # -- binaries ----------------------------------------------------------------------------------

    @abstractmethod
    def add_binary(self, binary: Binary) -> None:
        """Store a version; it is the newest of its name. Raises DuplicateId for a known id.

        "Newest" is by ``uploaded_at``, and among equals the one that was added last.
        """

    @abstractmethod
    def binary(self, name: str) -> Binary | None:
        """Return the newest version of a name, or None."""

    @abstractmethod
    def binaries(self) -> list[Binary]:
        """Return the newest version of every name, sorted by name."""

    @abstractmethod
    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a name, newest first; empty for an unknown one."""

    @abstractmethod
    def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a name, and return them, newest first.

        Raises BinaryNotFound; BinaryInUse, with the ids of the jobs in submission order, while a
        job that is not final has a version of it in its class path.
        """

    @abstractmethod
    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        """Remove up to ``limit`` versions that were uploaded before a time, oldest first; return them.

        Those stay that are among the newest ``keep`` (at least 1) of their name, and those in the class
        path of a job that is not final.
        """

    # -- contexts ----------------------------------------------------------------------------------

    @abstractmethod
    def add_context(self, context: Context) -> None:
        """Store a new context.

        Raises ContextExists while a context of this name is not final, DuplicateId for a known id.
        """

    @abstractmethod
    def context(self, context_id: str) -> Context | None:
        """Return a context by its id, or None."""

    @abstractmethod
    def context_named(self, name: str) -> Context | None:
        """Return the newest context of a name, also after it ended, or None.

        "Newest" is by ``started_at``, and among equals the one that was added last.
        """

    @abstractmethod
    def contexts(self, query: ContextQuery) -> list[Context]:
        """Return the contexts that a query selects, newest first."""

    @abstractmethod
    def advance_context(self, context: Context, *, expected: ContextState) -> None:
        """Store a context by compare-and-set on its state. Raises StaleState."""

    @abstractmethod
    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        """Remove up to ``limit`` final contexts that ended before a time, oldest first; return their ids.

        A context that a job refers to by its ``context_id`` stays.
        """

    # -- jobs --------------------------------------------------------------------------------------

    @abstractmethod
    def add_job(self, job: Job, *, config: str) -> None:
        """Store a new job and its configuration (a JSON object as text).

        Raises DuplicateId for a known id (``kind`` "job") and for a known idempotency key (``kind``
        "idempotency key", ``holder`` the id of the job that has it); BinaryNotFound when a binary's
        version in the class path was deleted meanwhile, so that a delete and a submit never both win.
        """

    @abstractmethod
    def job(self, job_id: str) -> Job | None:
        """Return a job by its id, or None."""

    @abstractmethod
    def job_with_key(self, idempotency_key: str) -> Job | None:
        """Return the job that was submitted under an idempotency key, or None."""

    @abstractmethod
    def job_config(self, job_id: str) -> str | None:
        """Return the stored configuration, or None for an unknown job."""

    @abstractmethod
    def job_result(self, job_id: str) -> JobResult | None:
        """Return where the job's result is, or None while there is none."""

    @abstractmethod
    def jobs(self, query: JobQuery) -> JobPage:
        """Return one page of jobs, newest first by ``submitted_at`` and then ``id``, both descending.

        Following ``next`` visits every job that was there at the first page once, whatever is added
        meanwhile. Raises InvalidRequest for a cursor that this store did not make.
        """

    @abstractmethod
    def advance_job(
        self,
        job: Job,
        *,
        expected: JobState,
        result: JobResult | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        """Store a job by compare-and-set on its state, with its result and its callback's delivery.

        All of it or nothing. The stored ``progress`` stays when the given job has none.
        Raises StaleState.
        """

    @abstractmethod
    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        """Store how far a job is, if it is not final; anything else is ignored.

        Callers drop what raises StorageError, so this should not wait long for a store that is busy.
        """

    @abstractmethod
    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        """Remove up to ``limit`` final jobs that ended before a time, oldest first; return how many.

        Their configurations, results and final deliveries go with them; a job with a delivery
        that is not final stays.
        """

    # -- callback deliveries -----------------------------------------------------------------------

    @abstractmethod
    def delivery(self, delivery_id: str) -> Delivery | None:
        """Return a delivery by its id, or None."""

    @abstractmethod
    def deliveries_of(self, job_id: str) -> list[Delivery]:
        """Return the deliveries of a job, oldest first."""

    @abstractmethod
    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        """Return PENDING deliveries that are due: ``due_at`` is not after ``now``.

        They come by ``due_at``, then ``created_at``, then ``id``. Those to the receivers in
        ``excluding`` are left out, so that a full lane hides nobody else.
        """

    @abstractmethod
    def advance_delivery(self, delivery: Delivery, *, expected: DeliveryState) -> None:
        """Store a delivery by compare-and-set on its state. Raises StaleState."""

    @abstractmethod
    def deliveries_in(self, state: DeliveryState, *, limit: int) -> list[Delivery]:
        """Return deliveries in a state, oldest first; after a crash, those that were being sent."""

    # -- blobs in use ------------------------------------------------------------------------------

    @abstractmethod
    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        """Return those of the digests that no binary, no live job and no result refers to.

        A job refers to the blobs of its class path until it is final.
        """

    # -- the store itself --------------------------------------------------------------------------

    def defer_syncs(self) -> bool:
        """Let ``add_job`` and ``advance_job`` return before the disk has what they wrote, from now on.

        Returns whether the store does so. Then a power cut, but not the end of the process, may undo
        them until :meth:`sync` is called, which serves many of them at once. The job server asks for this,
        and syncs before it tells anybody. The default does not: its writes are on the disk when they return.
        """
        return False

    def sync(self) -> None:
        """Return once everything that was written before survives a power cut. Raises StorageError."""
        return

    def check(self) -> None:
        """Raise StorageError when the store cannot be written to.

        Really write something, and wait for other writers no longer than a few seconds: health checks
        call this, at most every other second. The default finds nothing wrong.
        """
        return

    def close(self) -> None:
        """Let go of connections; repeating this is allowed."""
        return
