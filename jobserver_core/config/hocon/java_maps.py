"""The iteration order of Java's hash maps, which is visible in cycles of substitutions.

In a cycle of optional substitutions, the one that is resolved first gets a value. The reference
implementation resolves the keys of an object in the order of a ``java.util.HashMap``: by bucket, and
within a bucket in the order of insertion. The number of buckets is a power of two that depends on how
the map was created: grown key by key, or copied from another map.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["copied_buckets", "in_buckets"]

_SMALLEST = 16


def in_buckets(keys: Iterable[str], size: int, copies: Iterable[int] = ()) -> list[str]:
    """Return keys, given in the order of insertion, as a map of ``size`` entries yields them.

    ``copies`` has the numbers of buckets of its successive copies.
    """
    buckets = _SMALLEST
    while size > buckets * 3 // 4:
        buckets *= 2
    ordered = _by_bucket(keys, buckets)
    for count in copies:
        ordered = _by_bucket(ordered, count)
    return ordered


def copied_buckets(size: int) -> int:
    """Return how many buckets the copy of a map with a number of entries has, as of Java 8 to 18."""
    return 1 << (size * 4 // 3).bit_length() if size else 1


def _by_bucket(keys: Iterable[str], buckets: int) -> list[str]:
    return sorted(keys, key=lambda key: _hash(key) % buckets)


def _hash(key: str) -> int:
    code = 0
    for unit in memoryview(key.encode("utf-16-le", "surrogatepass")).cast("H"):
        code = (31 * code + unit) & 0xFFFFFFFF
    return code ^ code >> 16
