"""Submitting, watching and ending jobs from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import HOSTILE, JOBS, CommandLine, wheel
from conditions import wait_until
from jobserver_cli import following
from jobserver_cli.client import CommandClient, ServerOptions
from jobserver_cli.exits import ExitCode
from jobserver_cli.lookups import FULL_LENGTH
from jobserver_cli.terminal import Terminal
from jobserver_core import BinaryType, CallableTransport, JobServer, JobState
from jobserver_core.config.loading import load_settings
from jobserver_core.memory import InlineLauncher
from jobserver_http import running
from loopback import Loopback
from scripted_log import ScriptedLog, a_record

COUNT = ("words.Count", "--cp", "words", "-c", "warm", "-d", "input.string = a b c a b see")
COUNTS = {"a": 2, "b": 2, "c": 1, "see": 1}


def wait_for_state(server: JobServer, job_id: str, state: JobState) -> None:
    wait_until(lambda: server.job(job_id).state is state, lambda: server.job(job_id))


def submitted(client: CommandLine, name: str) -> str:
    return client("submit", f"words.{name}", "--cp", "words", "-c", "warm").out.strip()


def test_a_job_or_context_without_room_is_refused_with_when_to_try_again(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    overrides = {
        "jobserver.http.port": 0,
        "jobserver.http.drain-timeout": "0 s",
        "jobserver.contexts.max-contexts": 1,
        "jobserver.jobs": {"max-jobs-per-context": 1, "max-queued-jobs": 0, "kill-timeout": "0.1 s"},
    }
    server = JobServer.in_memory(launcher=InlineLauncher(JOBS), settings=load_settings(overrides=overrides))
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        with wheel(tmp_path).open("rb") as file:
            server.upload("words", BinaryType.WHEEL, file)
        server.create_context("warm").result(10)
        submitted(jobserver, "Sleep")
        job = jobserver("submit", "words.Sleep", "--cp", "words", "-c", "warm")
        context = jobserver("context", "create", "other")
        alone = jobserver("submit", "words.Sleep", "--cp", "words")
    assert (job.code, context.code) == (ExitCode.REFUSED, ExitCode.REFUSED)
    shown = " ".join(job.err.split())
    assert "(jobserver.jobs.max-jobs-per-context = 1), and no job may wait" in shown
    assert "try again when a job has ended To see the jobs that run and wait: jobserver jobs -c warm" in shown
    assert alone.code == ExitCode.REFUSED
    assert "Without -c, each job starts a context of its own." in " ".join(alone.err.split())
    assert "Try again when a context has ended, or stop one." in " ".join(context.err.split())


def test_submit_prints_the_id_of_the_job_alone_on_stdout(client: CommandLine, server: JobServer) -> None:
    done = client("submit", *COUNT)
    assert done.code == 0
    assert server.job(done.out.strip()).class_name == "words.Count"


def test_submit_with_json_prints_the_record_of_the_contract(client: CommandLine) -> None:
    record = client("submit", *COUNT, "--json").json
    assert (record["classPath"], record["context"]) == ("words.Count", "warm")


@pytest.mark.parametrize("way", [("submit", "--sync"), ("submit", "--follow"), ("run",)])
def test_commands_with_the_same_idempotency_key_get_one_job(
    client: CommandLine, server: JobServer, way: tuple[str, ...]
) -> None:
    command, *options = way
    first = client("submit", *COUNT, "--idempotency-key", "words 2026-01-31")
    again = client("submit", *COUNT, "--idempotency-key", "words 2026-01-31")
    assert (first.code, first.out) == (0, again.out), first.err
    done = client(command, *COUNT, *options, "--idempotency-key", "words 2026-01-31")
    assert (done.code, done.json) == (0, COUNTS)
    assert len(server.jobs().jobs) == 1
    assert client("submit", *COUNT, "--idempotency-key", "words 2026-02-01").out != first.out


def test_the_idempotency_key_of_another_job_is_refused(client: CommandLine) -> None:
    job_id = client("submit", *COUNT, "--idempotency-key", "k").out.strip()
    done = client("submit", *COUNT, "-d", "more = 1", "--idempotency-key", "k")
    assert (done.code, done.out) == (4, "")
    assert "idempotency key 'k' was already used for a different request" in done.err
    assert job_id in done.err


@pytest.mark.parametrize("key", ["", " ", " a", "größe", "a\nb", "x" * 256])
def test_an_idempotency_key_that_a_header_cannot_carry_is_refused(
    client: CommandLine, server: JobServer, key: str, tmp_path: Path
) -> None:
    done = client("run", "words.Count", "--wheel", wheel(tmp_path), "--idempotency-key", key)
    assert (done.code, done.out) == (2, "")
    assert "1 to 255 characters of printable ASCII" in " ".join(done.err.replace("│", " ").split())
    assert len(server.binaries()) == 1, "nothing was uploaded"


@pytest.mark.parametrize(
    "value",
    ["/data/two words.csv", 'it\'s "a"', "${HOME} $x", "größe 数.csv", "a+b:c#d//e", "C:\\new\n", "", "12"],
)
@pytest.mark.parametrize(
    "data", ["input.string = a", '{"input": {"string": "a"}}', "{ input { string: a } } # x"]
)
def test_set_takes_a_string_as_it_is(client: CommandLine, value: str, data: str) -> None:
    done = client(
        "submit", "words.Count", "--cp", "words", "-c", "warm", "-d", data, "-s", f"file.path={value}"
    )
    assert done.code == 0, done.err
    config = client("job", done.out.strip(), "--config").json
    assert config == {"input": {"string": "a"}, "file": {"path": value}}


def test_the_path_of_an_uploaded_file_can_be_set_whatever_its_name(
    client: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "ein 'Name' mit $x.csv"
    file.touch()
    path = client("data", "upload", "birds", file).out.strip()
    done = client("submit", "words.Count", "--cp", "words", "-c", "warm", "--set", f"file={path}")
    assert client("job", done.out.strip(), "--config").json == {"file": path}


@pytest.mark.parametrize("as_json", [False, True])
def test_following_a_log_continues_after_a_restart_of_the_server(
    jobserver: CommandLine, as_json: bool
) -> None:
    with Loopback(ScriptedLog(b"one\ntwo\nthree\n", [5, 9])) as web:
        options = ["--json"] if as_json else []
        done = jobserver("logs", "0" * FULL_LENGTH, "-f", "--server", web.url(""), *options)
    assert done.code == 0, done.err
    assert done.out == ('"one"\n"two"\n"three"\n' if as_json else "one\ntwo\nthree\n")


def test_a_log_whose_server_does_not_return_says_how_to_continue(jobserver: CommandLine) -> None:
    def go_away(script: ScriptedLog, _number: int) -> None:
        script.away = True

    jobserver.environment.setattr("jobserver_cli.client.RECONNECT_TIMEOUT", 0.2)
    job_id = "0" * FULL_LENGTH
    with Loopback(ScriptedLog(b"one\ntwo\n", [4], after=go_away)) as web:
        done = jobserver("logs", job_id, "-f", "--server", web.url(""))
    assert (done.code, done.out) == (ExitCode.UNREACHABLE, "one\n")
    message = " ".join(done.err.split())
    assert (
        f"job {job_id} may have ended. Once the server is reachable again: jobserver logs {job_id}" in message
    )
    assert "jobserver serve" not in message


def test_a_log_whose_client_has_been_closed_has_no_message_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command ends with the reason for which it has closed its client."""
    with CommandClient(ServerOptions()) as client:
        pass
    following._print_log(client, "j1", Terminal())
    assert capsys.readouterr().err == ""


