"""Results on stdout: unchanged bytes, either complete or with a failure, and safe on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from command_line import RAW, CommandLine
from jobserver_cli.exits import ExitCode
from jobserver_cli.records import missing_code_advice
from jobserver_cli.results import table_of
from jobserver_core import JobServer
from jobserver_core.models.json_values import Json
from loopback import Loopback

COUNT = ("words.Count", "--cp", "words", "-c", "warm", "-d", "input.string = a b c a b see")


def job(name: str) -> tuple[str, ...]:
    return (f"words.{name}", "--cp", "words", "-c", "warm")


def submitted(client: CommandLine, server: JobServer, name: str) -> str:
    """Submit a job, wait until it has ended, and return its ID."""
    job_id = client("submit", *job(name)).out.strip()
    server.job_handle(job_id).finished.result(10)
    return job_id


def process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command as a separate process, with the environment of this process."""
    return subprocess.Popen([sys.executable, "-m", "jobserver_cli", *arguments], **options)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("way", ["--sync", "--follow"])
def test_a_streamed_result_comes_out_as_its_bytes(tmp_path: Path, way: str) -> None:
    with (tmp_path / "out").open("wb") as out:
        assert process("submit", *job("Raw"), way, stdout=out).wait(60) == 0
    assert (tmp_path / "out").read_bytes() == RAW


