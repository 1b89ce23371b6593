"""The recipes of docs/howto/jvm-jobs.md, followed to the letter in an empty directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from conditions import SPARK_WAIT
from jobserver_client import Client
from jobserver_core import BinaryType, JobRequest
from jobserver_pyspark.jvm import SparkInstall
from spark_server import spark_server

pytestmark = [pytest.mark.spark, pytest.mark.slow]

DOCUMENT = Path(__file__).parents[3] / "docs" / "howto" / "jvm-jobs.md"
EXAMPLES = Path(__file__).parents[3] / "examples"
FILE = re.compile(r"^`([^`\n]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
JSON_BLOCK = re.compile(r"^```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OUT_OF_REACH = re.compile(
    r".*(?:Could not transfer|UnknownHost|Connection refused|download error|timed out).*", re.IGNORECASE
)


def compile_section(title: str | None = None) -> str:
    """The text of the section "Compile" before its parts, or of one part."""
    whole = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [section] = [part for part in whole if part.startswith("Compile\n")]
    parts = dict(part.split("\n", 1) for part in re.split(r"^### ", section, flags=re.MULTILINE))
    return parts["Compile" if title is None else title]


@attrs.frozen
class Reader:
    """A user who follows the document, with the job server installed."""

    directory: Path
    environment: dict[str, str]

    def sh(self, commands: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-e"],
            input=commands,
            cwd=cwd or self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SPARK_WAIT,
            check=False,
        )

    def follow(self, title: str, name: str, replaced: str = "", by: str = "") -> Path:
        """Write the files of the section and of one recipe, run its commands, and return the jar."""
        directory = self.directory / name
        directory.mkdir()
        recipe = compile_section(title)
        for path, content in [*FILE.findall(compile_section()), *FILE.findall(recipe)]:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(content)
        [commands] = COMMANDS.findall(recipe)
        done = self.sh(commands.replace(replaced, by) if replaced else commands, directory)
        said = done.stdout + done.stderr
        if done.returncode != 0 and (reason := OUT_OF_REACH.search(said)):
            pytest.skip(f"the repository of {name} is out of reach: {reason[0].strip()[:200]}")
        assert done.returncode == 0, said[-4000:]
        return directory / "words.jar"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed: the recipes need a JDK")
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        # Each program runs for seconds only: the first compiler tier alone is the quickest way through.
        "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    return Reader(tmp_path_factory.mktemp("recipes"), environment)


@pytest.fixture(scope="module")
def first_class_path(reader: Reader) -> subprocess.CompletedProcess[str]:
    return reader.sh("jobserver jvm-api")


@pytest.fixture(scope="module")
def address(
    reader: Reader,
    first_class_path: subprocess.CompletedProcess[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    with spark_server(tmp_path_factory.mktemp("server"), reader.environment) as url:
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def maven_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's local repository without the job API, which each test user installs."""
    kept = Path.home() / ".m2" / "repository"
    for group in ("com", "net", "org"):
        (kept / group).mkdir(parents=True, exist_ok=True)
    repository = tmp_path_factory.mktemp("repository")
    for group in kept.iterdir():
        if group.name != "spark":
            (repository / group.name).symlink_to(group)
    return repository


