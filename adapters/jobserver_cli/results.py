"""A job's end: its result, copied or shown, or the failure that a person can act on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
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


def print_result(client: Client, terminal: Terminal, job_id: str, *, brief: bool = False) -> None:
    """Write a finished job's result to stdout, never whole in memory: a value as JSON, a stream as its bytes.

    On a terminal JSON is indented. With ``brief`` a terminal gets only a pointer to what is large or
    streamed. Raises CommandFailed when the result breaks off.
    """
    with client.stream(f"/jobs/{segment(job_id)}/result", patience=QUIET) as response:
        streamed = _is_stream(response)
        if streamed and terminal.as_json:
            raise CommandFailed(
                "a streamed result is bytes, not JSON",
                ExitCode.USAGE,
                f"Get the bytes with: jobserver result {job_id} > FILE",
            )
        if terminal.out.is_terminal and not streamed and _size(response) <= SHOWN:
            terminal.json(json.loads(response.read()))
        elif brief and (streamed or terminal.out.is_terminal):
            what = "streamed" if streamed else "large"
            terminal.note(f"The result is {what}; get it with: jobserver result {job_id} > FILE")
        else:
            _copy(terminal, response.iter_bytes(), "" if streamed else "\n")


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
    with client.stream(f"/jobs/{segment(str(report['jobId']))}/result", patience=QUIET) as response:
        if _is_stream(response):
            terminal.json({**members, "result": STREAM_PLACEHOLDER})
        elif terminal.out.is_terminal and _size(response) <= SHOWN:
            terminal.json({**members, "result": json.loads(response.read())})
        else:
            head = json.dumps(members)[:-1] + ', "result": '
            _copy(terminal, _with_ends(head.encode(), response.iter_bytes(), b"}"), "\n")


def _with_ends(head: bytes, chunks: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    yield from chunks
    yield tail


def _is_stream(response: httpx.Response) -> bool:
    return not response.headers.get("content-type", "").startswith("application/json")


def _size(response: httpx.Response) -> int:
    return int(response.headers.get("content-length", SHOWN + 1))


def _copy(terminal: Terminal, chunks: Iterator[bytes], end: str) -> None:
    written = 0

    def counted() -> Iterator[bytes]:
        nonlocal written
        for chunk in chunks:
            written += len(chunk)
            yield chunk

    try:
        terminal.copy(counted())
    except CommandFailed as error:
        message = f"the result broke off after {written} bytes: {error.message}"
        raise CommandFailed(message, error.code, "What was written is not complete.") from error
    if end:
        terminal.copy([end.encode()])


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
