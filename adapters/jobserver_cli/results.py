"""A job's end: its result, copied or shown, or the failure that a person can act on."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.reports import error_text, stack_excerpt
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    import httpx

__all__ = ["copy_answer", "copy_report", "failed", "print_result"]

SHOWN = 4 * 1024 * 1024
"""Bytes of a result that a terminal is shown; a pipe or a file gets all of it."""
QUIET = 90.0
"""Seconds without a byte after which a result is given up."""
STREAM_PLACEHOLDER = "<Stream result>"
"""What stands for a streamed result in JSON, as in callbacks."""


class _Result:
    """A result that is being read, and how many bytes of it came so far."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.streamed = not response.headers.get("content-type", "").startswith("application/json")
        self.large = int(response.headers.get("content-length", SHOWN + 1)) > SHOWN
        self.received = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they come."""
        for chunk in self._response.iter_bytes():
            self.received += len(chunk)
            yield chunk

    def value(self) -> Any:
        """Return the value of one that is neither streamed nor large."""
        return json.loads(b"".join(self.chunks()))


@contextmanager
def _opened(client: Client, job_id: str) -> Iterator[_Result]:
    """Open a finished job's result. Raises CommandFailed, also when it breaks off while it is read."""
    result: _Result | None = None
    try:
        with client.stream(f"/jobs/{segment(job_id)}/result", patience=QUIET) as response:
            result = _Result(response)
            yield result
    except CommandFailed as error:
        if result is None or not result.received:
            raise
        message = f"the result broke off after {result.received} bytes: {error.message}"
        raise CommandFailed(message, error.code, "What was written is not complete.") from error


def print_result(client: Client, terminal: Terminal, job_id: str, *, brief: bool = False) -> None:
    """Write a finished job's result to stdout, never whole in memory: a value as JSON, a stream as its bytes.

    On a terminal JSON is indented. With ``brief`` only a pointer is shown to what is large or streamed.
    Raises CommandFailed when the result breaks off.
    """
    with _opened(client, job_id) as result:
        if result.streamed and terminal.as_json:
            raise CommandFailed(
                "a streamed result is bytes, not JSON",
                ExitCode.USAGE,
                f"Get the bytes with: jobserver result {job_id} > FILE",
            )
        if brief and (result.streamed or result.large):
            what = "streamed" if result.streamed else "large"
            terminal.note(f"The result is {what}; get it with: jobserver result {job_id} > FILE")
        elif result.streamed:
            terminal.copy(result.chunks())
        elif terminal.out.is_terminal and not result.large:
            terminal.json(result.value())
        else:
            terminal.copy(itertools.chain(result.chunks(), [b"\n"]))


def copy_report(client: Client, terminal: Terminal, job_id: str) -> None:
    """Write a job's report to stdout as JSON, with its result when that is JSON."""
    report = client.get(f"/jobs/{segment(job_id)}", result="false")
    _copy_with_result(client, terminal, report, report)


def copy_answer(client: Client, terminal: Terminal, report: Mapping[str, Any]) -> None:
    """Write to stdout what a synchronous submit answers when the job of this report has ended."""
    kept = ("jobId",) if report.get("status") == "FINISHED" else ("jobId", "status", "result")
    _copy_with_result(client, terminal, report, {key: report[key] for key in kept if key in report})


def _copy_with_result(
    client: Client, terminal: Terminal, report: Mapping[str, Any], members: Mapping[str, Any]
) -> None:
    if report.get("status") != "FINISHED":
        terminal.json(members)
        return
    with _opened(client, str(report["jobId"])) as result:
        if result.streamed:
            terminal.json({**members, "result": STREAM_PLACEHOLDER})
        elif terminal.out.is_terminal and not result.large:
            terminal.json({**members, "result": result.value()})
        else:
            head = json.dumps(members)[:-1] + ', "result": '
            terminal.copy(itertools.chain([head.encode()], result.chunks(), [b"}\n"]))


def failed(client: Client, report: Mapping[str, Any]) -> CommandFailed:
    """Return the failure of a command whose job ended without a result: what, where, and where to look."""
    job_id, context = str(report.get("jobId")), str(report.get("context", ""))
    result = report.get("result")
    stack = result.get("stack") if isinstance(result, Mapping) else None
    message = f"the job ended {report.get('status')}: {error_text(result)}"
    advice = []
    if stack:
        advice.append(f"The whole traceback: jobserver job {job_id}")
    if _has_log(client, f"/jobs/{segment(job_id)}/logs"):
        advice.append(f"What it printed: jobserver logs {job_id}")
    if not stack and _has_log(client, f"/contexts/{segment(context)}/logs"):
        advice.append(f"What its context's driver logged: jobserver logs --context {shlex.quote(context)}")
    lines = "\n".join([message, *stack_excerpt(stack)])
    return CommandFailed(lines, ExitCode.JOB_FAILED, "\n".join(advice) or None)


def _has_log(client: Client, path: str) -> bool:
    """Return whether a log has a byte, without reading it."""
    response = client.send("HEAD", path, accept_errors=True)
    return not response.is_error and response.headers.get("content-length") != "0"
