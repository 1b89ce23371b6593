"""Callbacks over HTTP: signed, with a timeout, and only to allowed receivers."""

from jobserver_httpx.signature import Signer
from jobserver_httpx.transport import HttpxTransport

__all__ = ["HttpxTransport", "Signer"]
