"""How to reach a server: the options that all clients take."""

from __future__ import annotations

import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from types import FunctionType
from urllib.parse import urlsplit

import attrs
import httpx

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.arguments import check_kind, check_seconds
from jobserver_core.shutdown import warn_of_forgotten

RESPONSE_TIMEOUT = 90.0
"""Seconds without a byte after which a request fails, if the caller sets no ``timeout``."""
SLOW_TIMEOUT = 600.0
"""The same for requests that may take the server long, such as a submit. It fetches code in up to 5 minutes
(``fetcher.timeout``), and then waits up to a minute for the job's validation (``jobs.start-timeout``)."""
OPERATION_TIMEOUT = 3600.0
"""The least for requests that waiters make. A context may wait 10 minutes until it is launched
(``contexts.start-queue-timeout``), and start for longer than ``contexts.creation-timeout``, 3 minutes, if
its Python environment has to be unpacked."""
_IN_A_HEADER = re.compile("[!-~]([ -~]*[!-~])?")

_NO_PEM = "it contains no certificates in PEM format"


@attrs.frozen(kw_only=True)
class ConnectionOptions:
    """How to reach a server.

    Raises:
        InvalidRequest: An option has the wrong type, or cannot be sent.
    """

    url: str
    user: str | None
    password: str | None = attrs.field(repr=False)
    token: str | None = attrs.field(repr=False)
    ca_file: Path | str | None
    ssl_context: ssl.SSLContext | None
    timeout: float | None
    connect_timeout: float
    retries: int
    reconnect_timeout: float
    user_agent: str

    def __attrs_post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "reconnect_timeout"):
            check_seconds(name, getattr(self, name), optional=name != "reconnect_timeout")
            self._check_least(name, at_zero=name == "reconnect_timeout")
        check_kind("retries", self.retries, int, "a whole number")
        self._check_least("retries", at_zero=True)
        for name in ("user", "password", "token"):
            check_kind(name, getattr(self, name), (str, type(None)), "a string")
        check_kind("user_agent", self.user_agent, str, "a string")
        for name in ("token", "user_agent"):
            value = getattr(self, name)
            if value is not None and not _IN_A_HEADER.fullmatch(value):
                expected = "printable ASCII, without spaces or line breaks around it"
                raise InvalidRequest(message=f"{name} must be {expected}")
        check_kind("ca_file", self.ca_file, (str, Path, type(None)), "the path of a file")
        check_kind("ssl_context", self.ssl_context, (ssl.SSLContext, type(None)), "an ssl.SSLContext")

    def _check_least(self, name: str, *, at_zero: bool) -> None:
        value = getattr(self, name)
        if value is not None and (value < 0 or (value == 0 and not at_zero)):
            expected = "0 or more" if at_zero else "more than 0"
            raise InvalidRequest(message=f"{name} must be {expected}, got {value}")

    @property
    def response_timeout(self) -> float:
        """Seconds without a byte after which a request fails."""
        return RESPONSE_TIMEOUT if self.timeout is None else self.timeout

    @property
    def slow_timeout(self) -> float:
        """The same for a request for which the server may have much to do."""
        return SLOW_TIMEOUT if self.timeout is None else self.timeout

    @property
    def operation_timeout(self) -> float:
        """The same for the operation of a waiter, whose caller may have another limit."""
        return max(OPERATION_TIMEOUT, self.response_timeout)

    @property
    def address(self) -> str:
        """The URL, with a scheme and without a trailing slash.

        Raises:
            InvalidRequest: It is not the URL of a server.
        """
        expected = "a URL such as http://host:8090"
        check_kind("the server's address", self.url, str, expected)
        text = self.url.strip()
        text = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(text)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidRequest(message=f"invalid server address; expected {expected}")
        return text.rstrip("/")

    def auth(self) -> httpx.Auth | tuple[bytes, bytes] | None:
        """Return the credentials in the form that httpx takes.

        Raises:
            InvalidRequest: They are those of a user and a token, one is missing, or not valid Unicode.
        """
        if self.token is not None:
            if self.user is not None or self.password is not None:
                raise InvalidRequest(message="pass either a token, or a user and a password, not both")
            return _Bearer(self.token)
        if self.user is None and self.password is not None:
            raise InvalidRequest(message="a password needs a user")
        if self.user is not None and self.password is None:
            raise InvalidRequest(message="a user needs a password, which may be empty")
        if self.user is None or self.password is None:
            return None
        try:
            return self.user.encode(), self.password.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(message="user and password must be valid Unicode") from None

    def verification(self) -> ssl.SSLContext | bool:
        """Return what to check the server's certificate with.

        Raises:
            InvalidRequest: The file has no certificates, or cannot be read.
        """
        if self.ssl_context is not None:
            return self.ssl_context
        if self.ca_file is None:
            # Without https there is no certificate; reading all authorities would be in vain, and takes long.
            tls = urlsplit(self.address).scheme == "https"
            return True if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except OSError as error:
            reason = _NO_PEM if isinstance(error, ssl.SSLError) else error.strerror or str(error)
            message = f"cannot read certificate authorities from {self.ca_file}: {reason}"
            raise InvalidRequest(message=message) from error


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the token to a request."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


class RemoteServer(ABC):
    """A server that runs elsewhere. See :class:`jobserver_client.Client` for what the options mean."""

    _closing: str
    """How to close it, for the warning that nobody has."""

    def __init_subclass__(cls) -> None:
        """Give a client an ``__init__`` with its own name, for errors about missing and unknown options."""
        super().__init_subclass__()
        if RemoteServer not in cls.__bases__:
            return
        shared = RemoteServer.__init__
        own = FunctionType(shared.__code__, shared.__globals__, "__init__", shared.__defaults__)
        own.__kwdefaults__, own.__annotations__ = shared.__kwdefaults__, shared.__annotations__
        own.__qualname__ = f"{cls.__qualname__}.__init__"
        cls.__init__ = own  # type: ignore[method-assign]

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: Path | str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float | None = None,
        connect_timeout: float = 5.0,
        retries: int = 3,
        reconnect_timeout: float = 60.0,
        user_agent: str = "jobserver-client",
    ) -> None:
        self._open(
            ConnectionOptions(
                url=url,
                user=user,
                password=password,
                token=token,
                ca_file=ca_file,
                ssl_context=ssl_context,
                timeout=timeout,
                connect_timeout=connect_timeout,
                retries=retries,
                reconnect_timeout=reconnect_timeout,
                user_agent=user_agent,
            )
        )

    def __del__(self) -> None:
        if self._is_forgotten():
            warn_of_forgotten(self, self._closing)

    @abstractmethod
    def _is_forgotten(self) -> bool:
        """Whether nobody has closed the client in this process."""

    @abstractmethod
    def _open(self, options: ConnectionOptions) -> None:
        """Prepare for calls; no connection is opened before the first one."""
