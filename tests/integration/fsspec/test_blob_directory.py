"""Blobs in a directory: on disk, across processes, and when the disk fails."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from jobserver_core.config.settings import BlobSettings, Settings
from jobserver_core.errors import StorageError
from jobserver_fsspec import FsspecBlobStore


def later() -> datetime:
    return datetime.now(timezone.utc) + timedelta(hours=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


@pytest.fixture
def blobs(root: Path) -> FsspecBlobStore:
    return FsspecBlobStore(root)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_a_blob_is_a_read_only_file_in_private_directories(blobs: FsspecBlobStore, root: Path) -> None:
    digest = blobs.put([b"content"]).digest
    path = root / digest[:2] / digest[2:4] / digest
    assert files_in(root) == [path]
    assert mode(path) == 0o444
    assert {mode(directory) for directory in (root, path.parent, path.parent.parent, root / "tmp")} == {0o700}


def test_the_local_path_is_the_stores_own_file(blobs: FsspecBlobStore, root: Path) -> None:
    digest = blobs.put([b"content"]).digest
    with blobs.local_path(digest) as path:
        assert path == root / digest[:2] / digest[2:4] / digest


def test_the_same_content_keeps_its_file(blobs: FsspecBlobStore) -> None:
    digest = blobs.put([b"content"]).digest
    with blobs.local_path(digest) as path:
        before = path.stat().st_ino
        blobs.put([b"content"])
        assert path.stat().st_ino == before


def test_a_file_that_was_cut_off_is_mended_by_the_next_upload(blobs: FsspecBlobStore) -> None:
    digest = blobs.put([b"content"]).digest
    with blobs.local_path(digest) as path:
        path.chmod(0o600)
        os.truncate(path, 3)
    assert blobs.put([b"content"]).digest == digest
    with blobs.open(digest) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("url", ["{}", "file://{}", "file:{}", "local://{}", "file://localhost{}"])
def test_every_spelling_of_a_directory_is_the_same_directory(root: Path, url: str) -> None:
    digest = FsspecBlobStore(root).put([b"content"]).digest
    assert FsspecBlobStore(url.format(root)).size(digest) == 7


def test_the_default_is_inside_the_data_directory(tmp_path: Path) -> None:
    FsspecBlobStore.from_settings(Settings(), tmp_path).put([b"content"])
    assert len(files_in(tmp_path / "blobs")) == 1


def test_a_directory_can_be_set_in_the_settings(tmp_path: Path) -> None:
    settings = Settings(blobs=BlobSettings(url=f"file://{tmp_path}/elsewhere"))
    FsspecBlobStore.from_settings(settings, tmp_path / "data").put([b"content"])
    assert len(files_in(tmp_path / "elsewhere")) == 1


def test_listing_and_sweeping_ignore_foreign_files(blobs: FsspecBlobStore, root: Path) -> None:
    digest = blobs.put([b"content"]).digest
    for name in ("README", "ab/README", f"ab/cd/{'x' * 64}", "lost+found/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    blobs.sweep(modified_before=later())
    assert list(blobs.digests(modified_before=later())) == [digest]
    assert (root / "README").exists()


# -- when the directory vanishes -------------------------------------------------------------------


def test_a_directory_that_is_gone_is_an_error_until_it_is_back(blobs: FsspecBlobStore, root: Path) -> None:
    digest = blobs.put([b"before"]).digest
    aside = root.rename(root.with_name("aside"))
    for act in (blobs.create, blobs.check):
        with pytest.raises(StorageError, match="/data/blobs is gone while the server was running"):
            act()
    assert not root.exists()
    aside.rename(root)
    blobs.check()
    assert blobs.size(digest) == 6


def test_a_directory_that_was_replaced_is_an_error_until_it_is_back(
    blobs: FsspecBlobStore, root: Path
) -> None:
    blobs.put([b"before"])
    aside = root.rename(root.with_name("aside"))
    root.mkdir()
    for act in (blobs.create, blobs.check):
        with pytest.raises(StorageError, match="/data/blobs was replaced while the server was running"):
            act()
    assert not files_in(root)
    root.rmdir()
    aside.rename(root)
    blobs.check()


# -- when the disk refuses -------------------------------------------------------------------------


def test_failing_to_create_a_directory_is_a_storage_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FsspecBlobStore(tmp_path / "file" / "blobs")
    for act in (store.create, store.check, lambda: store.put([b"x"])):
        with pytest.raises(StorageError, match=r"cannot write to .*/file/blobs: Not a directory"):
            act()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit files of this process to 200,000 bytes: longer writes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_in_the_middle_leaves_nothing(blobs: FsspecBlobStore, root: Path) -> None:
    with pytest.raises(StorageError, match="File too large"):
        blobs.put(bytes(64_000) for _ in range(10))
    assert files_in(root) == []


@pytest.mark.usefixtures("small_files")
def test_a_blob_cannot_be_committed_after_a_failed_write(blobs: FsspecBlobStore, root: Path) -> None:
    with blobs.create() as writer:
        with pytest.raises(StorageError, match="File too large"):
            writer.write(bytes(300_000))
        with pytest.raises(StorageError, match="committed or discarded"):
            writer.commit()
    assert files_in(root) == []


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a user who may mount a small file system")
    try:
        store = FsspecBlobStore(disk / "blobs")
        with pytest.raises(StorageError, match="No space left on device"):
            store.put(bytes(64_000) for _ in range(10))
        assert files_in(disk) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="Read-only file system"):
            store.check()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_obstructed_blob_path_is_a_storage_error_and_leaves_nothing(
    blobs: FsspecBlobStore, root: Path
) -> None:
    digest = blobs.put([b"content"]).digest
    blobs.delete(digest)
    (root / digest[:2] / digest[2:4]).rmdir()
    (root / digest[:2] / digest[2:4]).touch()
    with pytest.raises(StorageError, match="Not a directory"):
        blobs.put([b"content"])
    assert list((root / "tmp").iterdir()) == []


def test_a_writer_whose_file_was_swept_cannot_commit_half_a_blob(blobs: FsspecBlobStore, root: Path) -> None:
    with blobs.create() as writer:
        writer.write(b"content")
        blobs.sweep(modified_before=later())
        writer.write(b"more")
        with pytest.raises(StorageError):
            writer.commit()
    assert files_in(root) == []


# -- processes -------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from jobserver_fsspec import FsspecBlobStore
with FsspecBlobStore(sys.argv[1]).create() as writer:
    while True:
        writer.write(b"x" * 10_000)
        print("written", flush=True)
"""

COMMIT = """
import sys
from jobserver_fsspec import FsspecBlobStore
store = FsspecBlobStore(sys.argv[1])
with store.create() as writer:
    for _ in range(50):
        writer.write(b"x" * 10_000)
    print("ready", flush=True)
    sys.stdin.readline()
    print(writer.commit().digest, flush=True)
"""


def start(script: str, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_leaves_nothing_visible_and_is_swept(blobs: FsspecBlobStore, root: Path) -> None:
    process = start(WRITE_FOR_EVER, root)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    assert list(blobs.digests(modified_before=later())) == []
    (left,) = files_in(root)
    assert left.parent == root / "tmp"
    blobs.sweep(modified_before=datetime.now(timezone.utc) - timedelta(hours=1))
    assert left.exists()
    blobs.sweep(modified_before=later())
    assert files_in(root) == []


def test_processes_that_commit_the_same_blob_at_once_all_succeed(blobs: FsspecBlobStore, root: Path) -> None:
    processes = [start(COMMIT, root) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    digests = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert len(digests) == 1
    assert list(blobs.digests(modified_before=later())) == list(digests)
    assert [path.stat().st_size for path in files_in(root)] == [500_000]
