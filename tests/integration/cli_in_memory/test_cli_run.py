"""Running a job in one step, and the commands that begin with a noun."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from command_line import CommandLine, wheel
from jobserver_cli.exits import ExitCode
from jobserver_core import ContextState, JobServer, load_settings
from jobserver_core.ports import ContextEnd
from jobserver_http import running
from jobserver_http.credential_files import hash_token
from serving import ScriptedLauncher, upload


def test_run_uploads_creates_the_context_and_prints_the_result(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    file = wheel(tmp_path)
    command = ("run", "words.Count", "--wheel", file, "-c", "fresh", "-d", "input.string = a b a")
    first = client(*command)
    assert (first.code, first.json) == (0, {"a": 2, "b": 1}), first.err
    assert "fresh is ready" in first.err
    assert f"uploaded {file.name} as words-0.1-" in first.err
    assert "counting" in first.err
    again = client(*command)
    assert (again.code, again.json) == (0, {"a": 2, "b": 1})
    assert "uploaded" not in again.err
    assert "is ready" not in again.err
    assert len(server.binaries()) == 2  # that of the fixture, and the uploaded one


def test_run_starts_a_context_again_that_has_ended(client: CommandLine, server: JobServer) -> None:
    server.stop_context("warm").result(10)
    done = client("run", "words.Count", "--cp", "words", "-c", "warm", "-d", "input.string = a")
    assert done.code == 0
    assert server.context("warm").state is ContextState.RUNNING


def test_run_mentions_a_live_context_with_a_similar_name(client: CommandLine) -> None:
    run = ("run", "words.Count", "--cp", "words", "-d", "input.string = a", "-c")
    typo, other = client(*run, "wram"), client(*run, "fleet")
    assert (typo.code, other.code) == (0, 0)
    assert "no context wram is live, so it is started; did you mean warm, which is live?" in typo.err
    assert "did you mean" not in other.err


def test_run_starts_no_context_for_code_that_the_server_lacks(client: CommandLine, server: JobServer) -> None:
    done = client("run", "words.Count", "--wheel", "nothere", "-c", "fresh")
    assert (done.code, "binary 'nothere' not found" in done.err) == (4, True)
    assert "starting" not in done.err
    assert [context.name for context in server.contexts()] == ["warm"]
    assert client("contexts", "--ended").err == "no ended contexts\n"


def test_run_starts_the_context_for_a_user_who_may_not_list_binaries(
    jobserver: CommandLine, start_guarded: Callable[[str, str], AbstractContextManager[str]]
) -> None:
    token = "0123456789abcdef" * 2
    with start_guarded("", f"robot:{hash_token(token)}:jobs,contexts\n") as url:
        done = jobserver("run", "w.X", "--cp", "words", "-c", "etl", "--server", url, "--token", token)
    assert "etl is ready" in done.err


def test_run_in_a_context_that_is_missing_says_so_to_a_user_who_may_not_start_it(
    jobserver: CommandLine, start_guarded: Callable[[str, str], AbstractContextManager[str]], tmp_path: Path
) -> None:
    reader, hidden, admin = ("0123456789abcdef" * 2, "fedcba9876543210" * 2, "00112233" * 4)
    lines = f"reader:{hash_token(reader)}:jobs,contexts:read\nhidden:{hash_token(hidden)}:jobs\n"
    with start_guarded("", f"{lines}admin:{hash_token(admin)}:*\n") as url:
        assert jobserver("context", "create", "warm", "--server", url, "--token", admin).code == 0
        run = ("run", "w.X", "--cp", "words", "-c", "wram", "--server", url, "--token")
        done = jobserver(*run, reader)
        message = " ".join(done.err.split())
        assert done.code == ExitCode.DENIED
        assert "context 'wram' not found, and you may not start it: missing permission contexts" in message
        assert "Did you mean warm?" in message
        assert "so it is started" not in message
        done = jobserver(*run, hidden)
        assert (done.code, "binary 'words' not found" in done.err) == (ExitCode.REFUSED, True), done.err
        file = wheel(tmp_path)
        assert jobserver("upload", "words", file, "--server", url, "--token", admin).code == 0
        done = jobserver(*run, hidden)
        message = " ".join(done.err.split())
        assert done.code == ExitCode.DENIED
        assert "context 'wram' not found, and you may not start it: missing permission contexts" in message
        assert "warm" not in message
        assert "jobserver contexts" not in message


def test_a_missing_binary_of_the_configuration_is_named_to_a_user_who_may_not_list_binaries(
    jobserver: CommandLine, start_guarded: Callable[[str, str], AbstractContextManager[str]], tmp_path: Path
) -> None:
    submitter, admin = "fedcba9876543210" * 2, "00112233" * 4
    lines = f"ci:{hash_token(submitter)}:jobs\nadmin:{hash_token(admin)}:*\n"
    config = "spark.context-settings.dependent-jar-uris = [rates]"
    with start_guarded("", lines) as url:
        assert jobserver("upload", "words", wheel(tmp_path), "--server", url, "--token", admin).code == 0
        for token in (submitter, admin):
            login = ("--server", url, "--token", token)
            done = jobserver("submit", "w.X", "--cp", "words", "-d", config, *login)
            assert (done.code, done.err) == (ExitCode.REFUSED, "✗ binary 'rates' not found\n")


def test_run_uses_a_live_context_that_the_user_may_not_see(
    jobserver: CommandLine, start_guarded: Callable[[str, str], AbstractContextManager[str]]
) -> None:
    submitter, admin = "fedcba9876543210" * 2, "00112233" * 4
    lines = f"ci:{hash_token(submitter)}:jobs\nadmin:{hash_token(admin)}:*\n"
    with start_guarded("", lines) as url:
        assert jobserver("context", "create", "warm", "--server", url, "--token", admin).code == 0
        done = jobserver("run", "w.X", "--cp", "words", "-c", "warm", "--server", url, "--token", submitter)
    assert (done.code, "binary 'words' not found" in done.err) == (ExitCode.REFUSED, True), done.err


def test_a_refused_start_of_a_context_names_the_similar_one_that_is_live(jobserver: CommandLine) -> None:
    settings = load_settings(overrides={"jobserver.http.port": 0, "jobserver.contexts.max-contexts": 1})
    server = JobServer.in_memory(settings=settings)
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        upload(server)
        server.create_context("warm").result(10)
        run = ("run", "w.Count", "--cp", "words", "-c")
        full, invalid, other = jobserver(*run, "wram"), jobserver(*run, "wram!"), jobserver(*run, "fleet")
    assert (full.code, invalid.code, other.code) == (ExitCode.REFUSED, ExitCode.USAGE, ExitCode.REFUSED)
    assert "Did you mean warm, which is live?" in full.err
    assert "Try again when a context has ended" in full.err
    assert "Did you mean warm, which is live?" in invalid.err
    assert "so it is started" not in full.err + invalid.err
    assert "Did you mean" not in other.err


def test_a_job_for_a_context_that_is_starting_says_that_it_waits_for_it(jobserver: CommandLine) -> None:
    launcher = ScriptedLauncher()
    settings = load_settings(overrides={"jobserver.http.port": 0, "jobserver.jobs.start-timeout": "1 s"})
    server = JobServer.in_memory(launcher=launcher, settings=settings)
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        upload(server)
        server.create_context("slow")
        submit = ("submit", "w.Count", "--cp", "words", "-c", "slow")
        done = jobserver(*submit, "--sync", "--timeout", "1")
        assert done.code == ExitCode.TIMED_OUT
        assert "context slow is still starting; the job waits until it is ready" in done.err
        assert "still starting" not in jobserver(*submit).err, "this one does not wait"
        for refused in (("submit", "w.Count", "--sync"), ("run", "w.Count")):
            done = jobserver(*refused, "--cp", "http://[", "-c", "slow")
            assert (done.code != 0, "the job waits" in done.err) == (True, False), done.err
        launcher.handles[0].preparing = "unpacking env.tar.gz"
        done = jobserver(*submit, "--sync", "--timeout", "1")
        assert "context slow is still starting (unpacking env.tar.gz); the job waits" in done.err
        launcher.listeners[0].context_ended(ContextEnd.STOPPED)


def test_an_invalid_configuration_is_found_before_anything_changes(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    done = client("run", "words.Count", "--wheel", wheel(tmp_path), "-c", "fresh", "-d", "a = {")
    assert done.code == 2
    assert len(server.binaries()) == 1
    assert [context.name for context in server.contexts()] == ["warm"]


def test_a_job_that_fails_in_one_step_shows_its_last_frames(client: CommandLine) -> None:
    done = client("run", "words.Deep", "--cp", "words", "-c", "warm")
    assert (done.code, done.out) == (1, "")
    assert 'raise ValueError("too deep")' in done.err


@pytest.mark.parametrize(
    ("alias", "old"),
    [
        (("job", "list"), ("jobs",)),
        (("job", "show", "@last"), ("job", "@last")),
        (("job", "result", "@last"), ("result", "@last")),
        (("job", "logs", "@last"), ("logs", "@last")),
        (("context", "list"), ("contexts",)),
        (("binary", "list"), ("binaries",)),
        (("job", "--json", "@last"), ("job", "@last", "--json")),
    ],
)
def test_commands_that_begin_with_a_noun_do_the_same(
    client: CommandLine, alias: tuple[str, ...], old: tuple[str, ...]
) -> None:
    client("submit", "words.Count", "--cp", "words", "-c", "warm", "-d", "input.string=a", "--sync")
    done, expected = client(*alias), client(*old)
    assert (done.code, done.out) == (0, expected.out)
    assert done.out


def test_a_binary_is_uploaded_with_the_noun_first(client: CommandLine, tmp_path: Path) -> None:
    assert client("binary", "upload", "code", wheel(tmp_path)).code == 0
    assert "code" in client("binary", "list").out


@pytest.mark.parametrize("option", ["--wheel", "--egg", "--jar", "--cp"])
def test_a_missing_file_is_named_and_no_option_that_was_not_given(client: CommandLine, option: str) -> None:
    done = client("run", "words.Count", option, "./gone.whl", "-c", "warm")
    assert (done.code, "✗ code ./gone.whl: file not found" in done.err) == (2, True)
    assert "--" not in done.err


def test_a_file_that_is_no_package_is_not_taken_for_the_name_of_a_binary(
    client: CommandLine, tmp_path: Path
) -> None:
    client.environment.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("a,b")
    (tmp_path / "words").write_text("a file with the name of a binary")
    done = client("run", "words.Count", "--wheel", "words.csv")
    message = " ".join(done.err.split())
    assert done.code == 2
    assert "code words.csv: the file does not end in .jar, .egg, .zip or .whl, and no binary" in message
    assert client("run", "words.Count", "--cp", "words", "-d", "input.string = a").code == 0


@pytest.mark.parametrize("option", ["--wheel", "--egg", "--jar"])
@pytest.mark.parametrize("command", [("submit",), ("job", "submit")])
def test_submit_says_which_option_it_has_instead_of_those_of_run(
    jobserver: CommandLine, command: tuple[str, ...], option: str
) -> None:
    done = jobserver(*command, "words.Count", option, "words.whl")
    message = " ".join(done.err.replace("│", " ").split())
    assert done.code == 2
    assert f"No such option: {option}. Give submit the code with --cp, or use: jobserver run" in message


def test_a_job_whose_context_was_stopped_says_so_and_promises_no_traceback(client: CommandLine) -> None:
    job_id = client("submit", "words.Sleep", "--cp", "words", "-c", "warm").out.strip()
    assert client("context", "stop", "warm").code == 0
    done = client("result", job_id, "--wait")
    assert done.code == 1
    assert "Context (warm) for this job was terminated: stopped on request" in done.err
    assert "traceback" not in done.err
