"""Callbacks over HTTP: signed, with a timeout, and only to allowed receivers."""

from jobserver_httpx.transport import HttpxTransport, Signer

__all__ = ["HttpxTransport", "Signer"]
