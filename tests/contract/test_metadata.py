"""Every metadata store of this distribution, held to the one contract."""

import pytest

from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.ports import MetadataStore
from jobserver_core.testing.metadata import MetadataStoreContract


class TestMemoryMetadataStore(MetadataStoreContract):
    @pytest.fixture
    def store(self) -> MetadataStore:
        return MemoryMetadataStore()

    def raw_counts(self, store: MetadataStore) -> dict[str, int]:
        kinds = ("binaries", "contexts", "jobs", "configs", "results", "deliveries")
        return {kind: len(getattr(store, f"_{kind}")) for kind in kinds}

    def raw_job_state(self, store: MetadataStore, job_id: str) -> str | None:
        assert isinstance(store, MemoryMetadataStore)
        stored = store._jobs.get(job_id)
        return stored.state.value if stored else None
