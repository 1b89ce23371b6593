"""JSON-like values: what settings, configurations and results are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Return a deep copy of a JSON-like value, as JSON would give it back.

    Mappings become dicts, tuples lists. Raises TypeError for anything else that JSON has no
    word for, keys that are not strings included.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    raise TypeError(f"JSON has no word for a {type(value).__name__}: {value!r:.80}")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys must be strings, got {key!r:.80}")
    return key