def test_set_needs_a_key(client: CommandLine) -> None:
    done = client("run", "words.Count", "--cp", "words", "--set", "file")
    assert (done.code, "--set takes KEY=VALUE" in done.err) == (2, True)


@pytest.mark.parametrize("command", ["submit", "run"])
def test_settings_of_a_context_that_a_job_in_a_shared_one_does_not_get_cause_a_warning(
    client: CommandLine, command: str
) -> None:
    data = "input.string = a, spark.context-settings.memory-per-node = 2g"
    job = (command, "words.Count", "--cp", "words", "-d", data)
    done = client(*job, "-c", "warm")
    assert done.code == 0
    assert "warning: spark.context-settings has no effect: the job runs in context warm" in done.err
    assert "warning" not in client(*job).err
    assert "warning" not in client(*job[:-1], "input.string = context-settings", "-c", "warm").err


def test_submit_sync_prints_the_result_alone_on_stdout(client: CommandLine) -> None:
    done = client("submit", *COUNT, "--sync")
    assert (done.code, done.json) == (0, COUNTS)


def test_submit_sync_with_json_prints_the_response_of_the_contract(client: CommandLine) -> None:
    response = client("submit", *COUNT, "--sync", "--json").json
    assert response["result"] == COUNTS
    assert set(response) == {"jobId", "result"}


