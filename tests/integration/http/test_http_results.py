"""Results alone: the stored bytes, with their length and type."""

from __future__ import annotations

from http_site import Site

from serving import WAIT

JSON = "application/json"


def finished(site: Site, class_name: str, body: str = "") -> str:
    """Run a job to its end, and return its ID."""
    job_id: str = site.submit(class_name, body).json()["jobId"]
    site.server.job_handle(job_id).finished.result(WAIT)
    return job_id


def test_a_value_is_answered_as_json_as_it_was_stored(site: Site) -> None:
    job_id = finished(site, "w.Echo", 'value = ["a", 1, null]')
    response = site.client.get(f"/jobs/{job_id}/result")
    assert (response.status_code, response.headers["content-type"]) == (200, JSON)
    assert response.json() == ["a", 1, None]
    assert response.headers["content-length"] == str(len(response.content))


def test_no_value_is_null(site: Site) -> None:
    assert site.client.get(f"/jobs/{finished(site, 'w.Echo')}/result").json() is None


def test_a_streamed_result_is_answered_as_its_bytes_with_its_length(site: Site) -> None:
    job_id = finished(site, "w.Stream", "n = 1000")
    response = site.client.get(f"/jobs/{job_id}/result")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.content == b"".join(b"%d," % number for number in range(1000))
    assert response.headers["content-length"] == str(len(response.content))
    head = site.client.head(f"/jobs/{job_id}/result")
    assert (head.content, head.headers["content-length"]) == (b"", response.headers["content-length"])


def test_a_job_that_has_not_finished_has_no_result(site: Site) -> None:
    for job_id in (site.sleeping(), finished(site, "w.Fail")):
        response = site.client.get(f"/jobs/{job_id}/result")
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert "has no result, because its state is" in response.json()["result"]


def test_a_job_that_is_not_known_has_none(site: Site) -> None:
    response = site.client.get("/jobs/nope/result")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_a_record_can_be_requested_without_the_result(site: Site) -> None:
    job_id = finished(site, "w.Stream", "n = 10")
    record = site.client.get(f"/jobs/{job_id}", params={"result": "false"}).json()
    assert (record["status"], "result" in record) == ("FINISHED", False)
    failed = site.client.get(f"/jobs/{finished(site, 'w.Fail')}", params={"result": "false"}).json()
    assert failed["result"]["errorClass"]
