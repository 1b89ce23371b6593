"""The document that this project was created from, tested line by line.

A real ``jobserver serve`` on a free port, real Spark, and curl as the document prints it; only host and port
are other than printed. The quotes above the steps are the document's.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import pytest

from conditions import SPARK_WAIT, wait_until

pytest.importorskip("pyspark", reason="PySpark is not installed")

from jobserver_core import JobState
from jobserver_pyspark.jvm import JvmToolchain
from loopback import Loopback, callback_receiver
from spark_server import spark_server

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

WORDS = "input.string = a b c a b see"
COUNTED = {"a": 2, "b": 2, "c": 1, "see": 1}
SCALA = Path(__file__).resolve().parents[1] / "integration" / "jvm" / "jobs" / "old" / "WordCount.scala"
PYTHON = textwrap.dedent(
    """
    import time

    from sparkjobserver.api import SparkJob, build_problems


    class WordCount(SparkJob):
        def validate(self, context, runtime, config):
            words = config.get("input.string", None)
            return words.split() if words else build_problems(["config input.string not found"])

        def run_job(self, context, runtime, data):
            return context.sparkContext.parallelize(data).countByValue()


    class Streams(WordCount):
        def run_job(self, context, runtime, data):
            yield b"["
            yield b",".join(b"%d" % number for number in context.sparkContext.parallelize(range(3)).collect())
            yield b"]"


    class Sleeps(WordCount):
        def run_job(self, context, runtime, data):
            time.sleep(600)
    """
)


def curl(*arguments: str) -> tuple[int, Any]:
    """Run curl, and return the status and the JSON body."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=SPARK_WAIT,
    )
    body, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(body)


@attrs.frozen
class Served:
    """A running server, where callbacks arrive, and the binaries that the document uploads."""

    at: str
    callback_url: str
    got: queue.Queue[Any]
    directory: Path

    def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of some states, and return its record."""
        url = f"{self.at}/jobs/{job_id}"
        waited_for = {*states, *(state.value for state in JobState if state.final)}
        wait_until(lambda: curl(url)[1]["status"] in waited_for, url, SPARK_WAIT, pause=0.2)
        record: dict[str, Any] = curl(url)[1]
        assert record["status"] in states, record
        return record


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, queue.Queue[Any]]]:
    with callback_receiver() as told:
        yield told


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, receiver: tuple[str, queue.Queue[Any]]
) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("seed")
    with spark_server(directory) as url:
        yield Served(url.removeprefix("http://").replace("127.0.0.1", "localhost"), *receiver, directory)


@pytest.fixture(scope="module")
def package(served: Served) -> Path:
    """A Python package with the jobs above, good as an egg and as a wheel."""
    path = served.directory / "words.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words.py", PYTHON)
        archive.writestr("words-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
        archive.writestr("words-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("words-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def jar(served: Served) -> Path:
    """``spark.jobserver.WordCountExample`` as the old server's tests had it, compiled against the API."""
    toolchain = JvmToolchain()
    classes = served.directory / "classes"
    classes.mkdir()
    command = [toolchain.java, "-cp", toolchain.spark.java_class_path, "scala.tools.nsc.Main", "-nowarn"]
    command += ["-d", str(classes), "-classpath", toolchain.java_class_path(), str(SCALA)]
    subprocess.run(command, check=True, timeout=SPARK_WAIT)
    path = served.directory / "binary.jar"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(classes.rglob("*.class")):
            archive.write(file, file.relative_to(classes).as_posix())
    return path


def upload(served: Served, name: str, path: Path, kind: str) -> None:
    status, body = curl(
        "-X", "POST", f"{served.at}/binaries/{name}", "-H", f"Content-Type: application/{kind}",
        "--data-binary", f"@{path}",
    )  # fmt: skip
    assert (status, body) == (201, {"status": "SUCCESS"})


@pytest.fixture(scope="module")
def uploaded(served: Served, jar: Path, package: Path) -> Served:
    """The server with the binaries ``test`` and ``binName`` of the document, and a wheel."""
    upload(served, "test", jar, "java-archive")
    upload(served, "binName", jar, "java-archive")
    upload(served, "words", package, "python-wheel")
    return served


def test_jar_egg_and_wheel_files_can_be_uploaded(served: Served, jar: Path, package: Path) -> None:
    # "Jar, Egg and Wheel files can be uploaded to jobserver using POST /binaries/<binary_name>"
    upload(served, "test", jar, "java-archive")
    # "To upload an egg file Content-Type should be changed to application/python-egg or
    # application/python-archive (deprecated)."
    upload(served, "an_egg", package, "python-egg")
    upload(served, "an_archive", package, "python-archive")
    # "Similarly, to upload a wheel file Content-Type should be changed to application/python-wheel."
    upload(served, "a_wheel", package, "python-wheel")
    listed = curl(f"{served.at}/binaries")[1]
    kinds = {name: listed[name]["binary-type"] for name in ("test", "an_egg", "an_archive", "a_wheel")}
    assert kinds == {"test": "Jar", "an_egg": "Egg", "an_archive": "Egg", "a_wheel": "Wheel"}
    # "So far jobserver supports only …"
    status, body = curl(
        "-X", "POST", f"{served.at}/binaries/other", "-H", "Content-Type: text/plain", "-d", "x"
    )  # fmt: skip
    assert (status, body["status"]) == (415, "ERROR")


