"""Events: what happens in a job server, for anybody who subscribes."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from datetime import datetime

import attrs

from jobserver_core.models.callbacks import Delivery
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.validation import aware
from jobserver_core.repeats import Repeats
from jobserver_core.shutdown import SUBSCRIBER, user_code

__all__ = [
    "ContextChanged",
    "DeliveryChanged",
    "Event",
    "EventBus",
    "JobChanged",
    "JobProgressed",
    "Subscription",
]

_repeats = Repeats(logging.getLogger(__name__))


@attrs.frozen(kw_only=True)
class _Timed:
    at: datetime = attrs.field(validator=aware)


@attrs.frozen(kw_only=True)
class ContextChanged(_Timed):
    """A context was recorded or changed; ``context`` is what is stored now."""

    context: Context


@attrs.frozen(kw_only=True)
class JobChanged(_Timed):
    """A job was recorded, dispatched or changed its state; ``job`` is what is stored now."""

    job: Job


@attrs.frozen(kw_only=True)
class JobProgressed(_Timed):
    """A running job made progress; ``job`` is the last stored record with the new progress."""

    job: Job


@attrs.frozen(kw_only=True)
class DeliveryChanged(_Timed):
    """A callback's delivery was recorded, attempted or ended."""

    delivery: Delivery


Event = ContextChanged | JobChanged | JobProgressed | DeliveryChanged


def _subject_of(event: Event) -> str:
    match event:
        case ContextChanged():
            return f"context {event.context.name}"
        case DeliveryChanged():
            return f"delivery {event.delivery.id}"
        case _:
            return f"job {event.job.id}"


Subscriber = Callable[[Event], object]


class Subscription:
    """A subscription to events; :meth:`close` (or leaving the ``with`` block) ends it."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel

    def close(self) -> None:
        """End the subscription. Idempotent."""
        self._cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class EventBus:
    """Calls subscribers with what was stored, after it was stored.

    They are called on the thread that made the change, or on a thread of the server when the change had to
    reach the disk first. Subscribers must return quickly. They must not wait for a job or a context, because
    the change that they wait for may be published only after this event. An exception of a subscriber is
    logged and does not affect the others. The events of one job or context come in the order of their states.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._subscribers: dict[int, Subscriber] = {}

    @property
    def has_subscribers(self) -> bool:
        """Whether there is a subscriber; otherwise nobody needs to create an event."""
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Subscription:
        """Call ``subscriber`` with every event from now on."""
        with self._lock:
            key = next(self._keys)
            self._subscribers[key] = subscriber

        def cancel() -> None:
            with self._lock:
                self._subscribers.pop(key, None)

        return Subscription(cancel)

    def publish(self, event: Event) -> None:
        """Call every subscriber."""
        with self._lock:
            subscribers = list(self._subscribers.values())
        for subscriber in subscribers:
            try:
                with user_code(SUBSCRIBER):
                    subscriber(event)
            except KeyboardInterrupt:  # it is meant for the main thread, not for the subscriber
                raise
            except BaseException as error:  # noqa: BLE001 - also sys.exit must not disturb what it watches
                kind = type(error).__name__
                text = "an event subscriber raised %s at %s of %s"
                cause = f"{subscriber!r} {error!r}"
                _repeats.error(cause, text, kind, type(event).__name__, _subject_of(event), exc_info=True)
