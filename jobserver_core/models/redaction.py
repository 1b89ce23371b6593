"""Secrets, and redacting them from values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from jobserver_core.models.json_values import Json

__all__ = ["Secret", "redacted", "redacted_url"]

_MASK = "***"
_PASSWORD = re.compile(r"(://[^/?#@\s:]*):[^/?#\s]*@")
_ORACLE_PASSWORD = re.compile(
    r"""(?i)(jdbc:oracle:\w+:(?:"[^"]*"|[^"/@:\s]*))/(?:"[^"]*"|(?:(?!jdbc:)\S)+)(?=@)"""
)
"""As in ``jdbc:oracle:thin:user/password@//host``. An ``@`` in the password need not be quoted here. No part
of a URL extends into another one, so that the time is linear."""
_PRIVATE_KEY = "PRIVATE KEY-----"
"""What every private key in PEM format has at its start."""
_SECRET_KEY = re.compile(
    r"(?i)secret|passw|pass[._-]?(?:phrase|code)|credential|token|private|pod-template"
    r"|(?:access|api)[._-]?key|account[._-]?key(?![a-z])|azure[._-]sas(?![a-z])"
    r"|shared[._-]?access[._-]?signature|client[._-]provided[._-](?:encryption[._-])?key(?![a-z-])"
)
"""Keys of secrets. The environment of the containers in a pod template may have some."""
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[._-])(?:auth|pass|sig|jwt)$|pwd$|(?:pg|ssh|store|key)[._-]?pass$|basic[._-]?auth$"
    r"|auth[._-]?(?:user[._-]?info|digest|params?|param[._-]?map|mechanism[._-]?properties)$"
    r"|headers?[._-](?:proxy-)?(?:authorization|cookie)$|jaas[._-]?config$|kerberos[._-]ticket$"
    r"|(?:en|de)cryption[._-]?key(?:[._-]list)?$|(?:azure[._-]storage|keystore|sse|pvt|shared)[._-]?key$"
    r"|(?:license|application|app|master|signing)[._-]?key$|key[._-]pem$|client[._-]?cert[._-]?pem[._-]?base64$"
)
"""Ends of keys of secrets. As the start of a longer key they are harmless: ``encryption.keySizeBits``."""
_OPTION_KEY = re.compile(r"(?:(?:^|[._-])[Kk]eys?|(?<=[a-z0-9])Keys?|KEYS?)(?=$|[._-]?\d*(?:$|\.))")
"""A ``key`` or ``keys`` at the end of a name. In the options of backends, it is no column but a secret."""
_SECRET_PARAMETER = re.compile(r"(?i)key|signature")
"""What names a secret in the query of a URL, in addition. In settings, a ``key`` is often a column."""
_PARAMETER = re.compile(r"[?&]([^?&#=]*)=")
_PARAMETER_VALUE = re.compile(r"[^&#]*")
_OPTION = re.compile(r"(?<![\w.-])([\w.-]+)=")
_OPTION_VALUE = re.compile(r"""(?:"[^"]*"|'[^']*'|\{[^{}]*\}|[^\s;&,])*""")


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
    value = _ORACLE_PASSWORD.sub(rf"\1/{_MASK}", value)
    if "://" not in value:
        return value

    def secret(name: str) -> bool:
        return _names_secret(name) or _SECRET_PARAMETER.search(name) is not None

    return _masked(_PASSWORD.sub(rf"\1:{_MASK}@", value), _PARAMETER, _PARAMETER_VALUE, secret)


def redacted_repr(value: Json) -> str:
    """Return the repr of a field with its secrets redacted."""
    return repr(redacted(value))


def redacted(value: Json) -> Json:
    """Redact a JSON-like value: the values of keys that name a secret, and secrets in strings.

    In strings, these are passwords in URLs, ``name=value`` as in options of Java and JDBC, and private keys
    in PEM format.
    """
    return _redacted(value, "")


def redacted_options(value: Json) -> Json:
    """Redact options of a backend as :func:`redacted` does, and what is at or below a ``key`` or ``keys``."""
    return _redacted(value, "", options=True)


def redacted_strings(value: Json) -> Json:
    """Redact options of which any string may be a secret, whatever its key: all strings in them."""
    if isinstance(value, Mapping):
        return {key: redacted_strings(item) for key, item in redacted_options(value).items()}
    if isinstance(value, (list, tuple)):
        return [redacted_strings(item) for item in value]
    return _MASK if isinstance(value, str) else value


def _redacted(value: Json, path: str, *, options: bool = False) -> Json:
    """Redact the value at a path. ``{"access": {"key": …}}`` is as secret as ``{"access.key": …}``."""
    if _SECRET_KEY.search(path) or (options and _OPTION_KEY.search(path)):
        return _MASK
    if isinstance(value, Mapping):
        return {
            key: _redacted(item, f"{path}.{key}" if path else str(key), options=options)
            for key, item in value.items()
        }
    if _SECRET_NAME.search(path):
        return _MASK
    if isinstance(value, (list, tuple)):
        return [_redacted(item, path, options=options) for item in value]
    if isinstance(value, str):
        shown = _masked(redacted_url(value), _OPTION, _OPTION_VALUE, _names_secret)
        return _MASK if _PRIVATE_KEY in value else shown
    return value


def _names_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None or _SECRET_NAME.search(key) is not None


def _masked(text: str, name: re.Pattern[str], value: re.Pattern[str], secret: Callable[[str], bool]) -> str:
    """Mask the values whose names are secret. A harmless value may contain a name with a secret one."""
    parts, end = [], 0
    for found in name.finditer(text):
        if found.start() >= end and secret(found[1]):
            parts += [text[end : found.end()], _MASK]
            rest = value.match(text, found.end())
            end = rest.end() if rest is not None else found.end()
    return "".join(parts) + text[end:]
