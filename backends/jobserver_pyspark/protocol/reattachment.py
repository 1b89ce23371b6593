"""The proofs of both sides when a host connects to a later server; see the protocol's messages."""

from __future__ import annotations

import hmac
import secrets
from typing import Literal


def new_nonce() -> str:
    """Return a random text that was never used before."""
    return secrets.token_hex(32)


def proof_of(side: Literal["host", "server"], secret: str, host_nonce: str, server_nonce: str) -> str:
    """Return the proof that a side knows the secret of a context; each side has another one."""
    text = "\0".join((side, host_nonce, server_nonce))
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()


def proves(proof: str, expected: str) -> bool:
    """Compare two proofs in a time that reveals nothing."""
    return hmac.compare_digest(proof.encode(errors="replace"), expected.encode())
