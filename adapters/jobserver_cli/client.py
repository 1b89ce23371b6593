"""The client of the command line: requests whose failures become errors of the command line.

Commands show the JSON of the server, so they use the requests of ``jobserver_client`` more than its methods.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict
from urllib.parse import quote, urlsplit

import attrs

from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.records import ContextFields, JobFields, times_shown

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Unpack

    from jobserver_client.synchronous import StreamedResponse
    from jobserver_core.models.json_values import Json, JsonMapping

DEFAULT_PORT = 8090
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
PASSWORD_VARIABLE = "JOBSERVER_PASSWORD"  # noqa: S105 - the name of a variable
RETRIES = 2
"""How often a request that failed in transit is repeated. Somebody is waiting for the error."""
CONNECT_TIMEOUT = 5.0
"""Seconds for opening a connection."""
TIMEOUT = 90.0
"""Seconds without a byte after which a request fails, unless it says otherwise."""
PROBE_TIMEOUT = 2.0
"""Seconds for finding out whether a server uses TLS, after a request without it has failed."""
RECONNECT_TIMEOUT = 10.0
"""Seconds for which the server may be away while a command waits for a job."""


class RequestParts(TypedDict, total=False):
    """What a request has besides its method and path; a ``timeout`` of None waits forever."""

    params: Mapping[str, str | int | None]
    content: bytes | BinaryIO
    headers: Mapping[str, str]
    timeout: float | None


@attrs.frozen
class ServerOptions:
    """The server's address and the credentials. If only the password is missing, the user is asked for it."""

    server: str = DEFAULT_URL
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    ca_file: Path | str | None = None


class CommandClient:
    """Talks to one server, within a ``with`` block. Prompts for the password if necessary.

    ``remote`` is the client library, whose errors are its own: use it within :func:`translated`.

    Every method raises CommandFailed: with UNREACHABLE if no server answers, and with the server's message
    and DENIED or REFUSED for an error response.
    """

    def __init__(
        self,
        connection: ServerOptions,
        *,
        retries: int = RETRIES,
        connect_timeout: float = CONNECT_TIMEOUT,
        timeout: float = TIMEOUT,
    ) -> None:
        self.connection = connection
        self._retries, self._connect_timeout, self._timeout = retries, connect_timeout, timeout
        self.password: str | None = None
        if connection.user and not connection.token:
            self.password = connection.password or _password(connection.user)

    def __enter__(self) -> CommandClient:
        # The command line of httpx is not needed here; with its formatter, it is half of the import.
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        import jobserver_client  # noqa: PLC0415 - --help does not need it
        from jobserver_client.errors import InvalidProxy  # noqa: PLC0415
        from jobserver_core.errors import InvalidRequest  # noqa: PLC0415

        connection = self.connection
        try:
            self.remote = jobserver_client.Client(
                connection.server,
                user=connection.user if not connection.token else None,
                password=self.password,
                token=connection.token or None,
                ca_file=connection.ca_file,
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
                retries=self._retries,
                reconnect_timeout=RECONNECT_TIMEOUT,
                user_agent="jobserver-cli",
            )
        except InvalidRequest as error:
            advice = _PROXY_ADVICE if isinstance(error, InvalidProxy) else _OPTIONS_ADVICE
            raise CommandFailed(str(error), ExitCode.USAGE, advice) from error
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remote.close()

    @property
    def url(self) -> str:
        """The server's address."""
        return self.remote.url

    def get(self, path: str, **params: str | int | None) -> Json:
        """Return the JSON response of a GET request."""
        return self.call("GET", path, params=params)

    def records(self, path: str, **params: str | int | None) -> list[Json]:
        """Return the records that a GET request lists."""
        found = self.get(path, **params)
        if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
            message = f"the server at {self.url} does not list {path} as this version of jobserver expects"
            advice = "An older server may lack this list. Upgrade it, or use the jobserver of its version."
            raise CommandFailed(message, ExitCode.REFUSED, advice)
        return found

    def job(self, job_id: str) -> JobFields:
        """Return the record of a job, without its result."""
        record: JobFields = self.get(f"/jobs/{quoted_segment(job_id)}", result="false")
        return record

    def context(self, name: str) -> ContextFields:
        """Return the record of the newest context with a name, or of the one with an ID."""
        record: ContextFields = self.get(f"/contexts/{quoted_segment(name)}")
        return record

    def call(self, method: str, path: str, **request: Unpack[RequestParts]) -> Json:
        """Return the JSON response of a request, or None for an empty response."""
        response = self.send(method, path, **request)
        try:
            return response.json() if response.content else None
        except ValueError as error:
            path = response.request.url.path
            message = f"{self.url} does not look like a job server ({path} did not return JSON)"
            advice = _port_advice(self.url) or _CHECK_ADVICE
            raise CommandFailed(message, ExitCode.UNREACHABLE, advice) from error

    def send(
        self, method: str, path: str, *, accept_errors: bool = False, **request: Unpack[RequestParts]
    ) -> httpx.Response:
        """Send a request and return its complete response; raise for an error response unless accepted."""
        unlimited = "timeout" in request and request["timeout"] is None
        with translated(self.url):
            response = self.remote.request(method, path, accept_errors=True, unlimited=unlimited, **request)
        if response.is_error and not accept_errors:
            raise refusal(response, self.url)
        return response

    @contextmanager
    def stream(self, path: str, *, read_timeout: float | None = None) -> Iterator[StreamedResponse]:
        """Open the response of a GET request for reading as it arrives.

        ``read_timeout`` is in seconds without a byte; None waits indefinitely.
        """
        with (
            translated(self.url),
            self.remote.stream(path, read_timeout=read_timeout, accept_errors=True) as streamed,
        ):
            if streamed.response.is_error:
                raise refusal(streamed.response, self.url)
            yield streamed

    @contextmanager
    def followed_log(self, *, job_id: str | None, context: str | None) -> Iterator[StreamedResponse]:
        """Open the log of a job, or else of a context, until it has ended, even if the server restarts."""
        remote = self.remote
        with translated(self.url):
            opened = remote.followed_job_log(job_id) if job_id else remote.followed_context_log(context or "")
            with opened as streamed:
                yield streamed


