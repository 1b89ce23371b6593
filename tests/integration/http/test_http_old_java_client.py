"""What the old Java client gets, which its User-Agent reveals, and what all other clients get."""

from __future__ import annotations

import json
from typing import Any

import pytest
from http_site import Site

OLD = {"User-Agent": "Apache-HttpClient/4.5 (Java/17.0.15)"}
OTHERS = [
    "Apache-HttpClient/4.5.1 (Java/17.0.15)",
    "Apache-HttpClient/4.5.14 (Java/1.8.0_412)",
    "Apache-HttpClient/4.5",
    "apache-httpclient/4.5 (Java/17.0.15)",
    "Mozilla/5.0 Apache-HttpClient/4.5 (Java/17.0.15)",
    "",
]
UMLAUT = 'value = "Zürich"'


def error_objects(value: Any) -> list[dict[str, Any]]:
    """All error objects in a JSON value."""
    if isinstance(value, list):
        return [found for item in value for found in error_objects(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if set(value) == {"message", "errorClass", "stack"} else []
    return own + error_objects(list(value.values()))


def calls_with_errors(site: Site, headers: dict[str, str]) -> dict[str, Any]:
    """The bodies of all calls that respond with an error object, with one job that failed."""
    client = site.client
    bodies = {}

    def call(method: str, path: str, status: int, **more: Any) -> Any:
        response = client.request(method, path, headers=headers, **more)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        assert response.headers["content-length"] == str(len(response.content))
        bodies[f"{method} {path}"] = response.json()
        return response.json()

    job = call("POST", "/jobs?appName=words&classPath=w.Fail&sync=true", 200)["jobId"]
    call("POST", "/jobs?appName=words&classPath=w.Refuse", 400)
    call("POST", "/jobs?cp=gopher://h/x.egg&mainClass=w.Echo", 400)
    call("GET", f"/jobs/{job}", 200)
    call("GET", "/jobs", 200)
    call("DELETE", f"/jobs/{job}", 200)
    call("POST", "/contexts/broken?inline.fail=no+room", 500)
    call("GET", "/contexts/broken", 200)
    return bodies


def test_the_old_java_client_gets_stacks_as_lists_of_lines(site: Site) -> None:
    for call, body in calls_with_errors(site, OLD).items():
        found = error_objects(body)
        assert found, call
        for error in found:
            assert isinstance(error["stack"], list), call
            assert all(isinstance(line, str) and "\n" not in line for line in error["stack"]), call
    failed = site.client.get("/jobs?status=error", headers=OLD).json()[-1]["result"]
    assert failed["stack"][0] == "Traceback (most recent call last):"
    assert failed["stack"][-1] == "ValueError: no"


@pytest.mark.parametrize("agent", OTHERS)
def test_all_other_clients_get_stacks_as_strings(site: Site, agent: str) -> None:
    for call, body in calls_with_errors(site, {"User-Agent": agent}).items():
        found = error_objects(body)
        assert found, call
        assert all(isinstance(error["stack"], str) for error in found), call


def test_the_old_java_client_gets_everything_but_stacks_as_all_others(site: Site) -> None:
    looks_like_an_error = {"message": "m", "errorClass": "c", "stack": "one\ntwo"}
    body = json.dumps({"value": looks_like_an_error})
    query = "/jobs?appName=words&classPath=w.Echo&sync=true"
    response = site.client.post(query, content=body, headers=OLD)
    assert response.json()["result"] == looks_like_an_error, "the result of a job is the job's own"
    job = f"/jobs/{response.json()['jobId']}"
    for path in (job, f"{job}/result", f"{job}/config", "/jobs", "/binaries", "/contexts", "/openapi.json"):
        first, second = site.client.get(path, headers=OLD), site.client.get(path)
        assert first.content == second.content, path
    head = site.client.head(job, headers=OLD)
    assert head.headers["content-length"] == site.client.get(job).headers["content-length"]


def test_bodies_of_the_old_java_client_are_utf_8_if_valid_and_else_iso_8859_1(site: Site) -> None:
    for encoding in ("latin-1", "utf-8"):
        response = site.client.post(
            "/jobs?appName=words&classPath=w.Echo&sync=true",
            content=UMLAUT.encode(encoding),
            headers={**OLD, "Content-Type": "text/plain", "Content-Encoding": "UTF-8"},
        )
        assert response.json()["result"] == "Zürich", encoding


def test_a_charset_that_the_old_java_client_declares_counts(site: Site) -> None:
    response = site.client.post(
        "/jobs?appName=words&classPath=w.Echo",
        content=UMLAUT.encode("latin-1"),
        headers={**OLD, "Content-Type": "text/plain; charset=utf-8"},
    )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_config")


@pytest.mark.parametrize("agent", OTHERS)
def test_bodies_of_all_other_clients_must_be_utf_8(site: Site, agent: str) -> None:
    response = site.client.post(
        "/jobs?appName=words&classPath=w.Echo",
        content=UMLAUT.encode("latin-1"),
        headers={"User-Agent": agent, "Content-Type": "text/plain"},
    )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_config")
    assert response.json()["result"] == "Cannot parse config: byte 11 of the body is not valid utf-8"
