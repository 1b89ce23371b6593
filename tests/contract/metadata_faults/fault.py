"""The in-memory store, for a fault to be planted in."""

from typing import ClassVar

from jobserver_core.memory import MemoryMetadataStore


class Fault(MemoryMetadataStore):
    caught_by: ClassVar[str]
