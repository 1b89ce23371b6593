"""A client of the job server's HTTP API that turns failures into errors of the command line."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import attrs

from jobserver_cli.exits import CommandFailed, ExitCode

if TYPE_CHECKING:
    import ssl

    import httpx

    from jobserver_core.models.json_values import Json, JsonMapping, JsonObject

__all__ = ["DEFAULT_URL", "Client", "Connection", "refusal", "segment"]

DEFAULT_URL = "http://127.0.0.1:8090"
PASSWORD_VARIABLE = "JOBSERVER_PASSWORD"  # noqa: S105 - the name of a variable
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 90.0
"""Seconds without a byte after which a request fails. The server answers all bounded requests sooner."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@attrs.frozen
class Connection:
    """The server's address and the credentials, except for the password."""

    server: str = DEFAULT_URL
    user: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    ca_file: Path | None = None

    @property
    def url(self) -> str:
        """The server's address, with a scheme and without a trailing slash.

        Raises:
            CommandFailed: The address is invalid.
        """
        text = self.server.strip()
        text = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(text)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or parts.query or parts.fragment:
            raise CommandFailed(
                "invalid server address; expected a URL such as http://host:8090",
                ExitCode.USAGE,
                "Set it with --server or JOBSERVER_URL, and the user with --user or JOBSERVER_USER.",
            )
        return text.rstrip("/")

    @property
    def local(self) -> bool:
        """Whether the server is on this machine, so that no proxy is used."""
        return urlsplit(self.url).hostname in _LOOPBACK


