"""Local files in ``--cp``: uploaded once under a content-based name."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from command_line import CommandLine, wheel
from jobserver_core import JobServer

REST = ("-c", "warm", "-d", "input.string = a", "--sync")


def names(server: JobServer) -> set[str]:
    return {binary.name for binary in server.binaries()}


def name_of(file: Path, stem: str) -> str:
    return f"{stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def test_a_local_wheel_is_uploaded_under_a_content_based_name_and_used(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    file = wheel(tmp_path)
    done = client("submit", "words.Count", "--cp", file, *REST)
    name = name_of(file, "words-0.1")
    assert (done.code, done.json) == (0, {"a": 1})
    assert f"uploaded {file.name} as {name}" in done.err
    assert server.binary(name).digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_same_content_is_not_sent_again_and_other_content_is(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    file = wheel(tmp_path)
    client("submit", "words.Count", "--cp", file, *REST)
    again = client("submit", "words.Count", "--cp", file, *REST)
    assert (again.code, "uploaded" in again.err) == (0, False)
    first = name_of(file, "words-0.1")
    assert len(server.binary_versions(first)) == 1
    file.write_bytes(file.read_bytes() + b"\0")
    assert client("submit", "words.Count", "--cp", file, *REST).code == 0
    assert name_of(file, "words-0.1") != first
    assert names(server) == {"words", first, name_of(file, "words-0.1")}


def test_a_file_of_the_working_directory_is_found_by_its_name_alone_unless_a_binary_has_it(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    client.environment.chdir(tmp_path)
    file = wheel(tmp_path)
    shutil.copy(file, tmp_path / "words.whl")
    assert client("submit", "words.Count", "--cp", "words.whl", *REST).code == 0
    assert name_of(file, "words") in names(server)
    client("upload", "taken.whl", file)
    shutil.copy(file, tmp_path / "taken.whl")
    assert client("submit", "words.Count", "--cp", "taken.whl", *REST).code == 0
    assert name_of(file, "taken") not in names(server)


@pytest.mark.parametrize("file_name", ["größe 数, 1.whl", "-rf.whl", "..whl", "x" * 250 + ".whl"])
def test_any_file_name_becomes_a_valid_binary_name(
    client: CommandLine, server: JobServer, tmp_path: Path, file_name: str
) -> None:
    file = wheel(tmp_path).rename(tmp_path / file_name)
    entry = str(file) if "," not in file_name else str(file.rename(tmp_path / file_name.replace(",", "")))
    done = client("submit", "words.Count", "--cp", entry, *REST)
    assert done.code == 0, done.err
    assert len(names(server)) == 2


def test_a_file_in_the_home_directory_is_found(client: CommandLine, tmp_path: Path) -> None:
    client.environment.setenv("HOME", str(tmp_path))
    assert client("submit", "words.Count", "--cp", f"~/{wheel(tmp_path).name}", *REST).code == 0


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("./nowhere.whl", "--cp ./nowhere.whl: file not found"),
        ("./wrods-0.1-py3-none-any.whl", "Did you mean words-0.1-py3-none-any.whl?"),
        ("./project", "--cp ./project: is a directory"),
        (".", "--cp .: is a directory, expected a code file"),
        ("..", "--cp ..: is a directory, expected a code file"),
        ("./project", "Build a wheel with: pip wheel --no-deps ./project — and give its path."),
        (
            "./package",
            "Build a wheel in the directory of its pyproject.toml with: pip wheel --no-deps . — and",
        ),
        ("./project/src/words/", "Build a wheel with: pip wheel --no-deps ./project — and give its path."),
        ("./one", "Did you mean one/words-0.1-py3-none-any.whl?"),
        ("./built", "Did you mean built/dist/words-0.1-py3-none-any.whl?"),
        ("./several", "Give one of its files: several/0.whl, several/1.whl, several/2.whl, several/3.whl, "),
        ("./several", "several/4.whl and 2 more"),
        ("./job.py", "--cp ./job.py: the file does not end in .jar, .egg, .zip or .whl"),
        ("file:words.whl", "give its path: ./words.whl"),
        ("file:./words.whl", "give its path: ./words.whl"),
        ("./text.whl", "Binary is not of the right format"),
        ("missing.whl", "binary 'missing.whl' not found"),
        ("missing.whl", "There is no file missing.whl here, either."),
    ],
)
def test_a_file_that_is_not_code_is_refused_before_anything_is_uploaded(
    client: CommandLine, server: JobServer, tmp_path: Path, entry: str, words: str
) -> None:
    client.environment.chdir(tmp_path)
    good = wheel(tmp_path)
    for directory in ("project/src/words", "package", "one", "built/dist", "several"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    shutil.copy(good, tmp_path / "one")
    shutil.copy(good, tmp_path / "built" / "dist")
    for number in range(7):
        shutil.copy(good, tmp_path / "several" / f"{number}.whl")
    (tmp_path / "job.py").write_text("class Job: ...", encoding="utf-8")
    (tmp_path / "text.whl").write_text("text", encoding="utf-8")
    done = client("submit", "words.Count", "--cp", entry, "--cp", good, *REST)
    assert (done.code, done.out) == (4 if entry == "missing.whl" else 2, "")
    assert words in done.err
    if entry != "missing.whl":
        assert names(server) == {"words"}


@pytest.mark.parametrize(
    ("project", "argument"), [(".", "."), ("sales", "./sales"), ("my sales", "'./my sales'")]
)
def test_the_advice_to_build_a_wheel_never_names_what_pip_would_look_up_in_its_index(
    client: CommandLine, tmp_path: Path, project: str, argument: str
) -> None:
    client.environment.chdir(tmp_path)
    package = "sales" if project == "." else project
    (tmp_path / package).mkdir()
    (tmp_path / project / "setup.py").touch()
    for command in ("run", "submit"):
        done = client(command, "sales.ByRegion", f"--cp={package}", "-c", "warm")
        assert (
            f"{package} is a directory here. Build a wheel with: pip wheel --no-deps {argument} — and"
            in " ".join(done.err.split())
        )


def test_the_advice_to_build_a_wheel_has_the_whole_path_of_a_directory_at_home(
    client: CommandLine, tmp_path: Path
) -> None:
    client.environment.setenv("HOME", str(tmp_path))
    (tmp_path / "sales").mkdir()
    (tmp_path / "sales" / "pyproject.toml").touch()
    done = client("submit", "sales.ByRegion", "--cp", "~/sales", *REST)
    assert f"pip wheel --no-deps {tmp_path}/sales" in "".join(done.err.split("\n  "))


def test_the_wheel_that_a_project_has_in_dist_is_suggested_instead_of_its_package(
    client: CommandLine, tmp_path: Path
) -> None:
    client.environment.chdir(tmp_path)
    for directory in ("sales", "dist"):
        (tmp_path / directory).mkdir()
    (tmp_path / "pyproject.toml").touch()
    shutil.copy(wheel(tmp_path), tmp_path / "dist")
    assert "Did you mean dist/words-0.1" in client("submit", "sales.ByRegion", "--cp", "./sales", *REST).err


def test_nothing_is_uploaded_for_a_context_that_does_not_exist_or_has_ended(
    client: CommandLine, server: JobServer, tmp_path: Path
) -> None:
    submit = ("submit", "words.Count", "--cp", wheel(tmp_path), "-c")
    done = client(*submit, "wram")
    assert (done.code, "context 'wram' not found" in done.err) == (4, True)
    assert "Did you mean warm?" in done.err
    server.stop_context("warm").result(60)
    done = client(*submit, "warm")
    assert (done.code, "context 'warm' has already ended" in done.err) == (4, True)
    assert names(server) == {"words"}


def test_a_directory_whose_name_no_binary_has_comes_with_the_wheel_in_it(
    client: CommandLine, tmp_path: Path
) -> None:
    client.environment.chdir(tmp_path)
    (tmp_path / "dist").mkdir()
    wheel(tmp_path / "dist")
    done = client("run", "words.Count", "--wheel", "dist")
    assert done.code == 4
    assert "binary 'dist' not found" in done.err
    assert "dist is a directory here. Did you mean dist/words-0.1-py3-none-any.whl?" in done.err
    (tmp_path / "words").mkdir()  # a binary has this name
    assert client("submit", "words.Count", "--cp", "words", *REST).code == 0
