"""A Spark in this process, job jars compiled against the shipped API, and a way to run them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from http_caller import Caller, calling
from own_gateway import own_gateway

from built_once import built_once
from conditions import wait_until

pytest.importorskip("pyspark", reason="PySpark is not installed")

from jobserver_pyspark.jvm import (
    JvmJar,
    JvmJobRequest,
    JvmJobRunner,
    JvmJobState,
    JvmSession,
    JvmToolchain,
    context_settings,
)

SOURCES = Path(__file__).parent / "jobs"
DEADLINE = 60.0


@attrs.define
class JobBench:
    """Runs jobs and reads their results and logs."""

    jobs: JvmJobRunner
    directory: Path
    count: int = 0
    started: list[StartedJob] = attrs.field(factory=list)

    def request(self, main_class: str, *jars: Path, kind: str = "spark", **more: Any) -> JvmJobRequest:
        self.count += 1
        job_id = more.pop("job_id", f"job-{self.count}")
        for name in {"config", "context_config"} & more.keys():
            more[name] = more[name] if isinstance(more[name], str) else json.dumps(more[name])
        return JvmJobRequest(
            job_id=job_id,
            main_class=main_class,
            jars=tuple(JvmJar(path=jar, sha256=hashlib.sha256(jar.read_bytes()).hexdigest()) for jar in jars),
            context_type=kind,
            result_path=self.directory / f"{job_id}.result",
            log_path=self.directory / f"{job_id}.log",
            **more,
        )

    def run(self, main_class: str, *jars: Path, **more: Any) -> JvmJobState:
        return self.jobs.run(self.request(main_class, *jars, **more))

    def value(self, main_class: str, *jars: Path, **more: Any) -> Any:
        """The JSON that a job leaves, which must have finished."""
        request = self.request(main_class, *jars, **more)
        outcome = self.jobs.run(request)
        assert (outcome.status, outcome.error) == ("finished", None)
        assert outcome.result == "json"
        content = self.content(request, outcome)
        assert len(content) == outcome.size
        return json.loads(content, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))

    @staticmethod
    def content(request: JvmJobRequest, outcome: JvmJobState) -> bytes:
        """The bytes of a result: a small one is in the outcome, and any other one in the file."""
        if outcome.inline is None:
            return request.result_path.read_bytes()
        assert not request.result_path.exists()
        return base64.b64decode(outcome.inline)

    def start(self, request: JvmJobRequest) -> StartedJob:
        job = StartedJob(self.jobs, request)
        self.started.append(job)
        return job


class StartedJob:
    """A job that runs on a thread of this test."""

    def __init__(self, jobs: JvmJobRunner, request: JvmJobRequest) -> None:
        self.request = request
        self.validated = threading.Event()
        self._outcome: list[JvmJobState] = []
        self._thread = threading.Thread(target=self._run, args=(jobs,), daemon=True)
        self._thread.start()

    def _run(self, jobs: JvmJobRunner) -> None:
        outcome = jobs.run(self.request, on_running=self.validated.set)
        if outcome.validated:
            self.validated.set()
        self._outcome.append(outcome)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def outcome(self, timeout: float = DEADLINE) -> JvmJobState:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the job did not end in time"
        return self._outcome[0]

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log(), f"{text!r} in the log")

    def wait_for_result(self, size: int) -> None:
        path = self.request.result_path
        wait_until(lambda: path.exists() and path.stat().st_size >= size, f"{size} bytes of the result")

    def log(self) -> str:
        return self.request.log_path.read_text() if self.request.log_path.exists() else ""


@pytest.fixture(scope="session")
def toolchain() -> JvmToolchain:
    return JvmToolchain()


@pytest.fixture(scope="session")
def javac() -> str:
    found = shutil.which("javac")
    if found is None:
        pytest.skip("javac is not installed: a JDK is needed to compile Java jobs")
    return found


@pytest.fixture(scope="session")
def compile_jar(toolchain: JvmToolchain) -> Callable[..., Path]:
    """Compiles Scala sources into a jar, against Spark alone or the job API as well, and adds files."""

    def compiled(
        name: str, *sources: Path, class_path: str | None = None, more: Mapping[str, str] | None = None
    ) -> Path:
        against = class_path or os.pathsep.join(str(jar) for jar in toolchain.spark.jars.glob("*.jar"))

        def build(directory: Path) -> None:
            classes = directory / name
            classes.mkdir()
            command = [toolchain.java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
            command += ["-cp", toolchain.spark.java_class_path]
            command += ["scala.tools.nsc.Main", "-nowarn", "-d", str(classes), "-classpath", against]
            subprocess.run([*command, *map(str, sources)], check=True, timeout=DEADLINE * 4)
            archive(classes, directory / f"{name}.jar", more or {})

        inputs = [against, repr(more), *(source.read_text("utf-8") for source in sources)]
        return built_once(name, inputs, build) / f"{name}.jar"

    return compiled


def archive(classes: Path, jar: Path, more: Mapping[str, str] = MappingProxyType({})) -> Path:
    with zipfile.ZipFile(jar, "w") as target:
        for path in sorted(classes.rglob("*.class")):
            target.write(path, path.relative_to(classes).as_posix())
        for name, text in more.items():
            target.writestr(name, text)
    return jar


@pytest.fixture(scope="session")
def old_jar(compile_jar: Callable[..., Path], toolchain: JvmToolchain) -> Path:
    """The documented sample jobs of the old server, against the shipped API."""
    return compile_jar(
        "old", *sorted((SOURCES / "old").glob("*.scala")), class_path=toolchain.java_class_path()
    )


@pytest.fixture(scope="session")
def java_jar(toolchain: JvmToolchain, javac: str) -> Path:
    sources = sorted((SOURCES / "java").glob("*.java"))

    def build(directory: Path) -> None:
        classes = directory / "classes"
        classes.mkdir()
        command = [javac, "-nowarn", "-proc:none", "-d", str(classes), "-cp", toolchain.java_class_path()]
        subprocess.run([*command, *map(str, sources)], check=True, timeout=DEADLINE * 4)
        archive(classes, directory / "java.jar")

    inputs = [toolchain.java_class_path(), *(source.read_text("utf-8") for source in sources)]
    return built_once("java", inputs, build) / "java.jar"


@pytest.fixture(scope="session")
def shapes_jar(compile_jar: Callable[..., Path]) -> Path:
    return compile_jar("shapes", SOURCES / "shapes" / "Shapes.scala")


@pytest.fixture(scope="session")
def version_jars(compile_jar: Callable[..., Path]) -> tuple[Path, Path]:
    """One class, twice: with the same name and other content."""
    one, two = (compile_jar(name, SOURCES / "versions" / f"{name}.scala") for name in ("one", "two"))
    return one, two


@pytest.fixture(scope="session")
def control_classes(compile_jar: Callable[..., Path]) -> Path:
    """The compiled jobs that tests control, each class a file: to be put into jars as a test likes."""
    return compile_jar("control", *sorted((SOURCES / "control").glob("*.scala"))).with_suffix("")


@pytest.fixture(scope="session")
def base_jar(compile_jar: Callable[..., Path], toolchain: JvmToolchain) -> Path:
    """The context's jar."""
    more = {"META-INF/services/java.sql.Driver": "loading.base.NoDriver\n"}
    source = SOURCES / "loading" / "Base.scala"
    return compile_jar("base", source, class_path=toolchain.java_class_path(), more=more)


