from __future__ import annotations

from hypothesis import HealthCheck, settings

from histories import JobServerHistory
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.ports import MetadataStore


class MemoryHistory(JobServerHistory):
    """The store is in memory and survives a crash."""

    def open_metadata(self) -> MetadataStore:
        store = getattr(self, "metadata", None)
        return store if store is not None else MemoryMetadataStore()


TestMemoryHistory = MemoryHistory.TestCase
TestMemoryHistory.settings = settings(
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
