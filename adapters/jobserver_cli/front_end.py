"""The HTTP front-end: loading the package that serves HTTP, and the address of a server."""

from __future__ import annotations

from types import ModuleType

from jobserver_cli.exits import CommandFailed, ExitCode

__all__ = ["front_end", "url_of"]


def front_end() -> ModuleType:
    """Return the package that serves HTTP.

    Raises:
        CommandFailed: It is not installed. The advice names the extra to install.
    """
    try:
        import jobserver_http  # noqa: PLC0415 - the extra may be missing
    except ImportError as error:
        raise CommandFailed(
            f"cannot load the HTTP front-end: {error}",
            ExitCode.NOT_READY,
            "Install it with: pip install 'jobserver-core[http]'",
        ) from error
    return jobserver_http


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the base URL of an address that a server listens on."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
