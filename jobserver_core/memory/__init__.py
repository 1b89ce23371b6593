"""In-memory implementations of every port, for tests and for embedding without other software."""

from jobserver_core.memory.blobs import MemoryBlobStore
from jobserver_core.memory.fetcher import MemoryFetcher
from jobserver_core.memory.inline_jobs import InlineJob, JobRefused
from jobserver_core.memory.launcher import InlineLauncher
from jobserver_core.memory.metadata import MemoryMetadataStore
from jobserver_core.memory.transport import MemoryTransport

__all__ = [
    "InlineJob",
    "InlineLauncher",
    "JobRefused",
    "MemoryBlobStore",
    "MemoryFetcher",
    "MemoryMetadataStore",
    "MemoryTransport",
]
