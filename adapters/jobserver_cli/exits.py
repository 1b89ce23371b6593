"""Exit codes, and the exception that ends a command with one of them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of all commands. Their meanings are stable."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    TIMED_OUT = 5
    DENIED = 6
    NOT_READY = 7
    BUG = 70
    INTERRUPTED = 130
    PIPE_CLOSED = 141

    @property
    def meaning(self) -> str:
        """A one-line explanation of the code."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.JOB_FAILED: "the job failed, was killed, or rejected its configuration",
    ExitCode.USAGE: "an argument, an input file or the configuration is invalid",
    ExitCode.UNREACHABLE: "no job server answers at the given address",
    ExitCode.REFUSED: "the server refused the request, or the named object does not exist",
    ExitCode.TIMED_OUT: "timed out; the operation continues on the server",
    ExitCode.DENIED: "credentials are missing, wrong, or lack the required permission",
    ExitCode.NOT_READY: "something is missing on this machine: a JDK, a package, a free port, disk space",
    ExitCode.BUG: "a bug in jobserver; please report it with the printed traceback",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.PIPE_CLOSED: "the reader of the output closed the pipe, as `head` does",
}


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
