"""Secrets, and redacting them from values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobserver_core.models.json_values import Json

__all__ = ["Secret", "redacted", "redacted_url"]

_MASK = "***"
_PASSWORD = re.compile(r"(://[^/?#@\s:]*):[^/?#\s]*@")
_SECRET_QUERY = re.compile(r"(?i)([?&][^=&#]*(?:secret|passw|token|key)[^=&#]*=)[^&#]*")
_SECRET_KEY = re.compile(
    r"(?i)secret|passw|credential|token|access[._-]?key|api[._-]?key|private|pod-template"
)
"""Keys of secrets. The environment of the containers in a pod template may have some."""


class Secret:
    """A secret string. Its ``str`` and ``repr`` are redacted; only :meth:`reveal` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret string."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def redacted_url(value: str) -> str:
    """Redact the passwords and secret parameters in a URL."""
    if "://" not in value:
        return value
    return _SECRET_QUERY.sub(rf"\1{_MASK}", _PASSWORD.sub(rf"\1:{_MASK}@", value))


def redacted_repr(value: Json) -> str:
    """Return the repr of a field with its secrets redacted."""
    return repr(redacted(value))


def redacted(value: Json) -> Json:
    """Redact a JSON-like value: the values of keys that name a secret, and passwords in URLs."""
    if isinstance(value, Mapping):
        return {k: _MASK if _SECRET_KEY.search(str(k)) else redacted(item) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return redacted_url(value) if isinstance(value, str) else value
