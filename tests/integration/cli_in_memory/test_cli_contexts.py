"""Contexts from the command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from command_line import CommandLine, wheel
from conditions import wait_until
from jobserver_cli import following
from jobserver_cli.records import time_shown
from jobserver_core import BinaryType, ContextFailed, ContextState, JobServer, SparePool, load_settings
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.ports import ContextEnd, ContextHandle, ContextListener, ContextSpec
from jobserver_http import running
from loopback import Loopback
from serving import ScriptedHandle, ScriptedLauncher


def test_contexts_lists_those_that_live(client: CommandLine) -> None:
    client("context", "create", "second")
    lines = client("contexts").out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["Context", "State"],
        ["second", "RUNNING"],
        ["warm", "RUNNING"],
    ]
    assert [record["name"] for record in client("contexts", "--json").json] == ["second", "warm"]


def test_contexts_are_listed_with_one_request(jobserver: CommandLine) -> None:
    """So the error of a request cannot be taken for a context."""
    with Loopback(lambda handler: handler.say(503, b'{"status": "ERROR", "result": "busy"}')) as web:
        web.plan["/contexts"] = lambda handler: handler.say(200, b'[{"name": "warm", "state": "RUNNING"}]')
        jobserver.environment.setenv("JOBSERVER_URL", web.url(""))
        assert jobserver("contexts").out.splitlines()[1].split()[:2] == ["warm", "RUNNING"]
        assert [call.path for call in web.calls] == ["/contexts?details=true"]


def test_a_context_that_waits_until_others_have_started_is_shown_as_waiting(jobserver: CommandLine) -> None:
    launcher = ScriptedLauncher()
    settings = load_settings(overrides={"jobserver.http.port": 0, "jobserver.contexts.concurrent-starts": 1})
    server = JobServer.in_memory(launcher=launcher, settings=settings)
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        for name in ("first", "second"):
            server.create_context(name)
        lines = jobserver("contexts").out.splitlines()
        assert [line.split()[:2] for line in lines[1:]] == [["second", "WAITING"], ["first", "STARTED"]]
        assert "WAITING" in jobserver("context", "show", "second").out
        launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        launcher.listeners[1].context_ended(ContextEnd.STOPPED)


class _Unpacking(ScriptedHandle):
    """Unpacks until somebody has asked about it twice, so that the first answer has been shown."""

    asked = 0

    def __init__(self, listener: ContextListener) -> None:
        super().__init__()
        self._listener = listener

    @property
    def preparing(self) -> str:  # type: ignore[override]
        self.asked += 1
        if self.asked == 2:
            ready = {"application_id": "app-1", "url": None}
            threading.Thread(target=self._listener.context_ready, kwargs=ready).start()
        return "unpacking /srv/env.tar.gz"


class _UnpackingLauncher(ScriptedLauncher):
    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        super().start_context(spec, listener)
        self.handles[-1] = _Unpacking(listener)
        return self.handles[-1]


@pytest.mark.parametrize(
    "command", [("context", "create", "etl"), ("run", "w.X", "--cp", "file:/w.whl", "--context", "etl")]
)
def test_a_start_that_takes_long_says_what_is_prepared(
    jobserver: CommandLine, command: tuple[str, ...]
) -> None:
    server = JobServer.in_memory(
        launcher=_UnpackingLauncher(), settings=load_settings(overrides={"jobserver.http.port": 0})
    )
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        told = jobserver(*command).err.splitlines()
    assert "starting etl (this can take a minute): unpacking /srv/env.tar.gz" in told
    assert "✓ etl is ready" in told


def test_a_start_of_a_moment_and_one_that_is_refused_do_not_say_that_the_context_is_starting(
    client: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "START_PAUSE", 60.0)  # so that it ends within a moment on any machine
    assert client("context", "create", "etl").err == "✓ etl is ready\n"
    refused = client("context", "create", "other", "-s", "restart-backof=1 s")
    assert (refused.code, "starting" in refused.err) == (2, False)


def test_show_says_why_a_running_context_was_started_again(jobserver: CommandLine) -> None:
    launcher = ScriptedLauncher(at_start=lambda told: told.context_ready(application_id=None, url=None))
    server = JobServer.in_memory(
        launcher=launcher, settings=load_settings(overrides={"jobserver.http.port": 0})
    )
    with running(server) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        first = server.create_context("fleet", {"supervise": True, "restart-backoff": "1 ms"}).result(10)
        launcher.listeners[0].context_ended(ContextEnd.FAILED, ErrorInfo(message="killed by signal 9"))
        wait_until(
            lambda: server.context("fleet").restarts and server.context("fleet").state is ContextState.RUNNING
        )
        shown = jobserver("context", "show", "fleet").out
        assert "Restarts      1" in shown
        assert "Last restart  killed by signal 9" in shown
        assert first.id in shown
        assert "killed by signal 9" in jobserver("context", "show", first.id).out
        launcher.listeners[1].context_ended(ContextEnd.STOPPED)


def test_ended_contexts_are_listed_with_their_ids(client: CommandLine, server: JobServer) -> None:
    assert client("contexts", "--ended").err == "no ended contexts\n"
    ids = []
    for _ in range(2):
        client("context", "create", "etl")
        ids.append(server.context("etl").id)
        client("context", "stop", "etl")
    lines = [line.split() for line in client("contexts", "--ended").out.splitlines()]
    assert lines[0] == ["Context", "State", "Started", "Ended", "ID"]
    assert [(line[0], line[1], line[-1]) for line in lines[1:]] == [
        ("etl", "FINISHED", ids[1]),
        ("etl", "FINISHED", ids[0]),
    ]
    assert [record["id"] for record in client("contexts", "--ended", "--json").json] == ids[::-1]
    assert client("contexts", "--ended", "--spares").code == 2


def test_without_contexts_there_is_no_table(client: CommandLine) -> None:
    client("context", "stop", "warm")
    done = client("contexts")
    assert (done.code, done.out, done.err) == (0, "", "no contexts\n")


def test_pools_of_spare_contexts_are_listed_with_an_option(
    client: CommandLine, jobserver: CommandLine
) -> None:
    class Launcher(ScriptedLauncher):
        def spare_pools(self) -> list[SparePool]:
            return [SparePool(name="small", size=2, ready=1, starting=1)]

    assert client("contexts", "--spares").err == "no pools of spare contexts; set jobserver.contexts.pools\n"
    settings = load_settings(overrides={"jobserver.http.port": 0})
    with running(JobServer.in_memory(launcher=Launcher(), settings=settings)) as url:
        jobserver.environment.setenv("JOBSERVER_URL", url)
        lines = jobserver("contexts", "--spares").out.splitlines()
        assert [line.split() for line in lines] == [
            ["Pool", "Size", "Ready", "Starting"],
            ["small", "2", "1", "1"],
        ]
        assert jobserver("contexts", "--spares", "--json").json[0]["ready"] == 1


def test_create_passes_settings_from_options_and_from_hocon(client: CommandLine, server: JobServer) -> None:
    block = "spark { context-settings { memory-per-node = 1g } }"
    done = client("context", "create", "etl", "-s", "num-cpu-cores=2", "-s", "spark.ui.port=0", "-d", block)
    settings = server.context("etl").settings
    assert done.code == 0
    assert (settings["num-cpu-cores"], settings["memory-per-node"]) in [("2", "1g"), (2, "1g")]
    assert str(settings["spark"]["ui"]["port"]) == "0"


@pytest.mark.parametrize(
    ("block", "lost"),
    [
        ("memory-per-node = 2g", "memory-per-node"),
        ("spark.master = local, spark.context-settings.spark.ui.port = 0", "spark.master"),
        ("context-settings { num-cpu-cores = 2 }, cp = words", "context-settings.num-cpu-cores, cp"),
    ],
)
def test_create_refuses_settings_that_the_context_would_not_get(
    client: CommandLine, server: JobServer, block: str, lost: str
) -> None:
    done = client("context", "create", "etl", "-d", block)
    assert (done.code, done.out) == (2, "")
    assert f"--data has settings outside of spark.context-settings: {lost}\n" in done.err
    members = ", ".join(f"{key} = …" for key in lost.split(", "))
    assert f"-d 'spark.context-settings {{ {members} }}'" in done.err
    assert [context.name for context in server.contexts()] == ["warm"]


def test_create_accepts_an_empty_block(client: CommandLine) -> None:
    assert client("context", "create", "etl", "-d", "spark {}").code == 0


def test_create_with_json_prints_the_record_of_the_contract(client: CommandLine) -> None:
    assert client("context", "create", "etl", "--json").json["state"] == "RUNNING"


def test_a_context_that_fails_to_start_exits_with_4_and_the_reason(client: CommandLine) -> None:
    done = client("context", "create", "etl", "-s", "inline.fail=no JVM")
    assert done.code == 4
    assert "CONTEXT INIT ERROR: no JVM" in done.err


def test_creating_a_context_that_exists_exits_with_4(client: CommandLine) -> None:
    done = client("context", "create", "warm")
    assert (done.code, "context warm exists" in done.err) == (4, True)
    assert "Jobs can run in it: --context warm." in done.err
    assert "jobserver context stop warm" in done.err


@pytest.mark.parametrize("key", ["cp", "dependent-jar-uris"])
def test_a_setting_that_names_an_unknown_binary_is_named(client: CommandLine, key: str) -> None:
    done = client("context", "create", "etl", "-s", f"{key}=words,word")
    assert (done.code, f"✗ setting {key}: binary 'word' not found" in done.err) == (4, True), done.err
    assert "Did you mean words?" in done.err
    done = client("context", "create", "etl", "-d", f"spark.context-settings {{ {key} = nix }}")
    assert (done.code, "✗ binary 'nix' not found" in done.err) == (4, True), done.err


@pytest.mark.parametrize("name", ["p 2/x", "a/b", "..", ""])
@pytest.mark.parametrize("command", [("context", "create"), ("context", "show"), ("binary", "versions")])
def test_a_name_that_no_path_can_have_is_refused(
    client: CommandLine, command: tuple[str, ...], name: str
) -> None:
    done = client(*command, name)
    assert (done.code, done.out) == (2, "")
    assert f"the name {name!r} is not allowed" in done.err


@pytest.mark.parametrize("setting", ["num-cpu-cores", "=2", " =2"])
def test_a_setting_that_is_not_a_pair_is_refused_before_any_request(
    jobserver: CommandLine, setting: str
) -> None:
    done = jobserver("context", "create", "etl", "--server", "http://127.0.0.1:9", "--set", setting)
    assert done.code == 2
    assert "--set takes KEY=VALUE" in done.err


def test_a_configured_context_that_could_not_be_started_is_not_found_with_the_reason(
    jobserver: CommandLine, tmp_path: Path
) -> None:
    settings = load_settings(overrides={"jobserver.http.port": 0, "spark.contexts.etl.inline.fial": "x"})
    server = JobServer.in_memory(settings=settings)
    with running(server) as url:
        with wheel(tmp_path).open("rb") as file:
            server.upload("words", BinaryType.WHEEL, file)
        why = "not found: the configured context could not be started: setting 'inline.fial'"
        for command in (("show", "etl"), ("stop", "etl")):
            done = jobserver("context", *command, "--server", url)
            assert (done.code, done.out) == (4, "")
            assert f"context 'etl' {why}" in done.err
        done = jobserver("submit", "w.Count", "--cp", "words", "--context", "etl", "--server", url)
        assert (done.code, done.out) == (4, "")
        assert why in done.err


def test_show_prints_the_load_and_the_settings(client: CommandLine) -> None:
    client("context", "create", "etl", "-s", "num-cpu-cores=2")
    lines = client("context", "show", "etl").out.splitlines()
    assert [line.split(None, 1)[1] for line in lines if line.startswith("Load")] == ["0 of 8 slots in use"]
    assert any(line.split()[-3:] == ["num-cpu-cores", "=", "2"] for line in lines)


def test_show_reports_that_a_context_has_ended_and_why(client: CommandLine) -> None:
    client("context", "create", "etl", "-s", "inline.fail=no JVM")
    shown = client("context", "show", "etl").out
    assert ["State", "ERROR"] in [line.split() for line in shown.splitlines()]
    assert "no JVM" in shown
    assert client("context", "show", "etl", "--json").json["name"] == "etl"


def test_stop_waits_until_the_context_has_ended(client: CommandLine, server: JobServer) -> None:
    done = client("context", "stop", "warm")
    assert (done.code, "warm has stopped" in done.err) == (0, True)
    assert server.context("warm").state is ContextState.FINISHED


def test_stop_with_force_kills(client: CommandLine, server: JobServer) -> None:
    record = client("context", "stop", "warm", "--force", "--json").json
    assert record["state"] == server.context("warm").state.value
    assert server.context("warm").state.final


@pytest.mark.parametrize(
    "arguments", [("context", "stop", "warm"), ("submit", "words.Count", "--cp", "words", "-c", "warm")]
)
def test_a_context_that_has_ended_already_exits_with_4_and_the_time(
    client: CommandLine, arguments: tuple[str, ...]
) -> None:
    client("context", "stop", "warm")
    ended = time_shown(client("context", "show", "warm", "--json").json["endTime"])
    done = client(*arguments)
    assert done.code == 4
    assert f"context 'warm' has already ended (FINISHED, {ended}): stopped on request\n" in done.err
    assert "Show it with: jobserver context show warm\n" in done.err


@pytest.mark.parametrize(
    "arguments", [("context", "stop", "bad"), ("submit", "words.Count", "--cp", "words", "-c", "bad")]
)
def test_the_error_about_a_context_that_has_failed_says_why(
    client: CommandLine, server: JobServer, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(ContextFailed):
        server.create_context("bad", {"inline.fail": "no cores left"}).result(10)
    done = client(*arguments)
    assert (done.code, "no cores left\n" in done.err) == (4, True)


def test_an_ended_context_says_who_ended_it(client: CommandLine, server: JobServer) -> None:
    server.stop_context("warm", user="ann").result(10)
    shown = " ".join(client("context", "show", "warm").out.split())
    assert "Ended because stopped by user ann" in shown
    assert client("context", "show", "warm", "--json").json["endReason"] == "stopped by user ann"


def test_a_job_for_a_context_that_has_ended_is_refused_with_how_to_create_it_or_a_similar_one(
    client: CommandLine, server: JobServer
) -> None:
    ended = server.context("warm").id
    advice = "Create it again with: jobserver context create warm\n"
    submit = ("submit", "words.Count", "--cp", "words", "-c")
    client("context", "stop", "warm")
    assert f"  {advice}" in client(*submit, "warm").err
    assert "Create it" not in client("context", "stop", "warm").err
    server.create_context("warm2").result(60)
    assert f"Did you mean warm2, which is live? {advice}" in client(*submit, "warm").err
    server.create_context("warm").result(60)
    done = client(*submit, ended)
    assert "Another context of this name is live: warm\n" in done.err
    assert "Create it" not in done.err


def test_a_look_up_of_a_context_that_fails_does_not_hide_that_the_context_was_not_found(
    jobserver: CommandLine,
) -> None:
    refusal = b'{"status": "ERROR", "code": "context_not_found", "result": "context warm not found"}'
    with Loopback(lambda handler: handler.say(404, refusal)) as web:
        web.plan["/contexts/warm"] = lambda handler: handler.say(200, b"<html>the page of a proxy</html>")
        done = jobserver("submit", "w.Count", "--cp", "words", "-c", "warm", "--server", web.url(""))
    assert (done.code, "context 'warm' not found" in done.err) == (4, True), done.err


@pytest.mark.parametrize("action", ["show", "stop"])
def test_an_unknown_context_exits_with_4(client: CommandLine, action: str) -> None:
    done = client("context", action, "cold")
    assert (done.code, "context" in done.err, "cold" in done.err) == (4, True, True)


@pytest.mark.parametrize("code", ["context_failed", "context_init_failed"])
def test_a_misspelled_factory_that_only_the_start_finds_exits_with_2(
    jobserver: CommandLine, code: str
) -> None:
    reason = {"message": "no such class", "errorClass": "jobserver_core.errors.UnknownContextFactory"}
    answer = {"status": "CONTEXT INIT ERROR", "code": code, "result": reason}
    with Loopback(lambda handler: handler.say(500, json.dumps(answer).encode())) as web:
        done = jobserver(
            "context", "create", "etl", "-s", "context-factory=com.example.Typo", "--server", web.url()
        )
    assert (done.code, "✗ CONTEXT INIT ERROR: no such class" in done.err) == (2, True), done.err