def test_result_writes_the_bytes_of_a_streamed_result_into_a_file(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    job_id = submitted(client, server, "Raw")
    with (tmp_path / "out").open("wb") as out:
        assert process("result", job_id, stdout=out).wait(60) == 0
    assert (tmp_path / "out").read_bytes() == RAW


def test_result_writes_a_value_as_json_on_a_line(client: CommandLine, server: JobServer) -> None:
    job_id = client("submit", *COUNT).out.strip()
    done = client("result", job_id, "--wait")
    assert (done.code, done.json) == (0, {"a": 2, "b": 2, "c": 1, "see": 1})
    assert done.out.endswith("}\n")
    assert client("result", job_id).out == done.out


def test_a_large_result_is_written_whole(client: CommandLine, server: JobServer) -> None:
    assert len(client("result", submitted(client, server, "Large")).json) == 5_000_000


def test_in_json_a_streamed_result_is_replaced_by_the_words_of_callbacks(
    client: CommandLine, server: JobServer
) -> None:
    job_id = submitted(client, server, "Raw")
    assert client("job", job_id, "--json").json["result"] == "<Stream result>"
    assert client("submit", *job("Raw"), "--sync", "--json").json["result"] == "<Stream result>"
    done = client("result", job_id, "--json")
    assert (done.code, done.out) == (2, "")
    assert f"jobserver result {job_id} > FILE" in done.err


def test_a_running_job_has_no_result_yet(client: CommandLine, server: JobServer) -> None:
    job_id = client("submit", *job("Sleep")).out.strip()
    done = client("result", job_id)
    assert (done.code, done.out) == (5, "")
    assert f"jobserver result {job_id} --wait" in done.err


def test_a_job_without_a_result_exits_with_1_and_the_reason(client: CommandLine, server: JobServer) -> None:
    done = client("result", submitted(client, server, "Fail"))
    assert (done.code, done.out) == (1, "")
    assert "ERROR: ValueError: no such table: birds" in done.err


def test_a_missing_module_is_shown_with_the_ways_to_provide_it(
    client: CommandLine, server: JobServer
) -> None:
    advice = (
        "rates is in no package of the job: "
        "add one with --package, or set cp or python.executable of its context."
    )
    job_id = submitted(client, server, "Missing")
    for arguments in (("result", job_id), ("submit", *job("Missing"), "--sync")):
        done = client(*arguments)
        assert (done.code, f"  {advice}\n" in done.err) == (1, True)
    assert f"{advice}\n" in client("job", job_id).err
    assert advice not in client("result", submitted(client, server, "Fail")).err


def test_a_job_that_cannot_be_imported_is_refused_with_the_ways_to_provide_a_module(
    jobserver: CommandLine,
) -> None:
    refusal = (
        b'{"status": "JOB LOADING FAILED", "code": "job_loading_failed", '
        b'"result": {"message": "No module named \'rates\'"}}'
    )
    with Loopback(lambda handler: handler.say(400, refusal)) as web:
        done = jobserver("submit", *job("Missing"), "--server", web.url(""))
    said = "✗ JOB LOADING FAILED: No module named 'rates'\n  rates is in no package of the job: "
    assert (done.code, said in done.err) == (4, True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "No module named 'rates.daily'; 'rates' is not a package",
            "If it hides a package, rename the module.",
        ),
        ("No module named 'rates' (the wheel rates is for cp39)", None),
        (
            {
                "errorClass": "pyspark.errors.exceptions.captured.PythonException",
                "message": "Traceback …\nModuleNotFoundError: No module named 'pandas'\n",
            },
            "pandas is in no package",
        ),
        (
            {
                "errorClass": "pyspark.errors.exceptions.base.PySparkImportError",
                "message": "[X] PyArrow >= 18.0.0 must be installed; however, it was not found.",
            },
            "pyarrow is in no package of the job: add one with --package",
        ),
        (
            {"errorClass": "java.lang.ClassNotFoundException", "message": "com.example.Rates"},
            "com.example.Rates is in no jar of the job: add one with --cp, or set cp or dependent-jar-uris",
        ),
        (
            {"errorClass": "java.lang.NoClassDefFoundError", "message": "com/example/Rates$Day"},
            "com.example.Rates$Day is in no jar",
        ),
        (
            "java.lang.NoClassDefFoundError: com/example/Rates\n\tat words.Count.run",
            "com.example.Rates is in no",
        ),
        ("java.lang.NoClassDefFoundError: Could not initialize class com.example.Rates", None),
        ("java.lang.NoClassDefFoundError: com/example/rates (wrong name: com/example/Rates)", None),
        (
            "java.lang.ClassNotFoundException: Failed to find data source: rates. Please find packages at …\n"
            "Caused by: java.lang.ClassNotFoundException: rates.DefaultSource",
            None,
        ),
        ({"errorClass": "ValueError", "message": "no such table"}, None),
        ("unknown reason", None),
    ],
)
def test_advice_about_missing_code_follows_from_the_error(error: object, words: str | None) -> None:
    advice = missing_code_advice(error)
    assert (advice is not None and words in advice) if words else advice is None


@pytest.mark.parametrize("way", ["--sync", "--follow"])
def test_a_failure_shows_the_innermost_frames_and_where_the_whole_traceback_is(
    client: CommandLine, server: JobServer, way: str
) -> None:
    done = client("submit", *job("Deep"), way)
    [found] = server.jobs().jobs
    assert done.code == 1
    assert 'raise ValueError("too deep")' in done.err
    assert done.err.count('File "') == 3
    assert f"Full traceback: jobserver job {found.id}\n" in done.err
    assert client("job", found.id).out.count('File "') > 3


def test_a_failure_points_to_a_log_only_when_something_is_in_it(
    client: CommandLine, server: JobServer
) -> None:
    quiet = client("submit", *job("Fail"), "--sync")
    assert "jobserver logs" not in quiet.err
    loud = client("submit", *job("Hostile"), "--sync")
    [newest, *_] = server.jobs().jobs
    assert f"Output of the job: jobserver logs {newest.id}\n" in loud.err
    assert client("logs", newest.id).out != ""


def test_a_pipe_closed_in_the_middle_of_a_result_ends_the_command_quietly(
    client: CommandLine, server: JobServer
) -> None:
    job_id = submitted(client, server, "Large")
    with process("result", job_id, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(3) == b'"xx'
        running.stdout.close()
        assert (running.stderr.read(), running.wait(60)) == (b"", ExitCode.PIPE_CLOSED)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["Raw", "Stream", "Large"])
