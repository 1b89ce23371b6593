"""The contract's permissions: what a caller may do."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["EVERYTHING", "PERMISSIONS", "allows", "parse_permissions"]

EVERYTHING = "*"

PERMISSIONS: dict[str, tuple[str, ...]] = {
    "binaries": ("read", "upload", "delete"),
    "contexts": ("read", "start", "delete", "reset"),
    "data": ("read", "upload", "delete", "reset"),
    "jobs": ("read", "start", "delete"),
}
"""The actions of each group. A group's name alone is all of its actions, ``*`` is everything."""


def parse_permissions(text: str) -> frozenset[str]:
    """Read permissions separated by commas or blanks. Raises ValueError for one that is not known."""
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("there must be at least one permission, such as jobs:read or *")
    for word in words:
        group, _, action = word.partition(":")
        known = word == EVERYTHING or (
            group in PERMISSIONS and (word == group or action in PERMISSIONS[group])
        )
        if not known:
            raise ValueError(f"{word!r} is no permission; there are *, {', '.join(_all())}")
    return frozenset(words)


def allows(held: Iterable[str], wanted: str) -> bool:
    """Whether the permissions that somebody holds include one such as ``jobs:read``."""
    held = frozenset(held)
    return bool(held & {EVERYTHING, wanted, wanted.partition(":")[0]})


def _all() -> list[str]:
    return [
        name for group, actions in PERMISSIONS.items() for name in (group, *(f"{group}:{a}" for a in actions))
    ]
