"""The disk cache: bounded, and safe for entries in use, for other processes, and after crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobserver_core.disk_cache import DiskCache

SIZE = 1000


def write(path: Path) -> None:
    path.write_bytes(bytes(SIZE))


def write_directory(path: Path) -> None:
    path.mkdir()
    (path / "module.py").write_bytes(bytes(SIZE))


def use(cache: DiskCache, *names: str, at: float | None = None) -> None:
    """Use entries, now or at some time."""
    for name in names:
        cache.obtain(name, write).release()
        if at is not None and cache.path(name).exists():
            os.utime(cache.path(name), (at, at))


def kept(directory: Path) -> list[str]:
    assert list(directory.glob("parts/*")) == []
    return sorted(path.name for path in directory.glob("contents/*"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("make", [write, write_directory])
def test_an_entry_is_created_once_and_then_found(directory: Path, make: object) -> None:
    cache = DiskCache(directory, limit=10 * SIZE)
    made: list[Path] = []

    def making(path: Path) -> None:
        made.append(path)
        make(path)  # type: ignore[operator]

    for one in (cache, cache, DiskCache(directory, limit=10 * SIZE)):
        with one.obtain("name", making) as lease:
            assert lease.path == directory / "contents" / "name"
            assert lease.path.exists()
    assert len(made) == 1
    assert kept(directory) == ["name"]


def test_a_failed_creation_leaves_nothing(directory: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("on purpose")

    cache = DiskCache(directory, limit=10 * SIZE)
    with pytest.raises(ValueError, match="on purpose"):
        cache.obtain("name", fail)
    assert kept(directory) == []
    assert cache.lease("name") is None


def test_many_threads_make_an_entry_once(directory: Path) -> None:
    cache = DiskCache(directory, limit=0)
    made: list[Path] = []
    both = threading.Barrier(8, timeout=20)
    errors: list[BaseException] = []

    def making(path: Path) -> None:
        made.append(path)
        write_directory(path)

    def run() -> None:
        try:
            with cache.obtain("name", making) as lease:
                both.wait()
                assert (lease.path / "module.py").stat().st_size == SIZE
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(made) == 1
    assert kept(directory) == []


def test_over_the_limit_the_least_recently_used_entries_are_removed(directory: Path) -> None:
    cache = DiskCache(directory, limit=2 * SIZE)
    use(cache, "b", at=time.time() - 200)
    use(cache, "a", at=time.time() - 100)
    assert kept(directory) == ["a", "b"]
    use(cache, "c")
    assert kept(directory) == ["a", "c"]
    use(cache, "a")
    use(cache, "d")
    assert kept(directory) == ["a", "d"]


def test_the_last_use_outlives_the_process(directory: Path) -> None:
    use(DiskCache(directory, limit=9 * SIZE), "b", at=time.time() - 200)
    use(DiskCache(directory, limit=9 * SIZE), "a", at=time.time() - 100)
    use(DiskCache(directory, limit=2 * SIZE), "c")
    assert kept(directory) == ["a", "c"]


def test_entries_unused_for_long_are_removed_even_if_there_is_room(directory: Path) -> None:
    use(DiskCache(directory, limit=9 * SIZE), "old", at=time.time() - 200)
    use(DiskCache(directory, limit=9 * SIZE, max_age=100), "new")
    assert kept(directory) == ["new"]


def test_a_leased_entry_stays_until_its_last_lease_is_released(directory: Path) -> None:
    cache = DiskCache(directory, limit=0)
    first, second = cache.obtain("a", write_directory), cache.lease("a")
    assert second is not None
    for _ in range(2):
        first.release()
    use(cache, "b")
    cache.discard("a")
    assert kept(directory) == ["a"]
    second.release()
    assert kept(directory) == []


def test_a_discarded_entry_is_removed_even_if_there_is_room(directory: Path) -> None:
    removed: list[str] = []
    cache = DiskCache(directory, limit=9 * SIZE, removed=removed.append)
    use(cache, "a", "b")
    cache.discard("a")
    with cache.obtain("b", write):
        cache.discard("b")
    assert kept(directory) == []
    assert removed == ["a", "b"]
    use(cache, "b")
    assert kept(directory) == ["b"]


def test_a_file_with_the_wrong_size_is_damaged_and_rebuilt(directory: Path) -> None:
    cache = DiskCache(directory, limit=9 * SIZE)
    use(cache, "a")
    cache.path("a").chmod(0o600)
    os.truncate(cache.path("a"), 5)
    assert cache.lease("a", size=SIZE) is None
    with cache.obtain("a", write, size=SIZE) as lease:
        assert lease.path.stat().st_size == SIZE


def test_a_part_becomes_an_entry_whole(directory: Path) -> None:
    cache = DiskCache(directory, limit=9 * SIZE)
    part = cache.new_part()
    part.write(b"con")
    part.write(b"tent")
    with cache.publish("a", part) as lease:
        assert lease.path.read_bytes() == b"content"
        assert lease.path.stat().st_mode & 0o777 == 0o444
    part.close()
    again = cache.new_part()
    again.write(b"content")
    cache.publish("a", again).release()
    again.close()
    assert kept(directory) == ["a"]


def test_a_cache_without_a_configured_directory_removes_its_own() -> None:
    cache = DiskCache(None, limit=SIZE)
    use(cache, "a")
    directory = cache.path("a").parent.parent
    assert kept(directory) == ["a"]
    cache.close()
    cache.close()
    assert not directory.exists()


SCRIPT = """
import sys, time
from pathlib import Path
from jobserver_core.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), limit=0)
def make(path):
    path.mkdir()
    (path / "module.py").write_text("x = 1")
    if sys.argv[2] == "making":
        print("making", flush=True)
        sys.stdin.readline()
lease = cache.obtain("name", make)
print("leased", flush=True)
sys.stdin.readline()
lease.release()
"""


def another(directory: Path, until: str) -> subprocess.Popen[str]:
    """Another process that makes or leases an entry, and waits there."""
    command = [sys.executable, "-c", SCRIPT, str(directory), until]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == until
    return process


def test_files_leased_by_another_process_stay_until_it_is_killed(directory: Path) -> None:
    process = another(directory, "leased")
    cache = DiskCache(directory, limit=0)
    use(cache, "mine")
    assert kept(directory) == ["name"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    use(cache, "mine")
    assert kept(directory) == []


def test_unfinished_files_are_removed_only_if_their_process_is_dead(directory: Path) -> None:
    killed, living = another(directory, "making"), another(directory, "making")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    parts = list(directory.glob("parts/*"))
    assert len(parts) == 2
    use(DiskCache(directory, limit=0), "mine")
    assert len(list(directory.glob("parts/*"))) == 2  # they could have been created within the last minute
    for part in parts:
        os.utime(part, (time.time() - 120,) * 2)
    use(DiskCache(directory, limit=0), "mine")
    assert len(list(directory.glob("parts/*"))) == 1
    output, _ = living.communicate("go\ngo\n", timeout=30)
    assert output.split() == ["leased"]
    assert living.returncode == 0
    assert kept(directory) == []
