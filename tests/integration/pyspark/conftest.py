"""Real contexts for the launcher's tests, shared by tests that leave them unchanged."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyspark
import pytest
import standalone_cluster
import venv_pack
from launcher_world import Context, Start, code_of, jobs_wheel, make_launcher, starter
from package_checks import Wheel
from standalone_cluster import StandaloneCluster

from built_once import built_once
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import JobCode
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import build_wheel

JVM_JOBS = Path(__file__).parent / "jobs" / "jvm" / "JvmJobs.scala"
CALLED = Path(__file__).parent / "jobs" / "java" / "Remains.java"


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> JobCode:
    return jobs_wheel(tmp_path_factory.mktemp("wheels"), "1.0")


@pytest.fixture(scope="session")
def other_code(tmp_path_factory: pytest.TempPathFactory) -> JobCode:
    return jobs_wheel(tmp_path_factory.mktemp("wheels"), "2.0")


@pytest.fixture(scope="session")
def jvm_classes() -> Path:
    """Scala jobs, compiled with nothing but the PySpark install."""
    jars = Path(pyspark.__file__).parent / "jars"
    java = shutil.which("java")
    assert java is not None
    class_path = ":".join(map(str, jars.glob("*.jar")))

    def build(directory: Path) -> None:
        command = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{jars}/*"]
        command += ["scala.tools.nsc.Main", "-nowarn"]
        command += ["-d", str(directory), "-classpath", class_path, str(JVM_JOBS)]
        subprocess.run(command, check=True, timeout=200)

    return built_once("jvm-jobs", [class_path, JVM_JOBS.read_text("utf-8")], build)


@pytest.fixture(scope="session")
def jar(jvm_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> JobCode:
    return _jar(jvm_classes, tmp_path_factory.mktemp("jar") / "jobs.jar", lambda name: "Release" not in name)


@pytest.fixture(scope="session")
def remains_jar() -> JobCode:
    """Java code that starts threads, for calls of Python jobs."""
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("javac is not installed: a JDK is needed to compile the code that jobs call")

    def build(directory: Path) -> None:
        classes = directory / "classes"
        command = [javac, "--release", "17", "-d", str(classes), str(CALLED)]
        subprocess.run(command, check=True, timeout=200)
        _jar(classes, directory / "remains.jar", lambda _: True)

    return code_of(built_once("remains", [CALLED.read_text("utf-8")], build) / "remains.jar", BinaryType.JAR)


@pytest.fixture(scope="session")
def releases(jvm_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobCode, JobCode]:
    """Two versions of a class, in two jars: a constant of the same length differs."""
    directory = tmp_path_factory.mktemp("releases")
    first, second = (
        _jar(jvm_classes, directory / f"{number}.jar", lambda name: "Release" in name, number)
        for number in (1, 2)
    )
    return first, second


def _jar(classes: Path, target: Path, wanted: Callable[[str], bool], release: int = 1) -> JobCode:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(classes.rglob("*.class")):
            if wanted(path.name):
                code = path.read_bytes().replace(b"release 1", b"release %d" % release)
                archive.writestr(path.relative_to(classes).as_posix(), code)
    return code_of(target, BinaryType.JAR)


@pytest.fixture(scope="session")
def shared_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PySparkLauncher]:
    launcher = make_launcher(tmp_path_factory.mktemp("shared"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def start_shared(
    shared_launcher: PySparkLauncher, tmp_path_factory: pytest.TempPathFactory, code: JobCode
) -> Start:
    return starter(shared_launcher, tmp_path_factory.mktemp("contexts"), code)


@pytest.fixture(scope="session")
def shared_context(start_shared: Start) -> Iterator[Context]:
    """One session context for all tests that do not end it."""
    context = start_shared({"spark": {"my": {"setting": "of the context"}}}).wait_ready()
    yield context
    assert context.listener.faults == []
    context.handle.kill()
    context.wait_end()


@pytest.fixture
def context(shared_context: Context) -> Context:
    """The shared context, which lives before every test."""
    assert not [event for event in shared_context.listener.events if event[0] == "context_ended"]
    return shared_context


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[PySparkLauncher]:
    """A launcher of the test's own."""
    launcher = make_launcher(tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def start(launcher: PySparkLauncher, tmp_path: Path, code: JobCode) -> Start:
    """Starts contexts that the test may end."""
    return starter(launcher, tmp_path, code)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    """A standalone cluster of the module's own."""
    with standalone_cluster.started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    def build(version: str, value: str) -> JobCode:
        package = tmp_path_factory.mktemp("rates") / "rates"
        package.mkdir()
        (package / "__init__.py").write_text(f"VALUE = {value!r}\n")
        return code_of(build_wheel(package, package.parent, version=version))

    return build


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, rates: Wheel) -> Path:
    """A virtual environment with the library and without PySpark, as venv-pack packs it."""
    if not hasattr(tarfile, "tar_filter"):
        pytest.skip("needs the filters of tarfile: Python 3.10.12, 3.11.4 or newer")
    directory = tmp_path_factory.mktemp("environment")
    prefix = directory / "env"
    venv.create(prefix, symlinks=True)
    [site_packages] = prefix.glob("lib/python*/site-packages")
    with zipfile.ZipFile(rates("3.0", "of the environment").path) as wheel:
        wheel.extractall(site_packages)
    packed = directory / "env.tar.gz"
    venv_pack.pack(prefix=str(prefix), output=str(packed), format="tar.gz", compress_level=1)
    shutil.rmtree(prefix)  # so that only the archive can be used
    return packed
