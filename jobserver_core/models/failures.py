"""Failures of jobs and contexts: the error, and the kind of failure."""

from __future__ import annotations

import traceback
from enum import Enum

import attrs

__all__ = ["ErrorInfo", "FailureKind"]


@attrs.frozen(kw_only=True)
class ErrorInfo:
    """An exception of a job or a context, from Python or the JVM.

    ``error_class`` is the qualified name of the exception's class, and ``stack`` is its traceback.
    """

    message: str
    error_class: str = ""
    stack: str = ""

    @classmethod
    def from_exception(
        cls, error: BaseException, *, message: str | None = None, stack: bool = False
    ) -> ErrorInfo:
        """Describe a Python exception, with its traceback if ``stack``; ``message`` replaces its own."""
        kind = type(error)
        name = kind.__qualname__
        return cls(
            message=message_of(error) if message is None else message,
            error_class=name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}",
            stack="".join(traceback.format_exception(error)) if stack else "",
        )


def message_of(error: BaseException) -> str:
    """Return the message of an exception of code that is not ours, which may be broken itself."""
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - as above
        return f"(its message cannot be read: {type(second).__name__})"


class FailureKind(str, Enum):
    """Why a job ended in the state ERROR. Front ends choose their response by it.

    Attributes:
        RAISED: The job's own code raised an exception.
        VALIDATION: The job's own validation rejected its configuration.
        CLASS_NOT_FOUND: The class path does not contain the class.
        WRONG_TYPE: The class is not a job, or needs another context type.
        LOADING: The code could not be fetched, unpacked or imported.
        CRASHED: The job's process ended unexpectedly: exit, signal, out of memory.
        RESULT: The result could not be stored, or exceeds a limit.
        CONTEXT_INIT: The context that was created for this job could not be started.
        CONTEXT_LOST: The context ended while the job was waiting or running in it.
        QUEUE_TIME: The job waited longer than its limit, and was not started.
        RUN_TIME: The job ran longer than its limit, and was stopped.
    """

    RAISED = "raised"
    VALIDATION = "validation"
    CLASS_NOT_FOUND = "class-not-found"
    WRONG_TYPE = "wrong-type"
    LOADING = "loading"
    CRASHED = "crashed"
    RESULT = "result"
    CONTEXT_INIT = "context-init"
    CONTEXT_LOST = "context-lost"
    QUEUE_TIME = "queue-time"
    RUN_TIME = "run-time"