def test_the_sample_request_starts_the_word_count(uploaded: Served) -> None:
    # curl -d "input.string = a b c a b see"
    #   "localhost:8090/jobs?appName=test&classPath=spark.jobserver.WordCountExample"
    status, record = curl(
        "-d", WORDS, f"{uploaded.at}/jobs?appName=test&classPath=spark.jobserver.WordCountExample"
    )  # fmt: skip
    assert status == 202, record
    assert {"duration", "classPath", "startTime", "context", "status", "jobId"} <= set(record)
    assert record["duration"] == "Job not done yet"
    assert record["classPath"] == "spark.jobserver.WordCountExample"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)", record["startTime"])
    assert re.fullmatch(r"[0-9a-f]{8}-spark\.jobserver\.WordCountExample", record["context"])
    assert record["status"] == "STARTED"
    assert uploaded.until(record["jobId"], "FINISHED")["result"] == COUNTED


def test_sync_waits_for_the_result(uploaded: Served) -> None:
    # "sync: if "true", then wait for and return results"; "timeout: the number of seconds to wait"
    curl("-d", "", f"{uploaded.at}/contexts/warm?num-cpu-cores=2")
    query = "appName=test&classPath=spark.jobserver.WordCountExample&context=warm&sync=true&timeout=100"
    status, body = curl("-d", WORDS, f"{uploaded.at}/jobs?{query}")
    assert (status, body) == (200, {"jobId": body["jobId"], "result": COUNTED})


def test_cp_and_main_class_are_the_alternative(uploaded: Served, jar: Path) -> None:
    # curl -d "input.string = a b c a b see"
    #   "localhost:8090/jobs?cp=binName,http://path/to/jar&mainClass=some.main.Class"
    with Loopback(lambda handler: handler.say(200, jar.read_bytes())) as files:
        cp = f"binName,{files.url('/other.jar', host='localhost')}"
        main = "spark.jobserver.WordCountExample"
        status, record = curl("-d", WORDS, f"{uploaded.at}/jobs?cp={cp}&mainClass={main}&context=warm")
        assert (status, record["classPath"], record["context"]) == (202, main, "warm"), record
        assert uploaded.until(record["jobId"], "FINISHED")["result"] == COUNTED


def test_a_uri_is_enough_without_an_upload(uploaded: Served, package: Path, jar: Path) -> None:
    # "specifying URI with supported protocol is enough. Please note, that for Python jobs only one
    # package file can be used."
    query = f"cp=file://{package}&mainClass=words.WordCount&context=warm&sync=true&timeout=100"
    status, body = curl("-d", WORDS, f"{uploaded.at}/jobs?{query}")
    assert (status, body.get("result")) == (200, COUNTED), body
    two = f"cp=file://{package},words&mainClass=words.WordCount&context=warm"
    status, body = curl("-d", WORDS, f"{uploaded.at}/jobs?{two}")
    assert (status, body["status"]) == (400, "ERROR")


@pytest.mark.parametrize("sync", ["", "&sync=true&timeout=100"])
def test_the_result_is_uploaded_to_the_callback_url(uploaded: Served, sync: str) -> None:
    # "If a callbackUrl is provided for a (async/sync) job, the result of the job is uploaded to the url"
    query = "appName=test&classPath=spark.jobserver.WordCountExample&context=warm" + sync
    _, record = curl(
        "-d", WORDS, f"{uploaded.at}/jobs?{query}&callbackUrl={quote(uploaded.callback_url, safe='')}"
    )  # fmt: skip
    assert uploaded.got.get(timeout=SPARK_WAIT) == {"jobId": record["jobId"], "result": COUNTED}


def test_a_streaming_result_is_named_in_the_callback_and_fetched_by_hand(uploaded: Served) -> None:
    # "In case of a streaming result, the actual result is substituted by <Stream result> and the actual
    # result has to be manually fetched via GET /jobs/<jobId>."
    _, record = curl(
        "-d", WORDS,
        f"{uploaded.at}/jobs?appName=words&classPath=words.Streams&context=warm"
        f"&callbackUrl={quote(uploaded.callback_url, safe='')}",
    )  # fmt: skip
    told = uploaded.got.get(timeout=SPARK_WAIT)
    assert told == {"jobId": record["jobId"], "result": "<Stream result>"}
    assert curl(f"{uploaded.at}/jobs/{record['jobId']}")[1]["result"] == [0, 1, 2]


def test_a_cancelled_job_sends_no_callback(uploaded: Served) -> None:
    # "If the job is manually cancelled via DELETE /jobs/<jobId> or DELETE /contexts/<contextName> the
    # callback is not invoked."
    callback = f"callbackUrl={quote(uploaded.callback_url, safe='')}"
    curl("-d", "", f"{uploaded.at}/contexts/doomed?num-cpu-cores=1")
    query = f"appName=words&classPath=words.Sleeps&context=doomed&{callback}"
    first = curl("-d", WORDS, f"{uploaded.at}/jobs?{query}")[1]["jobId"]
    uploaded.until(first, "RUNNING")
    assert curl("-X", "DELETE", f"{uploaded.at}/jobs/{first}") == (200, {"status": "KILLED"})
    second = curl("-d", WORDS, f"{uploaded.at}/jobs?{query}")[1]["jobId"]
    uploaded.until(second, "RUNNING")
    status, _ = curl("-X", "DELETE", f"{uploaded.at}/contexts/doomed")
    assert status == 200
    uploaded.until(second, "ERROR", "KILLED")
    # A job that ends by itself sends a callback, after all earlier ones.
    query = f"appName=test&classPath=spark.jobserver.WordCountExample&context=warm&{callback}"
    last = curl("-d", WORDS, f"{uploaded.at}/jobs?{query}")[1]["jobId"]
    assert uploaded.got.get(timeout=SPARK_WAIT)["jobId"] == last
    assert uploaded.got.empty()