def test_submit_follow_shows_state_progress_and_output_beside_the_result(client: CommandLine) -> None:
    done = client("submit", *COUNT, "--follow")
    assert (done.code, done.json) == (0, COUNTS)
    assert "RUNNING (stages done: 1)" in done.err
    assert "task" not in done.err
    assert "│ counting" in done.err
    assert "FINISHED in" in done.err


def test_submit_follow_with_json_prints_the_last_record_with_the_result(client: CommandLine) -> None:
    record = client("submit", *COUNT, "--follow", "--json").json
    assert (record["status"], record["result"]) == ("FINISHED", COUNTS)


@pytest.mark.parametrize("way", ["--sync", "--follow"])
def test_a_job_that_raises_exits_with_1_and_prints_its_error(client: CommandLine, way: str) -> None:
    done = client("submit", "words.Fail", "--cp", "words", "-c", "warm", way)
    assert (done.code, done.out) == (1, "")
    assert "ERROR: ValueError: no such table: birds" in done.err


@pytest.mark.parametrize("way", ["--sync", "--follow"])
def test_a_job_that_raises_is_also_reported_as_json(client: CommandLine, way: str) -> None:
    done = client("submit", "words.Fail", "--cp", "words", "-c", "warm", way, "--json")
    assert done.code == 1
    assert done.json["result"]["errorClass"] == "ValueError"


@pytest.mark.parametrize("way", [(), ("--sync",), ("--follow",)])
def test_a_job_that_refuses_its_configuration_exits_with_1(client: CommandLine, way: tuple[str, ...]) -> None:
    done = client("submit", "words.Refuse", "--cp", "words", "-c", "warm", *way)
    assert done.code == 1
    assert "VALIDATION FAILED: input.string is missing" in done.err


def test_a_sync_wait_that_times_out_exits_with_5_and_names_the_running_job(
    client: CommandLine, server: JobServer
) -> None:
    done = client("submit", "words.Sleep", "--cp", "words", "-c", "warm", "--sync", "--timeout", 1)
    [job] = server.jobs().jobs
    assert done.code == 5
    assert f"jobserver kill {job.id}" in done.err
    assert job.state is JobState.RUNNING


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("words.Count", "--cp", "wrods"), "binary 'wrods' not found"),
        (("words.Count", "--cp", "wrods"), "Did you mean words? List them with: jobserver binaries"),
        (("words.Count", "--cp", "words", "-c", "wram"), "context 'wram' not found"),
        (
            ("words.Count", "--cp", "words", "-c", "wram"),
            "Did you mean warm? List them with: jobserver contexts",
        ),
        (("words.Other", "--cp", "words", "-c", "warm"), "class words.Other not found in words"),
    ],
)
def test_unknown_names_exit_with_4_and_suggest_similar_ones(
    client: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    done = client("submit", *arguments)
    assert (done.code, done.out) == (4, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("words.Count", "--cp", "words", "-d", "{bad"), "found the end of the text (line 1, column 5)"),
        (("words.Count", "--cp", "words", "-d", "a = ["), "invalid --data: this '[' is never closed"),
        (
            ("words.Count", "--cp", "words", "-d", "q = select a, b"),
            "put a value with commas in double quotes",
        ),
        (("words.Count", "--cp", "words", "-d", "q = select a, b"), "use: --set 'q=select a, b'"),
        (("words.Count", "--cp", "words", "-d", "x = 1", "-d", "q = a:b"), "use: --set q=a:b"),
        (("words.Count", "--cp", "words", "-d", "q=a:b,n=2"), "use: --set q=a:b --set n=2"),
        (("words.Count", "--cp", "words", "-d", "include classpath(x)"), "invalid --data: "),
        (("words.Count", "--cp", "gopher://x/y"), "Malformed URL"),
        (("words.Count", "--cp", "a b:c"), "'a b:c'"),
        (("words.Count", "--cp", ""), "--cp has an empty entry"),
        (
            ("words.Count", "--cp", "words", "--callback", "ftp://x"),
            "✗ --callback 'ftp://x' is not allowed: ",
        ),
        (("words.Count", "--cp", "words", "-d", "@"), "-d @ names no file; expected @FILE, or @- for stdin"),
        (("not a class", "--cp", "words"), "'not a class'"),
        (("words.Count", "--cp", "words", "-d", "a = \udcff"), "UTF-8"),
        (("words.C\udcff", "--cp", "words"), "not UTF-8"),
    ],
)
def test_usage_errors_exit_with_2(client: CommandLine, arguments: tuple[str, ...], words: str) -> None:
    done = client("submit", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize(
    "command", [("submit", "words.Count", "--cp", "words"), ("context", "create", "etl")]
)
def test_a_file_without_the_sign_of_one_is_recognized(
    client: CommandLine, tmp_path: Path, command: tuple[str, ...]
) -> None:
    client.environment.chdir(tmp_path)
    (tmp_path / "my job.conf").write_text("a = 1")
    done = client(*command, "-d", "my job.conf")
    assert (done.code, done.out) == (2, "")
    assert "invalid --data: " in done.err
    assert "Did you mean -d '@my job.conf'?" in done.err
    assert "Did you mean" not in client(*command, "-d", "other.conf").err


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("a=1;b=2", "-d 'a=1, b=2'\n"),
        ("a=1 b.c = x", "-d 'a=1, b.c = x'\n"),
        ("a: [1]; b: 2", "-d 'a: [1], b: 2'\n"),
        ("jdbc = url;user=x", "--set 'jdbc=url;user=x'\n"),
    ],
)
def test_settings_without_a_comma_between_them_are_recognized(
    client: CommandLine, data: str, shown: str
) -> None:
    done = client("submit", "words.Count", "--cp", "words", "-d", data)
    assert (done.code, done.out) == (2, "")
    assert "To set several, separate them with commas: -d" in done.err
    assert shown in done.err


