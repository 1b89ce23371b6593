"""In-memory implementations of every port: for tests, and for embedding without anything else."""

from jobserver_core.memory.blobs import MemoryBlobStore
from jobserver_core.memory.fetcher import MemoryFetcher

__all__ = ["MemoryBlobStore", "MemoryFetcher"]
