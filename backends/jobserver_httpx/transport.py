"""The HTTP transport of callbacks."""

from __future__ import annotations

import base64
import math
import ssl
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin

import httpcore
import httpx

from jobserver_core.callbacks.transports import check_scheme
from jobserver_core.errors import InvalidCallbackUrl, InvalidSetting, MalformedUrl
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.uris import Uri, UriPolicy, redacted
from jobserver_httpx.connection import CheckedBackend, Deadline, Resolver, resolve
from jobserver_httpx.signature import Signer

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["HttpxTransport"]

SCHEMES = ("http", "https")
MAX_REDIRECTS = 5
_REPEATED = (301, 302, 307, 308)
_SEE_OTHER = 303


class HttpxTransport(Transport):
    """POSTs callbacks to http and https URLs, each attempt over a connection of its own.

    ``timeout`` of an attempt covers all of it: resolving, connecting, TLS, sending, redirects, and the
    answer's head; the answer's body is not read. Every host, at the start and of each redirect, passes
    ``policy``, by its name and by the addresses it resolves to; the connection goes to one of these.

    Up to ``MAX_REDIRECTS`` redirects are followed: 301, 302, 307 and 308 with the same POST to the new
    place, since a callback that arrives without its body is not delivered; 303 with a GET, as it says
    that the POST was taken. From https to http is refused. Credentials in the URL are sent as HTTP Basic
    authentication, to that host only. There are no cookies, no proxies, and nothing is taken from the
    environment.
    """

    schemes = SCHEMES

    def __init__(
        self,
        *,
        policy: UriPolicy | None = None,
        signer: Signer | None = None,
        ca_file: Path | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        self._policy = policy or UriPolicy(schemes=SCHEMES)
        self._signer = signer
        self._resolver = resolver
        self._tls = _tls_context(ca_file)
        self._user_agent = f"jobserver-core/{_version()}"
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> HttpxTransport:
        """Make the transport that the callback settings describe. Raises InvalidSetting."""
        callbacks = settings.callbacks
        policy = UriPolicy(
            schemes=SCHEMES,
            allowed_hosts=callbacks.allowed_hosts,
            denied_hosts=callbacks.denied_hosts,
            allowed_networks=callbacks.allowed_networks,
            denied_networks=callbacks.denied_networks,
        )
        secret = callbacks.signing_secret
        signer = Signer(secret.reveal()) if secret is not None else None
        return cls(policy=policy, signer=signer, ca_file=callbacks.ca_file)

    # -- the port ----------------------------------------------------------------------------------

    def check(self, url: str) -> None:
        """Raise InvalidCallbackUrl for a URL, a host or an address that the policy can never allow."""
        check_scheme(self, url)
        try:
            self._target(url)
        except (MalformedUrl, httpx.InvalidURL) as error:
            reason = error.reason if isinstance(error, MalformedUrl) else "it cannot be parsed"
            raise InvalidCallbackUrl(url=redacted(url), reason=reason) from None

    def send(self, message: Message, *, timeout: float) -> Answer:
        """POST the message once, and return what the receiver answered or why it did not."""
        if self._closed:
            return Answer(error="the transport is closed")
        deadline = Deadline(timeout)
        try:
            return self._exchange(message, deadline)
        except (httpcore.TimeoutException, TimeoutError):
            return Answer(error=f"no answer within {timeout:g} s")
        except (MalformedUrl, httpx.InvalidURL) as error:
            reason = error.reason if isinstance(error, MalformedUrl) else "its URL cannot be parsed"
            return Answer(error=f"not allowed: {reason}")
        except _RedirectError as error:
            return Answer(error=str(error))
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            return Answer(error=f"no answer: {error or type(error).__name__}")

    def close(self) -> None:
        """Send nothing more; there is no connection to let go of between attempts."""
        self._closed = True

    # -- one attempt -------------------------------------------------------------------------------

    def _exchange(self, message: Message, deadline: Deadline) -> Answer:
        method = "POST"
        url = origin = self._target(message.url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(method, url, origin, message, deadline)
            location = response.headers.get("location")
            if response.status_code not in (*_REPEATED, _SEE_OTHER):
                after = _retry_after(response.headers.get("retry-after"), message.timestamp)
                return Answer(status=response.status_code, retry_after=after)
            if location is None:
                raise _RedirectError("the receiver redirects without saying where to")
            method = "GET" if response.status_code == _SEE_OTHER else method
            url = self._redirected(url, location)
        raise _RedirectError(f"more than {MAX_REDIRECTS} redirects")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            joined = urljoin(str(url), location)
        except ValueError:
            raise MalformedUrl(url=redacted(location), reason="the redirect's place cannot be read") from None
        target = self._target(joined)
        if url.scheme == "https" and target.scheme == "http":
            raise _RedirectError("the receiver redirects from https to http, which is not followed")
        return target

    def _request(
        self, method: str, url: httpx.URL, origin: httpx.URL, message: Message, deadline: Deadline
    ) -> httpx.Response:
        body = message.body if method == "POST" else b""
        backend = CheckedBackend(
            deadline=deadline, check=partial(self._check_addresses, url), resolver=self._resolver
        )
        with (
            httpcore.ConnectionPool(
                ssl_context=self._tls, network_backend=backend, max_keepalive_connections=0
            ) as pool,
            pool.stream(
                method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=self._headers(method, url, origin, message),
                content=body,
            ) as response,
        ):
            return httpx.Response(response.status, headers=response.headers)

    def _headers(
        self, method: str, url: httpx.URL, origin: httpx.URL, message: Message
    ) -> list[tuple[bytes, bytes]]:
        headers = {
            "host": url.netloc.decode("ascii"),
            "user-agent": self._user_agent,
            "accept": "*/*",
            "connection": "close",
            "webhook-id": message.delivery_id,
            "webhook-timestamp": str(message.timestamp),
        }
        if method == "POST":
            headers |= {name.lower(): value for name, value in message.headers.items()}
            headers |= {"content-type": "application/json", "content-length": str(len(message.body))}
            if self._signer is not None:
                headers |= self._signer.headers(
                    delivery_id=message.delivery_id, timestamp=message.timestamp, body=message.body
                )
        if origin.userinfo and _place(url) == _place(origin):
            headers["authorization"] = _basic(origin)
        return [(name.encode("ascii"), value.encode("utf-8")) for name, value in headers.items()]

    # -- where it may go ---------------------------------------------------------------------------

    def _target(self, text: str) -> httpx.URL:
        """Parse a URL and check it by its name. Raises MalformedUrl, httpx.InvalidURL."""
        uri = self._policy.check(text)
        url = httpx.URL(text)
        if url.scheme != uri.scheme or url.raw_host.decode("ascii").rstrip(".") != uri.host:
            raise MalformedUrl(url=redacted(text), reason="its host can be read in more than one way")
        if url.port == 0:
            raise MalformedUrl(url=redacted(text), reason="port 0 is none to connect to")
        return url

    def _check_addresses(self, url: httpx.URL, host: str, addresses: Iterable[str]) -> None:
        addresses = list(addresses)
        for address in addresses:
            parsed = ip_address(address.partition("%")[0])
            if parsed.is_unspecified or parsed.is_multicast:
                raise MalformedUrl(url=host, reason=f"host {host} has an address that is no server's")
        self._policy.check_addresses(Uri(scheme=url.scheme, host=host.rstrip(".")), addresses)


class _RedirectError(Exception):
    """A redirect that is not followed."""


def _place(url: httpx.URL) -> tuple[str, str, int | None]:
    return (url.scheme, url.host, url.port)


def _basic(url: httpx.URL) -> str:
    user, _, password = url.userinfo.decode("ascii").partition(":")
    credentials = f"{unquote(user)}:{unquote(password)}".encode()
    return "Basic " + base64.b64encode(credentials).decode("ascii")


def _retry_after(value: str | None, sent_at: int) -> float | None:
    """Read a Retry-After header, seconds or a date (RFC 9110, section 10.2.3); None for anything else."""
    if value is None:
        return None
    try:
        seconds = (
            float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - sent_at
        )
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trust the given certificates instead of the usual ones; whatever the environment says."""
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it holds no certificates in PEM format"
        message = f"{ca_file} cannot be used: {reason}"
        raise InvalidSetting(key="jobserver.callbacks.ca-file", message=message) from error


def _version() -> str:
    try:
        return version("jobserver-core")
    except PackageNotFoundError:
        return "0"
