"""Output is safe, fits the width of the terminal, and goes to the right stream."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from rich.console import Console

from command_line import HOSTILE, LONG, CommandLine, wheel
from conditions import wait_until
from durations import DURATIONS
from jobserver_cli.client import refusal
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.records import (
    callbacks_shown,
    class_shown,
    duration_shown,
    error_text,
    progress_shown,
    stack_excerpt,
    state_shown,
    time_shown,
)
from jobserver_cli.tables import widths
from jobserver_cli.terminal import Terminal, visible
from jobserver_core import BinaryType, JobServer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\n\twith a tab", "plain text\n\twith a tab"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "]0;title"),
        ("a\rb\x08c\x00d\x7fe", "abcde"),
        ("\x9b2Jgone", "2Jgone"),
        ("user\u202etxt.exe", "usertxt.exe"),
        ("größe 数 🎉", "größe 数 🎉"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_terminal_control_sequences_are_removed(text: str, shown: str) -> None:
    assert visible(text) == shown


def on_a_terminal(width: int) -> tuple[Terminal, io.StringIO]:
    terminal, shown = Terminal(), io.StringIO()
    terminal.out = Console(file=shown, width=width, force_terminal=True, color_system=None, highlight=False)
    return terminal, shown


ROW = ("f95e4a5f-c728-4561-9bad-8e8faced0596", "FINISHED", "2026-11-24 07:31", "12.3 s")


def test_a_table_fits_into_80_columns_and_cuts_no_id() -> None:
    terminal, shown = on_a_terminal(80)
    columns, row = ["Job", "State", "Started", "Took", "Class"], (*ROW, "AVeryLongNameOfAClassThatDoesNotFit")
    terminal.table(columns, [row], optional=["Took"])
    lines = shown.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[1].startswith(ROW[0])
    assert "…" in lines[1]


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [
        ([8, 5, 30], 80, [8, 5, 30]),
        ([36, 8, 16, 6, 40], 80, None),
        ([36, 8, 6, 40], 80, [36, 8, 6, 24]),
        ([250, 8, 16], 80, [52, 8, 16]),
        ([250, 8, 40], 80, [47, 8, 21]),
        ([10, 100, 100], 80, [10, 33, 33]),
        ([250, 20, 20], 60, None),
    ],
)
def test_columns_share_the_width_of_the_terminal(
    wanted: list[int], available: int, found: list[int] | None
) -> None:
    assert widths(wanted, available) == found


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["数" * 100, "A_context~with+a-long.name" * 9, "[bold]red[/bold] :smile:"])
def test_a_table_fits_and_shows_the_name_and_state_of_each_row(width: int, name: str) -> None:
    terminal, shown = on_a_terminal(width)
    rows = [
        (name, "RUNNING", "2026-11-24 07:31", "http://host:4040/x" * 9),
        ("warm", "STOPPING", "07:31:12", ""),
    ]
    terminal.table(["Context", "State", "Started", "Spark UI"], rows, optional=["Spark UI", "Started"])
    lines = shown.getvalue().splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert all(word in shown.getvalue() for word in (name[:10], "RUNNING", "warm", "STOPPING"))


def test_a_long_name_is_folded_not_cut() -> None:
    terminal, shown = on_a_terminal(80)
    name = "A_context~with+a-long.name" * 9
    terminal.table(["Context", "State", "Started"], [(name, "RUNNING", "2026-11-24 07:31")])
    lines = shown.getvalue().splitlines()[1:]
    assert "".join(line[:53].strip() for line in lines) == name
    assert lines[0][55:].split("  ") == ["RUNNING", "2026-11-24 07:31"]


def test_a_table_that_is_too_wide_becomes_a_list_of_values() -> None:
    terminal, shown = on_a_terminal(30)
    terminal.table(
        ["Context", "State", "Started"], [("a" * 40, "RUNNING", "07:31"), ("b", "STOPPING", "07:32")]
    )
    assert [line.rstrip() for line in shown.getvalue().splitlines()] == [
        f"Context  {'a' * 21}",
        f"         {'a' * 19}",
        "State    RUNNING",
        "Started  07:31",
        "",
        "Context  b",
        "State    STOPPING",
        "Started  07:32",
    ]


def test_jobs_and_servers_fit_into_60_columns_with_states_and_the_beginning_of_ids() -> None:
    terminal, shown = on_a_terminal(60)
    row = (terminal.id_shown(ROW[0]), *ROW[1:])
    terminal.table(["Job", "State", "Started", "Took", "Class"], [(*row, "AVeryLongNameOfAClass")])
    lines = shown.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 60
    assert lines[1].startswith("f95e4a5f  FINISHED  2026-11-24 07:31  12.3 s  AVery")
    assert on_a_terminal(80)[0].id_shown(ROW[0]) == ROW[0]
    assert Terminal().id_shown(ROW[0]) == ROW[0]


def test_without_a_terminal_output_is_not_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table(["Job", "Class"], [(ROW[0], "x" * 500)])
    assert capsys.readouterr().out.splitlines()[1] == f"{ROW[0]}  {'x' * 500}"


def test_cells_and_records_cannot_steer_the_terminal() -> None:
    terminal, shown = on_a_terminal(80)
    terminal.table(["Job"], [(HOSTILE,)])
    terminal.record({"Error": HOSTILE, "Empty": None})
    terminal.line(HOSTILE)
    terminal.json({"text": HOSTILE})
    assert "\x1b" not in shown.getvalue()
    assert "Empty" not in shown.getvalue()


def test_square_brackets_in_output_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.note("[red]job[/red] :smile:")
    terminal.report_done("[bold]x")
    terminal.line("[1, 2]")
    shown = capsys.readouterr()
    assert shown.err == "[red]job[/red] :smile:\n✓ [bold]x\n"
    assert shown.out == "[1, 2]\n"


def test_json_is_one_line_in_a_pipe_and_indented_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().json({"a": [1, 2]})
    assert capsys.readouterr().out == '{"a": [1, 2]}\n'
    terminal, shown = on_a_terminal(80)
    terminal.json({"a": 1})
    assert shown.getvalue() == '{\n  "a": 1\n}\n'


def test_without_a_terminal_progress_is_a_line_for_each_new_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().status("one") as show:
        show("two")
        show("two")
        show("three")
    assert capsys.readouterr().err == "one\ntwo\nthree\n"


def test_without_a_terminal_what_may_be_refused_is_announced_only_if_it_takes_long(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(CommandFailed), Terminal().status("killing nope", delay=60.0):
        raise CommandFailed("job 'nope' not found", ExitCode.REFUSED)
    assert capfd.readouterr().err == ""
    shown = ""

    def announced() -> bool:
        nonlocal shown
        shown += capfd.readouterr().err
        return bool(shown)

    with Terminal().status("killing it", delay=0.01):
        wait_until(announced)
    assert shown == "killing it\n"


def test_times_in_messages_of_the_server_are_shown_like_all_others() -> None:
    ended = datetime.now(timezone.utc)
    detail = f"it failed at {ended.isoformat(' ', 'seconds')}: no cores left"
    body = {"status": "ERROR", "result": "context warm not found", "detail": detail}
    shown = refusal(httpx.Response(404, json=body), "http://here").message
    local = ended.astimezone()
    assert shown == f"context warm not found: it failed at {local:%H:%M:%S}: no cores left"


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    script = (
        "from jobserver_cli.terminal import Terminal\n"
        "terminal = Terminal()\n"
        "for number in range(100_000): terminal.line('x' * 100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(30), errors) == (ExitCode.PIPE_CLOSED, b"")


NOW = datetime(2026, 6, 19, 12, 0, tzinfo=timezone.utc)


def test_a_time_of_today_is_shown_without_its_date_and_another_with_it() -> None:
    local = NOW.astimezone()
    assert time_shown(NOW.isoformat(), NOW) == f"{local:%H:%M:%S}"
    assert time_shown("2026-06-19T12:00:00.000Z", NOW) == f"{local:%H:%M:%S}"
    earlier = NOW - timedelta(days=30)
    assert time_shown(earlier.isoformat(), NOW) == f"{earlier.astimezone():%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(("text", "shown"), [("Empty", "Empty"), (None, ""), ("", "")])
def test_an_invalid_time_is_shown_unchanged(text: object, shown: str) -> None:
    assert time_shown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *((f"{seconds} secs", shown) for seconds, shown in DURATIONS.items()),
        ("soon", "soon"),
        (None, ""),
    ],
)
def test_a_duration_is_shown_in_few_letters(text: object, shown: str) -> None:
    assert duration_shown(text) == shown


def test_a_class_is_shown_without_its_package_where_room_is_short() -> None:
    assert class_shown("spark.jobserver.WordCount", wide=False) == "WordCount"
    assert class_shown("spark.jobserver.WordCount", wide=True) == "spark.jobserver.WordCount"
    assert class_shown("Main", wide=False) == "Main"


def test_a_state_is_shown_with_what_it_waits_for() -> None:
    assert state_shown({"status": "RUNNING"}) == "RUNNING"
    assert state_shown({"status": "STARTED", "waiting": True}) == "WAITING for a slot or its context"
    assert state_shown({"status": "RUNNING", "killRequested": True}) == "RUNNING, kill requested"


@pytest.mark.parametrize(
    ("delivery", "shown"),
    [
        ({"state": "PENDING", "attempts": 0}, "PENDING"),
        (
            {
                "state": "PENDING",
                "attempts": 2,
                "dueAt": "2020-05-01T12:00:00+00:00",
                "lastError": "Connection refused",
            },
            f"PENDING after 2 attempts, the next at {time_shown('2020-05-01T12:00:00Z')}: Connection refused",
        ),
        (
            {"state": "SENDING", "attempts": 1, "lastStatus": 503},
            "SENDING after 1 attempt: the receiver answered 503",
        ),
        (
            {"state": "ABANDONED", "attempts": 5, "lastError": "no route"},
            "ABANDONED after 5 attempts: no route",
        ),
        ({"state": "DELIVERED", "attempts": 3, "lastStatus": 204}, "DELIVERED"),
    ],
)
def test_a_callback_is_shown_with_its_attempts_and_the_reason_of_the_last(delivery: Any, shown: str) -> None:
    assert callbacks_shown({"callbacks": [delivery]}) == shown


def test_a_job_without_a_callback_shows_none() -> None:
    assert callbacks_shown({}) is callbacks_shown({"callbacks": []}) is None


def test_progress_is_shown_when_some_is_known() -> None:
    progress = {"stagesDone": 1, "stagesTotal": 2, "tasksDone": 3, "tasksTotal": 4}
    assert progress_shown({"progress": progress}) == "stage 1/2, task 3/4"
    assert progress_shown({}) is None
    assert progress_shown({"progress": dict.fromkeys(progress, 0)}) is None


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"errorClass": "ValueError", "message": "no", "stack": ""}, "ValueError: no"),
        ({"message": "killed"}, "killed"),
        ("text", "text"),
        (
            {"errorClass": "ContextTerminated", "message": "terminated", "stack": "out of memory"},
            "ContextTerminated: terminated: out of memory",
        ),
        (
            {"errorClass": "JobKilled", "message": "Job 5 killed", "stack": "by user ann"},
            "JobKilled: Job 5 killed by user ann",
        ),
        ({"errorClass": ["JobKilled"], "message": "no", "stack": "hostile"}, "['JobKilled']: no"),
    ],
)
def test_an_error_is_shown_with_its_class(result: object, shown: str) -> None:
    assert error_text(result) == shown


CHAINED = """Traceback (most recent call last):
  File "/jobs/first.py", line 1, in first
    fail()
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/jobs/words.py", line 1, in run_job
    one()
  File "/jobs/words.py", line 2, in one
    two()
    ^^^
  File "/usr/lib/python3.11/site-packages/pyspark/sql.py", line 3, in sql
    raise converted
