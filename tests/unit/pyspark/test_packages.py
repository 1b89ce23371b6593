from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path

import pytest

from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import NotAnArchive
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import JobCode
from jobserver_pyspark.launcher.packages import PackageLease

SIZE = 1000
NOW = time.time()


def wheel(directory: Path, name: str) -> JobCode:
    """A wheel that unpacks to a module of exactly ``SIZE`` bytes."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"# {name}\n".ljust(SIZE, "#"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return JobCode(path=path, type=BinaryType.WHEEL, digest=digest, source=path.name)


def use(packages: DiskCache, *codes: JobCode, at: float | None = None) -> None:
    """Use packages in a context that ends then, or that ended at some time."""
    lease = PackageLease(packages)
    directories = [Path(package.directory) for package in lease.prepare(codes)]
    assert [len(list(directory.iterdir())) for directory in directories] == [1] * len(codes)
    lease.close()
    for directory in directories:
        if at is not None and directory.exists():
            os.utime(directory, (at, at))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "packages"


@pytest.fixture
def codes(tmp_path: Path) -> list[JobCode]:
    return [wheel(tmp_path, name) for name in ("first", "second", "third", "fourth")]


def left(directory: Path) -> list[Path]:
    """Everything in the cache directory except the directories that structure it."""
    return list(directory.glob("*/*"))


def kept(packages: DiskCache, codes: list[JobCode]) -> list[str]:
    return [code.source.partition("-")[0] for code in codes if PackageLease(packages).ready([code])]


def test_over_the_limit_the_least_recently_used_package_is_removed(
    directory: Path, codes: list[JobCode]
) -> None:
    packages = DiskCache(directory, limit=2 * SIZE)
    use(packages, codes[1], at=NOW - 4000)
    use(packages, codes[0], at=NOW - 3000)
    assert kept(packages, codes) == ["first", "second"]
    use(packages, codes[2], at=NOW - 2000)
    assert kept(packages, codes) == ["first", "third"]
    use(packages, codes[0])  # used again: now the third has waited longest
    use(packages, codes[3])
    assert kept(packages, codes) == ["first", "fourth"]
    assert len(left(directory)) == 2


def test_a_package_that_a_living_context_leased_is_never_removed(
    directory: Path, codes: list[JobCode]
) -> None:
    packages = DiskCache(directory, limit=0)
    living = PackageLease(packages)
    living.prepare(codes[:1])
    use(packages, codes[0], codes[1])
    assert kept(packages, codes) == ["first"]
    living.close()
    assert left(directory) == []
    living.close()


def test_the_last_use_and_the_size_outlive_the_server(directory: Path, codes: list[JobCode]) -> None:
    use(DiskCache(directory, limit=10 * SIZE), codes[1], at=NOW - 4000)
    use(DiskCache(directory, limit=10 * SIZE), codes[0], at=NOW - 3000)
    packages = DiskCache(directory, limit=2 * SIZE)
    use(packages, codes[2])
    assert kept(packages, codes) == ["first", "third"]


def test_files_half_removed_or_half_unpacked_by_a_killed_server_are_removed(
    directory: Path, codes: list[JobCode]
) -> None:
    for name, age in (("young", 0), ("old", 3600)):
        (directory / "parts" / name / "inside").mkdir(parents=True)
        (directory / "parts" / name / "inside" / "file").write_text("left")
        os.utime(directory / "parts" / name, (time.time() - age,) * 2)
    packages = DiskCache(directory, limit=10 * SIZE)
    use(packages, codes[0])
    assert [path.name for path in directory.glob("parts/*")] == ["young"]
    assert kept(packages, codes) == ["first"]


def test_a_closed_lease_keeps_no_files(directory: Path, codes: list[JobCode]) -> None:
    packages = DiskCache(directory, limit=0)
    late = PackageLease(packages)
    late.close()
    late.prepare(codes[:1])  # of a job whose context has just ended
    use(packages, codes[1])
    assert left(directory) == []


def test_a_package_that_cannot_be_unpacked_leaves_nothing(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "broken.whl"
    path.write_bytes(b"PK\x03\x04 but no more")
    code = JobCode(path=path, type=BinaryType.WHEEL, digest="d" * 64, source=path.name)
    lease = PackageLease(DiskCache(directory, limit=10 * SIZE))
    with pytest.raises(NotAnArchive):
        lease.prepare([code])
    lease.close()
    assert left(directory) == []