@pytest.mark.parametrize(
    ("data", "quoted"),
    [
        ("{'a': 1}", "'a'"),
        ("input.string = 'a b'", "'a b'"),
        ("a = [1, 'b']", "'b'"),
        ("x { 'y' = 1 }", "'y'"),
        ("{'a': 1, 'b': 'c'}", "'a', 'b', 'c'"),
    ],
)
def test_single_quotes_are_warned_of(client: CommandLine, data: str, quoted: str) -> None:
    done = client("submit", "words.Sleep", "--cp", "words", "-c", "warm", "-d", data)
    assert done.code == 0
    double = quoted.replace("'", '"')
    expected = f"HOCON takes the single quotes in {quoted} as part of it; write {double}"
    assert f"warning: {expected}\n" in done.err


@pytest.mark.parametrize("data", ["a = it's", """{"'a'": "'b'"}""", """sql = "select 'a'" """])
def test_other_single_quotes_are_not_warned_of(client: CommandLine, data: str) -> None:
    done = client("submit", "words.Sleep", "--cp", "words", "-c", "warm", "-d", data)
    assert (done.code, done.err) == (0, "")


def test_a_jar_among_packages_and_packages_of_a_jar_are_sent_to_the_right_option(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    server.upload("sales", BinaryType.JAR, wheel(tmp_path).read_bytes())
    done = client("submit", "words.Count", "--cp", "words", "--package", "sales")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("✗ --package takes wheels, eggs and ZIP files, but sales is a jar\n")
    assert "jobserver context create NAME -s cp=sales" in done.err
    server.upload("rates", BinaryType.JAR, wheel(tmp_path).read_bytes())
    done = client("submit", "words.Count", "--cp", "sales", "--package", "rates")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "✗ --package is for Python jobs\n  Pass all jars of a JVM job with --cp: --cp sales --cp rates\n"
    )


def test_a_user_and_a_context_cannot_be_combined(client: CommandLine, server: JobServer) -> None:
    done = client("submit", "words.Count", "--cp", "words", "-c", "warm", "--proxy-user", "jo e")
    assert (done.code, done.out) == (2, "")
    assert "--proxy-user cannot be combined with --context" in done.err
    assert "jobserver context create NAME -s 'spark.proxy.user=jo e'" in done.err
    assert not server.jobs().jobs
    alone = client("submit", "words.Count", "--cp", "words", "--proxy-user", "joe")
    context = server.context(server.job(alone.out.strip()).context_id)
    assert context.settings["spark"]["proxy"] == {"user": "joe"}


