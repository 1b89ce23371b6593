"""Data files: uploaded files that jobs open by their paths."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import attrs

from jobserver_core.models.validation import aware, non_negative

__all__ = ["DataFile"]


@attrs.frozen(kw_only=True)
class DataFile:
    """A data file on the server's machine. ``path`` is absolute, and ``size`` is in bytes."""

    path: Path
    size: int = attrs.field(validator=non_negative)
    created_at: datetime = attrs.field(validator=aware)
