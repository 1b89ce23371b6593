"""Data files: uploaded files that jobs read by their path."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import attrs

from jobserver_core.models.validation import aware, non_negative

__all__ = ["DataFile"]


@attrs.frozen(kw_only=True)
class DataFile:
    """One data file on the server's machine: its full path, and its size in bytes."""

    path: Path
    size: int = attrs.field(validator=non_negative)
    created_at: datetime = attrs.field(validator=aware)
