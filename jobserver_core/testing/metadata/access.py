"""The fixture and methods that tests of a metadata store supply to the contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import TypeVar

import pytest

from jobserver_core.models.binaries import Binary
from jobserver_core.models.contexts import Context
from jobserver_core.models.jobs import Job
from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import at
from jobserver_core.testing.options import OptionsContract

T = TypeVar("T")
Record = TypeVar("Record", Binary, Context, Job)

LIVE_JOBS = [state for state in JobState if not state.final]
FINAL_JOBS = [state for state in JobState if state.final]
LIVE_CONTEXTS = [state for state in ContextState if not state.final]
FINAL_CONTEXTS = [state for state in ContextState if state.final]
LIVE_DELIVERIES = [state for state in DeliveryState if not state.final]
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\x1a",
    "\ud800",
    "\x1a0041",
    "ü🙂",
    "'; DROP TABLE jobs; --",
    "%",
    "a" * 5000,
]


HOUR = 3600.0
"""A lease in seconds that does not expire during a test."""


def register(store: MetadataStore, server_id: str, *, lease: float = HOUR, seconds: float = 0) -> None:
    """Register a server that was started so many seconds after the first one."""
    store.register_server(server_id, started_at=at(seconds), address="host-1", lease=lease)


def states(chosen: Sequence[Enum]) -> pytest.MarkDecorator:
    """Run a test once for each of these states."""
    return pytest.mark.parametrize("state", chosen, ids=lambda state: state.value)


def add(store: MetadataStore, *records: Binary | Context | Job) -> None:
    """Store records, jobs with an empty configuration."""
    for record in records:
        if isinstance(record, Job):
            store.add_job(record, config="{}")
        elif isinstance(record, Context):
            store.add_context(record)
        else:
            store.add_binary(record)


def added(store: MetadataStore, record: Record) -> Record:
    """Store a record, and return it."""
    add(store, record)
    return record


def present(found: T | None) -> T:
    """Return what a store has found; fail if that is nothing."""
    assert found is not None
    return found


class StoreAccess(OptionsContract):
    """The fixture ``store``, and two methods that bypass the store.

    A backend's tests override all three. The two methods must not use the store's own
    methods, so that a store cannot confirm its own mistakes.
    """

    @pytest.fixture
    def store(self) -> MetadataStore:
        """Return an empty store; close it and drop its data after the test."""
        raise TypeError("a metadata store's tests override the fixture `store`")

    @abstractmethod
    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        """Count the stored records of each kind.

        The keys are ``binaries``, ``contexts``, ``jobs``, ``configs``, ``results``, ``deliveries``.
        """

    @abstractmethod
    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        """Return the stored state of a job, or None for an unknown job."""