def test_a_job_shows_what_became_of_its_callback(jobserver: CommandLine, tmp_path: Path) -> None:
    overrides = {"jobserver.http.port": 0, "jobserver.callbacks.max-attempts": 1}

    def refuse(message: object) -> None:
        raise ConnectionRefusedError(f"refused {HOSTILE}")

    server = JobServer.in_memory(
        launcher=InlineLauncher(JOBS),
        settings=load_settings(overrides=overrides),
        transports=[CallableTransport(refuse, schemes=("http",))],
    )
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        with wheel(tmp_path).open("rb") as file:
            server.upload("words", BinaryType.WHEEL, file)
        server.create_context("warm").result(10)
        job_id = jobserver("submit", *COUNT, "--callback", "http://receiver").out.strip()
        wait_until(lambda: [one.state.final for one in server.deliveries(job_id)] == [True])
        shown = jobserver("job", job_id).out
    [line] = [line for line in shown.splitlines() if line.startswith("Callback")]
    assert line.startswith("Callback   ABANDONED after 1 attempt: "), line
    assert "refused" in line
    assert "\x1b" not in shown


def test_a_python_job_with_several_packages_learns_where_the_others_belong(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    server.upload("needy", BinaryType.WHEEL, wheel(tmp_path).read_bytes())
    done = client("submit", "words.Count", "--cp", "words", "--cp", "needy", "-c", "warm")
    assert (done.code, done.out) == (2, "")
    assert "a Python job takes one package with --cp, got 2: words, needy" in done.err
    assert "--cp words --package needy" in done.err
    assert "python.paths" in done.err


@pytest.mark.parametrize("command", ["submit", "run"])
def test_further_packages_of_a_python_job_are_names_or_files(
    client: CommandLine, server: JobServer, tmp_path: Path, command: str
) -> None:
    server.upload("needy", BinaryType.WHEEL, wheel(tmp_path).read_bytes())
    zipped = wheel(tmp_path).rename(tmp_path / "rates.zip")
    client(command, *COUNT, "--package", "needy", "--package", zipped)
    [job] = server.jobs().jobs
    assert [entry.source.partition("-")[0] for entry in server.job(job.id).class_path] == [
        "words",
        "needy",
        "rates",
    ]


def test_an_unknown_package_is_named(client: CommandLine) -> None:
    done = client("submit", *COUNT, "--package", "neeedy")
    assert (done.code, "binary 'neeedy' not found" in done.err) == (4, True)
    done = client("submit", *COUNT, "--package", "./neeedy.whl")
    assert (done.code, "--package ./neeedy.whl: file not found" in done.err) == (2, True)


def test_limits_of_time_are_durations_and_a_bare_number_is_seconds(
    client: CommandLine, server: JobServer
) -> None:
    job_id = client(
        "submit", *COUNT, "--max-run-time", "1.5h", "--max-queue-time", "90", "--priority", "-3"
    ).out.strip()
    assert (server.job(job_id).max_run_time, server.job(job_id).max_queue_time) == (5400, 90)
    assert server.job(job_id).priority == -3
    refused = client("submit", *COUNT, "--max-run-time", "soon")
    assert (refused.code, refused.out) == (2, "")
    told = " ".join(refused.err.replace("│", " ").split())
    assert "expected a duration such as 10 s, 500ms or 2 minutes, got 'soon'" in told
    assert told.count("expected") == 1


@pytest.mark.parametrize("timeout", ["1", "1s", "0.5 s", "900ms"])
def test_the_timeout_of_a_wait_is_a_duration_too(
    client: CommandLine, server: JobServer, timeout: str
) -> None:
    done = client("submit", "words.Sleep", "--cp", "words", "-c", "warm", "--sync", "--timeout", timeout)
    [job] = server.jobs().jobs
    assert (done.code, f"job {job.id} is still running after 1 s" in done.err) == (5, True)


@pytest.mark.parametrize(
    ("timeout", "words"),
    [
        ("soon", "expected a duration such as 10 s, 500ms or 2 minutes, got 'soon'"),
        ("3 weeks", "unknown unit of time 'weeks'; expected ns, us, ms, s, m, h or d, as in 10 s"),
        ("0", "must be at least one second, got '0'"),
        ("2d", "must be at most 86400 s, got '2d'"),
    ],
)
def test_a_wrong_timeout_of_a_wait_is_refused_with_what_is_right(
    client: CommandLine, server: JobServer, timeout: str, words: str
) -> None:
    done = client("submit", *COUNT, "--sync", "--timeout", timeout)
    assert (done.code, server.jobs().jobs) == (2, ())
    assert words in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("kill", "nope"),
        ("submit", "words.Count", "--cp", "wrods"),
        ("run", "words.Count", "--wheel", "wrods"),
        ("context", "stop", "wram"),
    ],
)
def test_what_is_refused_is_not_announced(client: CommandLine, arguments: tuple[str, ...]) -> None:
    done = client(*arguments)
    assert (done.code, done.err[0]) == (4, "✗")


