"""The HTTP transport of callbacks, and the signatures of what it sends.

Signatures are those of the Standard Webhooks specification:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.errors import InvalidCallbackUrl, InvalidSetting, MalformedUrl
from jobserver_core.models.arguments import check_callable, check_kind
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.uris import redacted
from jobserver_net.connections import Connector, Resolver, resolve
from jobserver_net.deadlines import Deadline, Expired
from jobserver_net.policy import AddressPolicy

if TYPE_CHECKING:
    import ssl

    from jobserver_core.config.settings import CallbackSettings, Settings
    from jobserver_net.http import HttpClient, HttpRequest

SCHEMES = ("http", "https")
_SECTION = "jobserver.callbacks"


class HttpxTransport(Transport):
    """Sends callbacks as POST requests to http and https URLs, each attempt on a separate connection.

    The timeout covers the whole attempt: resolving, connecting, TLS, sending, redirects, and the head of the
    response. The body of the response is not read. :class:`jobserver_net.http.HttpClient` decides which
    addresses are allowed and which redirects are followed.
    """

    schemes = SCHEMES
    options = ()

    def __init__(
        self,
        *,
        policy: AddressPolicy | None = None,
        signer: Signer | None = None,
        ca_file: Path | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        check_kind("policy", policy, (AddressPolicy, type(None)), "an AddressPolicy")
        check_kind("signer", signer, (Signer, type(None)), "a Signer")
        check_kind("ca_file", ca_file, (str, Path, type(None)), "the path of a PEM file")
        check_callable("resolver", resolver, arguments=2)
        self._policy = policy or AddressPolicy(schemes=SCHEMES, section=_SECTION)
        self._signer = signer
        self._connector = Connector(self._policy, resolver)
        self._tls: ssl.SSLContext | None = None
        if ca_file is not None:
            from jobserver_net.http import tls_context  # noqa: PLC0415 - see _client

            self._tls = tls_context(ca_file, key=f"{_SECTION}.ca-file")
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> HttpxTransport:
        callbacks: CallbackSettings = settings.callbacks
        secret = callbacks.signing_secret
        return cls(
            policy=AddressPolicy.from_settings(callbacks, schemes=SCHEMES),
            signer=Signer(secret.reveal()) if secret is not None else None,
            ca_file=callbacks.ca_file,
        )

    def check(self, url: str) -> None:
        super().check(url)
        try:
            self._policy.check(url)
        except MalformedUrl as error:
            raise InvalidCallbackUrl(url=redacted(url), reason=error.reason) from None

    @cached_property
    def _client(self) -> HttpClient:
        # A server starts faster, and needs less memory, without what only an attempt needs.
        from jobserver_net.http import HttpClient, tls_context  # noqa: PLC0415

        return HttpClient(
            self._connector,
            tls=lambda: self._tls or tls_context(),
            user_agent=f"jobserver-core/{version('jobserver-core')}",
        )

    def send(self, message: Message, *, timeout: float) -> Answer:
        from jobserver_net.http import ConnectionFailed, RedirectRefused  # noqa: PLC0415 - see _client

        if self._closed:
            return Answer(error="the transport is closed")
        try:
            with (
                Deadline(timeout) as deadline,
                self._client.exchange(self._request(message), deadline) as response,
            ):
                after = _retry_after(response.headers.get("retry-after"), message.timestamp)
                return Answer(status=response.status, retry_after=after)
        except Expired:
            return Answer(error=f"no response within {timeout:g} s")
        except MalformedUrl as error:
            return Answer(error=f"not allowed: {error.reason}")
        except RedirectRefused as error:
            return Answer(error=f"not delivered: {error}")
        except ConnectionFailed as error:
            return Answer(error=f"no response: {error}")

    def close(self) -> None:
        """Refuse further attempts. There are no connections to close between attempts."""
        self._closed = True

    def _request(self, message: Message) -> HttpRequest:
        """Build the request of an attempt.

        Raises:
            MalformedUrl: The URL cannot be parsed.
        """
        from jobserver_net.http import HttpRequest  # noqa: PLC0415 - see _client

        identity, sent_at, body = message.delivery_id, message.timestamp, message.body
        signature = {}
        if self._signer is not None:
            signature = self._signer.headers(delivery_id=identity, timestamp=sent_at, body=body)
        return HttpRequest(
            uri=self._policy.check(message.url),
            method="POST",
            headers={"webhook-id": identity, "webhook-timestamp": str(sent_at)},
            body_headers={**message.headers, "content-type": "application/json", **signature},
            body=body,
        )


def _retry_after(value: str | None, sent_at: int) -> float | None:
    """Parse a Retry-After header: seconds or a date (RFC 9110, section 10.2.3), otherwise None."""
    if value is None:
        return None
    try:
        written = value.strip().isdigit()
        seconds = float(value) if written else parsedate_to_datetime(value).timestamp() - sent_at
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


_PREFIX = "whsec_"
_KEY = f"{_SECTION}.signing-secret"


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
            message = "is empty; remove it to send callbacks without a signature"
            raise InvalidSetting(key=_KEY, message=message)

    def headers(self, *, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the header with the signature of this ID, time (seconds since 1970) and body."""
        signed = f"{delivery_id}.{timestamp}.".encode() + body
        digests = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in self._keys)
        return {"webhook-signature": " ".join(f"v1,{digest.decode()}" for digest in digests)}


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not 24 <= len(key) <= 64:
        message = f"expected {_PREFIX} and Base64 of 24 to 64 random bytes"
        raise InvalidSetting(key=_KEY, message=message)
    return key
