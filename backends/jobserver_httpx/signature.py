"""Signatures of callbacks, in the form of the Standard Webhooks specification.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from jobserver_core.errors import InvalidSetting

__all__ = ["Signer"]

_PREFIX = "whsec_"
_KEY = "jobserver.callbacks.signing-secret"


class Signer:
    """Signs with one secret, or with several while receivers change from one to the next.

    Secrets are ``whsec_`` and Base64 of 24 to 64 bytes (the prefix may be left out), separated by white
    space. Raises InvalidSetting, without the secret in it, for anything else.
    """

    def __init__(self, secrets: str) -> None:
        self._keys = [_key(secret) for secret in secrets.split()]
        if not self._keys:
            raise InvalidSetting(
                key=_KEY, message="is empty; leave it out to send callbacks without signature"
            )

    def headers(self, *, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the header that signs this id, this time (seconds since 1970) and this body."""
        signed = f"{delivery_id}.{timestamp}.".encode() + body
        return {"webhook-signature": " ".join(_signature(key, signed) for key in self._keys)}


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not 24 <= len(key) <= 64:
        message = f"expected {_PREFIX} and Base64 of 24 to 64 random bytes"
        raise InvalidSetting(key=_KEY, message=message)
    return key
