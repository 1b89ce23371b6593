"""What Python jobs import beside their own package: further packages, and packed environments."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import Context, Start, code_of
from package_checks import Wheel, check_a_large_package_is_shipped_once, check_packed_environment, see
from standalone_cluster import StandaloneCluster

from conditions import wait_until
from jobserver_core.disk_cache import DiskCache
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd

pytestmark = pytest.mark.spark


def test_a_job_without_the_package_does_not_import_that_of_another(context: Context, rates: Wheel) -> None:
    assert see(context, rates("1.0", "old"))["values"] == ["old"] * 3
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
def own_environment(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment, in an archive that no other module has had unpacked."""
    return Path(shutil.copy(environment, tmp_path_factory.mktemp("own") / "env.tar.gz"))


@pytest.fixture(scope="module")
def in_environment(start_shared: Start, own_environment: Path) -> Iterator[Context]:
    settings = {
        "spark": {"archives": f"{own_environment}#packed"},
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


def test_a_local_context_has_no_copy_of_its_environment_and_its_log_says_that_it_was_unpacked(
    in_environment: Context, own_environment: Path
) -> None:
    assert f"unpacking {own_environment}, once for all contexts\n" in in_environment.spec.log_path.read_text()
    assert not list(in_environment.spec.work_dir.rglob("packed"))


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
def in_environment_on_cluster(
    cluster: StandaloneCluster, start_shared: Start, environment: Path
) -> Iterator[Context]:
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
    check_packed_environment(in_environment_on_cluster, rates)


@pytest.mark.cluster
def test_a_large_package_is_shipped_once_for_all_jobs_of_a_context(
    in_environment_on_cluster: Context, tmp_path: Path
) -> None:
    check_a_large_package_is_shipped_once(in_environment_on_cluster, tmp_path)
