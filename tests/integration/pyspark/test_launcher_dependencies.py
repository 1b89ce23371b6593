"""What Python jobs import beside their own package: further packages, and packed environments."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import venv_pack
from launcher_world import Context, Start, code_of
from test_launcher_cluster import Cluster, cluster

from conditions import wait_until
from jobserver_core.disk_cache import DiskCache
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark.demo import build_wheel

__all__ = ["cluster"]

pytestmark = pytest.mark.spark

Wheel = Callable[[str, str], JobCode]


@pytest.fixture(scope="session")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """Builds wheels of a small library, which differ in one value."""

    def build(version: str, value: str) -> JobCode:
        package = tmp_path_factory.mktemp("rates") / "rates"
        package.mkdir()
        (package / "__init__.py").write_text(f"VALUE = {value!r}\n")
        return code_of(build_wheel(package, package.parent, version=version))

    return build


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, rates: Wheel) -> Path:
    """A virtual environment with the library and without PySpark, as venv-pack packs it."""
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


def see(context: Context, *packages: JobCode, module: str = "rates") -> dict[str, Any]:
    job = context.submit("dependencies.Sees", {"module": module}, packages=packages)
    seen: dict[str, Any] = context.end_of(job, timeout=120.0).value
    return seen


def test_two_jobs_import_different_versions_of_a_further_package(context: Context, rates: Wheel) -> None:
    old, new = rates("1.0", "old"), rates("2.0", "new")
    for wheel, value in ((old, "old"), (new, "new"), (old, "old")):
        assert see(context, wheel)["values"] == [value] * 3
    lacking = context.run("dependencies.Sees", {"module": "rates"}).outcome
    assert lacking.failure is FailureKind.RAISED
    assert lacking.error is not None
    assert "No module named 'rates'" in lacking.error.message


def test_a_further_package_with_a_compiled_extension_gets_a_new_process_for_each_job(
    context: Context, tmp_path: Path
) -> None:
    extension = Path(importlib.import_module("_json").__file__ or "")
    wheel = tmp_path / "fast-1.0-cp3-none-any.whl"
    stem = extension.name.partition(".")[0]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(extension, f"fast/{extension.name}")
        archive.writestr("fast/__init__.py", f"from . import {stem}\nVALUE = {stem}.__file__[-3:]\n")
    for _ in range(2):
        assert see(context, code_of(wheel), module="fast")["values"] == [".so"] * 3
    discarded = "serves no other job: the class path has a compiled extension: fast._json"
    wait_until(lambda: context.spec.log_path.read_text().count(discarded) == 2, "both processes have ended")


@pytest.fixture(scope="module")
def in_environment(start_shared: Start, environment: Path) -> Iterator[Context]:
    settings = {
        "spark": {"archives": f"{environment}#packed"},
        "python": {"executable": "packed/bin/python"},
    }
    context = start_shared(settings).wait_ready()
    yield context
    context.handle.kill()
    context.wait_end()


def test_jobs_and_tasks_run_in_a_packed_environment(in_environment: Context, rates: Wheel) -> None:
    seen = see(in_environment)
    assert seen["values"] == ["of the environment"] * 3
    assert len(set(seen["prefixes"])) == 1
    assert Path(seen["prefixes"][0]).name.startswith("environment-")
    assert see(in_environment, rates("4.0", "of the job"))["values"] == ["of the job"] * 3


def test_an_environment_is_kept_while_its_context_lives(in_environment: Context) -> None:
    [prefix, _] = see(in_environment)["prefixes"]
    opened = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
    assert os.path.realpath(prefix) not in opened, "the lock belongs to the host, not to the server"
    cache = DiskCache(Path(prefix).parents[1], limit=0)
    with cache.obtain("other", lambda path: path.write_text("x")):
        pass  # releasing it makes the cache remove everything that is not used
    assert not cache.path("other").exists()
    assert Path(prefix).is_dir()


def _without_base(packed: Path, directory: Path) -> Path:
    """The same archive, from a machine whose Python is elsewhere."""
    target = directory / "foreign.tgz"
    with tarfile.open(packed) as source, tarfile.open(target, "w:gz") as copy:
        for member in source:
            if member.issym() and member.linkname.startswith("/"):
                member.linkname = "/no/such/place/bin/python3"
            copy.addfile(member, source.extractfile(member) if member.isreg() else None)
    return target


@pytest.mark.parametrize(
    ("file", "program", "message"),
    [
        ("env.tar.gz", "bin/pyhton", "has no bin/pyhton: is it packed with venv-pack or conda-pack?"),
        ("foreign.tgz", "bin/python", "a link to /no/such/place/bin/python3, which does not exist on"),
        ("cut.tar.gz", "bin/python", "cut.tar.gz is not a tar archive: "),
    ],
)
def test_an_environment_that_cannot_be_used_is_the_reason_of_the_failure(
    start: Start, environment: Path, tmp_path: Path, file: str, program: str, message: str
) -> None:
    shutil.copy(environment, tmp_path / "env.tar.gz")
    _without_base(environment, tmp_path)
    (tmp_path / "cut.tar.gz").write_bytes(environment.read_bytes()[:-1000])
    settings = {
        "spark": {"archives": f"{tmp_path / file}#env"},
        "python": {"executable": f"env/{program}"},
    }
    end, error = start(settings).wait_end()
    assert end is ContextEnd.FAILED
    assert message in error.message


def test_tasks_need_the_same_minor_version_of_python_as_jobs(start: Start, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"print('[null, null, [3, 99]]')\"\n")
    other.chmod(0o755)
    end, error = start({"spark": {"pyspark": {"python": str(other)}}}).wait_end()
    assert end is ContextEnd.FAILED
    assert "with Python 3.99, and jobs run in" in error.message
    assert "both need the same minor version" in error.message


@pytest.fixture(scope="module")
def in_environment_on_cluster(cluster: Cluster, start_shared: Start, environment: Path) -> Iterator[Context]:
    """The driver and two executors of a standalone cluster run the interpreter of the archive."""
    settings = {
        "spark": {"master": cluster.master, "archives": f"{environment}#packed", "executor": {"cores": 1}},
        "python": {"executable": "packed/bin/python"},
        "num-cpu-cores": 2,
        "memory-per-node": "512m",
    }
    context = start_shared(settings).wait_ready()
    yield context
    context.handle.kill()
    context.wait_end()


@pytest.mark.cluster
def test_executors_of_a_cluster_run_in_a_packed_environment(
    in_environment_on_cluster: Context, rates: Wheel
) -> None:
    seen = see(in_environment_on_cluster)
    assert seen["values"] == ["of the environment"] * 3
    driver, *executors = map(Path, seen["prefixes"])
    assert driver.name.startswith("environment-")
    assert {executor.name for executor in executors} == {"packed"}
    assert see(in_environment_on_cluster, rates("1.0", "old"))["values"] == ["old"] * 3
    assert see(in_environment_on_cluster, rates("2.0", "new"))["values"] == ["new"] * 3


@pytest.mark.cluster
def test_a_large_package_is_shipped_once_for_all_jobs_of_a_context(
    in_environment_on_cluster: Context, tmp_path: Path
) -> None:
    package = tmp_path / "bulk"
    package.mkdir()
    (package / "data.bin").write_bytes(os.urandom(50 * 2**20))
    (package / "__init__.py").write_text("VALUE = 'large'\n")
    bulk = code_of(build_wheel(package, tmp_path, version="1.0"))
    for _ in range(3):
        assert see(in_environment_on_cluster, bulk, module="bulk")["values"] == ["large"] * 3
    file = {"file": f"{bulk.digest}.zip"}
    fetched = in_environment_on_cluster.run("dependencies.Fetches", file).value
    assert set(fetched.values()) == {1}, fetched