def test_a_full_disk_is_reported_as_a_full_disk(client: CommandLine, server: JobServer, name: str) -> None:
    check_full_disk("result", submitted(client, server, name))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("binaries",), ("binaries", "--json"), ("completion", "bash")])
@pytest.mark.usefixtures("client")
def test_a_full_disk_is_reported_by_each_kind_of_output(arguments: tuple[str, ...]) -> None:
    check_full_disk(*arguments)


def check_full_disk(*arguments: str) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        process(*arguments, stdout=full, stderr=subprocess.PIPE) as running,
    ):
        assert running.stderr is not None
        errors = running.stderr.read().decode()
        assert running.wait(60) == ExitCode.NOT_READY
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def seen_on_a_terminal(*arguments: str) -> bytes:
    """Return the output of the command when its stdout is a terminal."""
    primary, secondary = pty.openpty()
    running = process(*arguments, stdout=secondary)
    os.close(secondary)
    seen = bytearray()
    try:
        while chunk := os.read(primary, 65536):
            seen += chunk
    except OSError:  # Linux reports a closed writer as an error
        pass
    finally:
        os.close(primary)
    assert running.wait(60) == 0
    return bytes(seen)


def test_on_a_terminal_a_result_and_a_log_cannot_steer_it(client: CommandLine, server: JobServer) -> None:
    streamed, loud = submitted(client, server, "Raw"), submitted(client, server, "Hostile")
    for arguments in (("result", streamed), ("logs", loud)):
        seen = seen_on_a_terminal(*arguments)
        assert b"\x1b" not in seen
        assert b"\x9b" not in seen.replace("\N{REPLACEMENT CHARACTER}".encode(), b"")
        assert b"red" in seen or b"plain" in seen
    assert b"\x1b]0;" not in seen_on_a_terminal("job", loud)


def test_in_a_pipe_a_log_is_what_the_job_printed(client: CommandLine, server: JobServer) -> None:
    loud = submitted(client, server, "Hostile")
    with process("logs", loud, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.read() == server.job_log(loud).read_bytes()
    assert b"\x1b" in server.job_log(loud).read_bytes()


# -- tables ----------------------------------------------------------------------------------------


def echoed(client: CommandLine, server: JobServer, value: str) -> str:
    """Run a job whose result is this JSON value, and return its ID."""
    job_id = client("submit", *job("Echo"), "-d", f'{{"value": {value}}}').out.strip()
    server.job_handle(job_id).finished.result(10)
    return job_id


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (
            '[{"word": "a", "n": 12}, {"n": 1.5, "note": [1, {"b": 2}]}, {"word": "2\\nlines", "n": null}]',
            ["word     n     note", "a        12", '         1.5   [1,{"b":2}]', "2 lines  null"],
        ),
        ('[["a", true], ["b", false]]', ["1  2", "a  true", "b  false"]),
        ('{"a": 2, "see": 1}', ["Key  Value", "a    2", "see  1"]),
    ],
    ids=["objects", "lists", "object"],
)
def test_a_result_is_printed_as_a_table(
    client: CommandLine, server: JobServer, value: str, lines: list[str]
) -> None:
    done = client("result", echoed(client, server, value), "--table")
    assert (done.code, done.out.splitlines(), done.err) == (0, lines, "")


@pytest.mark.parametrize("value", ["[]", "{}"])
def test_an_empty_result_is_an_empty_table(client: CommandLine, server: JobServer, value: str) -> None:
    done = client("result", echoed(client, server, value), "--table")
    assert (done.code, done.out, done.err) == (0, "", "the result is empty\n")


