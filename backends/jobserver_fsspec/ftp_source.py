"""Files from FTP servers, using the standard library."""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

from jobserver_core.errors import FetchError, MalformedUrl
from jobserver_core.uris import Uri
from jobserver_fsspec.sources import CHUNK, Interrupted, Opened, Source, Stamp, shown
from jobserver_net.connections import CONNECT_SECONDS, Connector, TimedSocket, is_unknown_host
from jobserver_net.deadlines import Deadline, Expired

if TYPE_CHECKING:
    from ftplib import FTP

_PORT = 21
"""The port of FTP servers (RFC 959)."""
_STABLE_SECONDS = 2
"""Seconds since a change after which the next one has another time: servers report whole seconds."""
_CLOSED = "the connection was closed"
_TYPE = re.compile(r";type=[aidAID]$")


class FtpSource(Source):
    """Retrieves files in passive mode. The login is anonymous if the URI has no user.

    The path is relative to the initial directory of the login (RFC 1738, section 3.2.2); a leading ``%2F``
    makes it absolute. Versions are identified by MDTM and SIZE, if the server supports them.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Start retrieving a file, at ``offset`` (REST) if the version has not changed."""
        import ftplib  # noqa: PLC0415 - rarely needed

        path = _path(uri)
        client = ftplib.FTP(timeout=deadline.left(CONNECT_SECONDS))  # noqa: S321 - the URI asks for it
        try:
            with _translated(uri):
                self._log_in(client, uri, deadline)
                stamp, size = _stamp(client, path)
            if known and known == stamp:
                yield None
                return
            start = offset if stamp and stamp == partial else 0
            chunks = _retrieve(client, uri, path, start, deadline)
            yield Opened(chunks=chunks, stamp=stamp, total=size, start=start)
        finally:
            client.close()

    def _log_in(self, client: FTP, uri: Uri, deadline: Deadline) -> None:
        connection = self._connector.connect(uri, uri.port or _PORT, deadline)
        # The same as FTP.connect, but with a connection to a checked address. The data connection uses the
        # same address, because ftplib ignores the address that the server sends.
        client.af = connection.family
        client.sock = TimedSocket.over(connection, deadline)
        client.file = client.sock.makefile("r", encoding=client.encoding)
        client.welcome = client.getresp()
        client.login(uri.user or "anonymous", uri.password or ("" if uri.user else "anonymous@"))
        client.voidcmd("TYPE I")


def _path(uri: Uri) -> str:
    path = unquote(_TYPE.sub("", uri.path)[1:])
    if not path or path.endswith("/"):
        raise FetchError(url=str(uri), reason="it is the path of a directory, not a file")
    return path


def _stamp(client: FTP, path: str) -> tuple[dict[str, str], int | None]:
    """Return the version and the size. The version is empty if the file may have changed just now."""
    size = _ask(client, f"SIZE {path}")
    changed = _ask(client, f"MDTM {path}")
    total = int(size) if size is not None and size.isdecimal() else None
    if size is None or changed is None:
        return {}, total
    with suppress(ValueError):
        if time.time() - timegm(time.strptime(changed[:14], "%Y%m%d%H%M%S")) >= _STABLE_SECONDS:
            return {"modified": changed, "size": size}, total
    return {}, total


def _ask(client: FTP, command: str) -> str | None:
    """Return the response to an optional command, or None."""
    import ftplib  # noqa: PLC0415

    try:
        code, _, text = client.sendcmd(command).partition(" ")
    except ftplib.error_perm:
        return None
    return text.strip() if code == "213" else None


def _retrieve(client: FTP, uri: Uri, path: str, start: int, deadline: Deadline) -> Iterator[bytes]:
    with _translated(uri):
        opened = client.transfercmd(f"RETR {path}", rest=start or None)
        deadline.watch(opened)
        with TimedSocket.over(opened, deadline) as connection:
            while chunk := connection.recv(CHUNK):
                yield chunk
        client.voidresp()


@contextmanager
def _translated(uri: Uri) -> Iterator[None]:
    import ftplib  # noqa: PLC0415

    try:
        yield
    except (Expired, MalformedUrl):
        raise
    except (ftplib.error_perm, ValueError) as error:  # ValueError: the command would contain a line break
        raise FetchError(url=str(uri), reason=shown(error, uri, empty=_CLOSED)) from None
    except (ftplib.Error, OSError, EOFError) as error:
        if is_unknown_host(error):
            raise FetchError(url=str(uri), reason=str(error)) from None
        raise Interrupted(shown(error, uri, empty=_CLOSED)) from None