ValueError: no
  at the end
"""
JAVA = "java.lang.IllegalStateException: no\n" + "".join(
    f"\tat words.Count.f{n}(Count.scala)\n" for n in range(9)
)


def test_of_a_stack_the_innermost_frames_of_the_jobs_own_code_are_shown() -> None:
    assert stack_excerpt(CHAINED) == [
        '  File "/jobs/words.py", line 1, in run_job',
        "    one()",
        '  File "/jobs/words.py", line 2, in one',
        "    two()",
        "    ^^^",
    ]
    libraries = CHAINED.replace("/jobs/", "/usr/lib/python3.11/")
    assert (
        stack_excerpt(libraries)[-2]
        == '  File "/usr/lib/python3.11/site-packages/pyspark/sql.py", line 3, in sql'
    )
    assert stack_excerpt(JAVA) == [f"  at words.Count.f{n}(Count.scala)" for n in range(3)]
    called = JAVA.replace("at words.Count.f0", "at java.base/java.util.Map.get")
    called = called.replace("at words.Count.f1", "at org.apache.spark.sql.classic.SparkSession.sql")
    assert stack_excerpt(called) == [f"  at words.Count.f{n}(Count.scala)" for n in range(2, 5)]
    of_libraries = JAVA.replace("words.Count", "app//scala.Option")
    assert stack_excerpt(of_libraries) == [f"  at app//scala.Option.f{n}(Count.scala)" for n in range(3)]
    assert stack_excerpt(None) == stack_excerpt("killed") == []


def test_of_a_java_stack_the_frames_of_the_jobs_package_are_shown_and_not_those_of_its_libraries() -> None:
    config = "".join(
        f"\tat com.typesafe.config.impl.SimpleConfig.find{n}(SimpleConfig.java)\n" for n in range(6)
    )
    stack = f"com.typesafe.config.ConfigException$Missing: no\n{config}"
    stack += "\tat app//com.acme.rows.Keys.first(Keys.java:8)\n\tat com.acme.jobs.Count.run(Count.java:18)\n"
    own = ["  at app//com.acme.rows.Keys.first(Keys.java:8)", "  at com.acme.jobs.Count.run(Count.java:18)"]
    assert stack_excerpt(stack, "com.acme.jobs.Count") == own
    assert stack_excerpt(stack.replace("com.acme.", ""), "jobs.Count") == [
        "  at jobs.Count.run(Count.java:18)"
    ]
    assert stack_excerpt(stack.replace("com.acme.jobs.", ""), "Count")[-1] == "  at Count.run(Count.java:18)"
    assert stack_excerpt(stack, "other.Job") == [
        f"  at com.typesafe.config.impl.SimpleConfig.find{n}(SimpleConfig.java)" for n in range(3)
    ]


CRASHED = """Fatal Python error: Segmentation fault

