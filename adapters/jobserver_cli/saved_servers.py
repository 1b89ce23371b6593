"""Saved servers: an address with credentials under a name.

They are in one JSON file in the user's configuration directory, which only the user can read. A file that
others can read is refused, since its credentials may be known already.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_cli.client import DEFAULT_PORT, ServerOptions
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import nearest

if TYPE_CHECKING:
    from jobserver_core.models.json_values import JsonObject

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FIELDS = ("server", "user", "password", "token", "ca_file")


_ELSEWHERE = (
    "To save them elsewhere, set XDG_CONFIG_HOME to a directory that you can write to. Without saved "
    "servers, use JOBSERVER_URL, and JOBSERVER_USER or JOBSERVER_TOKEN."
)


def _path() -> Path | None:
    """Return the file, or None if this user has no home directory."""
    root = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    return root / "jobserver" / "servers.json" if root.is_absolute() else None


def addresses() -> dict[str, str]:
    """Return the addresses of the saved servers by their names.

    Raises:
        CommandFailed: The file cannot be read, or others can read it.
    """
    return {name: str(saved["server"]) for name, saved in _read().items()}


def completed(connection: ServerOptions) -> ServerOptions:
    """Return the connection with what is saved for its server, if that is the name of a saved one.

    Credentials of options and variables take precedence.

    Raises:
        CommandFailed: The file cannot be read, or others can read it.
    """
    if not _NAME.fullmatch(connection.server) or connection.server not in (saved := _read()):
        return connection
    found = saved[connection.server]
    given = connection.user is not None or connection.token is not None
    credentials = {} if given else {name: found.get(name) for name in ("user", "password", "token")}
    return attrs.evolve(
        connection,
        server=found["server"],
        ca_file=connection.ca_file or found.get("ca_file"),
        **credentials,
    )


def not_saved(server: str) -> str | None:
    """Return a hint if a server that does not answer was given by a name, but not by that of a saved one.

    Raises:
        CommandFailed: The file cannot be read, or others can read it.
    """
    if not _NAME.fullmatch(server) or server == "localhost" or server in (saved := _read()):
        return None
    found = nearest(server, saved)
    advice = f"Did you mean {found}?" if found else "Save one with: jobserver login NAME --server URL"
    address = f"If it is the name of a machine, add the port: --server {server}:{DEFAULT_PORT}"
    return f"No server is saved as {server}. {advice}\n{address}"


def login_hint(server: str) -> str | None:
    """Return how to use or save credentials after they were refused; None if no server is saved.

    Raises:
        CommandFailed: The file cannot be read, or others can read it.
    """
    saved = _read()
    if not saved:
        return None
    name, url = (server, saved[server]["server"]) if server in saved else ("NAME", server)
    command = f"jobserver login {name} --server {url} --user USER"
    if server in saved:
        return f"To save other credentials: {command}"
    return f"Or use a saved server: --server {' or '.join(saved)}. To save this one: {command}"


def save(name: str, connection: ServerOptions) -> Path:
    """Save a connection under a name, and return the file.

    Raises:
        CommandFailed: The name is not allowed, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise CommandFailed(
            f"{name!r} is not a valid server name; expected a letter, then letters, digits, '-' and '_'",
            ExitCode.USAGE,
        )
    values = {field: getattr(connection, field) for field in _FIELDS}
    kept = {field: str(value) for field, value in values.items() if value is not None}
    return _write({**_read(), name: kept})


def remove(name: str) -> None:
    """Remove a saved server.

    Raises:
        CommandFailed: There is none with this name, or the file cannot be read or written.
    """
    saved = _read()
    if name not in saved:
        known = ", ".join(saved) or "none"
        raise CommandFailed(f"server {name!r} is not saved; saved servers: {known}", ExitCode.REFUSED)
    del saved[name]
    _write(saved)


def _read() -> JsonObject:
    path = _path()
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise CommandFailed(
                    f"other users can read {path}, which contains credentials",
                    ExitCode.USAGE,
                    f"Change the credentials if necessary, then run: chmod 600 {path}",
                )
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot read {path}: {error}", ExitCode.USAGE) from error
    if not isinstance(found, dict):
        raise CommandFailed(f"cannot read {path}: expected an object", ExitCode.USAGE)
    return found


def _write(saved: JsonObject) -> Path:
    """Replace the file at once; it is never readable by others, not even for a moment."""
    path = _path()
    if path is None:
        message = "cannot save servers: there is no home directory"
        raise CommandFailed(message, ExitCode.NOT_READY, _ELSEWHERE)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".servers-")  # has the mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(saved, file, indent=2)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise CommandFailed(
            f"cannot write the saved servers to {path}: {error.strerror or error}",
            ExitCode.NOT_READY,
            _ELSEWHERE,
        ) from error
    return path
