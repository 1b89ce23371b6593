"""The contract, call by call, over a real socket."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from http_site import JAR, TIME, WHEEL, Site, Start, error, error_object, ok

from conditions import WAIT, wait_until
from jobserver_core import JobServer, SparePool
from jobserver_core.memory import MemoryMetadataStore
from jobserver_http.routes import ROUTES
from serving import ScriptedLauncher, archive, packaged

# -- binaries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("application/java-archive", "Jar"),
        ("application/python-egg", "Egg"),
        ("application/python-wheel", "Wheel"),
        ("application/python-archive", "Egg"),
        ("python-archive", "Egg"),
        ("application/java-archive; charset=utf-8", "Jar"),
    ],
)
def test_a_binary_is_uploaded_listed_and_deleted(site: Site, media_type: str, kind: str) -> None:
    ok(
        site.client.post("/binaries/b", content=archive(), headers={"Content-Type": media_type}),
        201,
        {"status": "SUCCESS"},
    )
    one = site.client.get("/binaries/b").json()
    assert set(one) == {"app-name", "binary-type", "upload-time", "id", "digest", "size"}
    assert (one["app-name"], one["binary-type"]) == ("b", kind)
    assert TIME.fullmatch(one["upload-time"])
    listed = site.client.get("/binaries").json()["b"]
    assert {"app-name": "b", **listed} == one
    ok(site.client.delete("/binaries/b"), 200, {"status": "SUCCESS"})
    error(site.client.get("/binaries/b"), 404, "Can't find binary with name b")
    error(site.client.delete("/binaries/b"), 404, "can't find binary with name b")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": ""}])
def test_an_upload_without_a_known_content_type_is_refused(site: Site, headers: dict[str, str]) -> None:
    response = site.client.post("/binaries/b", content=archive(), headers=headers)
    assert response.status_code == 415
    assert response.json()["status"] == "ERROR"
    assert "b" not in site.client.get("/binaries").json()


@pytest.mark.parametrize("content", [b"", b"hello", archive()[:-10]])
def test_an_upload_that_is_not_a_zip_archive_is_refused(site: Site, content: bytes) -> None:
    response = site.client.post("/binaries/b", content=content, headers=JAR)
    assert response.status_code == 400
    assert (response.json()["status"], response.json()["result"]) == (
        "ERROR",
        "Binary is not of the right format",
    )
    assert "b" not in site.client.get("/binaries").json()


def test_an_upload_under_a_known_name_is_a_new_version(site: Site) -> None:
    site.client.post("/binaries/words", content=archive("x = 2"), headers=WHEEL)
    versions = site.client.get("/binaries/words/versions").json()
    assert len(versions) == 2
    assert len({version["digest"] for version in versions}) == 2
    assert set(versions[0]) == {"binary-type", "upload-time", "id", "digest", "size", "usedBy"}
    error(site.client.get("/binaries/none/versions"), 404, "Can't find binary with name none")


def test_a_version_has_the_name_and_version_that_its_package_carries(site: Site) -> None:
    for content in (packaged("1.2.0"), archive("x = 3"), packaged("1.3.0")):
        site.client.post("/binaries/b", content=content, headers=WHEEL)
    versions = site.client.get("/binaries/b/versions").json()
    assert [version.get("package", "none") for version in versions] == ["words 1.3.0", "none", "words 1.2.0"]
    assert site.client.get("/binaries").json()["b"]["package"] == "words 1.3.0"
    assert site.client.get("/binaries/b").json()["package"] == "words 1.3.0"
    assert "package" not in site.client.get("/binaries/words").json()


def test_a_binary_that_a_job_uses_is_not_deleted(site: Site) -> None:
    first, second = site.sleeping(), site.sleeping()
    error(site.client.delete("/binaries/words"), 403, f"Binary is in use by job(s): {first}, {second}")
    (version,) = site.client.get("/binaries/words/versions").json()
    assert set(version["usedBy"]) == {first, second}
    for job_id in (first, second):
        site.client.delete(f"/jobs/{job_id}")
    ok(site.client.delete("/binaries/words"), 200, {"status": "SUCCESS"})


# -- the dialect of older clients --------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, JAR, {"Content-Type": "text/plain"}, WHEEL])
def test_older_clients_can_upload_jars_with_any_content_type(site: Site, headers: dict[str, str]) -> None:
    response = site.client.post("/jars/j", content=archive(), headers=headers)
    ok(response, 200, {"status": "SUCCESS", "result": "Jar uploaded"})
    assert site.client.get("/binaries/j").json()["binary-type"] == "Jar"


def test_older_clients_list_jars_with_their_upload_times(site: Site) -> None:
    for name in ("j", "k", "j"):
        site.client.post(f"/jars/{name}", content=archive())
    listed = site.client.get("/jars").json()
    assert set(listed) == {"j", "k"}
    assert TIME.fullmatch(listed["j"])
    assert {name: site.client.get(f"/binaries/{name}").json()["upload-time"] for name in listed} == listed
    assert set(site.client.get("/binaries").json()) == {"j", "k", "words"}


@pytest.mark.parametrize("content", [b"", b"hello", archive()[:-10]])
def test_older_clients_learn_that_a_file_is_not_a_jar(site: Site, content: bytes) -> None:
    response = site.client.post("/jars/j", content=content)
    assert (response.status_code, response.json()["status"]) == (400, "ERROR")
    assert response.json()["result"] == "Jar is not of the right format"
    assert site.client.get("/jars").json() == {}


def test_older_clients_delete_jars_and_nothing_else(site: Site) -> None:
    site.client.post("/jars/j", content=archive())
    job_id = site.sleeping(appName="j")
    error(site.client.delete("/jars/j"), 403, f"Binary is in use by job(s): {job_id}")
    site.client.delete(f"/jobs/{job_id}")
    ok(site.client.delete("/jars/j"), 200, {"status": "SUCCESS"})
    error(site.client.delete("/jars/j"), 404, "can't find binary with name j")
    error(site.client.delete("/jars/words"), 404, "can't find binary with name words")
    error(site.client.get("/jars/words"), 404, "Can't find binary with name words")
    assert "words" in site.client.get("/binaries").json()


# -- paths and bodies ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/jobs", "/contexts", "/binaries", "/data", "/jars", "/binaries/words"])
def test_trailing_slashes_of_a_path_are_ignored(site: Site, path: str) -> None:
    bare, slashed = site.client.get(path), site.client.get(f"{path}/")
    assert (slashed.status_code, slashed.json()) == (bare.status_code, bare.json()) == (200, bare.json())


def test_trailing_slashes_are_ignored_for_every_method(site: Site) -> None:
    ok(site.client.post("/binaries/b/", content=archive(), headers=JAR), 201, {"status": "SUCCESS"})
    ok(site.client.delete("/binaries/b/"), 200, {"status": "SUCCESS"})
    ok(
        site.client.post("/jars/j/", content=archive()),
        200,
        {"status": "SUCCESS", "result": "Jar uploaded"},
    )
    assert site.client.post("/contexts/etl/").json()["result"] == "Context initialized"
    response = site.client.post("/jobs/?appName=words&classPath=w.Echo&sync=true", content="value = 1")
    assert response.json()["result"] == 1
    job = f"/jobs/{response.json()['jobId']}"
    assert site.client.get(f"{job}/").json() == site.client.get(job).json()
    assert site.client.get(f"{job}/config/").json() == {"value": 1}
    error(site.client.delete(f"{job}/"), 404, f"No running job with ID {response.json()['jobId']}")
    assert site.client.delete("/contexts/etl/").json()["result"] == "Context stopped"
    ok(site.client.put("/data/?reset=reboot"), 200, {"status": "SUCCESS", "result": "Data reset"})
    ok(site.client.post("/jars/j/?_method=DELETE"), 200, {"status": "SUCCESS"})
    stored = site.client.post("/data/prefix/", content=b"x").json()["result"]["filename"]
    assert Path(stored).name.startswith("prefix-")


def test_only_one_slash_that_is_not_part_of_a_name_is_ignored(site: Site) -> None:
    error(site.client.get("/binaries/words%2F"), 404, "Can't find binary with name words/")
    error(site.client.get("/binaries/words%2F/"), 404, "Can't find binary with name words/")
    assert site.client.get("/jobs//").status_code == 404


def test_an_encoded_slash_in_a_name_is_the_mistake_that_is_reported(site: Site) -> None:
    named = [(route, route.path.split("/")[1]) for route in ROUTES if "/{name}" in route.path]
    assert {collection for _, collection in named} == {"binaries", "contexts", "jars"}
    for route, collection in named:
        path = route.path.replace("{name}", "p%202%2fx")
        response = site.client.request(route.method, path, headers=JAR)
        kind = "context" if collection == "contexts" else "binary"
        if route.method == "POST":
            assert (response.status_code, response.json()["code"]) == (400, "invalid_name"), path
            assert f"{kind} name 'p 2/x' is not allowed: it may contain" in response.json()["result"]
        else:
            assert (response.status_code, response.json()["code"]) == (404, f"{kind}_not_found"), path
            assert "p 2/x" in response.json()["result"]
            if kind == "context":
                assert response.json()["detail"].startswith("the name is not allowed: it may contain"), path
    for route in ROUTES:
        if "/{id}" in route.path:
            response = site.client.request(route.method, route.path.replace("{id}", "p%202%2Fx"))
            error(response, 404, "No such job ID p 2/x")
    error(site.client.get("/jobs/x%2Fconfig"), 404, "No such job ID x/config")
    error(site.client.get("/contexts/p/x%2Fy"), 404, "unknown path '/contexts/p/x/y'")


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("iso-8859-1", "latin-1"),
        ("ISO-8859-2", "iso-8859-2"),
        ('"utf-16"', "utf-16"),
        ("UTF-8", "utf-8"),
        ("windows-1250", "cp1250"),
    ],
)
def test_a_body_is_read_in_the_charset_that_it_declares(site: Site, charset: str, encoding: str) -> None:
    for media_type in ("text/plain", "application/json"):
        response = site.client.post(
            "/jobs?appName=words&classPath=w.Echo&sync=true",
            content='value = "Zürich ä"'.encode(encoding),
            headers={"Content-Type": f"{media_type}; charset={charset}"},
        )
        assert response.json()["result"] == "Zürich ä", response.text
    body = 'spark.context-settings { spark.app.name = "Köln" }'.encode(encoding)
    site.client.post(
        "/contexts/etl", content=body, headers={"Content-Type": f"text/plain; charset={charset}"}
    )
    assert site.server.context("etl").settings["spark"]["app"]["name"] == "Köln"


@pytest.mark.parametrize("charset", ["klingon", "punycode", "base64", "unicode_escape", "utf-7", "x" * 500])
def test_a_body_in_an_unknown_charset_is_refused(site: Site, charset: str) -> None:
    response = site.client.post(
        "/jobs?appName=words&classPath=w.Echo",
        content="value = 1",
        headers={"Content-Type": f"text/plain; charset={charset}"},
    )
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_charset")
    assert response.json()["result"].endswith("is not supported; send UTF-8")


def test_bytes_that_are_not_of_the_declared_charset_are_refused(site: Site) -> None:
    for declared in ("", "; charset=utf-8", "; charset=us-ascii"):
        response = site.client.post(
            "/jobs?appName=words&classPath=w.Echo",
            content="value = ä".encode("latin-1"),
            headers={"Content-Type": f"text/plain{declared}"},
        )
        assert response.status_code == 400
        assert response.json()["result"].startswith("Cannot parse config: byte 9 of the body is not valid")


def test_old_clients_may_use_mem_per_node(site: Site) -> None:
    site.client.post("/contexts/etl?mem-per-node=512m")
    assert site.server.context("etl").settings["memory-per-node"] == "512m"
    assert "mem-per-node" not in site.server.context("etl").settings


# -- method override -------------------------------------------------------------------------------


def test_post_can_stand_for_other_methods(site: Site) -> None:
    ok(site.client.post("/binaries/words?_method=DELETE"), 200, {"status": "SUCCESS"})
    ok(site.client.post("/data?_method=put&reset=reboot"), 200, {"status": "SUCCESS", "result": "Data reset"})
    error(site.client.post("/binaries/words?_method=GET"), 400, "_method must be DELETE or PUT, got 'GET'")
    assert site.client.get("/binaries?_method=DELETE").json() == {}


# -- data files ------------------------------------------------------------------------------------


def test_data_files_are_uploaded_listed_and_deleted(site: Site) -> None:
    response = site.client.post("/data/table", content=b"a,b\n1,2\n")
    assert response.status_code == 200
    name = response.json()["result"]["filename"]
    assert re.fullmatch(r".*/table-[^:/]+\.dat", name)
    with open(name, "rb") as file:
        assert file.read() == b"a,b\n1,2\n"
    ok(site.client.get("/data"), 200, [name])
    assert site.client.delete(f"/data/{quote(name, safe='')}").status_code == 200
    ok(site.client.get("/data"), 200, [])
    error(site.client.delete(f"/data/{quote(name, safe='')}"), 400, f"Unable to delete data file '{name}'.")


@pytest.mark.parametrize(
    "path", ["/data/sales", "/jars/words", "/jobs?appName=words&classPath=w.Echo", "/contexts/etl"]
)
def test_a_multipart_form_is_refused_instead_of_taken_for_the_content(site: Site, path: str) -> None:
    response = site.client.post(path, files={"file": ("sales.csv", b"a,b")})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "with curl, send a file with --data-binary @FILE instead of -F" in response.json()["result"]
    assert site.client.get("/data").json() == []


def test_a_data_file_may_have_the_content_type_that_curl_sends_with_data_binary(site: Site) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert site.client.post("/data/sales", content=b"a,b", headers=headers).status_code == 200


def test_the_name_of_a_data_file_ends_as_the_caller_asks_and_otherwise_with_dat(site: Site) -> None:
    def uploaded(path: str) -> str:
        return str(site.client.post(path, content=b"x").json()["result"]["filename"])

    assert re.fullmatch(r".*/sales\.csv\.gz-[^:/]+\.dat", uploaded("/data/sales.csv.gz"))
    assert re.fullmatch(r".*/sales-[^:/]+\.csv\.gz", uploaded("/data/sales?ending=.csv.gz"))
    response = site.client.post("/data/sales?ending=/../x", content=b"x")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_name")


def test_only_the_servers_own_data_files_can_be_deleted(site: Site, tmp_path: Path) -> None:
    bystander = tmp_path / "bystander.dat"
    bystander.touch()
    response = site.client.delete(f"/data/{quote(str(bystander), safe='')}")
    error(response, 400, f"Unable to delete data file '{bystander}'.")
    assert bystander.exists()


def test_reset_removes_every_data_file(site: Site) -> None:
    for _ in range(2):
        site.client.post("/data/x", content=b"1")
        ok(site.client.put("/data?reset=reboot"), 200, {"status": "SUCCESS", "result": "Data reset"})
        assert site.client.get("/data").json() == []
    ok(
        site.client.put("/data?reset=reboot&sync=false"),
        200,
        {"status": "SUCCESS", "result": "Data reset requested"},
    )


@pytest.mark.parametrize("name", ["a%0ab", "a%0a", "a%0d", "a%E2%80%A8b"])
def test_a_line_break_in_a_name_is_the_mistake_that_is_reported(site: Site, name: str) -> None:
    for path, headers in ((f"/binaries/{name}", JAR), (f"/data/{name}", {}), (f"/contexts/{name}", {})):
        response = site.client.post(path, content=archive() if headers else b"", headers=headers)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_name"), (path, response.text)
    response = site.client.delete(f"/data/{name}")
    assert (response.status_code, response.json()["code"]) == (400, "data_file_not_found")


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fx", "a%00b", "%0a", "-x", "a%5cb", "x" * 300])
def test_names_that_lead_elsewhere_are_refused_everywhere(site: Site, name: str) -> None:
    for path, headers in ((f"/binaries/{name}", JAR), (f"/data/{name}", {}), (f"/contexts/{name}", {})):
        request = httpx.Request("POST", site.url, content=archive(), headers=headers)
        request.url = httpx.URL(site.url).copy_with(raw_path=path.encode())
        response = site.client.send(request)
        assert response.status_code in (400, 404, 405), (path, response.text)
    assert set(site.client.get("/binaries").json()) == {"words"}
    assert site.client.get("/data").json() == []
    assert site.client.get("/contexts").json() == []


# -- the server itself -----------------------------------------------------------------------------


def test_health_and_readiness(site: Site) -> None:
    ok(site.client.get("/healthz"), 200, {"status": "SUCCESS"})
    ok(site.client.get("/readyz"), 200, {"status": "SUCCESS"})


def test_a_ready_server_warns_of_configured_contexts_that_have_failed(start: Start) -> None:
    contexts = {"good": {}, "bad": {"inline.fail": "no cores left"}, "worse": {"cp": "nowhere"}}
    site = start(spark={"contexts": contexts})
    wait_until(lambda: site.server.context("bad").state.final)
    assert site.client.get("/readyz").json() == {
        "status": "SUCCESS",
        "warnings": [
            "configured context bad failed: no cores left",
            "configured context worse failed: binary 'nowhere' not found",
        ],
    }
    site.server.create_context("bad").result(WAIT)
    [warning] = site.client.get("/readyz").json()["warnings"]
    assert "worse" in warning


def test_a_server_whose_storage_fails_is_neither_healthy_nor_ready(start: Start) -> None:
    from jobserver_core.errors import StorageError
    from jobserver_core.memory import MemoryMetadataStore

    class Broken(MemoryMetadataStore):
        broken = False

        def check(self) -> None:
            if self.broken:
                raise StorageError(message="the disk is full")

    store = Broken()
    site = start(metadata=store)
    store.broken = True
    error(site.client.get("/healthz"), 500, "cannot write to storage: metadata: the disk is full")
    error(site.client.get("/readyz"), 503, "metadata: the disk is full")


def test_a_storage_failure_is_reported_and_leaves_nothing(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    from jobserver_core.errors import StorageError
    from jobserver_core.memory import MemoryMetadataStore

    class Broken(MemoryMetadataStore):
        broken = False

        def add_binary(self, binary: Any) -> None:
            if self.broken:
                raise StorageError(message="the disk is full")
            super().add_binary(binary)

    store = Broken()
    site = start(metadata=store)
    store.broken = True
    response = site.client.post("/binaries/b", content=archive(), headers=JAR)
    assert error_object(response, 500, "Storage Failure")["message"] == "the disk is full"
    assert "b" not in site.client.get("/binaries").json()
    for _ in range(20):
        error_object(site.client.post("/binaries/b", content=archive(), headers=JAR), 500, "Storage Failure")
    logged = [record for record in caplog.records if "the disk is full" in record.getMessage()]
    assert len(logged) == 1, "a failure of storage logs one line a minute, not one for each request"


def test_a_server_counts_only_its_own_contexts(start: Start) -> None:
    metadata = MemoryMetadataStore(shared=True)
    first, second = start(metadata=metadata), start(metadata=metadata)
    first.client.post("/contexts/etl")
    counts = [site.client.get("/metrics").text for site in (first, second)]
    assert ['jobserver_contexts{state="RUNNING"} 1.0' in text for text in counts] == [True, False]


def test_measurements_are_there_for_prometheus(site: Site) -> None:
    site.client.post("/contexts/etl")
    site.submit("w.Echo", sync="true", context="etl")
    text = site.client.get("/metrics").text
    assert 'jobserver_http_requests_total{method="POST",route="submit_job",status="200"} 1.0' in text
    assert 'jobserver_jobs_total{state="FINISHED"} 1.0' in text
    assert "jobserver_jobs_submitted_total 1.0" in text
    assert 'jobserver_contexts{state="RUNNING"} 1.0' in text
    assert "jobserver_contexts_starting 0.0" in text
    assert "jobserver_contexts_queued 0.0" in text


def test_a_context_beyond_the_cores_that_are_allowed_is_refused_and_measured(start: Start) -> None:
    client = start({"contexts.max-cores": 4}).client
    ok(
        client.post("/contexts/big?num-cpu-cores=3"),
        200,
        {"status": "SUCCESS", "result": "Context initialized"},
    )
    refused = client.post("/contexts/more?num-cpu-cores=2")
    assert (refused.status_code, refused.json()["code"]) == (503, "capacity_reached")
    assert refused.headers["retry-after"] == "5"
    assert refused.json()["fields"] == {
        "resource": "cores",
        "setting": "jobserver.contexts.max-cores",
        "requested": 2,
        "used": 3,
        "limit": 4,
    }
    refused = client.post("/contexts/more?num-cpu-cores=5")
    assert (refused.status_code, refused.json()["code"]) == (400, "context_too_large")
    text = client.get("/metrics").text
    assert "jobserver_cores_used 3.0\n" in text
    assert "jobserver_cores_limit 4.0\n" in text
    assert "jobserver_contexts_used 1.0\n" in text
    assert "jobserver_memory_limit_bytes +Inf\n" in text


def test_pools_of_spare_contexts_are_listed_apart_from_contexts(start: Start, site: Site) -> None:
    class Launcher(ScriptedLauncher):
        def spare_pools(self) -> list[SparePool]:
            return [SparePool(name="small", size=2, ready=1, starting=1)]

    client = start(launcher=Launcher()).client
    ok(client.get("/contexts"), 200, [])
    ok(client.get("/contexts?spares=true"), 200, [{"pool": "small", "size": 2, "ready": 1, "starting": 1}])
    assert 'jobserver_spare_contexts{pool="small",state="ready"} 1.0' in client.get("/metrics").text
    ok(site.client.get("/contexts?spares=true"), 200, [])
    error(
        site.client.get("/contexts?spares=perhaps"),
        400,
        "parameter spares must be true or false, got 'perhaps'",
    )


def test_the_description_and_its_page_are_served(site: Site) -> None:
    described = site.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    page = site.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text):
        assert site.client.get(f"/{asset}").status_code == 200
    error(site.client.get("/docs/other.js"), 404, "file not found")


def test_unknown_paths_are_404_and_wrong_methods_list_the_allowed_ones(site: Site) -> None:
    error(site.client.get("/nothing"), 404, "unknown path '/nothing'")
    response = site.client.patch("/jobs")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert site.client.options("/jobs").headers["allow"] == "GET, HEAD, OPTIONS, POST"


def test_head_returns_the_headers_of_get(site: Site) -> None:
    job_id = site.submit("w.Echo", "value = 1", sync="true").json()["jobId"]
    for path in ("/binaries", f"/jobs/{job_id}", f"/jobs/{job_id}/config", f"/jobs/{job_id}/logs"):
        head, get = site.client.head(path), site.client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.headers["content-length"] == str(len(get.content))
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.content == b""


def test_a_defect_of_a_plug_in_is_named_and_only_the_log_has_all_of_it(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    from jobserver_core.memory import MemoryMetadataStore

    class Defective(MemoryMetadataStore):
        def binary_versions(self, name: str) -> Any:
            raise ZeroDivisionError("secret detail")

    site = start(metadata=Defective())
    response = site.client.get("/binaries/words/versions")
    fault = "binary_versions of the metadata store Defective raised ZeroDivisionError"
    assert (response.status_code, response.json()["result"]["message"]) == (500, fault)
    assert "secret detail" not in response.text
    assert f"{fault}: secret detail" in caplog.text


def test_a_defect_of_the_server_is_a_plain_500_and_the_log_has_all_of_it(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(*_arguments: object) -> Any:
        raise ZeroDivisionError("secret detail")

    site = start()
    monkeypatch.setattr(JobServer, "binary_versions", defective)
    response = site.client.get("/binaries/words/versions")
    assert response.status_code == 500
    assert "secret detail" not in response.text
    assert "secret detail" in caplog.text
    assert json.loads(response.text)["result"].rsplit(" ", 1)[1] in caplog.text
