"""The error of values that cannot be a result."""

from __future__ import annotations


class UnusableResult(Exception):
    """A result that has no JSON form; the message is for the job's author."""
