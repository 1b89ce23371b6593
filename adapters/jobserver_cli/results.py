"""Printing a job's outcome: its result, or an error that helps to find the cause."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.records import JobFields, error_text, missing_code_advice, stack_excerpt, stack_of
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    from jobserver_client.synchronous import StreamedResponse
    from jobserver_core.models.json_values import Json

MAX_SHOWN = 4 * 1024 * 1024
"""The largest result in bytes that is indented on a terminal. Larger ones are copied as they are."""
MAX_CELLS = 1_000_000
"""The largest number of cells of a table."""
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

    def value(self) -> Json:
        """Return the decoded value, whose numbers keep their digits. The result must not be streamed."""
        from jobserver_core.models.json_values import loads  # noqa: PLC0415 - --help does not need it

        return loads(b"".join(self.chunks()).decode("utf-8", "surrogatepass"))


@contextmanager
def _opened(client: CommandClient, job_id: str) -> Iterator[_Result]:
    """Open the result of a finished job.

    Raises:
        CommandFailed: There is no result, or the connection breaks while it is read.
    """
    result: _Result | None = None
    try:
        with client.stream(f"/jobs/{quoted_segment(job_id)}/result", read_timeout=READ_TIMEOUT) as response:
            result = _Result(response)
            yield result
    except CommandFailed as error:
        if result is None or not result.received:
            raise
        message = f"the result was cut off after {result.received} bytes: {error.message}"
        raise CommandFailed(message, error.code, "The output is incomplete.") from error


def print_result(client: CommandClient, terminal: Terminal, job_id: str, *, brief: bool = False) -> None:
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


def print_result_table(client: CommandClient, terminal: Terminal, job_id: str) -> None:
    """Write the result of a finished job to stdout as a table. It is read as a whole.

    Raises:
        CommandFailed: The result is not a table, or is cut off.
    """
    with _opened(client, job_id) as result:
        try:
            found = None if result.streamed else table_of(result.value())
        except (ValueError, RecursionError):  # the server stores large results without looking at them
            found = None
    if found is None:
        raise CommandFailed(
            f"the result of job {job_id} is not a table",
            ExitCode.USAGE,
            "A table is a list of objects, a list of lists of equal length, or an object of plain values.\n"
            f"Get the result with: jobserver result {job_id}",
        )
    columns, rows = found
    if columns:
        terminal.table(columns, rows)
    else:
        terminal.note("the result is empty")


def table_of(value: Json) -> tuple[list[str], list[list[str]]] | None:
    """Return the columns and rows of a JSON value, or None if it is not a table.

    A list of objects has a column for each key, and a list of lists numbered columns. An object has a row for
    each key. An empty list or object has no columns. Objects with so many different keys that they would fill
    more than MAX_CELLS cells are not a table.
    """
    if isinstance(value, dict):
        plain = not any(isinstance(member, dict | list) for member in value.values())
        pairs = [[key, _cell(member)] for key, member in value.items()]
        return (["Key", "Value"] if value else [], pairs) if plain else None
    if not isinstance(value, list):
        return None
    if all(isinstance(row, dict) for row in value):
        keys = list(dict.fromkeys(key for row in value for key in row))
        if len(keys) * len(value) > MAX_CELLS or (value and not keys):
            return None
        return keys, [[_cell(row[key]) if key in row else "" for key in keys] for row in value]
    width = len(value[0]) if isinstance(value[0], list) else 0
    if not width or any(not isinstance(row, list) or len(row) != width for row in value):
        return None
    return [str(number + 1) for number in range(width)], [[_cell(member) for member in row] for row in value]


def _cell(value: Json) -> str:
    """Return a string as it is, and any other value as JSON."""
    from jobserver_core.models.json_values import dumps  # noqa: PLC0415 - --help does not need it

    return value if isinstance(value, str) else dumps(value)


def copy_record(client: CommandClient, terminal: Terminal, job_id: str) -> None:
    """Write a job's record to stdout as JSON, including its result if that is JSON."""
    record = client.job(job_id)
    _copy_with_result(client, terminal, record, record)


def copy_response(client: CommandClient, terminal: Terminal, record: JobFields) -> None:
    """Write the body that a synchronous submit would return for this ended job to stdout."""
    kept = ("jobId",) if record.get("status") == "FINISHED" else ("jobId", "status", "result")
    _copy_with_result(client, terminal, record, {key: value for key, value in record.items() if key in kept})


def _copy_with_result(
    client: CommandClient, terminal: Terminal, record: JobFields, members: Mapping[str, Any]
) -> None:
    if record.get("status") != "FINISHED":
        terminal.json(members)
        return
    with _opened(client, str(record["jobId"])) as result:
        if result.streamed:
            terminal.json({**members, "result": STREAM_PLACEHOLDER})
        elif terminal.out.is_terminal and not result.large:
            terminal.json({**members, "result": result.value()})
        else:
            head = json.dumps(members)[:-1] + ', "result": '
            terminal.copy(itertools.chain([head.encode()], result.chunks(), [b"}\n"]))


def failed(client: CommandClient, record: JobFields) -> CommandFailed:
    """Return the error for a job that ended without a result, with advice where to find the cause."""
    job_id, context = str(record.get("jobId")), str(record.get("context", ""))
    result = record.get("result")
    stack = stack_of(result)
    message = f"the job ended {record.get('status')}: {error_text(result)}"
    advice = [hint] if (hint := missing_code_advice(result)) else []
    if stack:
        advice.append(f"Full traceback: jobserver job {job_id}")
    if _has_log(client, f"/jobs/{quoted_segment(job_id)}/logs"):
        advice.append(f"Output of the job: jobserver logs {job_id}")
    if not stack and _has_log(client, f"/contexts/{quoted_segment(context)}/logs"):
        advice.append(f"Log of its context's driver: jobserver logs --context {shlex.quote(context)}")
    said = str(result.get("message", "")) if isinstance(result, Mapping) else ""
    excerpt = stack_excerpt(stack, str(record.get("classPath", "")), message=said)
    lines = "\n".join([message, *excerpt])
    return CommandFailed(lines, ExitCode.JOB_FAILED, "\n".join(advice) or None)


def _has_log(client: CommandClient, path: str) -> bool:
    """Return whether a log is non-empty, without reading it."""
    response = client.send("HEAD", path, accept_errors=True)
    return not response.is_error and response.headers.get("content-length") != "0"
