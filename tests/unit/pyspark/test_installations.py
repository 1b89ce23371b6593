"""The interpreter of a context, which is asked for its PySpark, is the user's code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobserver_core.errors import InvalidSetting, LaunchError
from jobserver_pyspark.installation.class_data import ClassData
from jobserver_pyspark.installation.compiler import JvmToolchain, _building_directory
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.libraries import LibrarySource, resolve_libraries
from jobserver_pyspark.installation.spark import (
    Installation,
    InterpreterFailed,
    SparkInstall,
    default_cache_dir,
    find_installation,
    python_view,
)
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


def test_an_interpreter_that_may_not_be_executed_is_told_from_one_that_fails(interpreter: Path) -> None:
    interpreter.chmod(0o600)
    with pytest.raises(InterpreterFailed, match="this user may not execute") as caught:
        find_installation(str(interpreter))
    assert caught.value.forbidden
    interpreter.chmod(0o700)
    interpreter.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(InterpreterFailed, match="does not answer as a Python interpreter does") as caught:
        find_installation(str(interpreter))
    assert not caught.value.forbidden


# -- the cache directory ---------------------------------------------------------------------------


def _view(cache: Path) -> None:
    python_view(["jobserver_core"], cache)


def _class_data(cache: Path) -> None:
    installation = Installation(python=sys.executable, package=cache.parent, version="4.1.0")
    java = Java(program=Path("java"), version=17, identity="17")
    ClassData(installation, java, cache).make(lambda _options: None)


def _toolchain(cache: Path) -> JvmToolchain:
    spark = SparkInstall(jars=cache.parent.parent, version="4.1.0", scala="2.13")
    return JvmToolchain(spark=spark, java="/bin/false", cache_dir=cache)


def _compile(cache: Path) -> None:
    _toolchain(cache).runner_jar()


def _unpack(cache: Path) -> None:
    _toolchain(cache).unpack([])


@pytest.mark.parametrize("use", [_view, _class_data, _compile, _unpack])
def test_a_cache_directory_that_cannot_be_written_is_named_with_how_to_use_another(
    use: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "jobserver"
    with pytest.raises(LaunchError) as caught:
        use(cache)
    assert str(caught.value) == (
        f"cannot write to the cache directory {cache}: Not a directory; set XDG_CACHE_HOME, or "
        "jobserver.launcher.options.cache-dir, to a directory that this user can write to"
    )


def test_without_a_home_directory_the_cache_must_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "no-home")
    with pytest.raises(InvalidSetting, match=r"cache-dir.*must be set, or XDG_CACHE_HOME"):
        default_cache_dir()


def test_a_directory_of_ivy_that_cannot_be_written_is_not_called_an_unreachable_repository(
    tmp_path: Path,
) -> None:
    java = tmp_path / "java"
    report = "/home/ann/.ivy2.5.2/cache/resolved-org.apache.spark-1.0.xml (Permission denied)"
    java.write_text(f"#!/bin/sh\necho 'Exception: java.io.FileNotFoundException: {report}' >&2\nexit 1\n")
    java.chmod(0o700)
    spark = SparkInstall(jars=tmp_path, version="4.1.0", scala="2.13")
    with pytest.raises(LaunchError) as caught:
        resolve_libraries(LibrarySource(), str(java), spark, tmp_path / "runner.jar", tmp_path / "cache")
    assert str(caught.value) == (
        "Ivy cannot write to its directory /home/ann/.ivy2.5.2 (Permission denied): set spark.jars.ivy in "
        "spark-defaults.conf to a directory that this user can write to"
    )


_KILLED_BUILDING = """
import os, signal, sys
from pathlib import Path
from jobserver_pyspark.installation.compiler import _building_directory
with _building_directory(Path(sys.argv[1])) as directory:
    (directory / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_was_building_is_removed_by_the_next_but_not_what_another_builds(
    tmp_path: Path,
) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED_BUILDING, tmp_path], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    with _building_directory(tmp_path) as first, _building_directory(tmp_path) as second:
        assert set(tmp_path.iterdir()) == {first, second}
        assert left not in (first, second)
    assert list(tmp_path.iterdir()) == []
