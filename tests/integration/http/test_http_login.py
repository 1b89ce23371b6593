"""Access control over a real socket: credentials, permissions, proxy users, browsers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import httpx
import pytest
from http_site import WHEEL, Site, Start

from conditions import wait_until
from jobserver_http.credential_files import hash_token
from jobserver_http.routes import ROUTES, Route
from serving import archive

PASSWORD = "correct horse"
HASH = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)  # quick to verify
TOKEN = "t0ken-of-the-pipeline"


@pytest.fixture
def auth(tmp_path: Path) -> dict[str, Any]:
    users = {
        "admin": "*",
        "alice": "jobs,contexts,binaries",
        "bob": "jobs,contexts,binaries",
        "eve": "data:read",
    }
    passwords, tokens = tmp_path / "passwords", tmp_path / "tokens"
    passwords.write_text("".join(f"{user}:{HASH}:{held}\n" for user, held in users.items()))
    tokens.write_text(f"pipeline:{hash_token(TOKEN)}:jobs:read\n")
    for path in (passwords, tokens):
        path.chmod(0o600)
    return {"backend": "file", "password-file": str(passwords), "token-file": str(tokens)}


@pytest.fixture
def guarded(start: Start, auth: dict[str, Any]) -> Site:
    return start({"auth": auth}, credentials=("admin", PASSWORD))


def as_user(site: Site, user: str, password: str = PASSWORD) -> httpx.Client:
    return httpx.Client(base_url=site.url, auth=(user, password))


def call(site: Site, route: Route, auth: Any, name: str = "x") -> httpx.Response:
    path = route.path.replace("{name:path}", name).replace("{name}", name).replace("{id}", name)
    url = site.url + path.replace("{file}", "docs.js")
    with httpx.stream(route.method, url, auth=auth) as response:  # of an endless stream the head will do
        return response


def test_every_route_except_the_public_ones_requires_credentials(guarded: Site) -> None:
    for route in ROUTES:
        for name in ("x", "x%2Fy"):
            status = call(guarded, route, None, name).status_code
            assert (status == 401) is (route.permission is not None), (route.name, name)


def test_every_route_wants_its_permission(guarded: Site) -> None:
    for route in ROUTES:
        if route.permission:
            status = call(guarded, route, ("eve", PASSWORD)).status_code
            assert (status == 403) is (route.permission != "data:read"), route.name


def test_every_caller_with_valid_credentials_learns_its_permissions(guarded: Site) -> None:
    with as_user(guarded, "eve") as client:
        assert client.get("/user").json() == {"name": "eve", "permissions": ["data:read"]}
    with as_user(guarded, "eve", "wrong") as client:
        assert client.get("/user").status_code == 401
    held = guarded.client.get("/user").json()["permissions"]
    assert {"jobs:delete", "storage:prune"} <= set(held)


def test_without_authentication_every_caller_has_all_permissions_and_no_name(start: Start) -> None:
    held = start().client.get("/user").json()
    assert set(held) == {"permissions"}
    assert "jobs:delete" in held["permissions"]


def test_a_challenge_offers_both_authentication_schemes(guarded: Site) -> None:
    response = httpx.get(f"{guarded.url}/jobs")
    assert response.status_code == 401
    assert response.json() == {
        "status": "ERROR",
        "result": "The resource requires authentication, which was not supplied with the request",
        "code": "unauthenticated",
    }
    assert response.headers["www-authenticate"] == (
        'Basic realm="jobserver", charset="UTF-8", Bearer realm="jobserver"'
    )


def test_a_script_that_asks_for_credentials_gets_no_challenge_that_makes_the_browser_ask(
    guarded: Site,
) -> None:
    response = httpx.get(f"{guarded.url}/jobs", headers={"X-Requested-With": "XMLHttpRequest"})
    assert response.status_code == 401
    schemes = [challenge.split()[0] for challenge in response.headers["www-authenticate"].split(", ")]
    assert schemes == ["X-Basic", 'charset="UTF-8"', "Bearer"]


@pytest.mark.parametrize("header", ["Basic ?", "Digest x", "Bearer wrong", "Basic YWxpY2U6eA=="])
def test_wrong_credentials_are_refused_with_the_wording_clients_look_for(guarded: Site, header: str) -> None:
    response = httpx.get(f"{guarded.url}/jobs", headers={"Authorization": header})
    assert (response.status_code, response.json()["status"]) == (401, "ERROR")
    assert response.json()["result"] == "The supplied authentication is invalid"
    assert "www-authenticate" in response.headers


def test_a_missing_permission_is_named(guarded: Site) -> None:
    with as_user(guarded, "eve") as client:
        response = client.get("/jobs")
    assert response.status_code == 403
    assert response.json() == {
        "status": "ERROR",
        "result": "missing permission jobs:read",
        "code": "permission_denied",
    }


def test_a_bearer_token_lets_in(guarded: Site) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{guarded.url}/jobs", headers=headers).status_code == 200
    assert httpx.get(f"{guarded.url}/binaries", headers=headers).status_code == 403
    assert httpx.get(f"{guarded.url}/jobs", headers={"Authorization": "Bearer x"}).status_code == 401


def test_a_post_that_deletes_requires_the_delete_permission(guarded: Site) -> None:
    response = httpx.post(
        f"{guarded.url}/jobs/x?_method=DELETE", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert (response.status_code, response.json()["result"]) == (403, "missing permission jobs:delete")


def test_a_guesser_at_the_same_address_does_not_lock_a_user_out_and_no_password_is_logged(
    guarded: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for number in range(6):
            with as_user(guarded, "alice", f"hunter2-guess-{number}") as client:
                assert client.get("/jobs").status_code == 401
        with as_user(guarded, "alice") as client:
            assert client.get("/jobs").status_code == 200
    assert "hunter2-guess" not in caplog.text
    assert PASSWORD not in caplog.text
    assert guarded.client.get("/jobs").status_code == 200


def test_health_and_readiness_hide_reasons_from_unauthenticated_callers(
    start: Start, auth: dict[str, Any]
) -> None:
    from jobserver_core.errors import StorageError
    from jobserver_core.memory import MemoryMetadataStore

    class Broken(MemoryMetadataStore):
        def check(self) -> None:
            raise StorageError(message="postgresql://admin@10.0.0.1 refused")

    site = start({"auth": auth}, credentials=("admin", PASSWORD), metadata=Broken())
    response = httpx.get(f"{site.url}/readyz")
    assert (response.status_code, response.json()["result"]) == (503, "metadata")
    response = httpx.get(f"{site.url}/healthz")
    assert (response.status_code, response.json()["result"]) == (500, "cannot write to storage: metadata")


def test_readiness_hides_the_names_of_failed_contexts_from_unauthenticated_callers(
    start: Start, auth: dict[str, Any]
) -> None:
    contexts = {"secret": {"inline.fail": "no cores left"}}
    site = start({"auth": auth}, credentials=("admin", PASSWORD), spark={"contexts": contexts})
    wait_until(lambda: site.server.context("secret").state.final)
    assert httpx.get(f"{site.url}/readyz").json() == {
        "status": "SUCCESS",
        "warnings": ["configured contexts that failed: 1; the log of the server says which and why"],
    }


def test_the_log_and_the_record_name_the_user_who_killed_a_job(
    guarded: Site, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = guarded.sleeping()
    with caplog.at_level("INFO", "jobserver_core.running.jobs"):
        assert guarded.client.delete(f"/jobs/{job_id}").json() == {"status": "KILLED"}
    assert f"job {job_id} is killed by user admin" in caplog.messages
    record = guarded.client.get(f"/jobs/{job_id}").json()
    error = {"message": f"Job {job_id} killed", "errorClass": "JobKilled", "stack": "by user admin"}
    assert record["result"] == error


# -- proxy users -----------------------------------------------------------------------------------


@pytest.fixture
def proxied(start: Start, auth: dict[str, Any]) -> Site:
    return start(
        {"auth": {**auth, "use-as-proxy-user": True}},
        credentials=("admin", PASSWORD),
        functions={"w.Who": lambda job: job.context_settings["spark"]["proxy"]["user"]},
    )


@pytest.fixture
def alice(proxied: Site) -> Iterator[httpx.Client]:
    with as_user(proxied, "alice") as client:
        yield client


@pytest.fixture
def bob(proxied: Site) -> Iterator[httpx.Client]:
    with as_user(proxied, "bob") as client:
        yield client


def test_users_have_contexts_of_their_own_under_equal_names(
    proxied: Site, alice: httpx.Client, bob: httpx.Client
) -> None:
    for client in (alice, bob):
        assert client.post("/contexts/etl?spark.proxy.user=root").status_code == 200
        assert client.get("/contexts").json() == ["etl"]
        assert client.get("/contexts/etl").json()["name"] == "etl"
        assert client.post("/contexts/etl").json()["result"] == "context etl exists"
    assert proxied.server.context("alice~etl").settings["spark"]["proxy"]["user"] == "alice"
    assert alice.delete("/contexts/etl").json()["result"] == "Context stopped"
    assert alice.get("/contexts").json() == []
    assert bob.get("/contexts").json() == ["etl"]
    assert alice.delete("/contexts/etl").json()["result"] == "context etl not found"
    assert alice.get("/contexts/bob~etl").status_code == 404


def test_ended_contexts_of_a_user_are_found_behind_those_of_others(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    for client, times in ((alice, 1), (bob, 2)):
        for _ in range(times):
            assert client.post("/contexts/etl").status_code == 200
            assert client.delete("/contexts/etl").status_code == 200
    mine = alice.get("/contexts/etl").json()
    assert alice.get("/contexts", params={"ended": "true", "limit": 1}).json() == [mine]
    assert len(bob.get("/contexts?ended=true").json()) == 2


def test_jobs_run_as_the_caller_and_are_the_callers(
    proxied: Site, alice: httpx.Client, bob: httpx.Client
) -> None:
    query = "/jobs?appName=words&classPath=w.Who&sync=true&spark.proxy.user=root"
    bodies = ("", "spark.context-settings.spark.proxy.user = root", '{"spark.context-settings": {}}')
    for body in bodies:
        assert alice.post(query, content=body).json()["result"] == "alice"
    job_id = alice.get("/jobs").json()[0]["jobId"]
    assert "~" not in alice.get("/jobs").text
    assert len(alice.get("/jobs?limit=2").json()) == 2
    assert bob.get("/jobs").json() == []
    for path in (
        f"/jobs/{job_id}",
        f"/jobs/{job_id}/config",
        f"/jobs/{job_id}/logs",
        f"/jobs/{job_id}/events",
    ):
        assert bob.get(path).json()["result"] == f"No such job ID {job_id}"
        assert alice.get(path).status_code == 200
    assert bob.delete(f"/jobs/{job_id}").json()["result"] == f"No such job ID {job_id}"


def test_pages_of_jobs_are_the_callers_alone(alice: httpx.Client, bob: httpx.Client) -> None:
    mine = []
    for number in range(6):
        client = (alice, bob)[number % 2]
        response = client.post("/jobs?appName=words&classPath=w.Echo&sync=true")
        if client is alice:
            mine.append(response.json()["jobId"])
    found, url = [], "/jobs?limit=2"
    while url:
        response = alice.get(url)
        assert len(response.json()) <= 2
        found += [job["jobId"] for job in response.json()]
        following = response.links.get("next", {}).get("url", "")
        url = str(response.url.join(following)) if following else ""
    assert found == mine[::-1]
    assert [job["jobId"] for job in alice.get("/jobs?offset=1").json()] == mine[:-1][::-1]


@pytest.mark.parametrize("kind", ["binaries", "jars"])
def test_who_cannot_delete_a_binary_learns_only_the_ids_of_own_jobs(
    proxied: Site, alice: httpx.Client, bob: httpx.Client, kind: str
) -> None:
    proxied.client.post("/jars/shared", content=archive())
    query = "/jobs?appName=shared&classPath=w.Sleep"
    others = bob.post(query).json()["jobId"]
    response = alice.delete(f"/{kind}/shared")
    assert response.json() == {
        "status": "ERROR",
        "result": "Binary is in use by job(s) of other users",
        "code": "binary_in_use",
        "fields": {"name": "shared", "job_ids": []},
    }
    assert response.status_code == 403
    mine = alice.post(query).json()["jobId"]
    response = alice.delete(f"/{kind}/shared")
    assert response.json()["result"] == f"Binary is in use by job(s): {mine}, and by jobs of other users"
    assert response.json()["fields"]["job_ids"] == [mine]
    bob.delete(f"/jobs/{others}")
    assert alice.delete(f"/{kind}/shared").json()["result"] == f"Binary is in use by job(s): {mine}"


def test_an_idempotency_key_is_its_users_own(alice: httpx.Client, bob: httpx.Client) -> None:
    query, headers = "/jobs?appName=words&classPath=w.Echo", {"Idempotency-Key": "k"}
    first = alice.post(query, headers=headers).json()["jobId"]
    assert alice.post(query, headers=headers).json()["jobId"] == first
    assert bob.post(query, headers=headers).json()["jobId"] != first


def test_the_idempotency_key_of_another_user_is_refused_and_tells_nothing_about_the_job(
    guarded: Site,
) -> None:
    query, headers = "/jobs?appName=words&classPath=w.Echo", {"Idempotency-Key": "k"}
    with as_user(guarded, "alice") as alice, as_user(guarded, "bob") as bob:
        first = alice.post(query, headers=headers).json()["jobId"]
        refused = bob.post(query, headers=headers)
        assert alice.post(query, headers=headers).json()["jobId"] == first
    assert (refused.status_code, refused.json()) == (
        422,
        {
            "status": "ERROR",
            "result": "idempotency key 'k' was already used for a different request",
            "code": "idempotency_mismatch",
            "fields": {"key": "k", "job_id": None},
        },
    )


def test_messages_have_no_prefix(proxied: Site, alice: httpx.Client) -> None:
    alice.post("/contexts/etl")
    job_id = alice.post("/jobs?appName=words&classPath=w.Sleep&context=etl").json()["jobId"]
    alice.delete("/contexts/etl?force=true")
    assert alice.get(f"/jobs/{job_id}").json()["result"] == {
        "message": "Context (etl) for this job was terminated",
        "errorClass": "ContextTerminated",
        "stack": "killed by user alice",
    }


# -- browsers --------------------------------------------------------------------------------------


def test_a_page_of_another_site_cannot_run_jobs(site: Site) -> None:
    response = site.client.post(
        "/jobs?appName=words&classPath=w.Echo", headers={"Origin": "http://evil.example"}
    )
    assert response.status_code == 403
    assert site.client.get("/jobs").json() == []
    own = site.client.post("/jobs?appName=words&classPath=w.Echo", headers={"Origin": site.url})
    assert own.status_code == 202


def test_a_foreign_host_name_that_resolves_to_this_server_reads_nothing(site: Site) -> None:
    assert site.client.get("/jobs", headers={"Host": "evil.example"}).status_code == 403
    assert site.client.get("/jobs", headers={"Host": "localhost:1"}).status_code == 200


def test_a_server_with_authentication_accepts_any_host_name(guarded: Site) -> None:
    assert guarded.client.get("/jobs", headers={"Host": "jobs.example.org"}).status_code == 200


def test_uploading_and_counting_work_with_credentials_as_without(guarded: Site) -> None:
    assert guarded.client.post("/binaries/b", content=archive(), headers=WHEEL).status_code == 201
    response = guarded.submit("w.Count", "input.string = a a", sync="true")
    assert response.json()["result"] == {"a": 2}


def test_the_user_who_submits_a_job_is_the_one_who_takes_turns(guarded: Site) -> None:
    guarded.client.post("/contexts/etl")
    query = {"appName": "words", "classPath": "w.Echo", "context": "etl", "sync": "true", "priority": "7"}
    with as_user(guarded, "alice") as alice:
        job_id = alice.post("/jobs", params=query).json()["jobId"]
        assert alice.get(f"/jobs/{job_id}").json()["priority"] == 7
    job = guarded.server.job(job_id)
    assert (job.submitted_by, job.priority) == ("alice", 7)


def test_without_authentication_all_jobs_are_of_one_user(start: Start) -> None:
    site = start()
    job_id = site.submit("w.Echo", sync="true").json()["jobId"]
    assert site.server.job(job_id).submitted_by == ""
    assert "priority" not in site.client.get(f"/jobs/{job_id}").json()
