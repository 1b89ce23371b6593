"""Receivers of callbacks: find the receiver of a URL, and redact secrets in a URL."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from jobserver_core.uris import redacted

__all__ = ["MAX_URL", "receiver_of", "scheme_of", "without_secrets"]

MAX_URL = 8192
"""The longest callback URL that is accepted, in characters."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def scheme_of(url: str) -> str:
    """Return the scheme in lower case, or an empty string if there is none (RFC 3986, section 3.1)."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else ""


def receiver_of(url: str) -> str:
    """Return the receiver of a URL, for fairness: scheme, host, and port unless it is the default.

    For a URL without a host (``call:name``), and for one that cannot be parsed, it is the scheme alone. Never
    raises.
    """
    parts = _split(url)
    scheme = scheme_of(url)
    if parts is None or not parts.hostname:
        return scheme
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.rstrip(".")
    if parts.port is None or parts.port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{parts.port}"


def without_secrets(text: str, url: str) -> str:
    """Return a text in which this URL, its password and its query are redacted."""
    text = text.replace(url, redacted(url))
    parts = _split(url)
    secrets = (parts.password, parts.query) if parts is not None else ()
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return None
    return parts
