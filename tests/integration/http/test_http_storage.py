"""What uses how much storage, and removing what is beyond the limits, over HTTP."""

from __future__ import annotations

from http_site import Start

from serving import WAIT


def test_storage_lists_kinds_and_limits_and_prune_says_what_it_removed(start: Start) -> None:
    site = start({"jobs": {"max-kept": 1}})
    site.client.post("/contexts/etl")
    ids = [site.submit("w.Echo", context="etl", sync="true").json()["jobId"] for _ in range(3)]
    before = {kind["kind"]: kind for kind in site.client.get("/storage").json()}
    assert before["jobs"]["count"] == 3
    assert before["jobs"]["limits"] == {
        "jobserver.jobs.retention": "30 days",
        "jobserver.jobs.max-kept": 1,
    }
    assert before["binaries"]["bytes"] > 0
    answer = site.client.post("/storage/prune", timeout=WAIT)
    assert answer.status_code == 200
    assert answer.json()["removed"]["jobs"] == 2
    assert [job["jobId"] for job in site.client.get("/jobs").json()] == ids[-1:]
    assert site.client.post("/storage/prune", timeout=WAIT).json() == {"removed": {}}
