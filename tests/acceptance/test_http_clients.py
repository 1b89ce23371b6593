"""Clients of the old server: the unmodified python-sjsclient, and curl as documented."""

from __future__ import annotations

import collections
import collections.abc
import importlib
import json
import queue
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from conditions import wait_until
from jobserver_core import JobServer, Settings
from jobserver_core.memory import InlineLauncher
from jobserver_http import running
from loopback import callback_receiver
from serving import WAIT, archive, count, fail, sleep, stream

FUNCTIONS = {
    "spark.jobserver.WordCountExample": count,
    "spark.jobserver.VeryShortDoubleJob": lambda job: [2, 4, 6],
    "spark.jobserver.LongPiJob": sleep,
    "w.Fail": fail,
    "w.Stream": stream,
    "some.main.Class": count,
}


@pytest.fixture
def received() -> Iterator[tuple[str, queue.Queue[Any]]]:
    with callback_receiver() as told:
        yield told


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    from jobserver_httpx import HttpxTransport

    settings = Settings.from_mapping({"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}}})
    server = JobServer.in_memory(
        settings=settings,
        launcher=InlineLauncher(FUNCTIONS),
        transports=[HttpxTransport.from_settings(settings, tmp_path)],
    )
    with running(server) as url:
        yield url


# -- python-sjsclient ------------------------------------------------------------------------------


@pytest.fixture
def sjs(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    # The client was written for Pythons before 3.10, which had these names in `collections`.
    for name in ("MutableMapping", "Mapping"):
        monkeypatch.setattr(collections, name, getattr(collections.abc, name), raising=False)
    return importlib.import_module("sjsclient.client").Client(url)


def test_sjsclient_uploads_lists_and_deletes_apps(sjs: Any) -> None:
    app_module = importlib.import_module("sjsclient.app")
    jar = sjs.apps.create("test_app", archive())
    assert jar.name == "test_app"
    egg = sjs.apps.create("test_python_app", archive(), app_module.AppType.PYTHON)
    assert {app.name for app in sjs.apps.list()} == {"test_app", "test_python_app"}
    assert egg.time["binary-type"] == "Egg"
    sjs.apps.delete("test_app")
    with pytest.raises(importlib.import_module("sjsclient.exceptions").NotFoundException):
        sjs.apps.get("test_app")


def test_sjsclient_runs_jobs(sjs: Any) -> None:
    app = sjs.apps.create("test_app", archive())
    job = sjs.jobs.create(
        app, "spark.jobserver.VeryShortDoubleJob", conf={"test_config": "test_config_value"}
    )
    assert job.status == "STARTED"
    wait_until(lambda: sjs.jobs.get(job.jobId).status == "FINISHED")
    assert sjs.jobs.get(job.jobId).result == [2, 4, 6]
    assert job.get_config()["test_config"] == "test_config_value"
    assert sjs.jobs.create(app, "spark.jobserver.VeryShortDoubleJob", sync=True).result == [2, 4, 6]
    assert len(list(sjs.jobs.list())) == 2
    assert len(list(sjs.jobs.list(limit=1))) == 1


def test_sjsclient_uses_named_contexts_and_kills(sjs: Any) -> None:
    exceptions = importlib.import_module("sjsclient.exceptions")
    app = sjs.apps.create("test_app", archive())
    context = sjs.contexts.create("test_context", {"num-cpu-cores": "1", "memory-per-node": "512m"})
    assert sjs.contexts.get("test_context").name == "test_context"
    job = sjs.jobs.create(app, "spark.jobserver.LongPiJob", ctx=context)
    assert job.context == "test_context"
    job.delete()
    assert sjs.jobs.get(job.jobId).status == "KILLED"
    with pytest.raises(exceptions.HttpException):
        sjs.contexts.create("test_context")
    context.delete()
    assert list(sjs.contexts.list()) == []
    with pytest.raises(exceptions.NotFoundException):
        sjs.jobs.get("none")


# -- curl, as the seed's document prints it --------------------------------------------------------

curl_program = shutil.which("curl")
needs_curl = pytest.mark.skipif(curl_program is None, reason="curl is not installed")


def curl(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [str(curl_program), "--silent", "--show-error", "--write-out", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT * 3,
    )
    body, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(body)


@pytest.fixture
def uploaded(url: str, tmp_path: Path) -> str:
    binary = tmp_path / "binary.jar"
    binary.write_bytes(archive())
    for name in ("test", "binName"):
        status, body = curl(
            "-X", "POST", f"{url}/binaries/{name}", "-H", "Content-Type: application/java-archive",
            "--data-binary", f"@{binary}",
        )  # fmt: skip
        assert (status, body) == (201, {"status": "SUCCESS"})
    return url


@needs_curl
@pytest.mark.parametrize("kind", ["python-egg", "python-archive", "python-wheel"])
def test_curl_uploads_python_packages(url: str, tmp_path: Path, kind: str) -> None:
    package = tmp_path / "package.whl"
    package.write_bytes(archive())
    status, body = curl(
        "-X", "POST", f"{url}/binaries/p", "-H", f"Content-Type: application/{kind}",
        "--data-binary", f"@{package}",
    )  # fmt: skip
    assert (status, body) == (201, {"status": "SUCCESS"})


@needs_curl
def test_curl_starts_the_word_count(uploaded: str) -> None:
    status, record = curl(
        "-d", "input.string = a b c a b see",
        f"{uploaded}/jobs?appName=test&classPath=spark.jobserver.WordCountExample",
    )  # fmt: skip
    assert status == 202
    assert set(record) == {"duration", "classPath", "startTime", "context", "contextId", "status", "jobId"}
    assert record["status"] == "STARTED"
    assert re.fullmatch(r"[0-9a-f]{8}-spark\.jobserver\.WordCountExample", record["context"])
    url = f"{uploaded}/jobs/{record['jobId']}"
    wait_until(lambda: curl(url)[1]["status"] == "FINISHED")
    assert curl(url)[1]["result"] == {"a": 2, "b": 2, "c": 1, "see": 1}


@needs_curl
def test_curl_starts_a_job_with_the_newer_parameters(uploaded: str, tmp_path: Path) -> None:
    status, record = curl(
        "-d", "input.string = a b c a b see", f"{uploaded}/jobs?cp=binName,test&mainClass=some.main.Class"
    )
    assert (status, record["classPath"]) == (202, "some.main.Class")


@needs_curl
def test_curl_is_answered_with_the_result_when_it_waits(uploaded: str) -> None:
    status, body = curl(
        "-d", "input.string = a b c a b see",
        f"{uploaded}/jobs?appName=test&classPath=spark.jobserver.WordCountExample&sync=true",
    )  # fmt: skip
    assert status == 200
    assert body == {"jobId": body["jobId"], "result": {"a": 2, "b": 2, "c": 1, "see": 1}}


@needs_curl
@pytest.mark.parametrize("sync", ["", "&sync=true"])
def test_a_callback_receives_the_result(uploaded: str, received: Any, sync: str) -> None:
    callback_url, got = received
    _, record = curl(
        "-d", "input.string = a b c a b see",
        f"{uploaded}/jobs?appName=test&classPath=spark.jobserver.WordCountExample{sync}"
        f"&callbackUrl={quote(callback_url, safe='')}",
    )  # fmt: skip
    assert got.get(timeout=WAIT) == {
        "jobId": record["jobId"],
        "result": {"a": 2, "b": 2, "see": 1, "c": 1},
    }
    url = f"{uploaded}/jobs/{record['jobId']}"
    wait_until(lambda: curl(url)[1]["callbacks"][0]["state"] == "DELIVERED")
    told = curl(url)[1]["callbacks"]
    assert (told[0]["attempts"], told[0]["lastStatus"], len(told)) == (1, 200, 1)


@needs_curl
def test_a_callback_reports_a_failure_and_names_a_stream(uploaded: str, received: Any) -> None:
    callback_url, got = received
    encoded = quote(callback_url, safe="")
    curl("-d", "message = oh", f"{uploaded}/jobs?appName=test&classPath=w.Fail&callbackUrl={encoded}")
    failure = got.get(timeout=WAIT)
    assert (failure["status"], failure["result"]["message"]) == ("ERROR", "oh")
    curl("-d", "n = 3", f"{uploaded}/jobs?appName=test&classPath=w.Stream&callbackUrl={encoded}")
    assert got.get(timeout=WAIT)["result"] == "<Stream result>"


@needs_curl
def test_a_cancelled_job_does_not_send_a_callback(uploaded: str, received: Any) -> None:
    callback_url, got = received
    encoded = quote(callback_url, safe="")
    query = f"appName=test&classPath=spark.jobserver.LongPiJob&callbackUrl={encoded}"
    _, record = curl("-d", "", f"{uploaded}/jobs?{query}")
    assert curl("-X", "DELETE", f"{uploaded}/jobs/{record['jobId']}") == (200, {"status": "KILLED"})
    curl("-d", "", f"{uploaded}/contexts/etl")
    curl("-d", "", f"{uploaded}/jobs?{query}&context=etl")
    assert curl("-X", "DELETE", f"{uploaded}/contexts/etl")[0] == 200
    # A callback of the cancelled job would have arrived before this one.
    curl("-d", "message = last", f"{uploaded}/jobs?appName=test&classPath=w.Fail&callbackUrl={encoded}")
    assert got.get(timeout=WAIT)["result"]["message"] == "last"
    assert got.empty()
