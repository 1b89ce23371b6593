"""Jobs over HTTP: submits, results, lists and kills."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from http_site import TIME, Site, Start, error, error_object, ok

from jobserver_core import ContextQuery
from jobserver_core.errors import UnknownContextFactory
from jobserver_core.memory import InlineLauncher
from serving import FUNCTIONS

# -- jobs ------------------------------------------------------------------------------------------


def test_an_asynchronous_job_is_reported_started_then_finished(site: Site) -> None:
    response = site.submit("w.Count", "input.string = a b c a b see")
    record = response.json()
    assert response.status_code == 202
    assert set(record) == {"jobId", "startTime", "classPath", "context", "contextId", "duration", "status"}
    assert record["status"] == "STARTED"
    assert record["duration"] == "Job not done yet"
    assert re.fullmatch(r"[0-9a-f]{8}-w\.Count", record["context"])
    assert TIME.fullmatch(record["startTime"])
    done = site.until(record["jobId"], "FINISHED")
    assert done["result"] == {"a": 2, "b": 2, "c": 1, "see": 1}
    assert re.fullmatch(r"\d+\.\d{1,3} secs", done["duration"])
    assert {**record, "status": 0, "duration": 0} == {
        name: 0 if name in ("status", "duration") else value
        for name, value in done.items()
        if name not in ("result", "endTime", "dispatchTime", "runningTime", "cp")
    }
    [code] = done["cp"]
    assert (code["source"], code["binary-type"], len(code["digest"])) == ("words", "Wheel", 64)
    assert record["startTime"] <= done["dispatchTime"] <= done["endTime"]
    ok(site.client.get(f"/jobs/{record['jobId']}/config"), 200, {"input": {"string": "a b c a b see"}})


def test_a_synchronous_job_is_answered_with_its_result_and_no_status(site: Site) -> None:
    response = site.submit("w.Count", "input.string = a b a", sync="true")
    assert response.status_code == 200
    assert set(response.json()) == {"jobId", "result"}
    assert response.json()["result"] == {"a": 2, "b": 1}


def test_the_newer_parameters_stand_in_the_query_or_in_the_body(site: Site) -> None:
    for body in ("n = 1", "cp = words, mainClass = w.Echo", 'cp = ["words"], mainClass = "w.Echo"'):
        params = {"cp": "words", "mainClass": "w.Echo"} if body == "n = 1" else {}
        response = site.client.post("/jobs", params={**params, "sync": "true"}, content=f"value = 7, {body}")
        assert response.json().get("result") == 7, response.text


def test_app_name_takes_precedence_over_cp_in_the_body(site: Site) -> None:
    response = site.submit("w.Echo", "value = 7, cp = unknown, mainClass = nothing", sync="true")
    assert response.json()["result"] == 7


def test_the_body_is_hocon_for_every_content_type(site: Site) -> None:
    for media_type in ("application/x-www-form-urlencoded", "application/json", "text/plain", None):
        headers = {"Content-Type": media_type} if media_type else {}
        response = site.client.post(
            "/jobs?appName=words&classPath=w.Echo&sync=true", content="value = a b c", headers=headers
        )
        assert response.json()["result"] == "a b c"


def test_a_job_that_raises_is_answered_with_its_error(site: Site) -> None:
    response = site.submit("w.Fail", "message = oh", sync="true")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"jobId", "status", "result"}
    assert body["status"] == "ERROR"
    assert body["result"]["message"] == "oh"
    assert body["result"]["errorClass"].endswith("ValueError")
    assert "Traceback" in body["result"]["stack"]
    assert site.client.get(f"/jobs/{body['jobId']}").json()["result"] == body["result"]


@pytest.mark.parametrize("sync", ["true", "false"])
def test_a_configuration_that_the_job_refuses_is_400_and_recorded(site: Site, sync: str) -> None:
    response = site.submit("w.Refuse", sync=sync)
    assert error_object(response, 400, "VALIDATION FAILED")["message"] == "input.string is missing"
    assert [job["status"] for job in site.client.get("/jobs").json()] == ["ERROR"]


@pytest.mark.parametrize(
    ("query", "body", "status", "text"),
    [
        ("", "", 400, "Cannot parse config: To start the job appName or cp parameters should be configured!"),
        ("cp=words", "", 400, "Cannot parse config: mainClass parameter is missing!"),
        ("appName=words", "", 400, "Cannot parse config: classPath parameter is missing!"),
        ("appName=none&classPath=w.Count", "", 404, "appName none not found"),
        ("cp=none&mainClass=w.Count", "", 404, "appName none not found"),
        ("appName=words&classPath=w.Count&context=none", "", 404, "context none not found"),
        ("appName=words&classPath=w.Nothing", "", 404, "classPath w.Nothing not found"),
        ("appName=words&classPath=w.Nothing&sync=true", "", 404, "classPath w.Nothing not found"),
    ],
)
def test_an_invalid_submit_is_refused_with_the_contract_wording(
    site: Site, query: str, body: str, status: int, text: str
) -> None:
    error(site.client.post(f"/jobs?{query}", content=body), status, text)


def test_a_configuration_that_cannot_be_parsed_is_refused(site: Site) -> None:
    response = site.submit("w.Count", "input {")
    assert response.status_code == 400
    assert response.json()["status"] == "ERROR"
    assert response.json()["result"].startswith("Cannot parse config: ")


@pytest.mark.parametrize("uri", ["gopher://x/y.jar", "s3a://bucket/y.jar", "http:"])
@pytest.mark.parametrize("code", [{"cp": "{}"}, {"cp": "words", "packages": "{}"}], ids=["cp", "packages"])
def test_a_uri_of_another_protocol_is_malformed(site: Site, uri: str, code: dict[str, str]) -> None:
    params = {name: value.format(uri) for name, value in code.items()}
    response = site.client.post("/jobs", params={**params, "mainClass": "w.Count"})
    error_object(response, 400, "JOB LOADING FAILED: Malformed URL")
    assert site.client.get("/jobs").json() == []


def test_a_malformed_uri_of_the_ad_hoc_context_is_the_contexts(site: Site) -> None:
    body = 'spark.context-settings.dependent-jar-uris = ["gopher://x/y.jar"]'
    error_object(site.submit("w.Count", body), 400, "CONTEXT INIT ERROR: Malformed URL")
    assert site.client.get("/jobs").json() == []


def test_code_that_cannot_be_fetched_is_a_loading_failure(site: Site) -> None:
    response = site.client.post("/jobs", params={"cp": "file:///nothing/here.jar", "mainClass": "w.Count"})
    error_object(response, 400, "JOB LOADING FAILED")


@pytest.mark.parametrize("url", ["ftp://x/y", "javascript:alert(1)", "nonsense"])
def test_a_callback_url_that_is_not_http_is_refused(site: Site, url: str) -> None:
    response = site.submit("w.Count", callbackUrl=url)
    assert response.status_code == 400
    assert response.json()["status"] == "ERROR"
    assert "callbackUrl" in response.json()["result"]


def test_more_jobs_than_slots_are_refused_when_nothing_may_wait(start: Start) -> None:
    site = start({"jobs": {"max-jobs-per-context": 1, "max-queued-jobs": 0}})
    site.client.post("/contexts/etl")
    site.sleeping(context="etl")
    response = site.submit("w.Count", context="etl")
    reason = (
        "all slots are taken (jobserver.jobs.max-jobs-per-context = 1), and no job may wait "
        "(jobserver.jobs.max-queued-jobs = 0); try again when a job has ended"
    )
    ok(
        response,
        503,
        {
            "status": "NO SLOTS AVAILABLE",
            "result": "Too many running jobs (1) for job context 'etl'",
            "code": "no_slots",
            "detail": reason,
            "fields": {
                "context": "etl",
                "running": 1,
                "reason": reason,
            },
        },
    )


def test_jobs_above_the_slots_wait_visibly_and_can_be_killed_there(start: Start) -> None:
    site = start({"jobs": {"max-jobs-per-context": 1}})
    site.client.post("/contexts/etl")
    site.sleeping(context="etl")
    response = site.submit("w.Count", context="etl")
    assert response.status_code == 202
    assert response.json()["waiting"] is True
    job_id = response.json()["jobId"]
    assert site.client.get(f"/jobs/{job_id}").json()["waiting"] is True
    ok(site.client.delete(f"/jobs/{job_id}"), 200, {"status": "KILLED"})
    assert "waiting" not in site.client.get(f"/jobs/{job_id}").json()


@pytest.mark.parametrize("sync", ["true", "false"])
def test_an_ad_hoc_context_that_fails_to_start_is_reported(site: Site, sync: str) -> None:
    body = "spark.context-settings.inline.fail = no memory"
    response = site.submit("w.Count", body, sync=sync)
    assert error_object(response, 500, "CONTEXT INIT FAILED")["message"] == "no memory"


def test_settings_of_a_context_are_accepted_with_a_context_that_exists_and_ignored(site: Site) -> None:
    site.client.post("/contexts/etl")
    body = 'input.string = "a b", spark.context-settings.inline.fail = no memory'
    query = {"context": "etl", "spark.proxy.user": "root"}
    response = site.submit("w.Count", body, sync="true", **query)
    assert response.status_code == 200


class _Choosy(InlineLauncher):
    """Knows no context factories at all."""

    def validate(self, settings: Mapping[str, Any]) -> None:
        super().validate(settings)
        if "context-factory" in settings:
            raise UnknownContextFactory(key="context-factory", message="there is no such factory")


def test_a_context_with_an_unknown_factory_is_never_created(start: Start) -> None:
    site = start(launcher=_Choosy(FUNCTIONS))
    response = site.client.post("/contexts/etl?context-factory=nonsense")
    assert "no such factory" in error_object(response, 500, "CONTEXT INIT ERROR")["message"]
    error(site.client.get("/contexts/etl"), 404, "can't find context with name etl")
    for sync in ("true", "false"):
        body = "spark.context-settings.context-factory = nonsense"
        response = site.submit("w.Count", body, sync=sync)
        assert "no such factory" in error_object(response, 500, "CONTEXT INIT FAILED")["message"]
    assert site.client.get("/jobs").json() == []
    assert site.server.contexts(ContextQuery()) == []


def test_a_setting_that_prevents_every_start_is_refused_before_creation(start: Start) -> None:
    site = start()
    wrong = "setting 'inline.fial': is not a setting; expected inline.fail"
    error(site.client.post("/contexts/etl?inline.fial=x"), 400, wrong)
    error(site.submit("w.Count", "spark.context-settings.inline.fial = x", sync="true"), 400, wrong)
    assert site.client.get("/jobs").json() == []
    assert site.server.contexts(ContextQuery()) == []


def test_a_synchronous_wait_that_times_out_says_so_and_the_job_continues(site: Site) -> None:
    response = site.submit("w.Sleep", sync="true", timeout=0)
    error(response, 500, "Request timed out. Try using the /jobs/<jobID>, /jobs APIs to get status/results")
    (job,) = site.client.get("/jobs").json()
    assert response.json()["jobId"] == job["jobId"]
    assert site.until(job["jobId"], "RUNNING")


def test_the_default_of_the_synchronous_wait_is_the_configurations(start: Start) -> None:
    site = start({"jobs": {"sync-timeout": "50 ms"}})
    assert site.submit("w.Sleep", sync="true").status_code == 500
    response = site.submit("w.Echo", "value = 1", sync="true", timeout=10)
    assert response.json()["result"] == 1


@pytest.mark.parametrize(
    "query",
    ["sync=maybe", "timeout=-1", "timeout=ten", "timeout=99999999999999999999", "sync=true&sync=true"],
)
def test_meaningless_parameters_are_refused(site: Site, query: str) -> None:
    response = site.client.post(f"/jobs?appName=words&classPath=w.Count&{query}")
    assert response.status_code == 400
    assert response.json()["status"] == "ERROR"
    assert site.client.get("/jobs").json() == []


def test_the_response_to_a_kill_depends_on_the_state_of_the_job(site: Site) -> None:
    job_id = site.sleeping()
    ok(site.client.delete(f"/jobs/{job_id}"), 200, {"status": "KILLED"})
    record = site.client.get(f"/jobs/{job_id}").json()
    assert record["status"] == "KILLED"
    assert record["result"]["message"] == f"Job {job_id} killed"
    error(site.client.delete(f"/jobs/{job_id}"), 404, f"No running job with ID {job_id}")
    done = site.submit("w.Echo", sync="true").json()["jobId"]
    error(site.client.delete(f"/jobs/{done}"), 404, f"No running job with ID {done}")
    failed = site.submit("w.Fail", sync="true").json()
    response = site.client.delete(f"/jobs/{failed['jobId']}")
    ok(response, 200, {"status": "ERROR", "ERROR": failed["result"]})
    error(site.client.delete("/jobs/none"), 404, "No such job ID none")


def test_a_job_that_survives_its_kill_is_reported_as_running(start: Start) -> None:
    import threading

    let_go = threading.Event()

    def stubborn(job: Any) -> None:
        let_go.wait(20)

    site = start({"jobs": {"kill-timeout": "0 s"}}, functions={"w.Stubborn": stubborn})
    job_id = site.submit("w.Stubborn").json()["jobId"]
    response = site.client.delete(f"/jobs/{job_id}")
    assert response.status_code == 202
    assert response.json()["status"] == "RUNNING"
    assert response.json()["killRequested"] is True
    let_go.set()


def test_a_sync_caller_learns_that_its_job_was_killed(site: Site) -> None:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.submit, "w.Sleep", sync="true", timeout=10)
        while not (listed := site.client.get("/jobs?status=running").json()):
            time.sleep(0.01)
        site.client.delete(f"/jobs/{listed[0]['jobId']}")
        response = waiting.result()
    assert response.status_code == 200
    assert response.json()["status"] == "KILLED"
    assert response.json()["result"]["message"] == f"Job {listed[0]['jobId']} killed"


@pytest.mark.parametrize("path", ["/jobs/none", "/jobs/none/config", "/jobs/none/logs", "/jobs/none/events"])
def test_an_unknown_job_is_not_found(site: Site, path: str) -> None:
    error(site.client.get(path), 404, "No such job ID none")


def test_jobs_are_listed_newest_first_by_filters_and_pages(site: Site) -> None:
    site.client.post("/contexts/etl")
    ids = [
        site.submit("w.Echo", f"value = {n}", sync="true", context="etl").json()["jobId"] for n in range(5)
    ]
    failed = site.submit("w.Fail", sync="true").json()["jobId"]

    def listed(query: str) -> list[str]:
        return [job["jobId"] for job in site.client.get(f"/jobs?{query}").json()]

    assert listed("") == [failed, *reversed(ids)]
    assert listed("status=error") == listed("status=ERROR") == [failed]
    assert listed("context=etl&limit=2") == [ids[4], ids[3]]
    assert listed("classPath=w.Fail") == [failed]
    assert listed("offset=4") == [ids[1], ids[0]]
    assert listed("limit=0") == []
    middle = site.client.get(f"/jobs/{ids[2]}").json()["startTime"]
    assert ids[4] in listed(f"since={quote(middle)}")
    assert ids[4] not in listed(f"until={quote(middle)}")
    found, url = [], "/jobs?limit=4"
    while url:
        response = site.client.get(url)
        found += [job["jobId"] for job in response.json()]
        following = response.links.get("next", {}).get("url", "")
        url = str(response.url.join(following)) if following else ""
    assert found == listed("")


def test_jobs_that_wait_are_listed_as_such_by_pages(site: Site) -> None:
    site.client.post("/contexts/etl")
    slots = site.server.settings.jobs.max_jobs_per_context
    ids = [site.submit("w.Sleep", context="etl").json()["jobId"] for _ in range(slots + 3)]
    newest = [ids[-1], ids[-2], ids[-3]]

    def listed(query: str) -> list[str]:
        return [job["jobId"] for job in site.client.get(f"/jobs?{query}").json()]

    assert listed("status=WAITING") == listed("status=waiting&context=etl") == newest
    assert listed("status=WAITING&context=other") == []
    assert listed("status=WAITING&limit=1&offset=1") == [newest[1]]
    first = site.client.get("/jobs?status=WAITING&limit=2")
    following = str(first.url.join(first.links["next"]["url"]))
    assert [job["jobId"] for job in [*first.json(), *site.client.get(following).json()]] == newest
    site.client.delete(f"/jobs/{newest[0]}")
    assert listed("status=WAITING") == newest[1:]


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=x", "limit=100000", "status=done", "since=today", "offset=-1", "cursor=x"]
)
def test_a_list_with_wrong_parameters_is_refused(site: Site, query: str) -> None:
    response = site.client.get(f"/jobs?{query}")
    assert response.status_code == 400
    assert response.json()["status"] == "ERROR"


def test_a_repeated_submit_with_one_key_is_one_job(site: Site) -> None:
    def post(body: str) -> httpx.Response:
        return site.client.post(
            "/jobs?appName=words&classPath=w.Echo", content=body, headers={"Idempotency-Key": "k1"}
        )

    first, again, other = post("value = 1"), post("value = 1"), post("value = 2")
    assert first.json()["jobId"] == again.json()["jobId"]
    assert other.status_code == 422
    assert len(site.client.get("/jobs").json()) == 1