Thread 0x0000000000000001 (most recent call first):
  File "/jobs/other.py", line 9 in waits

Current thread 0x0000000000000002 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/jobs/words.py", line 4 in three
  File "/jobs/words.py", line 3 in two
  File "/jobs/words.py", line 2 in one
  File "/jobs/words.py", line 1 in run_job
  File "/src/jobserver_pyspark/runner/runner.py", line 189 in _perform
  File "/src/jobserver_pyspark/runner/zygote.py", line 94 in main

Extension modules: numpy._core (total: 1)
"""


def test_of_a_crash_the_innermost_frames_of_the_jobs_own_code_are_shown() -> None:
    assert stack_excerpt(CRASHED) == [
        '  File "/jobs/words.py", line 2 in one',
        '  File "/jobs/words.py", line 3 in two',
        '  File "/jobs/words.py", line 4 in three',
    ]


WORKER = "".join(
    f'  File "/spark/python/lib/pyspark.zip/pyspark/worker.py", line {n}, in main\n    process()\n    ~~~^^\n'
    for n in range(9)
)
TRACEBACK = f"""Traceback (most recent call last):
{WORKER}  File "/jobs/words.py", line 5, in <lambda>
    1 / x
    ~~^~~
ZeroDivisionError: division by zero
"""
CALLS = "".join(f"\tat org.apache.spark.api.python.BasePythonRunner.f{n}(Runner.scala)\n" for n in range(30))


@pytest.mark.parametrize(
    "after",
    [
        "",
        f"\n{CALLS}\nDriver stack:\n{CALLS}Caused by: a.PythonException: {TRACEBACK}\n{CALLS}\t... 1 more",
    ],
)
@pytest.mark.parametrize("line", ["", "    1 / x\n" * 40])
def test_the_exception_of_a_task_is_kept_when_its_message_is_cut(after: str, line: str) -> None:
    traceback = TRACEBACK.replace("    1 / x\n", line or "    1 / x\n")
    message = f"An exception was thrown from the Python worker:\n{traceback}{after}"
    shown = error_text({"errorClass": "PythonException", "message": message}).splitlines()
    assert shown[0] == "PythonException: An exception was thrown from the Python worker:"
    assert "ZeroDivisionError: division by zero" in shown
    assert "    ~~^~~" in shown
    assert not [line for line in shown if "worker.py" in line or "BasePythonRunner" in line]
    assert len(shown) <= 14


def test_the_frames_of_a_task_are_shown_once() -> None:
    message = f"\n  An exception was thrown from the Python worker:\n{TRACEBACK}"
    stack = f"""Traceback (most recent call last):
  File "/jobs/sales.py", line 9, in run_job
    frame.collect()
  File "/jobs/words.py", line 5, in <lambda>
    1 / x
    ^^^^^
