"""The HTTP contract of contexts."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest
from http_site import TIME, Site, Start, error, error_object, ok

from conditions import wait_until
from jobserver_core import ContextState, JobState
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextEnd
from jobserver_core.testing.builders import a_context, a_job, at
from serving import ScriptedLauncher


def test_a_context_is_created_shown_and_stopped(site: Site) -> None:
    ok(
        site.client.post("/contexts/etl?num-cpu-cores=2"),
        200,
        {"status": "SUCCESS", "result": "Context initialized"},
    )
    ok(site.client.get("/contexts"), 200, ["etl"])
    shown = site.client.get("/contexts/etl").json()
    assert {"id", "name", "startTime", "endTime", "state"} <= set(shown)
    assert (shown["name"], shown["endTime"], shown["state"]) == ("etl", "Empty", "RUNNING")
    error(site.client.post("/contexts/etl"), 400, "context etl exists")
    ok(site.client.delete("/contexts/etl"), 200, {"status": "SUCCESS", "result": "Context stopped"})
    ok(site.client.get("/contexts"), 200, [])
    ended = site.client.get("/contexts/etl").json()
    assert ended["state"] == "FINISHED"
    assert TIME.fullmatch(ended["endTime"])
    error(site.client.delete("/contexts/etl"), 404, "context etl not found")
    error(site.client.get("/contexts/none"), 404, "can't find context with name none")


@pytest.mark.parametrize("body", ["num-cpu-cores = 2", "context-settings { num-cpu-cores = 2 }", "spark = 5"])
def test_the_response_warns_of_a_body_without_settings_of_the_context(site: Site, body: str) -> None:
    response = site.client.post("/contexts/etl", content=body)
    warning = "the body has nothing in spark.context-settings; its other keys have no effect"
    expected = {"status": "SUCCESS", "result": "Context initialized", "warnings": [warning]}
    ok(response, 200, expected)


def test_a_context_shows_its_load_and_its_effective_settings_without_secrets(start: Start) -> None:
    site = start({"jobs": {"max-jobs-per-context": 1}})
    site.client.post("/contexts/etl?memory-per-node=1g&passthrough.fs.s3a.secret.key=hunter2")
    site.sleeping(context="etl")
    site.submit("w.Sleep", context="etl")
    shown = site.client.get("/contexts/etl").json()
    assert shown["load"] == {"slots": 1, "running": 1, "waiting": 1}
    assert shown["settings"]["memory-per-node"] == "1g"
    assert shown["settings"]["passthrough.fs.s3a.secret.key"] == "***"
    assert shown["settings"]["spark.master"] == site.server.settings.spark.master
    ok(site.client.get("/contexts?details=true"), 200, [shown])
    site.client.delete("/contexts/etl")
    ended = site.client.get("/contexts/etl").json()
    assert ended["settings"] == shown["settings"]
    assert "load" not in ended


def test_a_job_shows_its_times_and_its_class_path(site: Site) -> None:
    job_id = site.submit("w.Echo", sync=True).json()["jobId"]
    record = site.client.get(f"/jobs/{job_id}").json()
    assert record["startTime"] <= record["dispatchTime"] <= record["runningTime"] <= record["endTime"]
    (version,) = site.client.get("/binaries/words/versions").json()
    expected = {key: version[key] for key in ("binary-type", "digest", "size", "id")}
    assert record["cp"] == [{"source": "words", **expected}]
    assert "cp" not in site.client.get("/jobs").json()[0]


def test_settings_in_the_body_win_over_those_in_the_query(site: Site) -> None:
    body = "spark.context-settings { num-cpu-cores = 4, spark.executor.memory = 2g }"
    site.client.post("/contexts/etl?num-cpu-cores=2&spark.cleaner.ttl=86400&memory-per-node=1g", content=body)
    settings = site.server.context("etl").settings
    assert settings["num-cpu-cores"] == 4
    assert settings["memory-per-node"] == "1g"
    assert settings["spark"]["executor"]["memory"] == "2g"
    assert settings["spark"]["cleaner"]["ttl"] == "86400"


@pytest.mark.parametrize("name", ["1etl", "_etl", "-"])
def test_a_context_name_starts_with_a_letter(site: Site, name: str) -> None:
    error(site.client.post(f"/contexts/{name}"), 400, "context name must start with letters")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x" * 400_000: {str(number): 1 for number in range(50_000)}}, "at most 1000 characters"),
        ({"a." * 300_000 + "a": 1}, "at most 1000 characters"),
        ({str(number): 1 for number in range(50_000)}, "at most 10000 settings"),
    ],
    ids=["a long key", "many dots", "many settings"],
)
def test_settings_that_would_fill_the_memory_are_refused(
    site: Site, settings: JsonMapping, message: str
) -> None:
    response = site.client.post(
        "/contexts/etl", content=json.dumps({"spark": {"context-settings": settings}})
    )
    assert response.status_code == 400
    assert message in response.json()["result"]
    ok(site.client.get("/contexts"), 200, [])


def test_a_context_that_cannot_start_says_why(site: Site) -> None:
    response = site.client.post("/contexts/etl?inline.fail=no%20memory")
    assert error_object(response, 500, "CONTEXT INIT ERROR")["message"] == "no memory"
    assert site.client.get("/contexts").json() == []
    bad = site.client.post("/contexts/etl", content='spark.context-settings.cp = ["gopher://x/y.jar"]')
    error_object(bad, 400, "CONTEXT INIT ERROR: Malformed URL")
    wrong = site.client.post("/contexts/etl", content="spark.context-settings = 7")
    assert wrong.status_code == 400
    error(
        site.client.post("/contexts/etl", content="spark.context-settings.cp = nothing"),
        404,
        "appName nothing not found",
    )


def test_a_context_that_stops_slowly_is_reported_as_stopping(start: Start) -> None:
    launcher = ScriptedLauncher(at_start=lambda told: told.context_ready(application_id=None, url=None))
    site = start({"contexts": {"deletion-timeout": "100 ms"}}, launcher=launcher)
    site.client.post("/contexts/etl")
    response = site.client.delete("/contexts/etl")
    assert (response.status_code, response.content) == (202, b"")
    assert response.headers["location"] == "/contexts/etl"
    assert site.client.get("/contexts/etl").json()["state"] == "STOPPING"
    error(site.submit("w.Count", context="etl"), 409, "Context stop in progress")
    launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    assert site.client.get("/contexts/etl").json()["state"] == "FINISHED"


def test_a_context_that_was_started_again_says_why_even_when_it_is_running(start: Start) -> None:
    launcher = ScriptedLauncher(at_start=lambda told: told.context_ready(application_id=None, url=None))
    site = start({}, launcher=launcher)
    site.client.post("/contexts/etl?supervise=true&restart-backoff=1%20ms")
    first = site.client.get("/contexts/etl").json()
    assert "lastRestart" not in first
    launcher.listeners[0].context_ended(ContextEnd.FAILED, ErrorInfo(message="killed by signal 9"))

    def shown() -> JsonMapping:
        record: JsonMapping = site.client.get("/contexts/etl").json()
        return record

    wait_until(lambda: shown()["id"] != first["id"] and shown()["state"] == "RUNNING", shown)
    record = shown()
    assert (record["restarts"], "error" in record) == (1, False)
    assert record["lastRestart"]["id"] == first["id"]
    assert record["lastRestart"]["error"]["message"] == "killed by signal 9"
    assert TIME.fullmatch(record["lastRestart"]["endTime"])
    [_, told] = launcher.listeners
    told.context_ended(ContextEnd.STOPPED)


def test_ended_contexts_are_listed_newest_first_up_to_a_limit(site: Site) -> None:
    ok(site.client.get("/contexts?ended=true"), 200, [])
    ended = []
    for name in ("one", "two", "three"):
        site.client.post(f"/contexts/{name}")
        site.client.delete(f"/contexts/{name}")
        ended.insert(0, site.client.get(f"/contexts/{name}").json())
    site.client.post("/contexts/alive")
    ok(site.client.get("/contexts?ended=true"), 200, ended)
    ok(site.client.get("/contexts?ended=true&limit=2"), 200, ended[:2])
    assert site.client.get("/contexts?ended=true&limit=0").status_code == 400


def test_a_context_that_waits_until_others_have_started_says_so(start: Start) -> None:
    launcher = ScriptedLauncher()
    site = start({"contexts": {"concurrent-starts": 1}}, launcher=launcher)
    ready = [site.server.create_context(name) for name in ("first", "second")]
    assert "waiting" not in site.client.get("/contexts/first").json()
    waits = site.client.get("/contexts/second").json()
    assert (waits["state"], waits["waiting"]) == ("STARTED", True)
    launcher.listeners[0].context_ready(application_id=None, url=None)
    assert ready[0].result(timeout=10).name == "first"
    assert "waiting" not in site.client.get("/contexts/second").json()
    for listener in launcher.listeners:
        listener.context_ended(ContextEnd.STOPPED)


def test_force_kills_a_context_and_its_jobs(site: Site) -> None:
    site.client.post("/contexts/etl")
    job_id = site.sleeping(context="etl")
    ok(
        site.client.delete("/contexts/etl?force=true"),
        200,
        {"status": "SUCCESS", "result": "Context stopped"},
    )
    assert site.client.get("/contexts/etl").json()["state"] == "KILLED"
    record = site.until(job_id, "ERROR")
    assert record["result"]["message"] == "Context (etl) for this job was terminated"


def test_reset_stops_every_context(site: Site) -> None:
    site.client.post("/contexts/etl")
    ok(site.client.put("/contexts?reset=reboot"), 200, {"status": "SUCCESS", "result": "Context reset"})
    assert site.client.get("/contexts").json() == []
    ok(
        site.client.put("/contexts?reset=reboot&sync=false"),
        200,
        {"status": "SUCCESS", "result": "Context reset requested"},
    )
    assert site.client.put("/contexts").status_code == 400
    assert site.client.put("/contexts?reset=all").status_code == 400


GONE = "http://gone.example:8090"


def test_a_log_on_a_server_that_has_ended_is_not_found_and_names_that_server(start: Start) -> None:
    metadata = MemoryMetadataStore(shared=True)
    ended = {"ended_at": datetime.now(timezone.utc)}
    context = a_context("etl", state=ContextState.ERROR, server_id="gone", server=GONE, **ended)
    job = a_job(context_id=context.id, context_name="etl", state=JobState.ERROR, **ended)
    metadata.add_context(context)
    metadata.add_job(job, config="{}")
    site = start(metadata=metadata)
    for path, kind, name in (
        (f"/jobs/{job.id}/logs", "job", job.id),
        ("/contexts/etl/logs", "context", "etl"),
    ):
        for params in ({}, {"follow": "true"}):
            response = site.client.get(path, params=params)
            text = (
                f"the log of {kind} {name} is on server {GONE}, which is not running; "
                "it can be read again once a server runs on its data directory"
            )
            assert (response.status_code, response.json()["code"]) == (404, "log_server_gone")
            assert response.json()["fields"]["server"] == GONE
            error(response, 404, text)


def test_a_log_on_a_server_that_is_about_to_be_declared_dead_is_unavailable(start: Start) -> None:
    metadata = MemoryMetadataStore(shared=True)
    metadata.register_server("gone", started_at=at(), address=GONE, lease=0)
    metadata.add_context(
        a_context("etl", state=ContextState.RUNNING, owner="gone", server_id="gone", server=GONE)
    )
    site = start({"servers": {"lease": "1 hour"}}, metadata=metadata)
    response = site.client.get("/contexts/etl/logs")
    error(
        response,
        503,
        f"the log of context etl is on server {GONE}, which does not respond; "
        "context etl is being taken over by another server; try again",
    )
    assert response.headers["retry-after"] == "5"


def test_a_context_names_its_server_if_several_may_share_the_database(start: Start) -> None:
    address = {"servers": {"address": GONE}}
    alone, sharing = start(address), start(address, metadata=MemoryMetadataStore(shared=True))
    for site in (alone, sharing):
        site.client.post("/contexts/etl")
    assert "server" not in alone.client.get("/contexts/etl").json()
    assert sharing.client.get("/contexts/etl").json()["server"] == GONE


def test_a_context_is_found_by_its_id_after_another_one_took_its_name(start: Start) -> None:
    launcher = ScriptedLauncher()
    site = start(launcher=launcher)
    ids = []
    for number in range(2):
        site.server.create_context("etl")
        launcher.listeners[number].context_ready(application_id=None, url=None)
        site.server._services.data_directory.context_log(site.server.context("etl").id).write_text(
            f"{number}"
        )
        ids.append(site.client.get("/contexts/etl").json()["id"])
        launcher.listeners[number].context_ended(ContextEnd.STOPPED)
    for number, context_id in enumerate(ids):
        shown = site.client.get(f"/contexts/{context_id}").json()
        assert (shown["id"], shown["name"], shown["state"]) == (context_id, "etl", "FINISHED")
        assert site.client.get(f"/contexts/{context_id}/logs").text == f"{number}"
    error(site.client.get(f"/contexts/{'0' * 32}"), 404, f"can't find context with name {'0' * 32}")
    refused = site.client.delete(f"/contexts/{ids[0]}")  # an ID with a leading digit has a "detail", too
    assert (refused.status_code, refused.json()["result"]) == (404, f"context {ids[0]} not found")


def test_the_record_of_a_context_does_not_have_settings_without_effect(site: Site) -> None:
    site.client.post("/contexts/etl?num-cpu-cores=2&context-init-timeout=60s")
    settings = site.client.get("/contexts/etl").json()["settings"]
    assert settings["num-cpu-cores"] == "2"
    assert "context-init-timeout" not in settings
