"""Callbacks over HTTP: signed, within a time limit, and only to where they may go."""

from jobserver_httpx.signature import Signer
from jobserver_httpx.transport import HttpxTransport

__all__ = ["HttpxTransport", "Signer"]
