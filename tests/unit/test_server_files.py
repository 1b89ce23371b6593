"""Binaries and data files of a server."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_server import running

from jobserver_core import (
    BinaryType,
    ContextState,
    JobRequest,
    JobServer,
    Settings,
    errors,
)
from jobserver_core.memory import MemoryBlobStore
from serving import WAIT, ScriptedLauncher, a_server, archive, upload


@pytest.fixture
def server() -> Iterator[JobServer]:
    with a_server() as server:
        upload(server)
        yield server


# -- binaries --------------------------------------------------------------------------------------


def test_the_newest_upload_of_a_name_is_the_one_that_counts(server: JobServer) -> None:
    newer = server.upload("words", BinaryType.EGG, archive("x = 2"))
    assert server.binary("words") == newer
    assert server.binaries() == [newer]
    assert server.binary_versions("words")[0] == newer
    assert len(server.binary_versions("words")) == 2


def test_a_version_is_named_by_the_first_digits_of_its_hash(server: JobServer) -> None:
    old = server.upload("words", BinaryType.EGG, archive("x = 1"))
    new = server.upload("words", BinaryType.EGG, archive("x = 2"))

    def used(entry: str) -> str:
        request = JobRequest(class_name="w.Echo", class_path=entry, packages=[entry])
        job = server.submit(request)
        job.result(WAIT)
        code, package = server.job(job.id).class_path
        assert code.digest == package.digest
        assert code.source == entry
        return code.digest

    assert used("words") == used(f"words@{new.digest}") == new.digest
    assert used(f"words@{old.digest}") == used(f"words@{old.digest[:8]}") == old.digest
    for wrong in (old.digest[:7], "0" * 8, f"{old.digest}0", old.digest[:8].upper() + "G", "", "1.2.0"):
        with pytest.raises(errors.BinaryNotFound):
            used(f"words@{wrong}")
    with pytest.raises(errors.BinaryNotFound):
        used(f"none@{old.digest}")
    context = server.create_context("versions", {"cp": f"words@{old.digest[:8]}"}).result(WAIT)
    assert context.state is ContextState.RUNNING


def test_a_binary_with_the_name_of_a_version_has_precedence(server: JobServer) -> None:
    old = server.upload("words", BinaryType.EGG, archive("x = 1"))
    other = server.upload(f"words@{old.digest[:8]}", BinaryType.EGG, archive("x = 2"))
    job = server.submit(JobRequest(class_name="w.Echo", class_path=other.name))
    job.result(WAIT)
    assert server.job(job.id).class_path[0].digest == other.digest


def similar_archives() -> tuple[bytes, bytes]:
    """Return two archives whose digests begin with the same eight digits."""
    start = archive()[:-2] + (8).to_bytes(2, "little")  # a comment of eight bytes follows
    found: dict[str, bytes] = {}
    for number in range(10**8):
        data = start + b"%08d" % number
        digits = hashlib.sha256(data).hexdigest()[:8]
        if digits in found:
            return found[digits], data
        found[digits] = data
    raise AssertionError("no collision")


def test_digits_of_several_versions_are_refused(server: JobServer) -> None:
    first, second = (server.upload("words", BinaryType.EGG, data) for data in similar_archives())
    assert first.digest != second.digest
    with pytest.raises(errors.InvalidRequest, match="matches several versions of words; add more digits"):
        server.submit(JobRequest(class_name="w.Echo", class_path=f"words@{first.digest[:8]}"))
    job = server.submit(JobRequest(class_name="w.Echo", class_path=f"words@{first.digest}"))
    job.result(WAIT)
    assert server.job(job.id).class_path[0].digest == first.digest


@pytest.mark.parametrize(
    "data", [b"", b"not a zip", b"PK\x03\x04 and then nothing", b"PK\x05\x06" + b"\0" * 18]
)
def test_an_upload_that_is_not_an_archive_leaves_nothing(data: bytes) -> None:
    blobs = MemoryBlobStore()
    with a_server(blobs=blobs) as server:
        with pytest.raises(errors.NotAnArchive, match="not a valid archive"):
            server.upload("bad", BinaryType.JAR, data)
        assert server.binaries() == []


def test_a_blob_store_that_returns_no_writer_is_named() -> None:
    class Forgetful(MemoryBlobStore):
        def create(self) -> Any:
            return None

    with a_server(blobs=Forgetful()) as server, pytest.raises(errors.StorageError) as failed:
        server.upload("words", "wheel", archive())
    fault = "create of the blob store Forgetful returned None instead of BlobWriter"
    assert str(failed.value) == fault


def test_an_upload_over_the_limit_leaves_nothing(server: JobServer) -> None:
    small = Settings.from_mapping({"jobserver": {"limits": {"upload-size": "10 B"}}})
    with a_server(settings=small) as limited:
        with pytest.raises(errors.TooLarge, match="limit of 10 bytes"):
            limited.upload("big", BinaryType.JAR, io.BytesIO(archive()))
        assert limited.binaries() == []


def test_an_upload_that_is_not_finished_leaves_nothing(server: JobServer) -> None:
    with server.begin_upload("half", BinaryType.JAR) as upload_:
        upload_.write(archive()[:20])
    with pytest.raises(errors.BinaryNotFound):
        server.binary("half")


def test_a_binary_in_use_cannot_be_deleted_until_its_jobs_end(server: JobServer) -> None:
    job = running(server)
    with pytest.raises(errors.BinaryInUse) as caught:
        server.delete_binary("words")
    assert caught.value.job_ids == (job.id,)
    server.kill_job(job.id).result(WAIT)
    assert [binary.name for binary in server.delete_binary("words")] == ["words"]
    with pytest.raises(errors.BinaryNotFound):
        server.delete_binary("words")


# -- data files ------------------------------------------------------------------------------------


def test_data_files_are_kept_by_prefix_and_time(server: JobServer) -> None:
    first = server.add_data_file("table", b"one")
    second = server.add_data_file("table", io.BytesIO(b"two"))
    assert first.path != second.path
    assert first.path.read_bytes() == b"one"
    assert first.path.name.startswith("table-")
    assert first.path.suffix == ".dat"
    assert ":" not in first.path.name
    assert {file.path for file in server.data_files()} == {first.path, second.path}
    server.delete_data_file(str(first.path))
    with pytest.raises(errors.DataFileNotFound, match="data file"):
        server.delete_data_file(str(first.path))
    server.reset_data_files()
    assert server.data_files() == []


@pytest.mark.parametrize(
    ("prefix", "ending", "name"),
    [
        ("sales.csv.gz", None, r"sales-\S+\.csv\.gz"),
        ("a.b.CSV.bz2", None, r"a\.b-\S+\.CSV\.bz2"),
        ("sales", ".parquet", r"sales-\S+\.parquet"),
        ("sales.csv", ".gz", r"sales\.csv-\S+\.gz"),
        ("report-1.2", None, r"report-1\.2-\S+\.dat"),
        ("sales.", None, r"sales\.-\S+\.dat"),
    ],
)
def test_a_data_file_keeps_the_ending_by_which_spark_knows_its_format(
    server: JobServer, prefix: str, ending: str | None, name: str
) -> None:
    stored = server.add_data_file(prefix, b"x", ending=ending)
    assert re.fullmatch(name, stored.path.name)
    assert server.data_files() == [stored]
    server.delete_data_file(stored.path.name)
    assert server.data_files() == []


@pytest.mark.parametrize(
    "ending", ["", "csv", ".", ".a/b", "./../x", ".a.b.c", ".csv\n", ".7", "." + "a" * 17]
)
def test_an_ending_that_is_not_one_or_two_extensions_is_refused(server: JobServer, ending: str) -> None:
    with pytest.raises(errors.InvalidName, match="one or two extensions"):
        server.add_data_file("table", b"x", ending=ending)
    assert server.data_files() == []


def test_remains_of_an_upload_are_removed_at_the_next_start_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    left = tmp_path / "data" / ".upload-abc"
    left.touch()
    with a_server(data_dir=tmp_path) as server:
        server.add_data_file("kept", b"x")
        assert not left.exists()
    with a_server(data_dir=tmp_path) as server:
        assert len(server.data_files()) == 1


@pytest.mark.parametrize("name", ["../logs", "", "."])
def test_only_the_servers_own_data_files_can_be_deleted(server: JobServer, name: str, tmp_path: Path) -> None:
    bystander = tmp_path / "bystander.dat"
    bystander.touch()
    for path in (name, str(bystander), f"../../../../../../../..{bystander}"):
        with pytest.raises(errors.DataFileNotFound):
            server.delete_data_file(path)
    assert bystander.exists()


@pytest.mark.parametrize("prefix", ["../x", "a/b", "", ".x"])
def test_a_data_file_cannot_leave_its_directory(server: JobServer, prefix: str) -> None:
    with pytest.raises(errors.InvalidName):
        server.add_data_file(prefix, b"x")
    assert server.data_files() == []


# -- data files of several servers -------------------------------------------------------------------


def _sharing(directory: Path) -> Settings:
    return Settings.from_mapping({"jobserver.data-files.directory": str(directory)})


def test_servers_that_share_a_directory_list_and_delete_one_anothers_data_files(tmp_path: Path) -> None:
    settings, launcher = _sharing(tmp_path), ScriptedLauncher()
    with a_server(settings=settings) as first, a_server(settings=settings, launcher=launcher) as second:
        file = first.add_data_file("table", b"one")
        assert file.path.parent == tmp_path
        assert second.data_files() == first.data_files() == [file]
        second.create_context("shared")
        assert launcher.specs[0].data_dir == tmp_path  # so jobs find it by its name
        second.delete_data_file(file.path.name)
        assert first.data_files() == []
        launcher.close()


def test_a_server_that_starts_spares_the_unfinished_uploads_of_others(tmp_path: Path) -> None:
    settings, data_dir = _sharing(tmp_path), tmp_path / "own"
    with a_server(settings=settings, data_dir=data_dir) as first:
        upload_ = first.begin_data_file("table")
        upload_.write(b"one")
        with a_server(settings=settings):
            assert upload_.finish().path.read_bytes() == b"one"
        left = first.begin_data_file("left")
    assert len(list(tmp_path.glob(".upload-*"))) == 1
    with a_server(settings=settings, data_dir=data_dir):
        assert list(tmp_path.glob(".upload-*")) == []
    left.discard()


def test_a_shared_directory_that_is_missing_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    missing = tmp_path / "not mounted"
    server = a_server(settings=_sharing(missing))
    with pytest.raises(errors.StorageError, match=r"not mounted.*jobserver\.data-files\.directory"):
        server.start()
    server.close(0)
    assert not missing.exists()