def test_sync_and_follow_exclude_each_other(client: CommandLine) -> None:
    assert client("submit", *COUNT, "--sync", "--follow").code == 2


def test_the_configuration_comes_from_a_file_from_stdin_and_from_several_texts(
    client: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "job.conf").write_text('input { string = "a a" }', encoding="utf-8")
    start = ("submit", "words.Count", "--cp", "words", "-c", "warm", "--sync", "-d")
    assert client(*start, f"@{tmp_path}/job.conf").json == {"a": 2}
    assert client(*start, "@-", stdin="input.string = b").json == {"b": 1}
    assert client(*start, "x = c", "-d", "input.string = ${x}").json == {"c": 1}


def test_a_configuration_file_that_is_not_there_is_named(client: CommandLine) -> None:
    done = client("submit", "words.Count", "--cp", "words", "-d", "@nowhere.conf")
    assert done.code == 2
    assert "cannot read nowhere.conf: No such file or directory" in done.err


def test_jobs_lists_the_newest_first_within_80_columns(client: CommandLine) -> None:
    first, second = submitted(client, "Fail"), client("submit", *COUNT).out.strip()
    lines = client("jobs").out.splitlines()
    assert [line.split()[0] for line in lines] == ["Job", second, first]
    assert "ERROR" in lines[2]


def test_jobs_are_filtered_by_state_in_any_case_by_class_context_and_number(client: CommandLine) -> None:
    failed, counted = submitted(client, "Fail"), client("submit", *COUNT).out.strip()

    def listed(*options: object) -> list[str]:
        return [record["jobId"] for record in client("jobs", "--json", *options).json]

    assert listed("--status", "error") == [failed]
    assert listed("--class", "words.Count") == [counted]
    assert listed("--context", "warm", "--limit", 1) == [counted]
    assert listed("--since", "2001-01-01") == [counted, failed]
    assert listed("--since", "2100-01-01") == []


def test_jobs_that_are_shown_as_waiting_can_be_selected_as_such(
    client: CommandLine, server: JobServer
) -> None:
    ids = [submitted(client, "Sleep") for _ in range(server.settings.jobs.max_jobs_per_context + 2)]
    waiting = ids[:-3:-1]  # newest first

    def listed(*options: object) -> list[list[str]]:
        return [line.split()[:2] for line in client("jobs", "--status", *options).out.splitlines()[1:]]

    assert listed("waiting") == [[job_id, "WAITING"] for job_id in waiting]
    assert listed("WAITING", "--limit", 1) == [[waiting[0], "WAITING"]]
    assert [job for job in listed("STARTED") if job[0] in waiting] == listed("WAITING")
    assert listed("WAITING", "--context", "other") == []


@pytest.mark.parametrize(
    ("filters", "hint"),
    [
        (("-c", "wram"), "context 'wram' not found. Did you mean warm? List them with: jobserver contexts"),
        (("--class", "words.sleep"), "has the class words.sleep. Did you mean words.Sleep?"),
        (("--class", "Sleep"), "has the class Sleep. Did you mean words.Sleep?"),
        (("--class", "birds.Owl"), "none of the newest 1000 jobs has the class birds.Owl\n"),
    ],
)
def test_an_empty_list_says_that_the_server_does_not_know_the_name_in_a_filter(
    client: CommandLine, filters: tuple[str, str], hint: str
) -> None:
    client("submit", "words.Sleep", "--cp", "words", "-c", "warm")
    done = client("jobs", *filters)
    assert (done.code, done.out, done.err.startswith("no jobs\n")) == (0, "", True)
    assert hint in done.err
    done = client("jobs", *filters, "--json")
    assert (done.code, done.json, done.err) == (0, [], "")


