"""What a backend implements. The docstrings here are the specification of a backend.

Every port has a contract suite in :mod:`jobserver_core.testing`; an implementation is right
when it passes. Ports are synchronous and thread-safe: any method may be called from any
thread, and several at once, unless its docstring says otherwise. Errors that a port raises
are those of :mod:`jobserver_core.errors`; what a library below raises is translated.
"""

from jobserver_core.ports.backend import Backend
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
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.ports.transport import Message, Transport

__all__ = [
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
