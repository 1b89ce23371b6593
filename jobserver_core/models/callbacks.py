"""Callbacks: delivering the outcome of a job to a URL from its submitter."""

from __future__ import annotations

from datetime import datetime

import attrs

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.arguments import check_kind, check_seconds
from jobserver_core.models.lifecycle import DeliveryState
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.models.validation import aware, non_negative

__all__ = ["Answer", "Delivery"]


@attrs.frozen(kw_only=True)
class Delivery:
    """A callback to deliver, and the state of its delivery.

    ``receiver`` is the scheme, host and port, or without a host the scheme and the path. Fairness is by
    receiver. ``due_at`` is the time of the next attempt. ``last_status`` is the status of the latest
    response; ``last_error`` is the reason if there was no response. First attempts for one receiver are made
    in the order of ``created_at``, then ``id``. ``owner`` is the ID of the server that makes the current or
    made the latest attempt, and ``epoch`` grows with each.
    """

    id: str
    job_id: str
    url: str = attrs.field(repr=redacted_repr)
    receiver: str
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = attrs.field(default=0, validator=non_negative)
    created_at: datetime = attrs.field(validator=aware)
    due_at: datetime = attrs.field(validator=aware)
    ended_at: datetime | None = attrs.field(default=None, validator=aware)
    last_status: int | None = None
    last_error: str | None = None
    owner: str | None = None
    epoch: int = 0


def _plain_status(status: int | None) -> int | None:
    """Return a status as an int, also one of :class:`http.HTTPStatus`, which not every database takes."""
    if status is None:
        return None
    number = isinstance(status, int) and not isinstance(status, bool)
    if not number or not 0 <= status <= 999:
        given = status if number else type(status).__name__
        raise InvalidRequest(
            message=f"the status of an Answer must be an HTTP status from 0 to 999, not {given}"
        )
    return int(status)


@attrs.frozen(kw_only=True)
class Answer:
    """The response of a receiver to one attempt, or the reason why there was none.

    ``status`` is as in HTTP, from 0 to 999. ``retry_after`` is the delay that the receiver requested, in
    seconds.

    Raises:
        InvalidRequest: A field has another type, or the status is out of range.
    """

    status: int | None = attrs.field(default=None, converter=_plain_status)
    error: str | None = None
    retry_after: float | None = None

    def __attrs_post_init__(self) -> None:
        check_kind("the error of an Answer", self.error, (str, type(None)), "a string")
        check_seconds("retry_after", self.retry_after)

    @property
    def accepted(self) -> bool:
        """Whether there was a response with a status below 400 (the contract's rule)."""
        return self.error is None and self.status is not None and self.status < 400