def test_an_empty_list_of_a_known_context_and_class_has_no_hint(client: CommandLine) -> None:
    client("submit", "words.Sleep", "--cp", "words", "-c", "warm")
    done = client("jobs", "-c", "warm", "--class", "words.Sleep", "--status", "KILLED")
    assert (done.code, done.err) == (0, "no jobs\n")


def test_a_job_that_has_not_ended_shows_the_time_since_its_submission(client: CommandLine) -> None:
    job_id = client("submit", "words.Sleep", "--cp", "words", "-c", "warm").out.strip()
    heading, row = client("jobs").out.splitlines()
    assert re.match(r"\d+ s ", row[heading.index("Duration") :])
    assert re.search(r"^Duration +\d+ s so far$", client("job", job_id).out, re.MULTILINE)


def test_without_jobs_there_is_no_table(client: CommandLine) -> None:
    done = client("jobs")
    assert (done.code, done.out, done.err) == (0, "", "no jobs\n")


def test_job_shows_the_record_and_the_result(client: CommandLine, server: JobServer) -> None:
    job_id = submitted(client, "Stream")
    wait_for_state(server, job_id, JobState.FINISHED)
    lines = client("job", job_id).out.splitlines()
    assert lines[0].split() == ["Job", job_id]
    assert lines[1].split() == ["State", "FINISHED"]
    assert lines[-1].startswith("Duration")
    assert [line.split()[0] for line in lines[4:6]] == ["Submitted", "Started"]
    assert f"jobserver result {job_id} > FILE" in client("job", job_id).err


def test_job_shows_the_stack_of_a_failed_one(client: CommandLine) -> None:
    shown = client("job", submitted(client, "Fail")).out
    assert "Error" in shown
    assert "Traceback (most recent call last)" in shown


def test_a_large_result_is_copied_whole_with_json_and_pointed_to_without(
    client: CommandLine, server: JobServer
) -> None:
    job_id = submitted(client, "Large")
    wait_for_state(server, job_id, JobState.FINISHED)
    shown = client("job", job_id)
    assert "x" * 100 not in shown.out
    assert f"jobserver result {job_id} > FILE" in shown.err
    assert len(client("job", job_id, "--json").json["result"]) == 5_000_000


def test_job_config_prints_what_the_job_was_submitted_with(client: CommandLine) -> None:
    job_id = client("submit", *COUNT).out.strip()
    assert client("job", job_id, "--config").json == {"input": {"string": "a b c a b see"}}


def test_job_follow_begins_in_the_middle_and_ends_with_the_job(client: CommandLine) -> None:
    done = client("job", client("submit", *COUNT).out.strip(), "--follow")
    assert (done.code, done.json) == (0, COUNTS)


@pytest.mark.parametrize(
    "arguments", [("job",), ("job", "--follow"), ("job", "--json"), ("result",), ("kill",), ("logs",)]
)
def test_an_unknown_job_exits_with_4(client: CommandLine, arguments: tuple[str, ...]) -> None:
    done = client(*arguments, "nope")
    assert (done.code, done.out) == (4, "")
    assert "job 'nope' not found" in done.err
    assert "jobserver jobs" in done.err


def test_logs_of_the_name_of_a_context_points_to_its_option(client: CommandLine) -> None:
    client("context", "create", "shared")
    done = client("logs", "shared")
    assert (done.code, "jobserver logs --context shared" in done.err) == (4, True), done.err


def test_kill_ends_jobs_and_says_so(client: CommandLine, server: JobServer) -> None:
    ids = [submitted(client, "Sleep"), submitted(client, "Sleep")]
    done = client("kill", *ids)
    assert done.code == 0
    assert [server.job(job_id).state for job_id in ids] == [JobState.KILLED] * 2
    assert f"{ids[0]} KILLED" in done.err


def test_kill_with_json_prints_a_response_for_each_job(client: CommandLine) -> None:
    job_id = submitted(client, "Sleep")
    assert client("kill", job_id, "--json").json == {job_id: {"status": "KILLED"}}


