"""All states, events and transitions of contexts, jobs and callback deliveries.

Theory
======

The problem: a context, a job and a delivery each have several writers. A user kills a job at the moment in
which its launcher reports a result; a context dies while it is being stopped; the server crashes between
any two writes. Each of them must end exactly once, and all observers must see the same outcome.

The idea: what can happen is an *event*, and a table says for each state which events it accepts and where
they lead. :meth:`Lifecycle.next` is the only way to a new state. An event that the state does not list
raises :class:`~jobserver_core.errors.IllegalTransition` and changes nothing. The new state is stored by
compare-and-set on the old one: of two writers that start from the same state one wins, and the other gets a
``StaleState``, reads what is stored, and adopts it. So the tables need no rows for races, and no writer
holds a lock in the database.

The invariants:

- A state without events is final: nothing leads out of it. Every other state can reach a final one.
- The tables are complete. No caller replaces one event by another because the state would not accept it. An
  event is what was observed, and the table alone says what it means in a state: a context that stops before
  it was ever ready has failed, although nothing crashed.
- The first row is where a record begins. Every other state is reached by an event, except a context's
  RESTARTING: there the successor of a context that died begins.
- Every end that a launcher can report is accepted in every state that is entered and not final.

Deliberately not handled: waiting. A job that waits for a slot or for its context is STARTED like one that
the launcher has; ``Job.dispatched_at`` distinguishes them. Why something ended is not a state either: it is
``Job.failure``, and the ``error`` of a job or a context.

The states of contexts and jobs are those of the HTTP contract of spark-jobserver. The diagrams in
``docs/explanation/lifecycles.md`` are drawn from these tables by :meth:`Lifecycle.mermaid`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from jobserver_core.errors import IllegalTransition, StaleOwner, StaleState

__all__ = [
    "CONTEXTS",
    "DELIVERIES",
    "JOBS",
    "ContextEvent",
    "ContextState",
    "DeliveryEvent",
    "DeliveryState",
    "JobEvent",
    "JobState",
    "Lifecycle",
]


class ContextState(str, Enum):
    """The states of a context.

    A supervised context that died is never revived: its record ends, and a new record takes its name. That
    one begins as RESTARTING instead of STARTED, and otherwise starts and ends like one that is STARTED.
    """

    @property
    def starting(self) -> bool:
        """Whether it was not ready yet, and is not being stopped."""
        return self in (ContextState.STARTED, ContextState.RESTARTING)

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return CONTEXTS.final(self)


class ContextEvent(str, Enum):
    """The events of a context."""

    READY = "ready"
    """Its launcher reports that it can run jobs."""
    STOP = "stop"
    """A stop was requested."""
    STOPPED = "stopped"
    """Its launcher reports that it stopped gracefully."""
    FAIL = "fail"
    """It could not start, died, or outlived its server."""
    KILL = "kill"
    """Its launcher reports that it was killed."""


class JobState(str, Enum):
    """The states of a job. A job that waits for a slot or its context is STARTED."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return JOBS.final(self)


class JobEvent(str, Enum):
    """The events of a job."""

    RUN = "run"
    """Its launcher reports that its code runs."""
    RESTART = "restart"
    """It is accepted again: it had not begun, or may run again from the beginning."""
    FINISH = "finish"
    """It ended with a result. A launcher need not report that it ran before."""
    FAIL = "fail"
    """It ended with an error, or its context did."""
    KILL = "kill"
    """It ended because it was killed."""


