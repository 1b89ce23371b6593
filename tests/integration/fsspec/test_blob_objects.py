"""Blobs on fsspec file systems that imitate the habits of object stores and others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobserver_core import BinaryType, JobRequest, parse_class_path
from jobserver_core.config.settings import BlobSettings, Settings
from jobserver_core.errors import BlobNotFound, InvalidSetting, NotAnArchive, StorageError
from jobserver_core.memory import MemoryFetcher
from jobserver_fsspec import FsspecBlobStore
from serving import WAIT, a_request, a_server, archive, upload


def later() -> datetime:
    return datetime.now(timezone.utc) + timedelta(hours=1)


def _once(write: Callable[[bytes], int], error: Exception) -> Callable[[bytes], int]:
    """Return a method that writes once, and then raises."""
    written = []

    def failing(data: bytes) -> int:
        if written:
            raise error
        written.append(data)
        return write(data)

    return failing


class StoreWithHabits(MemoryFileSystem):  # type: ignore[misc]
    """An in-memory file system that can imitate the habits of others."""

    protocol = "habits"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    habits: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("habits://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        parent = path.rsplit("/", 1)[0]
        if self.habits.get("directories") and "w" in mode and parent not in self.pseudo_dirs:
            raise FileNotFoundError(parent)
        if error := self.habits.get("open"):
            raise error
        if "r" in mode and (error := self.habits.get("read")):
            raise error
        file = super()._open(path, mode, **options)
        if "w" in mode and (error := self.habits.get("write")):
            file.write = _once(file.write, error)
        return file

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if error := self.habits.get("mv"):
            raise error
        if self.habits.get("directories") and path2.rsplit("/", 1)[0] not in self.pseudo_dirs:
            raise FileNotFoundError(path2)
        if self.habits.get("keeps") and self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **options)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if error := self.habits.get("info"):
            raise error
        info: dict[str, Any] = super().info(path, **options)
        if self.habits.get("short"):
            info["size"] -= 1
        return info

    def find(self, path: str, **options: Any) -> Any:
        found = super().find(path, **options)
        for name, info in found.items():
            info.update(self.habits.get("times", lambda _: {})(self.store[name].modified))
        return found

    def modified(self, path: str) -> Any:
        if self.habits.get("timeless"):
            raise NotImplementedError
        return super().modified(path)


fsspec.register_implementation("habits", StoreWithHabits, clobber=True)


@pytest.fixture
def habits() -> Iterator[dict[str, Any]]:
    yield StoreWithHabits.habits
    StoreWithHabits.habits.clear()
    StoreWithHabits.store.clear()
    del StoreWithHabits.pseudo_dirs[1:]


@pytest.fixture
def blobs(habits: dict[str, Any], tmp_path: Path) -> Iterator[FsspecBlobStore]:
    store = FsspecBlobStore("habits://bucket/blobs", cache_directory=tmp_path / "cache", cache_size=1000)
    yield store
    store.close()
    assert [*(tmp_path / "cache").glob("parts/*"), *(tmp_path / "cache").glob("locks/*")] == []


def keys() -> list[str]:
    return sorted(StoreWithHabits.store)


def test_a_blob_is_an_object_under_its_digest(blobs: FsspecBlobStore) -> None:
    digest = blobs.put([b"content"]).digest
    assert keys() == [f"/bucket/blobs/{digest[:2]}/{digest[2:4]}/{digest}"]


def test_directories_are_created_on_file_systems_that_have_them(
    blobs: FsspecBlobStore, habits: dict[str, Any]
) -> None:
    habits["directories"] = True
    digest = blobs.put([b"content"]).digest
    with blobs.open(digest) as file:
        assert file.read() == b"content"


def test_the_same_content_can_be_stored_again_if_moves_do_not_replace(
    blobs: FsspecBlobStore, habits: dict[str, Any]
) -> None:
    habits["keeps"] = True
    assert blobs.put([b"content"]) == blobs.put([b"content"])
    assert len(keys()) == 1


@pytest.mark.parametrize(
    "times",
    [
        lambda at: {"LastModified": at},
        lambda at: {"last_modified": at.replace(tzinfo=None)},
        lambda at: {"mtime": at.timestamp()},
        lambda at: {"updated": at.isoformat().replace("+00:00", "Z")},
        lambda at: {},
    ],
    ids=["aware", "naive", "seconds", "text", "asked"],
)
def test_times_are_read_as_drivers_write_them(
    blobs: FsspecBlobStore, habits: dict[str, Any], times: Any
) -> None:
    habits["times"] = times
    old, new = blobs.put([b"old"]).digest, blobs.put([b"new"]).digest
    (key,) = (key for key in keys() if key.endswith(old))
    StoreWithHabits.store[key].modified = datetime.now(timezone.utc) - timedelta(hours=2)
    assert set(blobs.digests(modified_before=datetime.now(timezone.utc) - timedelta(hours=1))) == {old}
    assert set(blobs.digests(modified_before=later())) == {old, new}


def test_entries_without_a_time_never_count_as_old(blobs: FsspecBlobStore, habits: dict[str, Any]) -> None:
    habits["timeless"] = True
    blobs.put([b"content"])
    assert list(blobs.digests(modified_before=later())) == []
    habits["times"] = lambda _: {"mtime": ("a", "tuple")}  # what no driver is known to give
    assert list(blobs.digests(modified_before=later())) == []


def test_usage_is_read_from_listings_alone(blobs: FsspecBlobStore, habits: dict[str, Any]) -> None:
    blobs.put([b"content"])
    blobs.put([b"more content"])
    habits["info"] = RuntimeError("asked for one object")
    assert blobs.usage() == (2, 19)


@pytest.mark.parametrize("place", ["open", "mv", "info"])
def test_driver_exceptions_become_storage_errors_without_secrets(
    habits: dict[str, Any], tmp_path: Path, place: str
) -> None:
    store = FsspecBlobStore(
        "habits://bucket/blobs", options={"token": "hunter2", "nested": {"key": "hunter3"}}
    )
    habits[place] = RuntimeError("the token hunter2 with the key hunter3 was refused")
    with pytest.raises(StorageError, match="was refused") as caught:
        store.put([b"content"])
    assert "hunter" not in str(caught.value)
    habits.clear()
    assert [key for key in keys() if "/tmp/" in key] == []
    store.close()


def test_of_options_with_urls_only_a_plain_endpoint_is_shown(habits: dict[str, Any]) -> None:
    connection = "DefaultEndpointsProtocol=https;AccountKey=hunter2;BlobEndpoint=https://store:10000/"
    signed, endpoint = "https://store:10000/hunter3", "https://store:10000"
    store = FsspecBlobStore(
        "habits://bucket/blobs",
        options={"connection_string": connection, "account_url": signed, "endpoint_url": endpoint},
    )
    habits["open"] = RuntimeError(f"cannot use {connection} nor {signed} at {endpoint}")
    with pytest.raises(StorageError, match="cannot use") as caught:
        store.put([b"content"])
    assert "hunter" not in str(caught.value)
    assert f"at {endpoint}" in str(caught.value)
    habits.clear()
    store.close()


def test_an_object_that_was_damaged_is_not_given_out(blobs: FsspecBlobStore, tmp_path: Path) -> None:
    digest = blobs.put([b"content"]).digest
    StoreWithHabits(  # the same length, so only the hash differs
    ).pipe_file(keys()[0], b"CONTENT")
    elsewhere = FsspecBlobStore("habits://bucket/blobs", cache_directory=tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="damaged"):
        elsewhere.open(digest)
    assert list((tmp_path / "elsewhere").glob("*/*")) == []


def test_a_read_only_copy_is_created_once_while_there_is_room(
    blobs: FsspecBlobStore, habits: dict[str, Any]
) -> None:
    digest = blobs.put([b"content"]).digest
    with blobs.local_path(digest) as path:
        assert path.stat().st_mode & 0o777 == 0o444
    habits["open"] = RuntimeError("read again")
    with blobs.local_path(digest) as again:
        assert again == path
        assert again.read_bytes() == b"content"


def test_a_copy_does_not_outlive_its_object(blobs: FsspecBlobStore) -> None:
    digest = blobs.put([b"content"]).digest
    with blobs.local_path(digest):
        pass
    StoreWithHabits.store.clear()
    with pytest.raises(BlobNotFound), blobs.local_path(digest):
        pytest.fail("the block was entered")


def test_copies_are_bounded_and_the_least_recently_used_are_removed_first(
    blobs: FsspecBlobStore, tmp_path: Path
) -> None:
    digests = [blobs.put([bytes([number]) * 400]).digest for number in range(3)]
    for digest in (digests[0], digests[1], digests[0], digests[2]):
        with blobs.local_path(digest):
            pass
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if len(path.name) == 64}
    assert kept == {digests[0], digests[2]}


def test_copies_in_use_stay_even_over_the_limit(blobs: FsspecBlobStore) -> None:
    digests = [blobs.put([bytes([number]) * 600]).digest for number in range(2)]
    with blobs.local_path(digests[0]) as first, blobs.local_path(digests[1]) as second:
        assert (first.read_bytes(), second.read_bytes()) == (b"\0" * 600, b"\1" * 600)


def test_a_written_blob_is_not_downloaded_again(blobs: FsspecBlobStore, habits: dict[str, Any]) -> None:
    digest = blobs.put([b"con", b"tent"]).digest
    habits["read"] = RuntimeError("read again")
    with blobs.open(digest) as file:
        assert file.read() == b"content"
    with blobs.local_path(digest) as path:
        assert path.stat().st_mode & 0o777 == 0o444


def test_an_upload_and_its_first_job_download_nothing(blobs: FsspecBlobStore, habits: dict[str, Any]) -> None:
    habits["read"] = RuntimeError("read again")
    with a_server(blobs=blobs, fetcher=MemoryFetcher({"http://h/words.egg": archive("y = 2")})) as server:
        upload(server)
        assert server.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1
        fetched = JobRequest(
            class_name="w.Echo", class_path=parse_class_path("http://h/words.egg"), config="value = 2"
        )
        assert server.submit(fetched).result(WAIT) == 2
        with pytest.raises(NotAnArchive):
            server.upload("broken", BinaryType.EGG, b"no archive")
        assert [binary.name for binary in server.binaries()] == ["words"]


def test_a_blob_that_would_fill_the_cache_is_not_copied_while_written(
    blobs: FsspecBlobStore, tmp_path: Path
) -> None:
    blobs.put([bytes(200), bytes(51)])
    assert list((tmp_path / "cache").glob("*/*")) == []


def test_a_disk_that_refuses_the_copy_does_not_refuse_the_blob(
    blobs: FsspecBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    assert blobs.size(blobs.put([b"content"]).digest) == 7


@pytest.mark.parametrize("habit", ["write", "mv", "short"])
def test_an_error_in_the_middle_of_an_upload_leaves_nothing(
    blobs: FsspecBlobStore, habits: dict[str, Any], tmp_path: Path, habit: str
) -> None:
    habits[habit] = OSError("the store is gone")
    with pytest.raises(StorageError, match=r"the store is gone|stored \d bytes"):
        blobs.put([b"some", b"thing"])
    assert keys() == []
    assert list((tmp_path / "cache").glob("*/*")) == []


def test_a_copy_goes_with_its_blob(blobs: FsspecBlobStore, tmp_path: Path) -> None:
    digest = blobs.put([b"content"]).digest
    blobs.delete(digest)
    assert list((tmp_path / "cache").glob("*/*")) == []


def test_a_protocol_that_is_not_known_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSetting, match=r"jobserver\.blobs\.url"):
        FsspecBlobStore("nonsense://user:hunter2@host/x")


def test_a_protocol_whose_driver_is_missing_is_an_error_that_names_it() -> None:
    protocol = next((name for name in ("oci", "dvc", "lakefs", "oss") if not _importable(name)), None)
    assert protocol is not None
    with pytest.raises(StorageError, match="is not installed"):
        FsspecBlobStore(f"{protocol}://user:hunter2@bucket/x")


def _importable(protocol: str) -> bool:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        return False
    return True


def test_the_settings_give_url_options_and_bound(habits: dict[str, Any], tmp_path: Path) -> None:
    options = {"cache-size": "1 KiB", "token": "x"}
    settings = Settings(blobs=BlobSettings(url="habits://bucket/blobs", options=options))
    store = FsspecBlobStore.from_settings(settings, tmp_path)
    digest = store.put([b"content"]).digest
    with store.local_path(digest) as path:
        assert path.is_relative_to(tmp_path / "cache" / "blobs")
    store.close()
    broken = Settings(blobs=BlobSettings(url="habits://x", options={"cache-size": "much"}))
    with pytest.raises(InvalidSetting, match=r"options\.cache-size"):
        FsspecBlobStore.from_settings(broken, tmp_path)


def test_the_modification_of_an_object_is_renewed_by_committing_it_again(blobs: FsspecBlobStore) -> None:
    blobs.put([b"content"])
    before = datetime.now(timezone.utc)
    time.sleep(0.01)
    blobs.put([b"content"])
    assert list(blobs.digests(modified_before=before)) == []
