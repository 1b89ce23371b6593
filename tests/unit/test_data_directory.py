"""The data directory and the caches are private to the user of the server, whatever the umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobserver_core.data_directory import DataDirectory, create_private, lock_data_dir
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import InvalidSetting, StorageError


@pytest.fixture(autouse=True)
def _permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_subdirectory_is_private_in_a_data_directory_that_is_not(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir(mode=0o755)
    directory = DataDirectory(root)
    assert {mode(path) for path in root.rglob("*")} == {0o700}
    assert mode(directory.work_dir("c").parent) == 0o700
    assert mode(root) == 0o755


def test_missing_parents_are_private_and_existing_ones_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "existing").mkdir(mode=0o750)
    for _ in range(2):
        create_private(tmp_path / "existing" / "parent" / "directory")
    assert mode(tmp_path / "existing") == 0o750
    assert mode(tmp_path / "existing" / "parent") == 0o700
    assert mode(tmp_path / "existing" / "parent" / "directory") == 0o700


def open_cache(path: Path) -> None:
    DiskCache(path, limit=0).new_part().close()


def lock(path: Path) -> None:
    with ExitStack() as until:
        lock_data_dir(path, until)


@pytest.mark.parametrize("create", [open_cache, DataDirectory, lock])
def test_all_that_is_created_for_a_cache_or_a_data_directory_is_private(
    tmp_path: Path, create: Callable[[Path], object]
) -> None:
    create(tmp_path / "parent" / "directory")
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "file")


@pytest.mark.parametrize("use", [DataDirectory, lock])
def test_a_data_directory_that_is_a_file_is_a_wrong_setting(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidSetting) as itself:
        use(file)
    assert str(itself.value) == f"setting 'jobserver.data-dir': {file} is not a directory"
    with pytest.raises(InvalidSetting, match=f"{file / 'below'}: {file} is not a directory"):
        use(file / "below")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidSetting, match="link is not a directory"):
        use(tmp_path / "link")


def test_a_directory_of_data_files_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = DataDirectory(tmp_path / "data", tmp_path / "file")
    with pytest.raises(StorageError, match="file, is not a directory"):
        _ = directory.data_files


def test_a_directory_of_data_files_that_is_unmounted_stores_nothing_until_it_is_mounted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = {tmp_path / "volume"}
    monkeypatch.setattr(Path, "is_mount", lambda path: path in mounted)
    files = tmp_path / "volume" / "files"
    files.mkdir(parents=True)
    directory = DataDirectory(tmp_path / "data", files)
    directory.check_data_files()
    mounted.clear()
    for use in (directory.create_data_files, directory.check_data_files, lambda: directory.data_files):
        with pytest.raises(StorageError, match=r"no longer on the file system .*/volume .*; mount it again"):
            use()
    mounted.add(tmp_path / "volume")
    assert directory.create_data_files() == files


@pytest.mark.parametrize("given", [0o755, 0o770, 0o2770, 0o701])
def test_a_data_directory_that_others_can_access_is_used_as_it_is_with_one_warning(
    tmp_path: Path, given: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(given)
    with ExitStack() as until:
        lock_data_dir(tmp_path / "data", until)
    (message,) = caplog.messages
    assert f"{tmp_path / 'data'} (mode {given:04o})" in message
    assert mode(tmp_path / "data") == given


def test_a_private_data_directory_is_no_reason_for_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # a new one, and an existing one
        with ExitStack() as until:
            lock_data_dir(tmp_path / "data", until)
    assert caplog.messages == []
