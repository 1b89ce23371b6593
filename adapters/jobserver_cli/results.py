"""Printing a job's outcome: its result, or an error that helps to find the cause."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.reports import JobReport, error_text, stack_excerpt
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    from jobserver_client.synchronous import StreamedResponse

MAX_SHOWN = 4 * 1024 * 1024
"""The largest result in bytes that is indented on a terminal. Larger ones are copied as they are."""
READ_TIMEOUT = 90.0
"""Seconds without a byte after which reading a result fails."""
STREAM_PLACEHOLDER = "<Stream result>"
"""Replaces a streamed result in JSON, as in callbacks."""


class _Result:
    """A result that is being read, with the number of bytes received so far."""

    def __init__(self, streamed: StreamedResponse) -> None:
        headers = streamed.response.headers
        self._response = streamed
        self.streamed = not headers.get("content-type", "").startswith("application/json")
        self.large = int(headers.get("content-length", MAX_SHOWN + 1)) > MAX_SHOWN
        self.received = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive."""
        for chunk in self._response.iter_bytes():
            self.received += len(chunk)
            yield chunk

    def value(self) -> Any:
        """Return the decoded value. The result must not be streamed or large."""
        return json.loads(b"".join(self.chunks()))


@contextmanager
def _opened(client: Client, job_id: str) -> Iterator[_Result]:
    """Open the result of a finished job.

    Raises:
        CommandFailed: There is no result, or the connection breaks while it is read.
    """
    result: _Result | None = None
    try:
        with client.stream(f"/jobs/{segment(job_id)}/result", read_timeout=READ_TIMEOUT) as response:
            result = _Result(response)
            yield result
    except CommandFailed as error:
        if result is None or not result.received:
            raise
        message = f"the result was cut off after {result.received} bytes: {error.message}"
        raise CommandFailed(message, error.code, "The output is incomplete.") from error


def print_result(client: Client, terminal: Terminal, job_id: str, *, brief: bool = False) -> None:
    """Write the result of a finished job to stdout: JSON, or the bytes of a streamed result.

    Results of any size are copied in chunks. On a terminal, JSON is indented. With ``brief``, only a hint is
    printed for a large or streamed result.

    Raises:
        CommandFailed: The result is cut off.
    """
    with _opened(client, job_id) as result:
        if result.streamed and terminal.as_json:
            raise CommandFailed(
                "a streamed result is bytes, not JSON",
                ExitCode.USAGE,
                f"Save the bytes with: jobserver result {job_id} > FILE",
            )
        if brief and (result.streamed or result.large):
            kind = "streamed" if result.streamed else "large"
            terminal.note(f"The result is {kind}; save it with: jobserver result {job_id} > FILE")
        elif result.streamed:
            terminal.copy(result.chunks())
        elif terminal.out.is_terminal and not result.large:
            terminal.json(result.value())
        else:
            terminal.copy(itertools.chain(result.chunks(), [b"\n"]))


def copy_report(client: Client, terminal: Terminal, job_id: str) -> None:
    """Write a job's report to stdout as JSON, including its result if that is JSON."""
    report = client.get(f"/jobs/{segment(job_id)}", result="false")
    _copy_with_result(client, terminal, report, report)


def copy_response(client: Client, terminal: Terminal, report: JobReport) -> None:
    """Write the body that a synchronous submit would return for this ended job to stdout."""
    kept = ("jobId",) if report.get("status") == "FINISHED" else ("jobId", "status", "result")
    _copy_with_result(client, terminal, report, {key: value for key, value in report.items() if key in kept})


def _copy_with_result(
    client: Client, terminal: Terminal, report: JobReport, members: Mapping[str, Any]
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


def failed(client: Client, report: JobReport) -> CommandFailed:
    """Return the error for a job that ended without a result, with advice where to find the cause."""
    job_id, context = str(report.get("jobId")), str(report.get("context", ""))
    result = report.get("result")
    stack = result.get("stack") if isinstance(result, Mapping) else None
    message = f"the job ended {report.get('status')}: {error_text(result)}"
    advice = []
    if stack:
        advice.append(f"Full traceback: jobserver job {job_id}")
    if _has_log(client, f"/jobs/{segment(job_id)}/logs"):
        advice.append(f"Output of the job: jobserver logs {job_id}")
    if not stack and _has_log(client, f"/contexts/{segment(context)}/logs"):
        advice.append(f"Log of its context's driver: jobserver logs --context {shlex.quote(context)}")
    lines = "\n".join([message, *stack_excerpt(stack)])
    return CommandFailed(lines, ExitCode.JOB_FAILED, "\n".join(advice) or None)


def _has_log(client: Client, path: str) -> bool:
    """Return whether a log is non-empty, without reading it."""
    response = client.send("HEAD", path, accept_errors=True)
    return not response.is_error and response.headers.get("content-length") != "0"