@pytest.fixture(scope="session")
def thin_jar(compile_jar: Callable[..., Path], toolchain: JvmToolchain, base_jar: Path) -> Path:
    class_path = f"{base_jar}:{toolchain.java_class_path()}"
    more = {
        "META-INF/services/loading.base.Greeting": "loading.Hello\n",
        "loading/words.txt": "of the jar\n",
    }
    return compile_jar("thin", SOURCES / "loading" / "Jobs.scala", class_path=class_path, more=more)


@pytest.fixture(scope="session")
def fat_jar(thin_jar: Path, toolchain: JvmToolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the job API and its libraries merged in, and damaged copies of Spark and Scala."""
    jar = tmp_path_factory.mktemp("fat") / "fat.jar"
    shutil.copyfile(thin_jar, jar)
    with zipfile.ZipFile(jar, "a") as archive:
        for other in toolchain.api_jars():
            with zipfile.ZipFile(other) as source:
                for name in set(source.namelist()) - set(archive.namelist()):
                    archive.writestr(name, source.read(name))
        for name in ("scala/Option.class", "org/apache/spark/rdd/RDD.class"):
            archive.writestr(name, b"of another version")
    return jar


@pytest.fixture(scope="session")
def remains_jar(compile_jar: Callable[..., Path]) -> Path:
    return compile_jar("remains", SOURCES / "remains" / "Remains.scala")


@pytest.fixture(scope="session")
def caller(
    old_jar: Path,
    java_jar: Path,
    shapes_jar: Path,
    control_classes: Path,
    remains_jar: Path,
    toolchain: JvmToolchain,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Caller]:
    """A server for all modules that run jobs over HTTP and do not start their own."""
    control = control_classes.with_suffix(".jar")
    jars = {
        "old": old_jar,
        "java": java_jar,
        "shapes": shapes_jar,
        "control": control,
        "remains": remains_jar,
    }
    settings = {
        "jobserver.jobs": {"max-jobs-per-context": 2, "max-queued-jobs": 1, "kill-timeout": "3 s"},
        "spark.context-settings": {"spark.my.setting": "of the context"},
    }
    with calling(tmp_path_factory.mktemp("data"), jars, **settings) as caller:
        yield caller


@pytest.fixture(scope="module")
def context_jars() -> list[Path]:
    """The jars of the context. Modules can override it."""
    return []


@pytest.fixture(scope="module")
def gateway(
    spark_settings: dict[str, str],
    job_classes: Path,
    context_jars: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """The JVM that PySpark uses here, a new one for other settings: no JVM ever sees a second context."""
    with own_gateway(tmp_path_factory.mktemp("gateway"), [job_classes, *context_jars]):
        yield


@pytest.fixture(scope="module")
def spark_settings() -> dict[str, str]:
    """What a module wants of its Spark; to be overridden."""
    return {"spark.master": "local[2]", **context_settings("spark")}


@pytest.fixture(scope="module")
def job_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory on the JVM's class path that the runner puts its classes into."""
    return tmp_path_factory.mktemp("job-classes")


@pytest.fixture(scope="module")
def spark(
    gateway: None,
    spark_settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    directory = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.appName("jvm jobs")
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.local.dir": str(directory / "local"),
        "spark.sql.warehouse.dir": str(directory / "warehouse"),
        **spark_settings,
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def isolation() -> str:
    """How the class paths of the module are isolated. Modules can override it."""
    return "session"


@pytest.fixture(scope="module")
def bench(
    spark: Any,
    toolchain: JvmToolchain,
    job_classes: Path,
    isolation: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[JobBench]:
    jobs = JvmJobRunner(JvmSession.of(spark), toolchain, job_classes, isolation=isolation)
    bench = JobBench(jobs, tmp_path_factory.mktemp("jobs"))
    yield bench
    jobs.close(wait=10.0)
    wait_until(lambda: not any(job.running for job in bench.started), "the end of all jobs")