def run(reader: Reader, address: str, jar: Path) -> list[Any]:
    """Run a jar as documented and return the results of its jobs."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: the document's calls need it")
    [commands] = COMMANDS.findall(compile_section("Run it"))
    calls = commands.replace("localhost:8090", address).replace("curl ", "curl -sS ")
    done = reader.sh(calls.replace("\n", "; echo\n"), jar.parent)
    bodies = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    assert len(bodies) == 4, done.stdout + done.stderr
    assert all("result" in body and "jobId" in body for body in bodies[2:]), bodies
    return [body["result"] for body in bodies[2:]]


@pytest.fixture(scope="module")
def promised() -> Any:
    """What the document says that both jobs give."""
    [block] = JSON_BLOCK.findall(compile_section("Run it"))
    counts = json.loads(block)
    assert counts["a"] == 2
    return counts


def test_only_the_class_path_is_printed(
    first_class_path: subprocess.CompletedProcess[str],
) -> None:
    assert first_class_path.returncode == 0, first_class_path.stderr
    line = first_class_path.stdout.removesuffix("\n")
    assert "\n" not in line
    *jars, spark = line.split(os.pathsep)
    assert [Path(jar).suffix for jar in jars] == [".jar"] * 3
    assert all(Path(jar).is_file() for jar in jars)
    assert spark == SparkInstall.find().java_class_path


def test_the_versions_are_found_as_the_document_says_and_are_those_it_names(reader: Reader) -> None:
    [commands] = COMMANDS.findall(compile_section())
    told, library = reader.sh(commands).stdout.splitlines()
    installed = SparkInstall.find()
    assert told == installed.version
    scala = Path(library).stem.removeprefix("scala-library-")
    assert scala.startswith(f"{installed.scala}.")
    [named] = re.findall(r"<scala.version>(.*?)</scala.version>", compile_section("With Maven"))
    assert named.rpartition(".")[0] == installed.scala


def test_jobs_are_compiled_with_nothing_but_the_pyspark_install(
    reader: Reader, address: str, promised: Any
) -> None:
    jar = reader.follow("With nothing but the PySpark install", "bare")
    assert run(reader, address, jar) == [promised, promised]


def test_jobs_are_compiled_with_maven(
    reader: Reader, address: str, promised: Any, maven_repository: Path
) -> None:
    if shutil.which("mvn") is None:
        pytest.skip("mvn is not installed: apt-get install maven")
    local = f"mvn -B -Dmaven.repo.local={maven_repository} "
    jar = reader.follow("With Maven", "maven", "mvn ", local)
    assert run(reader, address, jar) == [promised, promised]


def test_the_java_example_is_built_with_maven_and_runs(
    reader: Reader, address: str, maven_repository: Path
) -> None:
    if shutil.which("mvn") is None:
        pytest.skip("mvn is not installed: apt-get install maven")
    project = reader.directory / "java_job"
    shutil.copytree(EXAMPLES / "java_job", project)
    [commands] = COMMANDS.findall(compile_section("With Maven"))
    build = commands[: commands.index("cp target")]
    done = reader.sh(build.replace("mvn ", f"mvn -B -Dmaven.repo.local={maven_repository} "), project)
    assert done.returncode == 0, done.stdout + done.stderr
    with Client(f"http://{address}") as client:
        jar = (project / "target" / "toprows-1.0.jar").read_bytes()
        client.upload("toprows", BinaryType.JAR, jar)
        config = {"sql": "SELECT id FROM range(20) ORDER BY id", "limit": 2}
        request = JobRequest(class_name="examples.TopRows", class_path="toprows", config=config)
        assert client.submit(request).result(timeout=SPARK_WAIT) == [{"id": 0}, {"id": 1}]


@pytest.mark.parametrize(("example", "recipe"), [("scala_job", "With sbt"), ("java_job", "With Maven")])
def test_the_files_of_an_example_are_those_of_its_recipe(example: str, recipe: str) -> None:
    files = dict([*FILE.findall(compile_section()), *FILE.findall(compile_section(recipe))])
    same = [name for name in files if (EXAMPLES / example / name).exists() and name != "pom.xml"]
    assert len(same) == {"scala_job": 3, "java_job": 1}[example]
    for name in same:
        assert (EXAMPLES / example / name).read_text() == files[name]


def test_jobs_are_compiled_with_sbt(reader: Reader, address: str, promised: Any) -> None:
    if shutil.which("sbt") is None:
        pytest.skip("sbt is not installed: the program that starts what build.properties names")
    jar = reader.follow("With sbt", "sbt")
    assert run(reader, address, jar) == [promised, promised]
