"""Callbacks: send the outcome of each job to its callback URL, and decide when to abandon it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from jobserver_core.callbacks.dispatcher import STORAGE_PAUSE, Dispatcher
from jobserver_core.callbacks.lanes import ReceiverStatus
from jobserver_core.callbacks.options import options_of
from jobserver_core.callbacks.payloads import make_payload
from jobserver_core.errors import (
    BlobNotFound,
    InvalidCallbackUrl,
    JobNotFound,
    JobServerError,
    StaleState,
    StorageError,
    TransportError,
)
from jobserver_core.events import DeliveryChanged, Event
from jobserver_core.models.arguments import are_strings
from jobserver_core.models.callbacks import Answer, Delivery
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import DELIVERIES, DeliveryEvent, DeliveryState
from jobserver_core.ports.blobs import BlobStore
from jobserver_core.ports.checked import unchecked
from jobserver_core.ports.clock import Clock, Ids
from jobserver_core.ports.faults import for_remote_callers
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.repeats import Repeats
from jobserver_core.uris import MAX_URL, receiver_of, redacted, scheme_of, without_secrets

if TYPE_CHECKING:
    from jobserver_core.config.settings import CallbackSettings

_log = logging.getLogger(__name__)
_repeats = Repeats(_log)

_NO_TRANSPORT = (
    "the server has no transport for callbacks; its operator can set jobserver.callbacks.transports, or "
    "pass JobServer(transports=[…]) in Python: CallableTransport for functions, HttpxTransport of the extra "
    "httpx for URLs"
)
_MAX_ERROR = 500
"""The most characters of a delivery's last error that are kept: a receiver may send anything."""
_RECOVERY_PAGE = 100
"""The number of deliveries to read at a time, each with its URL."""
_SLOW_PART = 0.1
"""An attempt that takes longer than this fraction of the timeout marks its receiver as slow."""


def retry_delay(attempts: int, answer: Answer, settings: CallbackSettings) -> float:
    """Return how many seconds after the ``attempts``-th failed attempt the next one is due.

    The configured delay, multiplied by ``backoff`` for each attempt after the first, or the delay that the
    receiver asked for if that is longer; never more than ``max_retry_delay``, unless the configured
    delay itself is.
    """
    limit = max(settings.retry_delay, settings.max_retry_delay)
    try:
        delay = settings.retry_delay * settings.backoff ** (attempts - 1)
    except OverflowError:
        delay = limit
    return min(limit, max(delay, answer.retry_after or 0.0))


def _check_schemes(transport: Transport) -> None:
    schemes = transport.schemes
    if not schemes or not are_strings(schemes) or any(scheme != scheme.lower() for scheme in schemes):
        raise TransportError(
            message=f"the transport {type(transport).__name__} must name its URL schemes, in lower case: "
            f"schemes = ('queue',), not {schemes!r}"
        )


def transports_by_scheme(transports: Sequence[Transport]) -> dict[str, Transport]:
    """Return the transport of each URL scheme.

    Raises:
        TransportError: Two transports serve the same scheme, or one does not name its schemes, or names its
            options in another form than a list.
    """
    found: dict[str, Transport] = {}
    for transport in transports:
        part = unchecked(transport)
        _check_schemes(part)
        options_of(type(part))
        for scheme in transport.schemes:
            if scheme in found:
                raise TransportError(
                    message=f"two transports serve {scheme}: URLs, {type(found[scheme]).__name__} and "
                    f"{type(transport).__name__}; configure only one of them"
                )
            found[scheme] = transport
    return found