class DeliveryState(str, Enum):
    """The states of the delivery of a callback."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    DELIVERED = "DELIVERED"
    ABANDONED = "ABANDONED"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return DELIVERIES.final(self)


class DeliveryEvent(str, Enum):
    """The events of the delivery of a callback."""

    SEND = "send"
    ACCEPT = "accept"
    RETRY = "retry"
    ABANDON = "abandon"


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class Lifecycle(Generic[S, E]):
    """A transition table: for each state, the events that it allows, and the states that they lead to.

    A state without events is final.
    """

    def __init__(self, kind: str, table: Mapping[S, Mapping[E, S]], *, successor: S | None = None) -> None:
        """Make a table; a record that takes the place of another one begins as ``successor``."""
        self.kind = kind
        self.table = table
        first = next(iter(table))
        self.first_states = (first,) if successor is None else (first, successor)

    def next(self, state: S, event: E) -> S:
        """Return the state that an event leads to.

        Raises:
            IllegalTransition: The state does not allow the event.
        """
        allowed = self.table[state]
        if event not in allowed:
            names = tuple(e.value for e in allowed)
            raise IllegalTransition(kind=self.kind, state=state.value, event=event.value, allowed=names)
        return allowed[event]

    def stale(self, record_id: str, expected: S, found: S | None) -> StaleState:
        """Return why a compare-and-set failed: the stored state is another one, or else only the owner is."""
        kind = StaleOwner if found is expected else StaleState
        state = None if found is None else found.value
        return kind(kind=self.kind, id=record_id, expected=expected.value, found=state)

    def allows(self, state: S, event: E) -> bool:
        """Whether the table has this transition."""
        return event in self.table[state]

    def final(self, state: S) -> bool:
        """Whether the state allows no event."""
        return not self.table[state]

    @property
    def live_states(self) -> tuple[S, ...]:
        """The states that are not final, in the order of the table."""
        return tuple(state for state in self.table if self.table[state])

    @property
    def final_states(self) -> tuple[S, ...]:
        """The states that are final, in the order of the table."""
        return tuple(state for state in self.table if not self.table[state])

    def mermaid(self) -> str:
        """Draw the table as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", *(f"    [*] --> {first.value}" for first in self.first_states)]
        for state, events in self.table.items():
            lines += [f"    {state.value} --> {to.value}: {e.value}" for e, to in events.items()]
            if not events:
                lines.append(f"    {state.value} --> [*]")
        return "\n".join(lines)


_C, _CE = ContextState, ContextEvent
_J, _JE = JobState, JobEvent
_D, _DE = DeliveryState, DeliveryEvent

_NOT_READY = {
    _CE.READY: _C.RUNNING,
    _CE.STOP: _C.STOPPING,
    _CE.STOPPED: _C.ERROR,
    _CE.FAIL: _C.ERROR,
    _CE.KILL: _C.KILLED,
}
"""What may happen to a context that starts, whether it is the first of its name or follows one that died."""

CONTEXTS: Lifecycle[ContextState, ContextEvent] = Lifecycle(
    "context",
    {
        _C.STARTED: _NOT_READY,
        _C.RUNNING: {
            _CE.STOP: _C.STOPPING,
            _CE.STOPPED: _C.FINISHED,
            _CE.FAIL: _C.ERROR,
            _CE.KILL: _C.KILLED,
        },
        _C.STOPPING: {_CE.STOPPED: _C.FINISHED, _CE.FAIL: _C.ERROR, _CE.KILL: _C.KILLED},
        _C.RESTARTING: _NOT_READY,
        _C.FINISHED: {},
        _C.ERROR: {},
        _C.KILLED: {},
    },
    successor=_C.RESTARTING,
)

_NOT_BEGUN = {
    _JE.RUN: _J.RUNNING,
    _JE.RESTART: _J.RESTARTING,
    _JE.FINISH: _J.FINISHED,
    _JE.FAIL: _J.ERROR,
    _JE.KILL: _J.KILLED,
}
"""What may happen to a job that waits, whether for the first time or under a later server."""

JOBS: Lifecycle[JobState, JobEvent] = Lifecycle(
    "job",
    {
        _J.STARTED: _NOT_BEGUN,
        _J.RUNNING: {
            _JE.RESTART: _J.RESTARTING,
            _JE.FINISH: _J.FINISHED,
            _JE.FAIL: _J.ERROR,
            _JE.KILL: _J.KILLED,
        },
        _J.RESTARTING: _NOT_BEGUN,
        _J.FINISHED: {},
        _J.ERROR: {},
        _J.KILLED: {},
    },
)

DELIVERIES: Lifecycle[DeliveryState, DeliveryEvent] = Lifecycle(
    "callback delivery",
    {
        _D.PENDING: {_DE.SEND: _D.SENDING, _DE.ABANDON: _D.ABANDONED},
        _D.SENDING: {_DE.ACCEPT: _D.DELIVERED, _DE.RETRY: _D.PENDING, _DE.ABANDON: _D.ABANDONED},
        _D.DELIVERED: {},
        _D.ABANDONED: {},
    },
)
