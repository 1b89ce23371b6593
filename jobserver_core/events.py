"""What happens in a job server, as events that anybody may subscribe to."""

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
class ContextChanged:
    """A context was recorded or changed; ``context`` is what is stored now."""

    at: datetime = attrs.field(validator=aware)
    context: Context


@attrs.frozen(kw_only=True)
class JobChanged:
    """A job was recorded, dispatched or changed its state; ``job`` is what is stored now."""

    at: datetime = attrs.field(validator=aware)
    job: Job


@attrs.frozen(kw_only=True)
class JobProgressed:
    """A running job came further; ``job`` is as it was last recorded, with the new progress."""

    at: datetime = attrs.field(validator=aware)
    job: Job


@attrs.frozen(kw_only=True)
class DeliveryChanged:
    """A callback's delivery was recorded, attempted or ended."""

    at: datetime = attrs.field(validator=aware)
    delivery: Delivery


Event = ContextChanged | JobChanged | JobProgressed | DeliveryChanged
Subscriber = Callable[[Event], None]


class Subscription:
    """A subscriber's place on the bus; :meth:`close` (or leaving the ``with`` block) ends it."""

    def __init__(self, bus: EventBus, key: int) -> None:
        self._bus = bus
        self._key = key

    def close(self) -> None:
        """Tell nothing more; repeating this is allowed."""
        self._bus.drop(self._key)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class EventBus:
    """Tells subscribers what was stored, after it was stored, on the thread that stored it.

    Subscribers must be quick; what one raises is logged and disturbs nobody. The events of one
    job or context come in the order of their states.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._subscribers: dict[int, Subscriber] = {}

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody is interested; else an event need not be made."""
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> Subscription:
        """Call ``subscriber`` with every event from now on."""
        with self._lock:
            key = next(self._keys)
            self._subscribers[key] = subscriber
        return Subscription(self, key)

    def drop(self, key: int) -> None:
        """End the subscription with this key."""
        with self._lock:
            self._subscribers.pop(key, None)

    def publish(self, event: Event) -> None:
        """Tell every subscriber."""
        with self._lock:
            subscribers = list(self._subscribers.values())
        for subscriber in subscribers:
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - a subscriber must not disturb what it watches
                _repeats.warning(f"{subscriber!r} {error!r}", "an event subscriber failed", exc_info=True)
