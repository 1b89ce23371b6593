"""Binaries and data files from the command line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from command_line import CommandLine, wheel
from jobserver_cli import file_commands
from jobserver_core import BinaryType, JobServer
from serving import packaged


def test_an_old_version_is_named_by_the_first_digits_of_its_hash(
    client: CommandLine, server: JobServer
) -> None:
    old = server.binary("words").digest
    server.upload("words", BinaryType.WHEEL, packaged("2.0"))
    run = ("submit", "words.Count", "-c", "warm", "-d", "input.string = a", "--sync", "--cp")
    assert client(*run, f"words@{old[:12]}").code == 0
    assert server.jobs().jobs[0].class_path[0].digest == old
    for wrong in (old[:7], "00000000", "0.1"):
        done = client(*run, f"words@{wrong}")
        assert (done.code, done.out) == (4, "")
        assert f"binary 'words' has no version '{wrong}'" in done.err
        assert "jobserver binary versions words" in done.err
    done = client(*run, f"words@{old[:8]}", "--package", "wrods")
    assert "binary 'wrods' not found" in done.err
    assert "no version" not in done.err


def test_upload_stores_the_bytes_under_the_name_with_the_type_of_the_ending(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    file = wheel(tmp_path)
    done = client("upload", "more", file)
    binary = server.binary("more")
    assert (done.code, f"uploaded {file.name} as more" in done.err) == (0, True)
    assert (binary.type, binary.digest) == (BinaryType.WHEEL, hashlib.sha256(file.read_bytes()).hexdigest())


def test_the_same_content_becomes_no_new_version(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    file = wheel(tmp_path)
    client("upload", "more", file)
    again = client("upload", "more", file)
    assert again.code == 0
    assert f"more is up to date: its newest version has the same content as {file.name}" in again.err
    assert len(server.binary_versions("more")) == 1
    assert client("upload", "more", file, "--json").json["binary-type"] == "Wheel"
    client("upload", "more", file, "--type", "egg")
    client("upload", "more", file)
    assert [one.type.value for one in server.binary_versions("more")] == ["Wheel", "Egg", "Wheel"]


@pytest.mark.parametrize(("ending", "kind"), [(".jar", "Jar"), (".EGG", "Egg"), (".whl", "Wheel")])
def test_the_extension_determines_the_type_in_any_case(
    client: CommandLine, tmp_path: Path, ending: str, kind: str
) -> None:
    file = wheel(tmp_path).rename(tmp_path / f"code{ending}")
    assert client("upload", "code", file, "--json").json["binary-type"] == kind


def test_another_ending_needs_the_type_as_an_option(client: CommandLine, tmp_path: Path) -> None:
    file = wheel(tmp_path).rename(tmp_path / "code.pyz")
    refused = client("upload", "code", file)
    assert refused.code == 2
    assert "--type" in refused.err
    assert client("upload", "code", file, "--type", "egg").code == 0


def test_a_file_that_is_not_an_archive_is_a_usage_error(client: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "code.jar"
    file.write_text("#!/bin/sh", encoding="utf-8")
    done = client("upload", "code", file)
    assert done.code == 2
    assert "Binary is not of the right format" in done.err


def test_a_file_that_is_not_there_is_a_mistake_of_the_command_line(client: CommandLine) -> None:
    assert client("upload", "code", "nowhere.jar").code == 2


def test_binaries_lists_names_types_and_times(client: CommandLine) -> None:
    heading, row = client("binaries").out.splitlines()
    assert heading.split() == ["Binary", "Type", "Package", "Uploaded"]
    assert row.split()[:3] == ["words", "Wheel", "-"]
    assert list(client("binaries", "--json").json) == ["words"]


def test_versions_lists_every_upload(client: CommandLine, tmp_path: Path) -> None:
    client("upload", "words", wheel(tmp_path), "--type", "egg")
    assert len(client("binary", "versions", "words").out.splitlines()) == 3
    assert len(client("binary", "versions", "words", "--json").json) == 2


def test_versions_shows_the_name_and_version_that_each_package_carries(
    client: CommandLine, server: JobServer
) -> None:
    for version in ("1.2.0", "1.3.0"):
        server.upload("words", BinaryType.WHEEL, packaged(version))
    heading, *rows = client("binary", "versions", "words").out.splitlines()
    assert heading.split() == ["Uploaded", "Package", "Type", "Bytes", "SHA-256"]
    at = heading.index("Package")
    assert [row[at:].split("  ")[0] for row in rows] == ["words 1.3.0", "words 1.2.0", "-"]
    assert "words 1.3.0" in client("binaries").out


def test_versions_show_the_hash_by_which_its_file_is_found(client: CommandLine, tmp_path: Path) -> None:
    digest = hashlib.sha256(wheel(tmp_path).read_bytes()).hexdigest()
    assert digest in client("binary", "versions", "words").out
    assert "sha256sum" in client("binary", "versions", "--help").out


def test_delete_removes_every_version(client: CommandLine) -> None:
    assert client("binary", "delete", "words").code == 0
    done = client("binaries")
    assert (done.out, done.err) == ("", "no binaries\n")


@pytest.mark.parametrize("action", ["delete", "versions"])
def test_an_unknown_binary_exits_with_4_and_suggests_a_similar_name(client: CommandLine, action: str) -> None:
    done = client("binary", action, "wrods")
    assert (done.code, done.out) == (4, "")
    assert "binary 'wrods' not found" in done.err
    assert "Did you mean words? List them with: jobserver binaries" in done.err


def test_the_beginning_of_a_binarys_name_suggests_the_name(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    server.upload("fleet-1.0-66cf98e44e83", BinaryType.WHEEL, wheel(tmp_path).read_bytes())
    done = client("binary", "versions", "fleet")
    assert (done.code, "Did you mean fleet-1.0-66cf98e44e83?" in done.err) == (4, True)


def test_deleting_a_binary_that_is_in_use_is_a_refusal_and_no_matter_of_permissions(
    client: CommandLine,
) -> None:
    job_id = client("submit", "words.Sleep", "--cp", "words", "-c", "warm").out.strip()
    done = client("binary", "delete", "words")
    assert done.code == 4
    assert f"Binary is in use by job(s): {job_id}" in done.err


def test_a_data_file_is_uploaded_listed_and_deleted_by_its_path(client: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "birds.csv"
    source.write_bytes(b"wren\nowl\n")
    path = client("data", "upload", "birds", source).out.strip()
    assert Path(path).read_bytes() == b"wren\nowl\n"
    assert client("data", "list").out == f"{path}\n"
    assert client("data", "list", "--json").json == [path]
    assert client("data", "delete", path).code == 0
    done = client("data", "list")
    assert (done.out, done.err) == ("", "no data files\n")
    assert client("data", "list", "--json").json == []


@pytest.mark.parametrize("prefix", ["birds", "birds.csv.gz"])
def test_a_data_file_ends_on_the_server_as_it_does_here(
    client: CommandLine, tmp_path: Path, prefix: str
) -> None:
    source = tmp_path / "wren.csv.gz"
    source.write_bytes(b"x")
    name = Path(client("data", "upload", prefix, source).out.strip()).name
    assert name.startswith("birds-")
    assert name.endswith(".csv.gz")
    assert name.count(".csv") == 1


def test_a_server_that_ignores_the_ending_of_a_data_file_causes_a_warning(
    client: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = file_commands.post_file
    source = tmp_path / "wren.csv.gz"
    source.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(file_commands, "post_file", lambda *sent, **_params: post(*sent))
        done = client("data", "upload", "birds", source)
    assert (done.code, done.out.endswith(".dat\n")) == (0, True)
    assert "warning: the server ignored the ending .csv.gz" in done.err
    assert client("data", "upload", "birds", source).err == ""


def test_deleting_a_file_the_server_does_not_own_exits_with_4_and_leaves_it(
    client: CommandLine, tmp_path: Path
) -> None:
    other = tmp_path / "precious.dat"
    other.write_text("mine", encoding="utf-8")
    done = client("data", "delete", other)
    assert done.code == 4
    assert f"data file '{other}' not found" in done.err
    assert other.read_text(encoding="utf-8") == "mine"
