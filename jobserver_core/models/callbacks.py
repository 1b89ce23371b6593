"""Callbacks: the delivery of a job's outcome to a URL that the submitter gave."""

from __future__ import annotations

from datetime import datetime

import attrs

from jobserver_core.models.lifecycle import DeliveryState
from jobserver_core.models.redaction import redacted_repr
from jobserver_core.models.validation import aware, non_negative

__all__ = ["Answer", "Delivery"]


@attrs.frozen(kw_only=True)
class Delivery:
    """One callback to deliver, and how that goes.

    ``receiver`` is what fairness goes by (scheme, host and port). ``due_at`` is when the next
    attempt may be made. ``last_status`` is the answer of the latest attempt, ``last_error`` why
    there was none. Deliveries to one receiver are first tried in the order of ``created_at``, ``id``.
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


@attrs.frozen(kw_only=True)
class Answer:
    """What a receiver said to one attempt, or why it said nothing.

    ``retry_after`` is what the receiver asked for, in seconds from now.
    """

    status: int | None = None
    error: str | None = None
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether the attempt succeeded: an answer, and one below 400 (the contract's rule)."""
        return self.error is None and self.status is not None and self.status < 400
