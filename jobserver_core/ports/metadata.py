"""The metadata port: every record of the job server, and every change of state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from datetime import datetime

from jobserver_core.models.binaries import Binary
from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.jobs import Job, JobPage, JobProgress, JobQuery, JobResult, QueueLimits
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.models.servers import Server, ServerRequest
from jobserver_core.models.storage import MetadataUsage
from jobserver_core.plugins import Backend

PIN_EXPIRY = 86_400.0
"""Seconds for which the pins of a server remain valid after it has ended, in case it is only paused."""


class MetadataStore(Backend):
    """Binaries, contexts, jobs with their results, callback deliveries, and the servers that share them.

    **Records.** Models are stored without loss: what is read equals what was written. Strings may contain any
    character, including NUL and lone surrogates, and sort by code point. Times keep microseconds and come
    back in UTC.

    **Transactions.** Every method is one transaction. When it returns, its change is durable and visible to
    every later call, even through another store on the same data: reads are never cached. If it raises,
    nothing was changed. Durable means that the end of the process undoes nothing. A power cut may undo the
    fact that a job was dispatched, is running or made progress, but no new record, no final state, and no
    kill request.

    **Errors.** Every method, whether it reads or writes, raises StorageError if the database fails. Even
    then, the change may have been stored, since a connection can break during a commit. Callers repeat the
    write and recognize their own record, or undo it.

    **Compare-and-set.** The ``advance_*`` methods store the whole record if and only if the stored state is
    ``expected`` and the stored epoch is that of the record, or ``epoch`` if it is given. Otherwise they raise
    StaleState with the stored state as ``found``, or None for an unknown id; if only the epoch differs, the
    StaleState is a StaleOwner. If several writers expect the same state and epoch, one of them wins, unless
    the write changes neither. A store does not check whether a transition is allowed.

    **Ownership.** A server takes over another server's record by storing it with a higher epoch than the one
    it read, by compare-and-set on the latter. From then on, no ``advance_*`` call of the earlier owner
    succeeds, however long it was paused. Progress has no epoch, because outdated progress does no harm.

    **Leases.** Servers that share a store prove that they are alive by renewing a lease. Only the store's own
    clock judges leases, so the clocks of the servers' machines do not matter.

    **Pins.** Servers that share a store and their blobs must not delete a blob that another one is about to
    use. If a pin (:meth:`pin_blob`) and a removal (:meth:`begin_removal`) of the same blob happen at the same
    time, at least one sees the other. If a store is not ``shared``, its server does without pins.

    **Notices.** Servers that share a store wake one another with short strings. A notice is only a hint that
    there is something new in the store. It is not durable and may be lost, so listeners also read the store
    from time to time.

    The field ``kind`` of StaleState and DuplicateId is "binary", "context", "job" or "callback delivery";
    that of DuplicateId can also be "request" or "idempotency key". The field ``holder`` of DuplicateId is the
    id of the conflicting record.

    **Cost.** Lists are indexed: a page from a million records costs as much as one from a thousand.
    """

    kind = "metadata"

    shared: bool = False
    """Whether several servers may use the store at the same time. If not, its only server need not renew a
    lease, and any other server whose records it finds has ended."""

    # -- binaries ----------------------------------------------------------------------------------

    @abstractmethod
    def add_binary(self, binary: Binary) -> None:
        """Store a version of a binary.

        The newest version of a name is the one with the latest ``uploaded_at`` and, if several have the same,
        the one that was added last.

        Raises:
            DuplicateId: The id is known.
        """

    @abstractmethod
    def binary(self, name: str) -> Binary | None:
        """Return the newest version of a name, or None."""

    @abstractmethod
    def binaries(self) -> list[Binary]:
        """Return the newest version of every name, sorted by name."""

    @abstractmethod
    def binary_versions(self, name: str) -> list[Binary]:
        """Return all versions of a name, newest first; empty for an unknown name."""

    @abstractmethod
    def delete_binary(self, name: str) -> list[Binary]:
        """Remove every version of a name, and return them, newest first.

        Raises:
            BinaryNotFound: There is no version.
            BinaryInUse: A job that is not final has a version in its class path. ``job_ids`` are all such
                jobs, in submission order.
        """

    @abstractmethod
    def delete_old_binaries(self, *, uploaded_before: datetime, keep: int, limit: int) -> list[Binary]:
        """Remove up to ``limit`` versions that were uploaded before a time, oldest first, and return them.

        The newest ``keep`` (at least 1) of each name stay, as do those in the class path of a job that
        is not final.
        """

    # -- servers -----------------------------------------------------------------------------------

    @abstractmethod
    def register_server(
        self, server_id: str, *, started_at: datetime, address: str, lease: float, version: str = ""
    ) -> None:
        """Store that a server is running, with a lease in seconds. Replaces a record with the same id.

        The server is then not draining. Its existing pins remain valid for another :data:`PIN_EXPIRY`
        seconds.
        """

    @abstractmethod
    def renew_server(self, server_id: str, *, lease: float) -> bool:
        """Make a server's lease expire this many seconds from now, even if it has already expired.

        Returns whether the server is registered; if not, nothing is changed. A renewal and a removal of an
        expired server never both win.
        """

    @abstractmethod
    def drain_server(self, server_id: str) -> bool:
        """Store that a server is draining; return whether it is registered."""

    @abstractmethod
    def servers(self, *, expired: bool | None = None) -> list[Server]:
        """Return the servers, oldest first by ``started_at`` and then ``id``.

        With ``expired``, return only those whose lease has expired, or only those whose lease has not. A
        lease of 0 seconds expires at once.
        """

    @abstractmethod
    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        """Remove a server; with ``only_expired``, only if its lease has expired.

        Returns whether this call removed it.
        """

    # -- contexts ----------------------------------------------------------------------------------

    @abstractmethod
    def add_context(self, context: Context) -> None:
        """Store a new context.

        Raises:
            DuplicateId: The id is known.
            ContextExists: Neither the new context nor another one with its name is final.
        """

    @abstractmethod
    def context(self, context_id: str) -> Context | None:
        """Return a context by its id, or None."""

    @abstractmethod
    def context_named(self, name: str) -> Context | None:
        """Return the context of a name that is not final, or else the newest one, or None.

        The newest is the one with the latest ``started_at`` and, if several have the same, the one that was
        added last. A context that is not final comes first: servers whose clocks differ may have started the
        others.
        """

    @abstractmethod
    def contexts(self, query: ContextQuery) -> list[Context]:
        """Return the contexts that a query selects, newest first."""

    @abstractmethod
    def advance_context(
        self,
        context: Context,
        *,
        expected: ContextState,
        epoch: int | None = None,
        successor: Context | None = None,
    ) -> None:
        """Store a context by compare-and-set on its state and epoch.

        ``successor`` is a new context that takes the name of this one, which must be final. Both are stored,
        or neither is.

        Raises:
            StaleState: The stored state is not ``expected``.
            StaleOwner: The stored epoch is not the expected one.
            ContextExists: The write would make a second context of this name live.
            DuplicateId: The id of the successor is known.
        """

    @abstractmethod
    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        """Remove up to ``limit`` final contexts that ended before a time, oldest first, and return their ids.

        A context that a job refers to by its ``context_id`` stays.
        """

    # -- jobs --------------------------------------------------------------------------------------

    @abstractmethod
    def add_job(self, job: Job, *, config: str) -> None:
        """Store a new job and its configuration, a JSON object as a string.

        A delete and a submit of one binary never both win.

        Raises:
            DuplicateId: The id is known, or another job has the idempotency key. For a key, ``kind`` is
                "idempotency key", ``id`` the key, and ``holder`` the id of the job that has it.
            BinaryNotFound: A version in the class path was deleted meanwhile.
        """

    @abstractmethod
    def enqueue_job(self, job: Job, *, config: str, limits: QueueLimits) -> None:
        """Store a new job as :meth:`add_job` does, if its context accepts jobs and has room for it.

        This is for the context of another server, which picks the job up. Once the context is stored as
        stopping or final, no job is enqueued any more. However many calls are concurrent, only as many
        succeed as there is room for, according to the stored jobs: those that are not final count as running
        if they have ``dispatched_at``, and as waiting otherwise.

        Raises:
            DuplicateId: As :meth:`add_job`.
            BinaryNotFound: As :meth:`add_job`.
            ContextNotFound: The context of the job is unknown or final.
            ContextStopping: It is stopping, or about to be ended on request.
            ServerClosed: Its owner is registered and draining.
            NoSlots: It has no room, according to ``limits``.
        """

    @abstractmethod
    def job(self, job_id: str) -> Job | None:
        """Return a job by its id, or None."""

    @abstractmethod
    def job_with_key(self, idempotency_key: str) -> Job | None:
        """Return the job that was submitted with an idempotency key, or None."""

    @abstractmethod
    def job_config(self, job_id: str) -> str | None:
        """Return the stored configuration, or None for an unknown job."""

    @abstractmethod
    def job_result(self, job_id: str) -> JobResult | None:
        """Return the job's result or its location; None if it has no result yet."""

    @abstractmethod
    def jobs(self, query: JobQuery) -> JobPage:
        """Return one page of jobs, newest first by ``submitted_at`` and then ``id``, both descending.

        A caller that follows ``next`` sees every job that existed at the first page once, even if jobs are
        added in the meantime. So a cursor names the last job of its page, not a number of rows:
        :func:`~jobserver_core.ports.formats.encode_cursor` makes it, and ``decode_cursor`` returns the
        ``submitted_at`` and ``id`` of the job. It stays valid after a restart, and after the job was deleted.
        The last page has no ``next``. ``offset`` counts from the cursor, or from the newest job.

        Raises:
            InvalidRequest: The cursor was not made by ``encode_cursor``.
        """

    @abstractmethod
    def advance_job(
        self,
        job: Job,
        *,
        expected: JobState,
        epoch: int | None = None,
        result: JobResult | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        """Store a job by compare-and-set on its state and epoch, with its result and its callback's delivery.

        Either all of it is stored, or nothing. If the job has no progress, the stored progress stays; if
        ``result`` is None, the stored result stays.

        Raises:
            StaleState: The stored state is not ``expected``.
            StaleOwner: The stored epoch is not the expected one.
            DuplicateId: The delivery's id is known, or another job has the idempotency key.
        """

    @abstractmethod
    def record_progress(self, job_id: str, progress: JobProgress) -> None:
        """Store the progress of a job. Does nothing if the job is final or unknown.

        Callers drop progress for which this raises StorageError, so do not wait long for a busy database.
        """

    @abstractmethod
    def delete_jobs(self, *, ended_before: datetime, limit: int) -> int:
        """Remove up to ``limit`` final jobs that ended before a time, oldest first, and return how many.

        Their configurations, results and deliveries are removed too. A job with a delivery that is not final
        stays.
        """

    @abstractmethod
    def newest_excess_job(self, *, jobs: int | None, result_bytes: int | None) -> datetime | None:
        """Return the end time of the newest ended job that exceeds one of two limits, or None if none does.

        Starting from the job that ended last, a job exceeds ``jobs`` if that many others come before it. It
        exceeds ``result_bytes`` if its result, together with those before it and those of the same time, is
        larger. None means no limit. After deleting all jobs that ended up to the returned time, both limits
        are met.
        """

    # -- callback deliveries -----------------------------------------------------------------------

    @abstractmethod
    def delivery(self, delivery_id: str) -> Delivery | None:
        """Return a delivery by its id, or None."""

    @abstractmethod
    def deliveries_of(self, job_id: str) -> list[Delivery]:
        """Return the deliveries of a job, oldest first by ``created_at`` and then ``id``."""

    @abstractmethod
    def due_deliveries(self, *, now: datetime, limit: int, excluding: Iterable[str] = ()) -> list[Delivery]:
        """Return up to ``limit`` PENDING deliveries whose ``due_at`` is not after ``now``.

        They are sorted by ``due_at``, then ``created_at``, then ``id``. Deliveries to the receivers in
        ``excluding`` do not count towards the limit, so that one busy receiver hides no other.
        """

    @abstractmethod
    def advance_delivery(
        self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None
    ) -> None:
        """Store a delivery by compare-and-set on its state and epoch.

        Raises:
            StaleState: The stored state is not ``expected``.
            StaleOwner: The stored epoch is not the expected one.
        """

    @abstractmethod
    def deliveries_in(
        self, state: DeliveryState, *, limit: int, excluding: Iterable[str] = ()
    ) -> list[Delivery]:
        """Return up to ``limit`` deliveries in a state, oldest first by ``created_at`` and then ``id``.

        Those whose ``owner`` is in ``excluding`` are left out, and do not count towards the limit.
        """

    # -- blobs in use ------------------------------------------------------------------------------

    @abstractmethod
    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        """Return those of the digests that no binary, no job in progress and no result refers to.

        A job refers to the blobs of its class path until it is final, and to that of its result until it is
        deleted. The result keeps the order of the digests and contains each only once, even if it was given
        several times. ``digests`` can be any iterable, of any length. A string that is not a digest is
        unreferenced.
        """

    @abstractmethod
    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        """Store that a server uses a blob, whether or not a record refers to it. Idempotent.

        Returns whether the blob may be used. If not, the blob is being removed. The pin is stored anyway, and
        the call can be repeated until the removal is over. After a call has returned True, no removal of the
        blob begins until the pin is gone.

        A pin remains valid until it is removed with :meth:`unpin_blobs`. If its server is no longer
        registered, it remains valid for another :data:`PIN_EXPIRY` seconds, counted from the next
        :meth:`begin_removal`.
        """

    @abstractmethod
    def unpin_blobs(self, pin_ids: Iterable[str]) -> None:
        """Remove pins. Unknown ids are ignored."""

    @abstractmethod
    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        """Mark the digests that are :meth:`unreferenced` and not pinned as being removed.

        Returns the marked digests in the given order, each once. They stay marked until :meth:`end_removal`,
        but for at most ``lease`` seconds. A digest that another removal has marked is left out.
        """

    @abstractmethod
    def end_removal(self, digests: Iterable[str], *, server_id: str) -> None:
        """Remove the marks that a server has set on these digests. Other marks stay."""

    # -- requests to other servers -----------------------------------------------------------------

    @abstractmethod
    def add_request(self, request: ServerRequest) -> None:
        """Store a new request to another server.

        Raises:
            DuplicateId: The id is known; ``kind`` is "request".
        """

    @abstractmethod
    def requests_to(self, server_id: str) -> list[ServerRequest]:
        """Return the requests to a server without an answer, oldest first by ``created_at``, then ``id``."""

    @abstractmethod
    def answer_request(self, request_id: str, answer: str) -> bool:
        """Store the answer to a request, unless it has one; return whether this call did."""

    @abstractmethod
    def request(self, request_id: str) -> ServerRequest | None:
        """Return a request by its id, or None."""

    @abstractmethod
    def remove_request(self, request_id: str) -> ServerRequest | None:
        """Remove a request, and return it as it was; None if there is none.

        If a request is answered and removed at the same time, either the removed request contains the
        answer, or :meth:`answer_request` returns False.
        """

    @abstractmethod
    def delete_requests(self, *, created_before: datetime) -> int:
        """Remove all requests that were created before a time; return how many."""

    # -- notices -----------------------------------------------------------------------------------

    @abstractmethod
    def notify(self, notice: str) -> None:
        """Send a notice of up to 7,000 ASCII characters to all listeners.

        If the store is ``shared``, these are the listeners of all stores on the same data, otherwise only
        those of this store.
        """

    @abstractmethod
    def listen(self, receive: Callable[[str | None], None]) -> None:
        """Call ``receive`` with every notice from now on, including own ones, until the store is closed.

        None means that notices may have been lost, for example while the database was unavailable; this
        method does not raise in that case. ``receive`` must return quickly. It may be called on any thread,
        even before :meth:`notify` returns.
        """

    # -- the store itself --------------------------------------------------------------------------

    @abstractmethod
    def usage(self) -> MetadataUsage:
        """Count the records. This may be slow, and is not called for every request."""

    def defer_syncs(self) -> bool:
        """Allow ``add_job``, ``enqueue_job`` and ``advance_job`` to return before their writes are on disk.

        Returns whether the store does so from now on. Then a power cut, but not the end of the process, may
        undo these writes until :meth:`sync` is called; one sync covers many of them. The job server calls
        this, and syncs before it notifies anyone. The default returns False: its writes are on disk when they
        return.
        """
        return False

    def sync(self) -> None:
        """Return once everything written so far survives a power cut.

        Raises:
            StorageError: That cannot be guaranteed.
        """
        return

    def check(self) -> None:
        """Check that the store can be written to.

        Actually write something, and wait at most a few seconds for other writers: health checks call this,
        up to every two seconds. The default does nothing.

        Raises:
            StorageError: It cannot.
        """
        return

    def close(self) -> None:
        """Close all connections. Idempotent."""
        return
