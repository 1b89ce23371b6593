"""The contract of a metadata store: inherit it, and supply the methods that the tests need.

::

    class TestMyMetadataStore(PersistentMetadataStoreContract):
        @pytest.fixture
        def store(self, tmp_path): ...
        def open_again(self, store): ...
        def broken(self, store): ...
        def raw_counts(self, store): ...
        def raw_job_state(self, store, job_id): ...

For a store that keeps nothing when the process ends, inherit :class:`MetadataStoreContract` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.metadata.binaries import BinariesContract
from jobserver_core.testing.metadata.contexts import ContextsContract
from jobserver_core.testing.metadata.deliveries import BlobsInUseContract, DeliveriesContract
from jobserver_core.testing.metadata.enqueued_jobs import EnqueuedJobsContract
from jobserver_core.testing.metadata.jobs import JobsContract
from jobserver_core.testing.metadata.lists import ListsContract
from jobserver_core.testing.metadata.persistence import PersistenceContract
from jobserver_core.testing.metadata.pins import PinsContract
from jobserver_core.testing.metadata.races import RacesContract
from jobserver_core.testing.metadata.retention import RetentionContract
from jobserver_core.testing.metadata.returns import ReturnsContract
from jobserver_core.testing.metadata.servers import EpochsContract, ServersContract

__all__ = ["MetadataStoreContract", "PersistentMetadataStoreContract", "renamed"]


@contextmanager
def renamed(tables: Iterable[str], execute: Callable[[str], object]) -> Iterator[None]:
    """Rename tables for a while, so that nothing finds them; ``execute`` runs a statement of SQL."""
    for table in tables:
        execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        yield
    finally:
        for table in tables:
            execute(f"ALTER TABLE {table}_away RENAME TO {table}")


class MetadataStoreContract(
    ReturnsContract,
    BinariesContract,
    ContextsContract,
    JobsContract,
    ListsContract,
    DeliveriesContract,
    BlobsInUseContract,
    PinsContract,
    RacesContract,
    RetentionContract,
    ServersContract,
    EnqueuedJobsContract,
    EpochsContract,
):
    """All duties of :class:`~jobserver_core.ports.metadata.MetadataStore`."""

    def test_a_store_in_working_order_passes_its_check(self, store: MetadataStore) -> None:
        found: object = store.check()  # type: ignore[func-returns-value]
        assert found is None, f"check returned {found!r}; it has to return None, or to raise StorageError"

    def test_closing_twice_is_allowed(self, store: MetadataStore) -> None:
        store.close()
        store.close()


class PersistentMetadataStoreContract(MetadataStoreContract, PersistenceContract):
    """The contract of a store whose data outlives the process and can be opened by several processes."""
