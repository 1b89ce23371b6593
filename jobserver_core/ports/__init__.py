"""The abstract classes that backends implement. Their docstrings are the specification.

Every port has a contract suite in :mod:`jobserver_core.testing`, which an implementation must pass. Ports are
synchronous and thread-safe: any method can be called from any thread, and several at once, unless its
docstring says otherwise. They raise only errors of :mod:`jobserver_core`; translate the errors of libraries
that you use.
"""

from jobserver_core.plugins import Backend
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter
from jobserver_core.ports.clock import Clock, Ids, SteadyClock, SystemClock, Timer, UuidIds
from jobserver_core.ports.fetcher import Cancellation, Fetched, Fetcher, ProgressCallback
from jobserver_core.ports.launcher import (
    ContextEnd,
    ContextHandle,
    ContextListener,
    ContextSpec,
    JobCode,
    JobOutcome,
    JobSpec,
    Launcher,
    ResultSink,
)
from jobserver_core.ports.metadata import PIN_EXPIRY, MetadataStore
from jobserver_core.ports.transport import Message, Transport

__all__ = [
    "PIN_EXPIRY",
    "Backend",
    "Blob",
    "BlobStore",
    "BlobWriter",
    "Cancellation",
    "Clock",
    "ContextEnd",
    "ContextHandle",
    "ContextListener",
    "ContextSpec",
    "Fetched",
    "Fetcher",
    "Ids",
    "JobCode",
    "JobOutcome",
    "JobSpec",
    "Launcher",
    "Message",
    "MetadataStore",
    "ProgressCallback",
    "ResultSink",
    "SteadyClock",
    "SystemClock",
    "Timer",
    "Transport",
    "UuidIds",
]
