"""How a command ends: the exit codes, and the one exception that stands for them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CommandFailed", "ExitCode"]


class ExitCode(IntEnum):
    """The exit codes of every command; their meaning never changes."""

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
        """What this code says, in one line."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.JOB_FAILED: "the job ended with an error, was killed, or refused its configuration",
    ExitCode.USAGE: "the command line, a file that it names or the configuration is not right",
    ExitCode.UNREACHABLE: "no job server answers at the given address",
    ExitCode.REFUSED: "the server refused, or what was named does not exist there",
    ExitCode.TIMED_OUT: "not done in time; what was asked for goes on",
    ExitCode.DENIED: "credentials are missing or wrong, or lack the permission",
    ExitCode.NOT_READY: "this machine lacks something: a JDK, a package, a free port, disk space",
    ExitCode.BUG: "a mistake in jobserver itself; please report what was printed",
    ExitCode.INTERRUPTED: "ended by Ctrl-C",
    ExitCode.PIPE_CLOSED: "whoever read the output stopped reading, as `head` does",
}


class CommandFailed(Exception):
    """Ends a command with a message, an exit code, and advice on what to do about it.

    ``reason`` is the server's own code for a refusal, such as ``context_not_found``, and ``detail`` what
    it says beyond its fixed words; both are None for what the command found out by itself.
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
