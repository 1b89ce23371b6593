"""Callbacks: delivering the outcome of a job to a URL from its submitter."""

from __future__ import annotations

from datetime import datetime

import attrs

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


@attrs.frozen(kw_only=True)
class Answer:
    """The response of a receiver to one attempt, or the reason why there was none.

    ``retry_after`` is the delay that the receiver requested, in seconds.
    """

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether there was a response with a status below 400 (the contract's rule)."""
        return self.error is None and self.status is not None and self.status < 400