UNAUTHENTICATED = "unauthenticated"
"""The error code of missing or wrong credentials."""
_OPTIONS_ADVICE = (
    "Check --server, --user, --token and --ca-file, or JOBSERVER_URL, JOBSERVER_USER, JOBSERVER_PASSWORD, "
    "JOBSERVER_TOKEN and JOBSERVER_CA_FILE."
)
_PROXY_ADVICE = "To connect without a proxy, add the server's host to NO_PROXY."
_CHECK_ADVICE = "Check --server and JOBSERVER_URL."
_START_ADVICE = "Start one with: jobserver serve. Or set its address with --server or JOBSERVER_URL."


_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes for certificates whose authority is not trusted, or that are their own authority."""


def _untrusted_certificate(url: str, error: BaseException | None) -> CommandFailed | None:
    """Return the error for a server whose certificate was not accepted, or None for another failure."""
    import ssl  # noqa: PLC0415 - only failures need it

    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    known = error.verify_code not in _UNKNOWN_AUTHORITY
    advice = _CHECK_ADVICE if known else "Give its authority (PEM) with --ca-file or JOBSERVER_CA_FILE."
    message = f"the certificate of {url} is not trusted: {error.verify_message.rstrip('.')}"
    return CommandFailed(message, ExitCode.UNREACHABLE, advice)


def login_advice(given: ServerOptions) -> str:
    """Return what to do after the server has refused the credentials of a request, or their absence."""
    if given.token:
        return "The token is wrong or has been revoked. Check JOBSERVER_TOKEN or --token."
    if given.user:
        return (
            f"Wrong user or password. Check the user {given.user} (JOBSERVER_USER or --user), and the "
            f"password ({PASSWORD_VARIABLE})."
        )
    return f"Log in with JOBSERVER_USER and {PASSWORD_VARIABLE}, or with JOBSERVER_TOKEN."


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


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of the connection as errors of the command line."""
    from jobserver_client import (  # noqa: PLC0415 - --help does not need it
        AccessDenied,
        ConnectionLost,
        ServerUnreachable,
        UnexpectedResponse,
    )
    from jobserver_client.errors import WrongScheme  # noqa: PLC0415
    from jobserver_core.errors import JobServerError, ResultTimeout  # noqa: PLC0415

    try:
        yield
    except ConnectionLost as error:
        raise CommandFailed(str(error), ExitCode.UNREACHABLE, _tls_advice(url)) from error
    except ServerUnreachable as error:
        if untrusted := _untrusted_certificate(url, error):
            raise untrusted from error
        advice = None if isinstance(error, WrongScheme) else _port_advice(url) or _START_ADVICE
        raise CommandFailed(str(error), ExitCode.UNREACHABLE, advice) from error
    except ResultTimeout as error:
        raise CommandFailed(f"the server at {url} did not answer in time", ExitCode.TIMED_OUT) from error
    except UnexpectedResponse as error:
        raise _unlike_a_server(url, error.status, error.reason) from error
    except JobServerError as error:
        reason = error.reason if isinstance(error, AccessDenied) else error.code
        code = _EXITS.get(reason, ExitCode.REFUSED)
        raise CommandFailed(str(error), code, _ADVICE.get(reason), reason=reason) from error
    except UnicodeEncodeError as error:
        raise CommandFailed("the command line contains bytes that are not UTF-8", ExitCode.USAGE) from error


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


