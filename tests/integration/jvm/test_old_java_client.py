"""The unmodified Java client for spark-job-server from Maven Central, against ``jobserver serve``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conditions import SPARK_WAIT
from spark_server import spark_server

pytestmark = [pytest.mark.spark, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "clients" / "OldClient.java"
PROJECT = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>old-client</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.bluebreezecf</groupId>
      <artifactId>spark-job-server-client</artifactId>
      <version>1.0.0</version>
    </dependency>
  </dependencies>
</project>
"""
FAILED = "ERROR java.lang.IllegalArgumentException Foobar true"
"""The error of a job as the client has it: state, class, message, and whether the stack is complete."""
OUT_OF_REACH = re.compile(r".*(?:Could not transfer|UnknownHost|Connection refused|timed out).*")


@pytest.fixture(scope="module")
def client_jars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client and its dependencies, as Maven resolves them."""
    if shutil.which("mvn") is None:
        pytest.skip("mvn is not installed: apt-get install maven")
    directory = tmp_path_factory.mktemp("client")
    (directory / "pom.xml").write_text(PROJECT)
    done = subprocess.run(
        ["mvn", "-B", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={directory / 'lib'}"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SPARK_WAIT,
        check=False,
    )
    said = done.stdout + done.stderr
    if done.returncode != 0 and (reason := OUT_OF_REACH.search(said)):
        pytest.skip(f"Maven Central is out of reach: {reason[0].strip()[:200]}")
    assert done.returncode == 0, said[-4000:]
    return directory / "lib"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with spark_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def program(javac: str, client_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the program."""
    classes = tmp_path_factory.mktemp("program")
    command = [javac, "-nowarn", "-proc:none", "-d", str(classes), "-cp", f"{client_jars}/*", str(PROGRAM)]
    subprocess.run(command, check=True, timeout=SPARK_WAIT)
    return ["java", "-cp", f"{classes}{os.pathsep}{client_jars}/*", "OldClient"]


def test_every_call_of_the_old_java_client_works(program: list[str], url: str, old_jar: Path) -> None:
    done = subprocess.run(
        [*program, url, str(old_jar)], capture_output=True, text=True, timeout=SPARK_WAIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    said = [line.strip() for line in done.stdout.splitlines() if " ERROR [" not in line]  # without its log
    assert said == [
        "jars at first=0",
        "file uploaded=true",
        "stream uploaded=true",
        "nonsense uploaded=false",
        "jars=[from-file@24, from-stream@24]",
        "context created=true",
        "context created again=false",
        "contexts=[old-client]",
        "started=STARTED",
        'finished=FINISHED {"a":3} true',
        'config={input={"string":"a a a"}}',
        'waited for={"x":2}',
        'of a file={"y":1}',
        'of a stream={"z":1}',
        "accented=true",
        f"failed={FAILED}",
        f"failed of a file={FAILED}",
        f"failed of a stream={FAILED}",
        f"failed later={FAILED}",
        "config of a failed one={}",
        *["duration=true", f"failed in the list={FAILED}"] * 4,
        *["duration=true"] * 5,
        "jobs=[ERROR spark.jobserver.MyErrorJob old-client, "
        "FINISHED spark.jobserver.WordCountExample old-client]",
        "unknown job=true",
        "unknown app=refused",
        "context deleted=true",
        "context deleted again=false",
        "contexts at last=[]",
    ]
    settings = httpx.get(f"{url}/contexts/old-client").json()
    assert settings["state"] == "FINISHED"
