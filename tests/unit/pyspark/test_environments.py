"""Interpreters in packed environments: which archive a path means, and unpacking it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import InvalidSetting, LaunchError, StorageError
from jobserver_pyspark.launcher import environments as unpacking
from jobserver_pyspark.launcher.environments import Environments, packed_python, without_environments

KEY = "python.executable"
filters = pytest.mark.skipif(
    not hasattr(tarfile, "tar_filter"),
    reason="needs Python 3.10.12, 3.11.4 or newer, whose tarfile has filters",
)


def packed(path: Path, *links: tuple[str, str]) -> Path:
    """An archive with an interpreter, and with links."""
    with tarfile.open(path, "w:gz") as tar:
        program = tarfile.TarInfo("bin/python")
        program.size = 3
        tar.addfile(program, io.BytesIO(b"#!\n"))
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    return path


@pytest.mark.parametrize("program", ["python3", "/usr/bin/python3"])
def test_a_program_of_the_machine_is_not_packed(program: str) -> None:
    assert packed_python(KEY, program, {}) is None


@pytest.mark.parametrize("prefix", ["", "file:", "file://"])
@pytest.mark.parametrize("python", ["env/bin/python", "./env/bin/python"])
def test_a_relative_path_begins_with_the_name_of_an_archive(tmp_path: Path, prefix: str, python: str) -> None:
    archive = packed(tmp_path / "env.tar.gz")
    found = packed_python(KEY, python, {"spark.archives": f"/data/other.zip,{prefix}{archive}#env"})
    assert found is not None
    assert (found.archive, found.program, found.on_executors) == (archive, "bin/python", "./env/bin/python")


@pytest.mark.parametrize(
    ("python", "archives", "message"),
    [
        ("env/bin/python", "", r"there: none\), got 'env/bin/python'"),
        ("env/bin/python", "/a.tar.gz#one,/b.tar.gz", r"there: one, b.tar.gz\)"),
        ("env/../bin/python", "/a.tar.gz#env", "expected an absolute path"),
        ("env/bin/python", "hdfs:///a.tar.gz#env", "hdfs:///a.tar.gz is not on the server's machine"),
        ("env/bin/python", "/a.zip#env", "expected .tar.gz, .tgz, .tar"),
        ("env/bin/python", "/no/such.tar.gz#env", "file /no/such.tar.gz does not exist"),
        ("env/bin/python", "here.tar.gz#env", "absolute path of a file on the server's machine"),
    ],
)
def test_a_path_in_no_usable_archive_is_refused(python: str, archives: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        packed_python(KEY, python, {"spark.archives": archives})


@filters
def test_an_environment_is_unpacked_once_for_driver_and_local_executors(tmp_path: Path) -> None:
    archive = packed(tmp_path / "env.tar.gz")
    environments = Environments(DiskCache(tmp_path / "cache", limit=2**20))
    conf = {"spark.archives": f"{archive}#env"}
    local = environments.pythons("env/bin/python", conf, local=True)
    assert Path(local.driver).read_text() == "#!\n"
    assert local.executors == local.driver
    far = environments.pythons("env/bin/python", conf, local=False)
    assert (far.driver, far.executors) == (local.driver, "./env/bin/python")
    chosen = environments.pythons("env/bin/python", {**conf, "spark.pyspark.python": "/p"}, local=False)
    assert (chosen.driver, chosen.executors) == (local.driver, "/p")


@filters
def test_it_is_known_while_an_environment_is_unpacked_and_only_then(tmp_path: Path) -> None:
    archive, seen = packed(tmp_path / "env.tar.gz"), list[str]()

    @contextmanager
    def noted(path: Path) -> Iterator[None]:
        seen.append(path.name)
        yield
        seen.append("done")

    environments = Environments(DiskCache(tmp_path / "cache", limit=2**20), noted)
    for _ in range(2):
        environments.pythons("env/bin/python", {"spark.archives": f"{archive}#env"}, local=True)
    assert seen == ["env.tar.gz", "done"]


@pytest.mark.parametrize(
    ("python", "executors", "archives", "left"),
    [
        ("env/bin/python", None, "/a/env.tar.gz#env", None),
        ("./env/bin/python", None, "/data.zip, /a/env.tar.gz#env,/b.tar.gz#more", "/data.zip,/b.tar.gz#more"),
        ("one/bin/python", "two/bin/python", "/a.tgz#one,/b.tgz#two", None),
        ("env.tgz/bin/python", None, "/a/env.tgz,/a/env.tgz#data", "/a/env.tgz#data"),
        ("/usr/bin/python3", None, "/a/env.tar.gz#env", "/a/env.tar.gz#env"),
        (None, None, "/a/env.tar.gz#env", "/a/env.tar.gz#env"),
    ],
)
def test_a_local_spark_gets_only_the_archives_that_no_interpreter_is_in(
    python: str | None, executors: str | None, archives: str, left: str | None
) -> None:
    conf = {"spark.archives": archives, "spark.x": "1"}
    if executors is not None:
        conf["spark.pyspark.python"] = executors
    found = without_environments(python, conf)
    assert found == {key: value for key, value in {**conf, "spark.archives": left}.items() if value}


@filters
def test_an_archive_writes_nothing_outside_its_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = packed(tmp_path / "env.tar", ("way", str(outside)))
    with tarfile.open(archive, "w") as tar:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("way/file"), io.BytesIO())
    environments = Environments(DiskCache(tmp_path / "cache", limit=2**20))
    with pytest.raises(LaunchError, match="is not a tar archive"):
        environments.pythons("env/bin/python", {"spark.archives": f"{archive}#env"}, local=True)
    assert list(outside.iterdir()) == []


@filters
def test_files_of_an_archive_belong_to_the_server_alone(tmp_path: Path) -> None:
    archive = tmp_path / "env.tar"
    with tarfile.open(archive, "w") as tar:
        for name in (".", "bin"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode, directory.uid, directory.gid = tarfile.DIRTYPE, 0o555, 4711, 4711
            tar.addfile(directory)
        program = tarfile.TarInfo("bin/python")
        program.uid = program.gid = 4711
        tar.addfile(program, io.BytesIO())
    environments = Environments(DiskCache(tmp_path / "cache", limit=2**20))
    found = environments.pythons("env/bin/python", {"spark.archives": f"{archive}#env"}, local=True)
    program_path = Path(found.driver)
    assert {path.stat().st_uid for path in (program_path, *program_path.parents[:2])} == {os.getuid()}
    assert {path.stat().st_gid for path in (program_path, *program_path.parents[:2])} == {os.getgid()}
    assert program_path.parent.stat().st_mode & 0o777 == 0o755
    assert program_path.parents[1].stat().st_mode & 0o777 == 0o700


def test_an_old_python_of_the_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "tar_filter", raising=False)
    conf = {"spark.archives": f"{packed(tmp_path / 'env.tar.gz')}#env"}
    environments = Environments(DiskCache(tmp_path / "cache", limit=2**20))
    with pytest.raises(LaunchError, match=r"server's Python is 3\.\d.* needs .*3\.11\.4"):
        environments.pythons("env/bin/python", conf, local=True)


@filters
def test_an_environment_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(tmp_path / "env.tar.gz")
    cache = tmp_path / "cache"
    environments = Environments(DiskCache(cache, limit=2**20))
    monkeypatch.setattr(unpacking, "LEAST_FREE", 2**80)
    with pytest.raises(StorageError, match="needs more than 0 bytes when unpacked"):
        environments.pythons("env/bin/python", {"spark.archives": f"{archive}#env"}, local=True)
    assert [path for path in cache.rglob("*") if path.is_file()] == []
