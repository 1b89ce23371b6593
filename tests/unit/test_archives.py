from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.binaries import archives
from jobserver_core.binaries.archives import check_archive, unpack
from jobserver_core.errors import NotAnArchive, StorageError, TooLarge
from jobserver_core.models.binaries import BinaryType

Member = tuple[str, bytes]


def zip_of(*members: Member, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = compression
            archive.writestr(info, data)
    return buffer.getvalue()


def with_mode(name: str, data: bytes, mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The archive with some bytes after the last occurrence of a signature replaced."""
    at = data.rindex(signature) + offset
    return data[:at] + value + data[at + len(value) :]


GOOD = zip_of(("pkg/__init__.py", b""), ("pkg/job.py", b"x = 1\n" * 100))


@pytest.mark.parametrize("kind", [None, *BinaryType])
def test_a_plain_archive_of_every_kind_is_accepted(kind: BinaryType | None) -> None:
    check_archive(io.BytesIO(GOOD), kind)


def test_checking_reads_the_list_and_never_the_contents() -> None:
    damaged = bytearray(zip_of(("a", os.urandom(5000)), compression=zipfile.ZIP_STORED))
    damaged[100:4000] = bytes(3900)
    check_archive(io.BytesIO(bytes(damaged)))


def test_the_file_stays_open_after_a_check() -> None:
    file = io.BytesIO(GOOD)
    check_archive(file)
    assert not file.closed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be a ZIP archive"),
        (b"hello world", "PK 03 04"),
        (b"PK\x05\x06" + bytes(18), "PK 03 04"),
        (b"#!/bin/sh\n" + GOOD, "PK 03 04"),
        (b"PK\x03\x04" + bytes(100), "end is missing"),
        (GOOD[: len(GOOD) // 2], "end is missing"),
        (GOOD[:-10], "end is missing"),
    ],
)
def test_a_file_that_is_not_an_archive_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(NotAnArchive, match=reason):
        check_archive(io.BytesIO(data), BinaryType.EGG)


@pytest.mark.parametrize(
    "name",
    [
        "/nowhere/of/any/machine",
        "//host/share",
        "../evil.py",
        "pkg/../../evil.py",
        "pkg/..",
        "C:evil.py",
        "c:/evil.py",
        "..\\evil.py",
        "pkg\\job.py",
        "\\\\host\\share",
        "pkg/job.py\0.txt",
        "",
        "/",
        ".",
        "./",
    ],
)
def test_a_name_that_could_escape_a_directory_is_refused(name: str, tmp_path: Path) -> None:
    data = zip_of(("ok.py", b""), (name, b"evil"))
    with pytest.raises(NotAnArchive):
        check_archive(io.BytesIO(data))
    with pytest.raises(NotAnArchive):
        unpack(written(tmp_path / "a.zip", data), tmp_path / "out" / "deep")
    assert [p.name for p in tmp_path.rglob("*")] in (["a.zip", "out"], ["out", "a.zip"])


@pytest.mark.parametrize("name", ["..job.py", "pkg/...", "a..b/c", "pkg/c:d", "a b/ü.py", "./pkg/a.py"])
def test_a_name_that_only_looks_odd_is_accepted(name: str) -> None:
    check_archive(io.BytesIO(zip_of((name, b""))))


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (stat.S_IFLNK | 0o777, "symbolic link"),
        (stat.S_IFIFO | 0o644, "neither"),
        (stat.S_IFCHR | 0o644, "neither"),
    ],
)
def test_links_and_devices_are_refused(mode: int, what: str) -> None:
    with pytest.raises(NotAnArchive, match=what):
        check_archive(io.BytesIO(with_mode("link", b"/nowhere/of/any/machine", mode)))


def test_an_encrypted_member_is_refused() -> None:
    with pytest.raises(NotAnArchive, match="encrypted"):
        check_archive(io.BytesIO(patched(GOOD, b"PK\x01\x02", 8, b"\x01\x00")))


def test_a_jar_must_be_compressed_in_a_way_that_java_reads() -> None:
    data = zip_of(("a.class", b"x"), compression=zipfile.ZIP_BZIP2)
    check_archive(io.BytesIO(data), BinaryType.WHEEL)
    with pytest.raises(NotAnArchive, match="bzip2"):
        check_archive(io.BytesIO(data), BinaryType.JAR)


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(NotAnArchive, match="method 99"):
        check_archive(io.BytesIO(patched(GOOD, b"PK\x01\x02", 10, struct.pack("<H", 99))))


def test_members_that_share_their_bytes_are_refused() -> None:
    one = zip_of(("kernel", b"0" * 100_000))
    start = one.index(b"PK\x01\x02")
    end = one.rindex(b"PK\x05\x06")
    entry = one[start:end]
    twin = entry.replace(b"kernel", b"second")
    directory = entry + twin
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    with pytest.raises(NotAnArchive, match="overlaps"):
        check_archive(io.BytesIO(one[:start] + directory + record))


def test_a_member_that_claims_more_bytes_than_there_are_is_refused() -> None:
    with pytest.raises(NotAnArchive, match="overlaps"):
        check_archive(io.BytesIO(patched(GOOD, b"PK\x01\x02", 20, struct.pack("<L", 10**9))))


def test_too_many_members_are_refused_even_if_the_end_record_claims_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    data = zip_of(*((f"m{n}", b"") for n in range(6)))
    lying = patched(data, b"PK\x05\x06", 8, struct.pack("<2H", 1, 1))
    for archive in (data, lying):
        with pytest.raises(NotAnArchive, match="more than the allowed 5 members"):
            check_archive(io.BytesIO(archive))


@pytest.mark.parametrize("length", [0xFFFFFFFE, 10**6])
def test_a_list_of_members_that_claims_more_bytes_than_there_are_is_refused(length: int) -> None:
    with pytest.raises(NotAnArchive, match="list of members"):
        check_archive(io.BytesIO(patched(GOOD, b"PK\x05\x06", 12, struct.pack("<L", length))))


def with_end64(data: bytes, length: int | None = None) -> bytes:
    """The archive with the 64-bit end records that very large archives have."""
    end = data.rindex(b"PK\x05\x06")
    fields = struct.unpack("<4s4H2LH", data[end : end + 22])
    size = fields[5] if length is None else length
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, fields[3], fields[4], size, fields[6])
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return data[:end] + record + locator + data[end:]


def test_a_64_bit_archive_is_accepted() -> None:
    check_archive(io.BytesIO(with_end64(GOOD)))


def test_a_64_bit_end_record_cannot_hide_a_huge_list_of_members() -> None:
    with pytest.raises(NotAnArchive, match="list of members"):
        check_archive(io.BytesIO(with_end64(GOOD, length=2**40)))


@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, len(GOOD)),
)
def test_a_damaged_archive_is_accepted_or_refused_but_nothing_else(
    edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(GOOD)
    for at, value in edits:
        data[at] = value
    for candidate in (bytes(data), bytes(data[:cut])):
        with contextlib.suppress(NotAnArchive):
            check_archive(io.BytesIO(candidate))


@pytest.mark.parametrize(
    ("kind", "noun"), [(BinaryType.WHEEL, "a wheel"), (BinaryType.EGG, "an egg"), (BinaryType.JAR, "a jar")]
)
def test_the_message_includes_the_reason(kind: BinaryType, noun: str) -> None:
    with pytest.raises(NotAnArchive, match=f"^the binary is not a valid archive: {noun} must be"):
        check_archive(io.BytesIO(b"nope"), kind)


# -- unpacking -------------------------------------------------------------------------------------


def test_unpacking_extracts_every_file_and_directory(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", zip_of(("pkg/a.py", b"a"), ("pkg/empty/", b""), ("top.txt", b"t")))
    directory = unpack(path, tmp_path / "cache" / "abc")
    assert directory == tmp_path / "cache" / "abc"
    assert files_of(directory) == {"pkg/a.py": b"a", "top.txt": b"t"}
    assert (directory / "pkg/empty").is_dir()
    assert [p.name for p in directory.parent.iterdir()] == ["abc"]


def test_executable_bits_are_kept_and_set_user_id_is_not(tmp_path: Path) -> None:
    tool = unpack(
        written(tmp_path / "a.zip", with_mode("tool", b"#!", stat.S_IFREG | 0o4755)), tmp_path / "a"
    )
    data = unpack(written(tmp_path / "b.zip", with_mode("data", b"", stat.S_IFREG | 0o666)), tmp_path / "b")
    assert stat.S_IMODE((tool / "tool").stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "data").stat().st_mode) == 0o600


WHEEL = zip_of(
    ("pkg/__init__.py", b"root"),
    ("pkg-1.0.data/purelib/pkg/pure.py", b"pure"),
    ("pkg-1.0.data/platlib/pkg/native.so", b"native"),
    ("pkg-1.0.data/purelib//abs.py", b"abs"),
    ("pkg-1.0.data/scripts/tool", b"script"),
    ("pkg-1.0.data/data/share/x", b"share"),
    ("pkg-1.0.dist-info/METADATA", b"Name: pkg"),
)


def test_libraries_of_a_wheel_are_moved_to_the_top_and_scripts_are_omitted(tmp_path: Path) -> None:
    directory = unpack(written(tmp_path / "a.whl", WHEEL), tmp_path / "a", kind=BinaryType.WHEEL)
    assert files_of(directory) == {
        "pkg/__init__.py": b"root",
        "pkg/pure.py": b"pure",
        "pkg/native.so": b"native",
        "abs.py": b"abs",
        "pkg-1.0.dist-info/METADATA": b"Name: pkg",
    }


def test_an_egg_is_unpacked_as_it_is(tmp_path: Path) -> None:
    directory = unpack(written(tmp_path / "a.egg", WHEEL), tmp_path / "a", kind=BinaryType.EGG)
    assert "pkg-1.0.data/scripts/tool" in files_of(directory)


def test_the_last_of_two_members_with_the_same_name_wins(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zip_of(("a", b"first"), ("a", b"last"))
    assert files_of(unpack(written(tmp_path / "a.zip", data), tmp_path / "a")) == {"a": b"last"}


@pytest.mark.parametrize("members", [[("a", b""), ("a/b", b"")], [("a/b", b""), ("a", b"")]])
def test_a_name_that_is_both_a_file_and_a_directory_is_refused(members: list[Member], tmp_path: Path) -> None:
    with pytest.raises(NotAnArchive, match="both a file and a directory"):
        unpack(written(tmp_path / "a.zip", zip_of(*members)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAnArchive, match="too long"):
        unpack(written(tmp_path / "a.zip", zip_of(("x" * 300, b""))), tmp_path / "out")


def test_damaged_contents_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    data = bytearray(zip_of(("good", b"1"), ("bad", os.urandom(5000)), compression=zipfile.ZIP_STORED))
    data[2000:2100] = bytes(100)
    with pytest.raises(NotAnArchive, match="damaged"):
        unpack(written(tmp_path / "a.zip", bytes(data)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_name_that_is_damaged_before_its_member_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    data = zip_of(("wörds.py", b"1"))
    at = data.index("ö".encode())
    with pytest.raises(NotAnArchive, match="damaged"):
        unpack(written(tmp_path / "a.zip", data[:at] + b"\xff" + data[at + 1 :]), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_more_bytes_than_allowed_are_too_large_and_leave_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", zip_of(("a", b"0" * 6000), ("b", b"0" * 6000)))
    with pytest.raises(TooLarge) as caught:
        unpack(path, tmp_path / "out", max_bytes=10_000)
    assert caught.value.limit == 10_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_bomb_that_lies_about_its_size_is_stopped_by_its_ratio(tmp_path: Path) -> None:
    data = zip_of(("bomb", bytes(64 * 1024**2)))
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        data = patched(data, signature, offset, struct.pack("<L", 10))
    with pytest.raises((TooLarge, NotAnArchive)):
        unpack(written(tmp_path / "a.zip", data), tmp_path / "out", max_ratio=10)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_an_honest_bomb_is_stopped_by_its_ratio(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", zip_of(("bomb", bytes(64 * 1024**2))))
    with pytest.raises(TooLarge):
        unpack(path, tmp_path / "out", max_ratio=10)


def test_more_members_than_allowed_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", zip_of(("a", b""), ("b", b""), ("c", b"")))
    with pytest.raises(NotAnArchive, match="more than the allowed 2 members"):
        unpack(path, tmp_path / "out", max_members=2)


def test_an_existing_directory_counts_as_unpacked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "never-read.zip", tmp_path / "out") == tmp_path / "out"


def test_a_missing_archive_or_an_unwritable_directory_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        unpack(tmp_path / "missing.zip", tmp_path / "out")
    blocker = written(tmp_path / "file", b"")
    with pytest.raises(StorageError, match="cannot create a directory"):
        unpack(written(tmp_path / "a.zip", GOOD), blocker / "sub" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "file"]


def test_many_threads_unpacking_at_once_all_get_the_whole_directory(tmp_path: Path) -> None:
    members: Iterable[Member] = [(f"pkg/m{n}.py", b"%d" % n) for n in range(100)]
    path = written(tmp_path / "a.zip", zip_of(*members))
    counts: list[int] = []

    def run() -> None:
        counts.append(len(files_of(unpack(path, tmp_path / "cache" / "out"))))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [100] * 8
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["out"]


SCRIPT = """
import sys
from pathlib import Path
from jobserver_core.binaries.archives import unpack
sys.stdin.readline()
directory = unpack(Path(sys.argv[1]), Path(sys.argv[2]))
print(sum(1 for p in directory.rglob("*.py")))
"""


def test_two_processes_unpacking_at_once_both_get_the_whole_directory(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zip", zip_of(*((f"m{n}.py", b"x") for n in range(150))))
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "cache" / "out")]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["150", "150"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["out"]


def test_old_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".out.aaaa.part", tmp_path / ".out.bbbb.part"
    for directory in (old, new):
        directory.mkdir()
    os.utime(old, (time.time() - 10 * 86400,) * 2)
    unpack(written(tmp_path / "a.zip", GOOD), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.bbbb.part", "a.zip", "out"]


def test_importing_the_module_does_not_import_zipfile() -> None:
    code = "import sys, jobserver_core.binaries.archives; print('zipfile' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


def test_the_message_names_no_path_of_the_server(tmp_path: Path) -> None:
    with pytest.raises(NotAnArchive) as caught:
        unpack(written(tmp_path / "a.zip", zip_of(("a", b""), ("a/b", b""))), tmp_path / "out")
    assert not re.search(re.escape(str(tmp_path)), str(caught.value))


def test_directories_of_unknown_mode_are_accepted_as_maven_writes_them() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        directory = zipfile.ZipInfo("META-INF/maven/")
        directory.external_attr = 0xFFFF0010
        archive.writestr(directory, b"")
    check_archive(buffer, BinaryType.JAR)