_ADVICE = {
    "no_slots": "To see the jobs that run and wait: jobserver jobs",
    "capacity_reached": "Try again when a context has ended, or stop one. To see them: jobserver contexts",
}
"""What to do after errors that pass, by the server's error codes."""


def refusal(response: httpx.Response, url: str) -> CommandFailed:
    """Return the error for a response with a status of 400 or more, with the server's message."""
    from jobserver_client.errors import message_of  # noqa: PLC0415 - --help does not need it

    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "status" not in body:
        return _unlike_a_server(url, status, response.reason_phrase)
    reason, fields, message = body.get("code"), body.get("fields"), times_shown(message_of(body))
    if reason == "binary_not_found" and isinstance(fields, dict):
        message = f"binary {fields.get('name')!r} not found"
    elif reason == "invalid_callback_url" and isinstance(fields, dict):
        message = f"--callback {fields.get('url')!r} is not allowed: {fields.get('reason')}"
    elif reason == "invalid_request" and isinstance(fields, dict) and fields.get("message"):
        message = str(fields["message"])  # without the label of the HTTP API
    code = _EXITS.get(str(reason), ExitCode.REFUSED)
    if reason in _FAILED_STARTS and _error_class(body) == _UNKNOWN_FACTORY:  # which only the start found
        code = ExitCode.USAGE
    return CommandFailed(
        message,
        code,
        _ADVICE.get(str(reason)),
        reason=reason,
        detail=body.get("detail"),
    )


_FAILED_STARTS = ("context_failed", "context_init_failed")
_UNKNOWN_FACTORY = "jobserver_core.errors.UnknownContextFactory"


def _error_class(body: JsonMapping) -> Json:
    result = body.get("result")
    return result.get("errorClass") if isinstance(result, dict) else None


def _unlike_a_server(url: str, status: int, reason: str) -> CommandFailed:
    """Return the error for an error response of a proxy or of a web server that is not a job server."""
    from jobserver_client.errors import OUTAGES  # noqa: PLC0415 - --help does not need it

    message = f"{url} answered {status} {reason}"
    if status in _NO_SUCH_PATH:
        message = f"{url} does not look like a job server (it answered {status} {reason})"
    code = ExitCode.UNREACHABLE if status in (*_NO_SUCH_PATH, *OUTAGES) else ExitCode.REFUSED
    code = ExitCode.DENIED if status in _DENIALS else code
    advice = _tls_advice(url) if status == _PLAIN_HTTP else None
    if status in _NO_SUCH_PATH:
        advice = _port_advice(url)
    return CommandFailed(message, code, advice or _CHECK_ADVICE)


_PLAIN_HTTP = 400
"""What nginx answers to a plain request on a port with TLS."""
_NO_SUCH_PATH = (404, 405, 501)
"""Status codes of web servers that are no job server."""
_DENIALS = (401, 403, 407)


def _port_advice(url: str) -> str | None:
    """Return the address to try if one of http has no port, otherwise None."""
    address = urlsplit(url)
    if address.scheme != "http" or address.port is not None:
        return None
    likely = address._replace(netloc=f"{address.netloc}:{DEFAULT_PORT}").geturl()
    default = f"servers listen on {DEFAULT_PORT} by default"
    return f"The address has no port, which means 80; {default}: --server {likely}"


def _tls_advice(url: str) -> str | None:
    """Return the address to try if the server at an http address uses TLS, otherwise None."""
    import socket  # noqa: PLC0415 - only failures need it
    import ssl  # noqa: PLC0415

    address = urlsplit(url)
    if address.scheme != "http" or not address.hostname:
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        with (
            socket.create_connection((address.hostname, address.port or 80), PROBE_TIMEOUT) as connection,
            context.wrap_socket(connection, server_hostname=address.hostname),
        ):
            return f"The server uses TLS. Try: --server https:{url.removeprefix('http:')}"
    except (OSError, ValueError):
        return None


def quoted_segment(name: str) -> str:
    """Quote a name for use as one segment of a URL path.

    Raises:
        CommandFailed: No name may be like this, and servers and proxies would take it for another path.
    """
    if "/" in name or name in ("", ".", ".."):
        raise CommandFailed(
            f"the name {name!r} is not allowed; names begin with a letter or digit, and contain no '/'",
            ExitCode.USAGE,
        )
    return quote(name, safe="")
