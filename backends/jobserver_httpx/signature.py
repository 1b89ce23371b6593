"""Signatures of callbacks, as in the Standard Webhooks specification.

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
    """Signs callbacks with one secret, or with several during a rotation of secrets.

    A secret is ``whsec_`` (optional) and the Base64 encoding of 24 to 64 bytes. Several are separated by
    whitespace.

    Raises:
        InvalidSetting: A secret is invalid. The message does not contain it.
    """

    def __init__(self, secrets: str) -> None:
        self._keys = [_key(secret) for secret in secrets.split()]
        if not self._keys:
            raise InvalidSetting(
                key=_KEY, message="is empty; remove it to send callbacks without a signature"
            )

    def headers(self, *, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the header with the signature of this ID, time (seconds since 1970) and body."""
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
