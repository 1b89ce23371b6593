"""Faults of stores that outlive their process: stale reads, and errors of the database."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from faults import LEFT_THREADS
from test_metadata import TestMemoryMetadataStore as Suite

from jobserver_core.errors import StorageError
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.models.jobs import Job
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.metadata import PersistentMetadataStoreContract


class BrokenLock:
    """Stands for the database of a store that does not answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __enter__(self) -> None:
        raise self.error

    def __exit__(self, *_exc: object) -> None:
        return


class Persistent(MemoryMetadataStore):
    """A store in memory that can be opened again: other stores share its records."""

    caught_by: ClassVar[str]

    def opened_again(self) -> "Persistent":
        other = type(self)()
        other.__dict__ = self.__dict__
        return other

    def broken_by(self) -> Exception:
        return StorageError(message="the database does not answer")

    def check(self) -> None:
        with self._lock:
            return


class PersistentSuite(PersistentMetadataStoreContract):
    raw_counts, raw_job_state = Suite.raw_counts, Suite.raw_job_state

    def open_again(self, store: MetadataStore) -> MetadataStore:
        assert isinstance(store, Persistent)
        return store.opened_again()

    @contextmanager
    def broken(self, store: MetadataStore) -> Iterator[None]:
        assert isinstance(store, Persistent)
        lock, store.__dict__["_lock"] = store._lock, BrokenLock(store.broken_by())
        yield
        store.__dict__["_lock"] = lock


def _caching(name: str) -> type[Persistent]:
    """Return a store in which one reading method caches its first result."""

    def read(self: Any, *arguments: Any, **named: Any) -> Any:
        cache = CACHES.setdefault(self, {})
        if name not in cache:
            cache[name] = getattr(Persistent, name)(self, *arguments, **named)
        return cache[name]

    caught_by = "test_no_read_is_older_than_what_another_store_wrote"
    return type(f"Caches_{name}", (Persistent,), {name: read, "caught_by": caught_by})


CACHES: WeakKeyDictionary[MemoryMetadataStore, dict[str, Any]] = WeakKeyDictionary()


class LetsDatabaseErrorsOut(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def broken_by(self) -> Exception:
        return sqlite3.OperationalError("no such table: jobs")


class LetsDatabaseErrorsOfOneMethodOut(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def delete_contexts(self, *, ended_before: datetime, limit: int) -> list[str]:
        try:
            return super().delete_contexts(ended_before=ended_before, limit=limit)
        except StorageError as error:
            raise sqlite3.OperationalError(str(error)) from None


class TakesABrokenDatabaseForEmpty(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def job(self, job_id: str) -> Job | None:
        try:
            return super().job(job_id)
        except StorageError:
            return None


class ChecksNothing(Persistent):
    caught_by = "test_what_the_database_fails_at_is_a_storage_error"

    def check(self) -> None:
        return


class LeavesAThread(Persistent):
    caught_by = "test_no_thread_or_process_of_a_store_outlives_its_close"

    def listen(self, receive: Callable[[str | None], None]) -> None:
        super().listen(receive)
        LEFT_THREADS.add()


READS = ["binary", "binaries", "binary_versions", "context", "context_named", "contexts", "job"]
READS += ["job_with_key", "job_config", "job_result", "jobs", "delivery", "deliveries_of"]
READS += ["due_deliveries", "deliveries_in", "servers", "request", "requests_to", "unreferenced"]
PERSISTENT_FAULTS = [
    *map(_caching, READS),
    LetsDatabaseErrorsOut,
    LetsDatabaseErrorsOfOneMethodOut,
    TakesABrokenDatabaseForEmpty,
    ChecksNothing,
    LeavesAThread,
]
