"""Exit codes, and the exception that ends a command with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of all commands, each with a one-line explanation. Their meanings are stable."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """Create the member: a number with its meaning."""
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    OK = 0, "success"
    JOB_FAILED = 1, "the job failed, was killed, or rejected its configuration"
    USAGE = 2, "an argument, an input file or the configuration is invalid"
    UNREACHABLE = 3, "no job server answers at the given address"
    REFUSED = 4, "the server refused the request, or the named object does not exist"
    TIMED_OUT = 5, "timed out; the operation continues on the server"
    DENIED = 6, "credentials are missing, wrong, or lack the required permission"
    NOT_READY = 7, "something is missing on this machine: a JDK, a package, a free port, a writable directory"
    OUTAGE = 8, "the database or another store does not work now; a later attempt may succeed"
    BUG = 70, "a bug in jobserver; please report it with the printed traceback"
    INTERRUPTED = 130, "interrupted by Ctrl-C"
    PIPE_CLOSED = 141, "the reader of the output closed the pipe, as `head` does"


class CommandFailed(Exception):
    """Ends a command with a message, an exit code, and advice on how to fix the problem.

    ``reason`` is the error code that the server sent, such as ``context_not_found``, and ``detail`` its
    additional explanation. Both are None for errors that the command detected itself.
    """

    def __init__(
        self,
        message: str,
        code: ExitCode = ExitCode.REFUSED,
        advice: str | None = None,
        *,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
        self.reason = reason
        self.detail = detail


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Say which file, given on the command line, could not be read inside the block.

    Raises:
        CommandFailed: It cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror or error}", ExitCode.USAGE) from error