@pytest.mark.parametrize("name", ["Count", "Fail", "Sleep"])
def test_killing_a_job_that_has_ended_exits_with_4_whatever_its_state(
    client: CommandLine, server: JobServer, name: str
) -> None:
    ended, running = client("submit", *COUNT).out.strip(), submitted(client, "Sleep")
    if name != "Count":
        ended = submitted(client, name)
    if name == "Sleep":
        client("kill", ended)
    wait_until(lambda: server.job(ended).state.final)
    done = client("kill", ended, running)
    assert done.code == 4
    assert done.err.splitlines()[-2:] == [
        f"✗ job {ended} has already ended",
        f"  Show it with: jobserver job {ended}",
    ]
    assert f"✓ {ended}" not in done.err
    assert server.job(running).state is JobState.KILLED, "the other jobs were killed nevertheless"


def test_a_job_that_does_not_end_exits_with_5_and_suggests_force(client: CommandLine) -> None:
    job_id = submitted(client, "Deaf")
    done = client("kill", job_id)
    assert done.code == 5
    assert f"still running: {job_id}" in done.err
    assert f"jobserver kill {job_id} --force" in " ".join(done.err.split())


def test_logs_prints_what_the_job_printed(client: CommandLine, server: JobServer) -> None:
    job_id = client("submit", *COUNT).out.strip()
    assert client("logs", job_id, "--follow").out == "counting\n"
    assert client("logs", job_id).out == "counting\n"
    assert client("logs", job_id, "--json").json == "counting"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_logs_of_a_job_that_waits_say_so(
    client: CommandLine, server: JobServer, options: tuple[str, ...]
) -> None:
    ids = [submitted(client, "Sleep") for _ in range(server.settings.jobs.max_jobs_per_context + 1)]
    done = client("logs", ids[-1], *options)
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        "the job has not started: it waits for context warm or for a slot in it; to see its output: "
        f"jobserver logs {ids[-1]} --follow\n"
    )
    assert client("logs", ids[0], *options).err == ""


def test_logs_of_a_context_are_its_drivers(client: CommandLine) -> None:
    assert client("logs", "--context", "warm").out == "context warm runs inline\n"


@pytest.mark.parametrize("arguments", [(), ("some-job", "--context", "warm")])
def test_logs_accepts_a_job_or_a_context(client: CommandLine, arguments: tuple[str, ...]) -> None:
    done = client("logs", *arguments)
    assert done.code == 2
    assert "either a job, or" in done.err


def test_job_output_on_stderr_cannot_control_the_terminal(client: CommandLine) -> None:
    done = client("submit", "words.Hostile", "--cp", "words", "-c", "warm", "--follow")
    assert HOSTILE not in done.err
    assert "\x1b" not in done.err
    assert "plain" in done.err


RECORD = {
    "jobId": "a" * 32,
    "status": "ERROR",
    "context": "warm",
    "restarts": 2,
    "result": {"errorClass": "ContextTerminated", "message": "terminated", "stack": "out of memory"},
}


def test_a_job_is_shown_with_its_restarts_and_why_its_context_has_ended(jobserver: CommandLine) -> None:
    body = json.dumps(RECORD).encode()
    with Loopback(lambda handler: handler.say(200, body)) as web:
        shown = jobserver("job", RECORD["jobId"], "--server", web.url("")).out
    lines = [line.split(None, 1) for line in shown.splitlines()]
    assert ["Restarts", "2"] in lines
    assert ["Error", "ContextTerminated: terminated: out of memory"] in lines
    assert shown.count("out of memory") == 1


def test_a_log_is_followed_while_another_server_takes_over(jobserver: CommandLine) -> None:
    refused = b"""{"status": "ERROR", "result": "is being taken over; try again", "code": "unavailable",
        "fields": {"message": "is being taken over; try again"}}"""
    with Loopback(lambda handler: handler.say(503, refused)) as web:
        assert jobserver("logs", "a" * 32, "--server", web.url("")).code == 4  # without --follow, at once

        def log(handler: Any) -> None:
            if not handler.path.partition("?")[0].endswith("/logs"):
                handler.say(200, a_record("FINISHED"))
                return
            followed = len([call for call in web.calls if "follow=true" in call.path])
            handler.say(200, b"a line\n") if followed > 2 else handler.say(503, refused)

        web.behave = log
        done = jobserver("logs", "a" * 32, "--follow", "--server", web.url(""))
    assert (done.code, done.out) == (0, "a line\n"), done.err
