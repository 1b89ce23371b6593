"""What uses how much storage."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from jobserver_core.models.validation import non_negative

__all__ = ["MetadataUsage", "StorageUsage"]


@attrs.frozen(kw_only=True)
class MetadataUsage:
    """The number of records of each kind in a metadata store, and the bytes of what they refer to.

    ``binaries`` counts versions. ``results`` counts the jobs with a result, wherever that is stored.
    """

    binaries: int = attrs.field(default=0, validator=non_negative)
    binary_bytes: int = attrs.field(default=0, validator=non_negative)
    contexts: int = attrs.field(default=0, validator=non_negative)
    jobs: int = attrs.field(default=0, validator=non_negative)
    results: int = attrs.field(default=0, validator=non_negative)
    result_bytes: int = attrs.field(default=0, validator=non_negative)
    deliveries: int = attrs.field(default=0, validator=non_negative)


@attrs.frozen(kw_only=True)
class StorageUsage:
    """How much storage one kind of data uses.

    ``size`` is in bytes, None if it is not known separately. ``limits`` has the settings that limit it, by
    their keys, as in a configuration file; None means no limit.
    """

    kind: str
    count: int
    size: int | None = None
    limits: Mapping[str, str | int | None] = attrs.field(factory=dict, hash=False)