pyspark.errors.exceptions.captured.PythonException: {message}
"""
    excerpt = stack_excerpt(stack, message=message)
    assert excerpt == ['  File "/jobs/sales.py", line 9, in run_job', "    frame.collect()"]
    assert stack_excerpt(CHAINED, message="no") == stack_excerpt(CHAINED)


def test_the_path_of_a_file_in_an_unpacked_package_begins_in_the_package() -> None:
    text = TRACEBACK.replace("/jobs/", f"/data/pyspark/packages/contents/{'0a' * 32}-wheel/sales/")
    assert '  File "sales/words.py", line 5, in <lambda>' in error_text({"message": text}).splitlines()
    assert stack_excerpt(text)[0] == '  File "sales/words.py", line 5, in <lambda>'


def test_the_cause_of_an_exception_on_the_jvm_is_kept_when_its_message_is_cut() -> None:
    message = f"Job aborted\n{CALLS}Caused by: java.io.IOException: no space\n{CALLS}"
    assert error_text({"message": message}).splitlines() == [
        "Job aborted",
        "  …",
        "Caused by: java.io.IOException: no space",
        "  …",
    ]
    many = "\n".join(map(str, range(100)))
    assert error_text({"message": f"{many}\nCaused by: a.B: no\n{many}"}).splitlines()[-2:] == [
        "Caused by: a.B: no",
        "…",
    ]


def test_a_message_that_carries_a_whole_stack_is_cut() -> None:
    shown = error_text({"errorClass": "E", "message": "\n".join(map(str, range(100)))})
    assert shown.splitlines()[0] == "E: 0"
    assert shown.splitlines()[-1] == "…"
    assert len(shown.splitlines()) == 13


def test_every_exit_code_has_a_meaning_of_its_own() -> None:
    assert len({code.meaning for code in ExitCode}) == len(ExitCode)
    assert os.EX_SOFTWARE == ExitCode.BUG


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_list_fits_into_the_terminal_whatever_the_names(
    client: CommandLine, server: JobServer, width: int, tmp_path: Path
) -> None:
    name = "A_context~with+a-long.name" * 9
    server.create_context(name).result(10)
    server.upload("a long name " * 20 + "x", BinaryType.WHEEL, wheel(tmp_path).read_bytes())
    client("submit", LONG, "--cp", "words", "-c", name, "-d", "input.string = a", "--sync")
    client.environment.setenv("FORCE_COLOR", "1")
    client.environment.setenv("COLUMNS", str(width))
    for command in (
        "jobs",
        "contexts",
        "binaries",
        "binary versions words",
        "servers",
        "storage",
        "job @last",
    ):
        done = client(*command.split())
        assert done.code == 0, done.err
        lines = [visible(line) for line in done.out.splitlines()]
        assert max(cell_len(line) for line in lines) <= width, (command, lines)
    listed = [visible(line) for line in client("contexts").out.splitlines()]
    assert any(line.startswith("warm  ") and "RUNNING" in line for line in listed)
