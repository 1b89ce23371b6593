"""The HTTP contract of contexts."""

from __future__ import annotations

import pytest
from http_site import TIME, Site, Start, error, error_object, ok

from jobserver_core.ports import ContextEnd
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
    report = site.client.get(f"/jobs/{job_id}").json()
    assert report["startTime"] <= report["dispatchTime"] <= report["runningTime"] <= report["endTime"]
    (version,) = site.client.get("/binaries/words/versions").json()
    expected = {key: version[key] for key in ("binary-type", "digest", "size", "id")}
    assert report["cp"] == [{"source": "words", **expected}]
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


def test_a_context_that_cannot_start_says_why(site: Site) -> None:
    answer = site.client.post("/contexts/etl?inline.fail=no%20memory")
    assert error_object(answer, 500, "CONTEXT INIT ERROR")["message"] == "no memory"
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
    answer = site.client.delete("/contexts/etl")
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["location"] == "/contexts/etl"
    assert site.client.get("/contexts/etl").json()["state"] == "STOPPING"
    error(site.submit("w.Count", context="etl"), 409, "Context stop in progress")
    launcher.listeners[0].context_ended(ContextEnd.STOPPED)
    assert site.client.get("/contexts/etl").json()["state"] == "FINISHED"


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
    report = site.until(job_id, "ERROR")
    assert report["result"]["message"] == "Context (etl) for this job was terminated"


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
