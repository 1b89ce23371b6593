"""The interpreter of a context, which is asked for its PySpark, is the user's code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.spark import Installation, find_installation
from jobserver_pyspark.launcher.launcher import PySparkLauncher
from jobserver_pyspark.launcher.options import LauncherOptions


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "pyspark" / "jars").mkdir(parents=True)
    return tmp_path / "pyspark"


@pytest.fixture
def interpreter(tmp_path: Path, package: Path) -> Path:
    """Write a program that keeps its environment and input in files, and answers like Python."""
    answer = json.dumps([str(package / "__init__.py"), "4.1.0", sys.version_info[:2]])
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nenv >'{tmp_path}/seen'\ncat >'{tmp_path}/input'\necho '{answer}'\n")
    program.chmod(0o700)
    return program


def seen(interpreter: Path) -> dict[str, str]:
    lines = (interpreter.parent / "seen").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture(autouse=True)
def _secrets_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSERVER_DATABASE_URL", "postgresql://jobserver:secret@db/jobserver")
    monkeypatch.setenv("SITE_REGION", "north")
    monkeypatch.setenv("TZ", "UTC")


def test_an_interpreter_sees_only_the_variables_that_contexts_see(interpreter: Path, package: Path) -> None:
    found = find_installation(str(interpreter))
    assert found == Installation(python=str(interpreter), package=package, version="4.1.0")
    environment = seen(interpreter)
    assert environment["TZ"] == "UTC"
    assert environment["PATH"] == os.environ["PATH"]
    assert "SITE_REGION" not in environment
    assert "JOBSERVER_DATABASE_URL" not in environment


def test_an_interpreter_sees_the_variables_of_the_launchers_options(
    interpreter: Path, tmp_path: Path
) -> None:
    options = LauncherOptions(environment=("SITE_REGION",), cache_dir=tmp_path / "cache")
    launcher = PySparkLauncher(tmp_path / "launcher", options=options)
    try:
        launcher.resources({"python.executable": str(interpreter)})
    finally:
        launcher.close()
    environment = seen(interpreter)
    assert environment["SITE_REGION"] == "north"
    assert "JOBSERVER_DATABASE_URL" not in environment


def test_an_interpreter_cannot_read_the_input_of_the_server(interpreter: Path) -> None:
    read, write = os.pipe()
    own = os.dup(0)
    try:
        os.write(write, b"typed\n")
        os.close(write)
        os.dup2(read, 0)
        find_installation(str(interpreter))
    finally:
        os.dup2(own, 0)
        os.close(own)
        os.close(read)
    assert (interpreter.parent / "input").read_bytes() == b""


def test_an_interpreter_that_fails_sees_no_secrets_either(interpreter: Path) -> None:
    interpreter.write_text("#!/bin/sh\nenv >&2\nexit 1\n")
    with pytest.raises(LaunchError, match="does not run") as caught:
        find_installation(str(interpreter))
    assert "secret" not in str(caught.value)


def test_the_servers_own_interpreter_finds_a_pyspark_on_its_path(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__init__.py").write_text("")
    (package / "version.py").write_text('__version__ = "4.1.0"')
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    find_installation.cache_clear()
    try:
        assert find_installation(sys.executable).package == package
    finally:
        find_installation.cache_clear()
