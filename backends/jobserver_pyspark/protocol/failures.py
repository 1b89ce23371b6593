"""Failures of jobs and contexts, with the texts of the language that raised them, and of bounded size."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType

from jobserver_core import results
from jobserver_core.results import RESULT_REFUSED, UnusableResult
from jobserver_pyspark.protocol.messages import ErrorDetails, JobFailureKind

_MAX_MESSAGE = 64 * 1024
"""The most characters of a message: some of Spark's contain a whole query plan."""
_MAX_ERROR_CLASS = 1024
"""The most characters of the name of an exception's class; a job may generate its classes."""
_MAX_STACK = 256 * 1024
"""The most characters of a stack; with the message, it has to fit into the header of a frame."""
_OWN = tuple(
    f"{path}{os.sep}" for path in (Path(__file__).parents[1] / "runner", *map(Path, results.__path__))
)
"""Frames of files in these directories are our own, wherever they are in the traceback of a job."""


class JobFailure(Exception):
    """A job cannot continue."""

    def __init__(self, kind: JobFailureKind, message: str, *, error_class: str = "", stack: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.error = bounded(ErrorDetails(message=message, error_class=error_class, stack=stack))

    @classmethod
    def of_result(cls, job: object, error: UnusableResult) -> JobFailure:
        """Return the failure for an unusable result of a job's ``run_job``."""
        message = f"{qualified_name(type(job))}.run_job: {error}"
        return cls("result", message, error_class=RESULT_REFUSED)

    @classmethod
    def of(cls, kind: JobFailureKind, error: BaseException, *, message: str | None = None) -> JobFailure:
        """Convert an exception to a failure, without the frame that called the job."""
        details = details_of(error, without_caller=True)
        return cls(kind, message or details.message, error_class=details.error_class, stack=details.stack)


class ContextFailure(Exception):
    """A context cannot start, or cannot continue."""

    def __init__(self, message: str, *, error_class: str = "", stack: str = "") -> None:
        super().__init__(message)
        self.error = bounded(ErrorDetails(message=message, error_class=error_class, stack=stack))


def details_of(error: BaseException, *, without_caller: bool = False) -> ErrorDetails:
    """Convert an exception for a message. ``without_caller`` leaves out the first frame of its traceback."""
    trace = error.__traceback__
    if without_caller and trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = qualified_name(type(error))
    return bounded(ErrorDetails(message=describe(error), error_class=name, stack=_stack(error, trace)))


def describe(error: BaseException) -> str:
    """Return the message of an exception, or its class if it has none."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a job's exception may be broken itself
        text = f"(its message cannot be read: {type(second).__name__})"
    return text or type(error).__name__


def bounded(error: ErrorDetails) -> ErrorDetails:
    """Return an error whose texts fit into a frame; the middle of long texts is left out."""
    return ErrorDetails(
        message=_shortened(error.message, _MAX_MESSAGE),
        error_class=_shortened(error.error_class, _MAX_ERROR_CLASS),
        stack=_shortened(error.stack, _MAX_STACK),
    )


def qualified_name(kind: type) -> str:
    """Return the name of a class as a traceback shows it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack(error: BaseException, trace: TracebackType | None) -> str:
    try:
        shown = traceback.TracebackException(type(error), error, trace)
        if of_the_job := [frame for frame in shown.stack if not frame.filename.startswith(_OWN)]:
            shown.stack[:] = of_the_job
        return "".join(shown.format())
    except Exception as second:  # noqa: BLE001 - as above
        return f"(the traceback cannot be read: {type(second).__name__})"


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    note = f"\n[{len(text) - limit} characters left out]\n"
    half = (limit - len(note)) // 2
    return f"{text[:half]}{note}{text[-half:]}"
