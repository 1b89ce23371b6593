"""How the failure of a job is told: in the words of the language that raised it, and bounded."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

__all__ = ["Failure", "UnusableResult", "bounded_fields", "describe"]

_MAX_MESSAGE = 64 * 1024
_MAX_STACK = 256 * 1024


class UnusableResult(Exception):
    """A result that has no JSON form, in words for the job's author."""


class Failure(Exception):
    """A job cannot go on; ``kind`` is the value of a :class:`jobserver_core.models.failures.FailureKind`."""

    def __init__(self, kind: str, message: str, *, error_class: str = "", stack: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.error = {
            "message": _bounded(message, _MAX_MESSAGE),
            "error_class": error_class,
            "stack": _bounded(stack, _MAX_STACK),
        }

    @classmethod
    def of(cls, kind: str, error: BaseException, *, skip: int = 0, message: str | None = None) -> Failure:
        """Return the failure that an exception is; ``skip`` frames of the traceback are our own."""
        return cls(kind, message or describe(error), error_class=_qualified(error), stack=_stack(error, skip))


def describe(error: BaseException) -> str:
    """Return what an exception says, or its class when it says nothing."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a job's exception may be broken itself
        text = f"(its message cannot be told: {type(second).__name__})"
    return text or type(error).__name__


def _qualified(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack(error: BaseException, skip: int) -> str:
    trace: TracebackType | None = error.__traceback__
    for _ in range(skip):
        if trace is None or trace.tb_next is None:
            break
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception as second:  # noqa: BLE001 - as above
        return f"(the traceback cannot be told: {type(second).__name__})"


def _bounded(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - limit} characters left out]\n{text[-half:]}"


def bounded_fields(error: Any) -> dict[str, str]:
    """Return what a job's process told as an error as three bounded texts, whatever it really is."""
    source = error if isinstance(error, dict) else {}
    limits = {"message": _MAX_MESSAGE, "error_class": 1024, "stack": _MAX_STACK}
    return {name: _bounded(str(source.get(name, "")), limit + 200) for name, limit in limits.items()}
