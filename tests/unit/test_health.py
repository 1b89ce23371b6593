"""Probes answer in time, write only rarely, and notice a missing data directory."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_core import BinaryType, Settings, errors
from jobserver_core.data_directory import DataDirectory
from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.running.health import Health
from serving import WAIT, a_request, a_server, archive, upload


def test_each_failing_part_is_named_with_the_reason() -> None:
    def broken() -> None:
        raise errors.StorageError(message="disk full")

    def mistaken() -> None:
        raise KeyError("x")

    health = Health({"a": broken, "b": lambda: None, "c": mistaken, "d": lambda: sys.exit(3)})
    assert health.check() == {"a": "disk full", "b": None, "c": "KeyError: 'x'", "d": "SystemExit: 3"}
    assert health.check(["b"]) == {"b": None}


def test_probes_share_an_outcome_for_a_while() -> None:
    calls: list[int] = []
    health = Health({"a": lambda: calls.append(1)}, fresh=3600)
    for _ in range(20):
        health.check()
    assert len(calls) == 1


def test_an_outcome_that_is_not_fresh_is_not_given_again() -> None:
    wrong: list[str] = ["disk full"]

    def check() -> None:
        if wrong:
            raise errors.StorageError(message=wrong[0])

    health = Health({"a": check}, fresh=0.0)
    assert health.check() == {"a": "disk full"}
    wrong.clear()
    assert health.check() == {"a": None}


def test_probes_at_once_are_one_check() -> None:
    inside, release, calls = threading.Event(), threading.Event(), list[int]()

    def check() -> None:
        calls.append(1)
        inside.set()
        assert release.wait(WAIT)

    health = Health({"a": check}, fresh=0.0, timeout=WAIT)
    found: list[dict[str, str | None]] = []
    threads = [threading.Thread(target=lambda: found.append(health.check())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert inside.wait(WAIT)
    release.set()
    for thread in threads:
        thread.join(WAIT)
    assert found == [{"a": None}] * 8
    assert len(calls) <= 8


def test_a_hanging_check_is_reported_in_time_and_costs_one_thread() -> None:
    release, calls = threading.Event(), list[int]()

    def hang() -> None:
        calls.append(1)
        assert release.wait(6 * WAIT)

    health = Health({"disk": hang, "other": lambda: None}, fresh=0.0, timeout=0.2)
    try:
        before = threading.active_count()
        for _ in range(5):
            assert str(health.check(["disk"])["disk"]).startswith("no answer for ")
        wait_until(lambda: health.check(["other"]) == {"other": None})
        wait_until(lambda: threading.active_count() <= before + 1)
        assert calls == [1]
    finally:
        release.set()
    wait_until(lambda: health.check() == {"disk": None, "other": None})


def test_the_storage_of_a_server_is_checked_without_its_launcher() -> None:
    class Broken(MemoryMetadataStore):
        def check(self) -> None:
            raise errors.StorageError(message="disk full")

    with a_server(metadata=Broken()) as server:
        assert server.check_storage() == {"metadata": "disk full", "blobs": None, "data-files": None}
        assert server.check() == server.check_storage() | {"launcher": None}


def test_a_missing_directory_of_data_files_is_a_problem_of_storage(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    settings = Settings.from_mapping({"jobserver": {"data-files": {"directory": str(files)}}})
    with a_server(settings=settings, data_dir=tmp_path / "data") as server:
        assert server.check_storage() == {"metadata": None, "blobs": None, "data-files": None}
        assert list(files.iterdir()) == []
    with a_server(settings=settings, data_dir=tmp_path / "data") as server:
        files.rmdir()
        assert f"{files}, does not exist" in (server.check_storage()["data-files"] or "")
        with pytest.raises(errors.StorageError, match="does not exist"):
            server.add_data_file("d", b"x")


# -- the data directory --------------------------------------------------------------------------------


def remove(path: Path) -> None:
    shutil.rmtree(path)


def replace(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()


@pytest.mark.parametrize("harm", [remove, replace])
def test_a_server_that_lost_its_data_directory_accepts_and_creates_nothing(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    data = tmp_path / "data"
    with a_server(data_dir=data) as server:
        upload(server)
        begun = server.begin_upload("begun", BinaryType.EGG)
        begun.write(archive())
        harm(data)
        left = sorted(data.iterdir()) if data.exists() else None
        calls: list[Callable[[], object]] = [
            lambda: upload(server),
            begun.finish,
            lambda: server.submit(a_request("w.Echo")),
            lambda: server.create_context("c"),
            lambda: server.add_data_file("d", b"x"),
        ]
        for call in calls:
            with pytest.raises(errors.StorageError, match="put the original back, or restart") as caught:
                call()
            assert str(data) in str(caught.value)
        assert "put the original back" in (server.check_storage()["blobs"] or "")
        assert (sorted(data.iterdir()) if data.exists() else None) == left
        assert [binary.name for binary in server.binaries()] == ["words"]
        assert server.contexts() == []
        assert server.jobs().jobs == ()


def test_a_data_directory_that_comes_back_is_used_again(tmp_path: Path) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    with a_server(data_dir=data) as server:
        upload(server)
        data.rename(away)
        with pytest.raises(errors.StorageError, match="is gone"):
            upload(server)
        away.rename(data)
        upload(server)
        assert server.submit(a_request("w.Echo", {"value": 1})).result(WAIT) == 1


def test_failing_to_create_the_data_directory_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageError, match=r"data directory .*: File name too long; .* --data-dir"):
        DataDirectory(tmp_path / ("x" * 300) / "data")


def test_subdirectories_are_created_at_once_and_again_after_their_removal(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    assert sorted(str(p.relative_to(directory.root)) for p in directory.root.rglob("*")) == [
        "contexts",
        "data",
        "logs",
        "logs/contexts",
        "logs/jobs",
    ]
    shutil.rmtree(directory.root / "logs")
    assert directory.context_log("c").parent.is_dir()


@pytest.mark.parametrize("harm", [remove, replace])
def test_no_subdirectory_is_created_in_place_of_a_lost_data_directory(
    tmp_path: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = DataDirectory(tmp_path / "data")
    monkeypatch.setattr(directory, "verify", lambda: None)  # it is lost after the check
    harm(directory.root)
    with pytest.raises(errors.StorageError, match="put the original back"):
        directory.job_log("j")
    assert not directory.root.exists() or list(directory.root.iterdir()) == []
