"""Short names for jobs, and relative times."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import typer

from command_line import CommandLine
from jobserver_cli import lookups
from jobserver_cli.job_commands import moment
from jobserver_cli.lookups import nearest, similar
from jobserver_core import JobRequest, JobServer

JOB = ("submit", "words.Sleep", "--cp", "words", "-c", "warm")


def test_a_job_is_named_by_the_beginning_of_its_id(client: CommandLine) -> None:
    job_id = client(*JOB).out.strip()
    assert client("job", job_id[:8]).out.splitlines()[0].split() == ["Job", job_id]
    assert client("logs", job_id[:8]).out == "sleeping\n"
    assert client("kill", job_id[:8]).code == 0


def test_the_beginning_of_several_ids_is_refused_with_these(client: CommandLine, server: JobServer) -> None:
    request = JobRequest(class_name="words.Stream", class_path="words", context="warm")
    ids = [server.submit(request).id for _ in range(17)]  # two of them begin with the same digit
    first = next(digit for digit in "0123456789abcdef" if sum(one.startswith(digit) for one in ids) > 1)
    done = client("job", first)
    assert (done.code, done.out) == (2, "")
    assert sum(job_id in done.err for job_id in ids if job_id.startswith(first)) > 1


@pytest.mark.parametrize("command", ["job", "result", "logs", "kill"])
def test_an_empty_id_names_no_job_even_if_there_is_only_one(
    client: CommandLine, server: JobServer, command: str
) -> None:
    job_id = client(*JOB).out.strip()
    done = client(command, "")
    assert (done.code, done.out, "the job ID is empty" in done.err) == (2, "", True)
    assert not server.job(job_id).state.final


def test_last_is_the_newest_job(client: CommandLine) -> None:
    client(*JOB)
    newest = client(*JOB).out.strip()
    assert client("job", "@last", "--json").json["jobId"] == newest


def test_last_is_an_error_without_jobs(client: CommandLine) -> None:
    done = client("job", "@last")
    assert (done.code, "there are no jobs" in done.err) == (4, True)


def test_kill_does_not_accept_last_because_it_may_be_another_users_job(
    client: CommandLine, server: JobServer
) -> None:
    job_id = client(*JOB).out.strip()
    done = client("kill", "@last")
    assert (done.code, "@last" in done.err) == (2, True)
    assert f"The newest job is {job_id} (words.Sleep, " in done.err
    assert f"Kill it with: jobserver kill {job_id}" in done.err
    assert not server.job(job_id).state.final


def test_the_advice_instead_of_killing_the_last_job_is_the_whole_command(client: CommandLine) -> None:
    other = client(*JOB).out.strip()
    job_id = client(*JOB).out.strip()
    done = client("kill", other, "@last", "--force")
    assert done.code == 2
    assert f"jobserver kill {other} {job_id} --force" in " ".join(done.err.split())


def test_kill_does_not_advise_to_kill_a_last_job_that_has_ended(client: CommandLine) -> None:
    assert client("kill", "@last").code == 2
    client("submit", "words.Count", "--cp", "words", "-c", "warm", "-d", "input.string = a", "--sync")
    done = client("kill", "@last")
    assert "(words.Count, FINISHED)." in done.err
    assert "Kill it" not in done.err


def test_a_context_is_named_by_the_beginning_of_its_id(client: CommandLine, server: JobServer) -> None:
    context_id = server.context("warm").id
    for given in (context_id, context_id[:8]):
        assert client("context", "show", given).out.splitlines()[0].split() == ["Context", "warm"]
    assert client("logs", "--context", context_id[:8]).code == client("logs", "--context", "warm").code
    assert client("context", "stop", context_id[:8]).code == 0
    assert server.contexts() == []


def test_the_name_of_a_context_precedes_the_beginning_of_an_id(
    client: CommandLine, server: JobServer
) -> None:
    ids: dict[str, str] = {}
    while not (found := [one for one in ids if one[0] in "abcdef"]):  # names begin with a letter
        name = f"other{len(ids)}"
        server.create_context(name).result(60)
        ids[server.context(name).id] = name
    prefix = found[0][:6]
    server.create_context(prefix).result(60)
    assert client("context", "show", prefix, "--json").json["name"] == prefix
    assert client("context", "show", found[0][:7], "--json").json["name"] == ids[found[0]]


def test_the_beginning_of_several_context_ids_is_refused(client: CommandLine, server: JobServer) -> None:
    for number in range(17):  # two of them begin with the same digit
        server.create_context(f"c{number}").result(60)
    ids = [context.id for context in server.contexts()]
    first = next(digit for digit in "0123456789abcdef" if sum(one.startswith(digit) for one in ids) > 1)
    done = client("context", "stop", first)
    assert (done.code, f"{first} is a prefix of several context IDs" in done.err) == (2, True)
    assert len(server.contexts()) == len(ids)


def test_an_ended_context_is_named_by_the_beginning_of_its_id(client: CommandLine, server: JobServer) -> None:
    first = server.context("warm").id
    assert client("context", "stop", "warm").code == 0
    second = server.create_context("warm").result(60).id
    assert client("context", "show", first[:8], "--json").json["id"] == first
    assert client("logs", "--context", first[:8]).code == client("logs", "--context", first).code == 0
    done = client("context", "stop", first[:8])
    assert (done.code, f"context 'warm' ({first}) has already ended (FINISHED, " in done.err) == (4, True)
    assert f"jobserver context show {first}" in done.err
    assert f"context '{first[:3]}' not found" in client("context", "show", first[:3]).err
    assert [context.id for context in server.contexts()] == [second]


def test_the_beginning_of_several_ids_of_ended_contexts_is_refused(
    client: CommandLine, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LEAST_PREFIX", 1)
    ids = [server.context("warm").id]
    while not (shared := [one[0] for one in ids[:-1] if one[0] == ids[-1][0]]):
        ids.append(server.create_context(f"c{len(ids)}").result(60).id)
    for context in server.contexts():
        server.stop_context(context.name).result(60)
    done = client("context", "show", shared[0])
    assert (done.code, f"{shared[0]} is a prefix of several context IDs" in done.err) == (2, True)


def test_names_that_begin_like_this_are_suggested() -> None:
    known = ["fleet-1.0-66cf98e44e83", "flee", "fleet-2.0-5f70bf18a086", "words"]
    assert similar("fleet", known) == ["fleet-1.0-66cf98e44e83", "fleet-2.0-5f70bf18a086"]
    assert similar("Fleet-1", known) == ["fleet-1.0-66cf98e44e83"]
    assert similar("wrods", known) == ["words"]
    assert similar("", known) == similar("zzz", known) == []


def test_the_nearest_name_is_found_in_any_case_and_nothing_where_none_is_like_it() -> None:
    assert nearest("Wrods", ["birds", "words", "other"]) == "words"
    assert nearest("WORDS", ["Words"]) == "Words"
    assert nearest("zzz", ["words"]) is None
    assert nearest("words", []) is None


@pytest.mark.parametrize(("text", "ago"), [("30m", 1800), ("2h", 7200), ("7d", 604800), ("90 s", 90)])
def test_a_duration_is_that_long_ago(text: str, ago: int) -> None:
    expected = datetime.now().astimezone() - timedelta(seconds=ago)
    assert abs((moment(text) - expected).total_seconds()) < 60


def test_a_time_is_local_unless_it_says_otherwise() -> None:
    assert moment("2026-01-31T08:30") == datetime(2026, 1, 31, 8, 30).astimezone()
    assert moment("2026-01-31T08:30Z").isoformat() == moment("2026-01-31T08:30+00:00").isoformat()


@pytest.mark.parametrize("text", ["", "soon", "30", "-", "-1h", "1e999 d", "99999999999999 d", "2026-13-01"])
def test_text_that_is_neither_a_time_nor_a_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a time such as"):
        moment(text)


def test_jobs_since_accepts_times_and_durations(client: CommandLine) -> None:
    job_id = client(*JOB).out.strip()
    assert [record["jobId"] for record in client("jobs", "--since", "1h", "--json").json] == [job_id]
    assert client("jobs", "--since", "2100-01-01", "--json").json == []
    assert client("jobs", "--since", "soon").code == 2
