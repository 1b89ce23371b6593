"""A client for a job server that runs elsewhere, with the methods of the embedded one.

:class:`Client` blocks, and :class:`AsyncClient` is for asyncio. Both talk to the HTTP API with httpx, and use
the models and errors of ``jobserver_core``, so that code moves between an embedded server and a client by
changing the constructor.
"""

from __future__ import annotations

from jobserver_client.asynchronous import AsyncClient
from jobserver_client.errors import (
    AccessDenied,
    ClientClosed,
    ConnectionLost,
    ServerUnreachable,
    UnexpectedResponse,
)
from jobserver_client.handles import AsyncJobHandle, AsyncResultReader, AsyncWaiter
from jobserver_client.synchronous import Client

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncResultReader",
    "AsyncWaiter",
    "Client",
    "ClientClosed",
    "ConnectionLost",
    "ServerUnreachable",
    "UnexpectedResponse",
]
