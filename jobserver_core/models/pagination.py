"""Cursors of job pages: the end of a page, as an opaque string for clients."""

from __future__ import annotations

import base64
import json
import zlib
from datetime import datetime, timezone

from jobserver_core.errors import InvalidRequest
from jobserver_core.models.jobs import Job

__all__ = ["decode_cursor", "encode_cursor"]

_LIMIT = 4096


def encode_cursor(last: Job) -> str:
    """Return the cursor of the page after the one that ends with this job."""
    submitted = last.submitted_at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    body = json.dumps([submitted, last.id], separators=(",", ":")).encode("ascii")
    return _text(_checksum(body) + body)


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Return ``submitted_at`` and ``id`` of the last job of the previous page.

    A checksum detects truncated and modified cursors. It is not a security feature: a forged cursor only
    selects another position in the list.

    Raises:
        InvalidRequest: The cursor was not created by :func:`encode_cursor`.
    """
    try:
        return _decode(cursor)
    except (ValueError, TypeError) as error:
        message = "invalid cursor; expected the unmodified 'next' of the previous page"
        raise InvalidRequest(message=message) from error


def _decode(cursor: str) -> tuple[datetime, str]:
    if len(cursor) > _LIMIT:
        raise ValueError("too long")
    raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    checksum, body = raw[:4], raw[4:]
    if checksum != _checksum(body) or cursor != _text(raw):
        raise ValueError("wrong checksum")
    submitted, job_id = json.loads(body)
    position = datetime.fromisoformat(submitted), job_id
    if not isinstance(job_id, str) or position[0].tzinfo is None:
        raise ValueError("not a position")
    return position


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big")