@attrs.define(kw_only=True, eq=False)
class CallbackService:
    """Delivers callbacks at least once, and in practice once.

    A delivery is stored together with the job's final state, and every step of it is a
    compare-and-set, so a crash at any moment loses none. Before an attempt the delivery is stored as SENDING.
    If a crash leaves it there, it goes back to PENDING without counting the attempt, because it is unknown
    whether it was made, and is sent again under the same id.

    Several servers may share the deliveries. Each takes those that are due, and of several that take one, one
    wins. An attempt belongs to the server ``server_id`` that makes it, and to an epoch: if that server
    is declared dead and the attempt is handed back, its outcome can no longer be stored.

    :meth:`close` does not close the transports.
    """

    _metadata: MetadataStore
    _blobs: BlobStore
    _transports: dict[str, Transport] = attrs.field(converter=transports_by_scheme)
    _clock: Clock
    _ids: Ids
    _settings: CallbackSettings
    _publish: Callable[[Event], None]
    _server_id: str
    _dispatcher: Dispatcher = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._dispatcher = Dispatcher(
            metadata=self._metadata,
            clock=self._clock,
            concurrency=self._settings.concurrency,
            per_receiver=self._settings.per_receiver,
            handle=self._handle,
        )

    # -- called by the job services ----------------------------------------------------------------

    def check(self, url: str) -> None:
        """Check that callbacks can be sent to this URL.

        Raises:
            InvalidCallbackUrl: They never can.
        """
        reason = _flaw(url)
        if reason is None and (transport := self._transports.get(scheme_of(url))) is not None:
            transport.check(url)
            return
        allowed = ", ".join(sorted(self._transports))
        unserved = f"its scheme must be one of: {allowed}" if allowed else _NO_TRANSPORT
        raise InvalidCallbackUrl(url=redacted(url[:MAX_URL]), reason=reason or unserved)

    def new_delivery(self, job: Job) -> Delivery | None:
        """Return the delivery to store together with the job's final state; None without a callback URL."""
        if job.callback_url is None:
            return None
        now = self._clock.now()
        return Delivery(
            id=self._ids.new(),
            job_id=job.id,
            url=job.callback_url,
            receiver=receiver_of(job.callback_url),
            created_at=now,
            due_at=now,
        )

    def publish_new(self, delivery: Delivery) -> None:
        """Publish a new delivery that was stored, and send it as soon as possible."""
        self._publish_change(delivery)
        self._dispatcher.wake()

    # -- life --------------------------------------------------------------------------------------

    def start(self, others: Callable[[], Iterable[str]] = frozenset) -> None:
        """Take over deliveries of an earlier run, as :meth:`take_over` does, and start to deliver."""
        self._hand_back_all(others, ())
        self._dispatcher.start()

    def take_over(self, others: Callable[[], Iterable[str]]) -> None:
        """Deliver what servers left that are gone.

        ``others`` returns the ids of the other servers that are not gone.
        """
        self._hand_back_all(others, [self._server_id])
        self._dispatcher.wake()

    def _hand_back_all(self, others: Callable[[], Iterable[str]], here: Iterable[str]) -> None:
        living = {*others(), *here}
        while left := self._metadata.deliveries_in(
            DeliveryState.SENDING, limit=_RECOVERY_PAGE, excluding=sorted(living)
        ):
            # A server registers before it sends, so those that send what was just read are found now.
            living = {*others(), *here}
            for delivery in left:
                if delivery.owner not in living:
                    self._hand_back(delivery)

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is in progress or due; return False after ``timeout`` seconds.

        Deliveries that wait for their next attempt do not count.
        """
        return self._dispatcher.drain(timeout)

    def close(self, timeout: float) -> None:
        """Start no further attempt, and wait up to ``timeout`` seconds for those in progress.

        Deliveries that are still open then stay PENDING, for the next start.
        """
        for delivery in self._dispatcher.close(timeout):
            try:
                self._hand_back_own(delivery)
            except StorageError as error:
                _log.warning("delivery %s stays SENDING until the next start: %s", delivery.id, error)

    def _hand_back_own(self, delivery: Delivery) -> None:
        """Undo an attempt if the store has it as one of this server."""
        current = self._metadata.delivery(delivery.id)
        if current and current.state is DeliveryState.SENDING and current.owner == self._server_id:
            self._hand_back(current)

    def _hand_back(self, delivery: Delivery) -> None:
        """Undo an attempt with an unknown outcome; the delivery keeps its place in the order."""
        due_at = min(delivery.due_at, self._clock.now())
        try:
            self._advance(
                delivery, DeliveryEvent.RETRY, attempts=max(0, delivery.attempts - 1), due_at=due_at
            )
        except StaleState:
            _log.info("delivery %s has ended meanwhile", delivery.id)

    # -- one attempt -------------------------------------------------------------------------------

    def _handle(self, delivery: Delivery) -> ReceiverStatus | None:
        """Make one attempt, and return the receiver's status; None if the receiver was not contacted."""
        try:
            message = self._message(delivery)
        except BaseException as error:  # noqa: BLE001 - no error may lose the delivery
            self._not_readable(delivery, error)
            return None
        if not self._dispatcher.running:
            return None
        try:
            sending = self._advance(
                delivery,
                DeliveryEvent.SEND,
                attempts=delivery.attempts + 1,
                owner=self._server_id,
                epoch=delivery.epoch + 1,
            )
        except StaleState as error:
            _log.info("delivery %s was taken by another writer: %s", delivery.id, error)
            return None
        except StorageError as error:
            self._undo_begin(delivery, error)
            return None
        began = self._clock.monotonic()
        answer = self._send(message)
        took = self._clock.monotonic() - began
        self._store_outcome(sending, answer)
        if took > self._settings.timeout * _SLOW_PART:
            return ReceiverStatus.SLOW
        return ReceiverStatus.PROMPT if answer.accepted else ReceiverStatus.FAILING

    def _message(self, delivery: Delivery) -> Message:
        job = self._metadata.job(delivery.job_id)
        if job is None:
            raise JobNotFound(job_id=delivery.job_id)
        payload = make_payload(
            job,
            self._metadata.job_result(job.id),
            self._blobs,
            max_size=self._settings.max_payload,
            public_url=self._settings.public_url,
        )
        return Message(
            delivery_id=delivery.id,
            job_id=job.id,
            url=delivery.url,
            attempt=delivery.attempts + 1,
            timestamp=int(self._clock.wall().timestamp()),
            body=payload.body,
            headers=payload.headers,
        )

    def _send(self, message: Message) -> Answer:
        scheme = scheme_of(message.url)
        transport = self._transports.get(scheme)
        if transport is None:
            return Answer(error=f"no transport is configured for {scheme}: URLs")
        try:
            return transport.send(message, timeout=self._settings.timeout)
        except JobServerError as error:
            return Answer(error=str(for_remote_callers(error)))

    # -- its outcome -------------------------------------------------------------------------------

    def _store_outcome(self, sending: Delivery, answer: Answer) -> None:
        """Store the outcome of an attempt, repeating it until the store accepts it."""
        now = self._clock.now()
        received = {"last_status": answer.status, "last_error": _error_text(answer, sending.url)}
        if answer.accepted:
            event, fields = DeliveryEvent.ACCEPT, {"ended_at": now}
        elif sending.attempts >= self._settings.max_attempts:
            event, fields = DeliveryEvent.ABANDON, {"ended_at": now}
        else:
            delay = retry_delay(sending.attempts, answer, self._settings)
            event, fields = DeliveryEvent.RETRY, {"due_at": now + timedelta(seconds=delay)}
        self._persist(sending, lambda: _log_outcome(self._advance(sending, event, **received, **fields)))

    def _undo_begin(self, delivery: Delivery, error: StorageError) -> None:
        """Undo a SENDING that was stored although the store said that it failed."""
        _repeats.warning("begin", "cannot begin delivery %s, trying again: %s", delivery.id, error)
        if self._dispatcher.pause(STORAGE_PAUSE):
            self._persist(delivery, lambda: self._hand_back_own(delivery))

    def _not_readable(self, delivery: Delivery, error: BaseException) -> None:
        """Abandon a delivery whose job or result is gone; retry after other failures, as the same attempt."""
        now = self._clock.now()
        reason = f"the result cannot be read: {for_remote_callers(error)}"[:_MAX_ERROR]
        if isinstance(error, (BlobNotFound, JobNotFound)):
            lost = {"ended_at": now, "last_error": reason}
            self._persist(
                delivery, lambda: _log_outcome(self._advance(delivery, DeliveryEvent.ABANDON, **lost))
            )
            return
        unexpected = not isinstance(error, StorageError)
        cause = f"read {type(error).__name__}"
        _repeats.warning(cause, "delivery %s waits: %s", delivery.id, reason, exc_info=unexpected)
        due_at = now + timedelta(seconds=max(STORAGE_PAUSE, self._settings.retry_delay))
        later = attrs.evolve(delivery, due_at=due_at, last_error=reason)
        self._persist(delivery, lambda: self._store(later, expected=delivery.state))

    def _persist(self, delivery: Delivery, change: Callable[[], None]) -> None:
        """Make a change, repeating it until the store accepts it; drop it if another writer was faster."""
        while True:
            try:
                change()
                return
            except StaleState as error:
                _log.info("delivery %s was ended by another writer: %s", delivery.id, error)
                return
            except StorageError as error:
                text = "cannot store the outcome of delivery %s, trying again: %s"
                _repeats.warning("store", text, delivery.id, error)
                if not self._dispatcher.pause(STORAGE_PAUSE):
                    return

    def _advance(self, delivery: Delivery, event: DeliveryEvent, **fields: Any) -> Delivery:
        state = DELIVERIES.next(delivery.state, event)
        changed = attrs.evolve(delivery, state=state, **fields)
        self._store(changed, expected=delivery.state, epoch=delivery.epoch)
        return changed

    def _store(self, delivery: Delivery, *, expected: DeliveryState, epoch: int | None = None) -> None:
        self._metadata.advance_delivery(delivery, expected=expected, epoch=epoch)
        self._publish_change(delivery)

    def _publish_change(self, delivery: Delivery) -> None:
        self._publish(DeliveryChanged(at=self._clock.now(), delivery=delivery))


def _flaw(url: str) -> str | None:
    """Return the problem of a URL with any scheme, or None."""
    if len(url) > MAX_URL:
        return f"it is longer than {MAX_URL} characters"
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return "it contains white space or control characters"
    if not scheme_of(url):
        return "it is not an absolute URL such as https://host/path"
    if not url.partition(":")[2].strip("/"):
        return "nothing follows its scheme; it needs a receiver, as in https://host/path or call:billing"
    return None


def _error_text(answer: Answer, url: str) -> str | None:
    if answer.accepted or answer.error is None:
        return None
    return without_secrets(answer.error, url)[:_MAX_ERROR]


def _log_outcome(delivery: Delivery) -> None:
    """Log the outcome of an attempt. Name the receiver without path, query and credentials."""
    level = logging.WARNING if delivery.state is DeliveryState.ABANDONED else logging.INFO
    _log.log(
        level,
        "callback of job %s to %s is %s after attempt %d: %s",
        delivery.job_id,
        delivery.receiver,
        delivery.state.value,
        delivery.attempts,
        delivery.last_error or f"answer {delivery.last_status}",
    )