class Client:
    """Talks to one server. Use it in a ``with`` block. Prompts for the password if necessary.

    Every method raises CommandFailed: with UNREACHABLE if no server answers, and with the server's message
    and DENIED or REFUSED for an error response.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.url = connection.url
        self._password = _password(connection.user) if connection.user and not connection.token else None
        self._http: httpx.Client | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._http is not None:
            self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        """Return the JSON response of a GET request."""
        return self.call("GET", path, params=params)

    def call(self, method: str, path: str, **request: Any) -> Json:
        """Return the JSON response of a request, or None for an empty response."""
        response = self.send(method, path, **request)
        return _decoded(response, self.url) if response.content else None

    def send(self, method: str, path: str, *, accept_errors: bool = False, **request: Any) -> httpx.Response:
        """Send a request and return its complete response; raise for an error response unless accepted."""
        with _translated(self.url):
            response = self._connected().request(method, self.url + path, **_without_none(request))
        if response.is_error and not accept_errors:
            raise refusal(response, self.url)
        return response

    @contextmanager
    def stream(
        self, path: str, *, read_timeout: float | None = None, **params: Any
    ) -> Iterator[httpx.Response]:
        """Open the response of a GET request for reading as it arrives.

        ``read_timeout`` is in seconds without a byte; None waits indefinitely.
        """
        import httpx  # noqa: PLC0415 - --help does not need it

        timeout = httpx.Timeout(CONNECT_TIMEOUT, read=read_timeout)
        query = _without_none({"params": params})
        with (
            _translated(self.url),
            self._connected().stream("GET", self.url + path, timeout=timeout, **query) as response,
        ):
            if response.is_error:
                response.read()
                raise refusal(response, self.url)
            yield response

    def _connected(self) -> httpx.Client:
        if self._http is None:
            import httpx  # noqa: PLC0415 - --help does not need it

            self._http = httpx.Client(
                auth=self._auth(),
                headers={"User-Agent": "jobserver-cli", "Accept": "application/json, */*;q=0.5"},
                timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
                trust_env=not self.connection.local,
                verify=self._verification(),
            )
        return self._http

    def _auth(self) -> Json:
        connection = self.connection
        if connection.token:
            token = connection.token

            def bearer(request: httpx.Request) -> httpx.Request:
                request.headers["Authorization"] = f"Bearer {token}"
                return request

            return bearer
        return (connection.user, self._password) if connection.user else None

    def _verification(self) -> ssl.SSLContext | bool:
        if self.connection.ca_file is None:
            return True
        import ssl  # noqa: PLC0415 - rarely needed

        try:
            return ssl.create_default_context(cafile=str(self.connection.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise CommandFailed(
                f"cannot read certificate authorities from {self.connection.ca_file}: {error}", ExitCode.USAGE
            ) from error


def _password(user: str) -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise CommandFailed(
            f"the password of {user} is missing",
            ExitCode.USAGE,
            f"Set the environment variable {PASSWORD_VARIABLE}.",
        )
    return getpass.getpass(f"Password of {user}: ")


def _without_none(request: JsonMapping) -> JsonObject:
    params = {key: value for key, value in (request.get("params") or {}).items() if value is not None}
    return {**request, "params": params}


@contextmanager
def _translated(url: str) -> Iterator[None]:
    import httpx  # noqa: PLC0415 - --help does not need it

    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        advice = "Start one with: jobserver serve. Or set its address with --server or JOBSERVER_URL."
        raise CommandFailed(
            f"no job server answers at {url}: {_reason(error)}", ExitCode.UNREACHABLE, advice
        ) from error
    except httpx.ReadTimeout as error:
        raise CommandFailed(f"the server at {url} did not answer in time", ExitCode.TIMED_OUT) from error
    except httpx.RequestError as error:
        raise CommandFailed(
            f"lost the connection to {url}: {_reason(error)}", ExitCode.UNREACHABLE
        ) from error
    except UnicodeEncodeError as error:
        raise CommandFailed("the command line contains bytes that are not UTF-8", ExitCode.USAGE) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _decoded(response: httpx.Response, url: str) -> Json:
    try:
        return response.json()
    except ValueError as error:
        raise CommandFailed(
            f"{url} does not look like a job server ({response.request.url.path} did not return JSON)",
            ExitCode.UNREACHABLE,
            "Check --server and JOBSERVER_URL.",
        ) from error


_EXITS = {
    "validation_failed": ExitCode.JOB_FAILED,
    "result_timeout": ExitCode.TIMED_OUT,
    "unauthenticated": ExitCode.DENIED,
    "permission_denied": ExitCode.DENIED,
    "too_many_failed_logins": ExitCode.DENIED,
    **dict.fromkeys(
        (
            "invalid_callback_url",
            "invalid_config",
            "invalid_first_letter",
            "invalid_input",
            "invalid_name",
            "invalid_request",
            "invalid_setting",
            "malformed_url",
            "not_an_archive",
            "unknown_context_factory",
            "unsupported_charset",
            "unsupported_media_type",
        ),
        ExitCode.USAGE,
    ),
}
"""Exit codes for the server's error codes. All other error codes mean REFUSED."""


def refusal(response: httpx.Response, url: str) -> CommandFailed:
    """Return the error for a response with a status of 400 or more, with the server's message."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "status" not in body:
        return CommandFailed(
            f"{url} answered {status} {response.reason_phrase}",
            ExitCode.DENIED if status == 401 else ExitCode.REFUSED,
        )
    reason = body.get("code")
    code = _EXITS.get(str(reason), ExitCode.REFUSED)
    return CommandFailed(_words(body), code, _advice(status), reason=reason, detail=body.get("detail"))


def _words(body: JsonMapping) -> str:
    result = body.get("result")
    text = result.get("message") if isinstance(result, Mapping) else result
    label = body["status"]
    words = f"{text}" if label == "ERROR" and text else f"{label}: {text}" if text else f"{label}"
    detail = body.get("detail")
    return f"{words}: {detail}" if detail else words


def _advice(status: int) -> str | None:
    if status != 401:
        return None
    return f"Log in with JOBSERVER_USER and {PASSWORD_VARIABLE}, or with JOBSERVER_TOKEN."


def segment(name: str) -> str:
    """Quote a name for use as one segment of a URL path."""
    return quote(name, safe="")