@pytest.mark.parametrize(
    "value", ["7", "null", '"text"', "[1, 2]", "[[1], [1, 2]]", "[[]]", "[{}]", '[{"a": 1}, 2]', '{"a": [1]}']
)
def test_a_result_that_is_not_a_table_exits_with_2(
    client: CommandLine, server: JobServer, value: str
) -> None:
    job_id = echoed(client, server, value)
    done = client("result", job_id, "--table")
    assert (done.code, done.out) == (2, "")
    assert f"the result of job {job_id} is not a table" in done.err
    assert f"Get the result with: jobserver result {job_id}\n" in done.err


def test_a_streamed_result_is_not_a_table(client: CommandLine, server: JobServer) -> None:
    job_id = submitted(client, server, "Raw")
    done = client("result", job_id, "--table")
    assert (done.code, done.out, "is not a table" in done.err) == (2, "", True)
    assert client("result", job_id, "--table", "--json").code == 2


def test_a_table_on_a_terminal_fits_it_and_cannot_steer_it(client: CommandLine, server: JobServer) -> None:
    hostile = r"\u001b[31mred\u001b]0;owned\u0007 [/b]"
    rows = f'[{{"name[/b]{hostile}": "{hostile}", "long": "{"x" * 200}"}}]'
    seen = seen_on_a_terminal("result", echoed(client, server, rows), "--table").decode()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", seen)  # the bold headings
    assert "\x1b" not in plain
    heading, row = plain.splitlines()
    assert heading.split() == ["name[/b]red]0;owned", "[/b]", "long"]
    assert row.startswith("red]0;owned [/b]")
    assert row.endswith("x…")
    assert len(row) <= 80


def test_a_table_too_wide_for_a_terminal_keeps_columns_whose_headings_look_alike(
    client: CommandLine, server: JobServer
) -> None:
    columns = {f"{'wide' * 5}{number}": number for number in range(10)}
    rows = json.dumps([{**columns, "twin": "first", "twin\x07": "second"}])
    seen = seen_on_a_terminal("result", echoed(client, server, rows), "--table").decode()
    assert ("first" in seen, "second" in seen) == (True, True), seen


def test_objects_with_too_many_different_keys_are_not_a_table() -> None:
    rows: list[Json] = [{str(number): number} for number in range(1001)]
    assert table_of(rows[:-1]) is not None
    assert table_of(rows) is None


# -- truncated results -----------------------------------------------------------------------------

Breaking = Callable[[bytes, bytes], str]


@pytest.fixture
def breaking() -> Iterator[Breaking]:
    """Servers with one finished job, whose result breaks off; given the header lines and the bytes."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(headers: bytes, sent: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.split("?")[0].endswith("/result"):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n" + sent)
                    self.close_connection = True
                    return
                body = b'{"jobId": "j", "status": "FINISHED"}' if "/jobs/" in self.path else b"[]"
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        (b"Content-Type: application/octet-stream\r\nContent-Length: 100", b"0123456789"),
        (
            b"Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked",
            b"a\r\n0123456789\r\n5\r\nab",
        ),
        (b"Content-Type: application/json\r\nContent-Length: 100", b"0123456789"),
    ],
    ids=["length", "chunked", "json"],
)
def test_a_truncated_result_exits_with_3(
    jobserver: CommandLine, breaking: Breaking, headers: bytes, sent: bytes
) -> None:
    done = jobserver("result", "j", "--server", breaking(headers, sent))
    assert done.code == 3
    assert done.out.startswith("0123456789")
    assert "the result was cut off after 1" in done.err
    assert "The output is incomplete." in done.err


def test_the_numbers_of_a_table_keep_their_digits(jobserver: CommandLine, breaking: Breaking) -> None:
    sent = b'[{"n": 0.10000000000000000001, "m": 1.50}]'
    headers = b"Content-Type: application/json\r\nContent-Length: %d" % len(sent)
    done = jobserver("result", "j", "--table", "--server", breaking(headers, sent))
    assert done.out.splitlines() == ["n                       m", "0.10000000000000000001  1.50"]
