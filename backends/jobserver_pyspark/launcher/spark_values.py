"""Check values of Spark's own settings before anything starts.

Spark reads most of its settings late: a context with a bad value fails after seconds, and the message often
names neither the key nor the allowed values. The keys here are those that users set by hand and that every
context reads. The start of a context checks all others, as far as Spark knows them
(:mod:`jobserver_pyspark.host.setting_values`).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from jobserver_core.errors import InvalidSetting
from jobserver_pyspark.launcher.environments import packed_python

LEAST_MEMORY = 450
"""The minimum memory of a driver or an executor, in MiB: Spark requires 1.5 times its reserved memory."""

_MEMORY = re.compile(r"(\d+) *(?:([kmgtp])b?|(b))?", re.IGNORECASE)
_KIB = {"k": 1, "m": 2**10, "g": 2**20, "t": 2**30, "p": 2**40}

_MEMORY_KEYS = (
    "spark.driver.memoryOverhead",
    "spark.executor.memoryOverhead",
    "spark.executor.pyspark.memory",
    "spark.memory.offHeap.size",
)
_COUNTS = (
    "spark.cores.max",
    "spark.executor.cores",
    "spark.driver.cores",
    "spark.task.cpus",
    "spark.default.parallelism",
    "spark.sql.shuffle.partitions",
)
_JAVA_OPTIONS = (
    "spark.driver.defaultJavaOptions",
    "spark.driver.extraJavaOptions",
    "spark.executor.defaultJavaOptions",
    "spark.executor.extraJavaOptions",
)
_FILES = ("spark.jars", "spark.files", "spark.archives", "spark.submit.pyFiles")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PATTERN = re.compile(r"[*?\[{\\]")
"""What makes a path a pattern for Hadoop, which expands it."""

_MASTERS = re.compile(
    r"""local | local\[ ([1-9]\d*|\*) (\s*,\s*\d+)? \]
    | local-cluster\[ \s*\d+\s*,\s*\d+\s*,\s*\d+\s* \]
    | spark://[^\s,/]+:\d+ (,[^\s,/]+:\d+)* | yarn | k8s://\S+""",
    re.VERBOSE,
)

_OLD_MASTERS = {
    "yarn-client": "Spark calls it yarn; write yarn",
    "yarn-cluster": "drivers run on the server's machine; write yarn",
    "mesos": "Spark 4 does not support Mesos",
}
"""Why masters that earlier versions of Spark took, by their first word, are refused, and what to write."""


def check_values(conf: Mapping[str, str], *, master: str) -> None:
    """Check a SparkConf and the master of a context.

    Raises:
        InvalidSetting: A value prevents the start of a context; it names the first one.
    """
    if not _MASTERS.fullmatch(master):
        advice = _OLD_MASTERS.get(master.partition(":")[0])
        raise InvalidSetting(
            key="spark.master",
            message="expected local, local[n], local[*], spark://host:port, yarn or k8s://https://host:port, "
            f"got {master!r}{f': {advice}' if advice else ''}",
        )
    for key in _MEMORY_KEYS:
        if key in conf:
            parse_memory(key, conf[key])
    for key in _COUNTS:
        if key in conf:
            parse_count(key, conf[key])
    mode = conf.get("spark.scheduler.mode", "FIFO")
    if mode.upper() not in ("FIFO", "FAIR"):
        raise InvalidSetting(key="spark.scheduler.mode", message=f"expected FIFO or FAIR, got {mode!r}")
    for key in _JAVA_OPTIONS:
        java_options(key, conf.get(key, ""))
    if conf.get("spark.submit.deployMode", "client") != "client":
        raise InvalidSetting(
            key="spark.submit.deployMode",
            message="must be client: the driver of a context runs beside the job server",
        )
    for key in ("spark.driver.userClassPathFirst", "spark.executor.userClassPathFirst"):
        if conf.get(key, "false").strip().lower() != "false":
            raise InvalidSetting(
                key=key,
                message="is not supported: classes of Spark and of the job API always come before those of a "
                "job's jars; to use another version of a library of Spark, relocate (shade) it in the jar",
            )


def check_programs(conf: Mapping[str, str], *, master: str, python: str | None) -> None:
    """Check that the interpreters of a context exist on this machine, and can be executed.

    Raises:
        InvalidSetting: One is missing, or may not be executed.
    """
    programs = {"python.executable": python}
    if master.startswith("local"):
        programs["spark.pyspark.python"] = conf.get("spark.pyspark.python")
    for key, program in programs.items():
        found = program is None or packed_python(key, program, conf) or shutil.which(program)
        if not found:
            raise InvalidSetting(key=key, message=_why_missing(str(program)))


def _why_missing(program: str) -> str:
    """Return why a program cannot be executed."""
    try:
        directory = os.path.isdir(program) or not os.stat(program)
    except PermissionError:
        directory = False
    except OSError:
        return f"program {program!r} does not exist"
    if directory:
        return f"expected a program, got the directory {program!r}"
    return (
        f"the user of the server may not execute {program!r}: let it execute the file and search its "
        "directories (chmod), or choose another program"
    )


def check_python_paths(paths: Iterable[str]) -> None:
    """Check ``python.paths``, which a driver imports from on this machine.

    Raises:
        InvalidSetting: One does not exist.
    """
    for path in paths:
        if os.path.isabs(path) and os.path.exists(path):
            continue
        message = f"{path!r} does not exist on the server's machine"
        if not os.path.isabs(path):
            message = f"takes absolute paths of directories on the server's machine, got {path!r}"
        raise InvalidSetting(key="python.paths", message=message)


def check_files(conf: Mapping[str, str]) -> None:
    """Check that the local files exist that Spark gives to the driver and executors, as lists with commas.

    Spark only logs that a jar is missing, and the context runs without it. Patterns are not checked, nor
    files of other schemes: ``local`` ones may exist on other machines only.

    Raises:
        InvalidSetting: A file does not exist; it names the first one.
    """
    for key in _FILES:
        for entry in filter(None, map(str.strip, conf.get(key, "").split(","))):
            scheme = _SCHEME.match(entry)
            if _PATTERN.search(entry) or (scheme is not None and scheme[1].lower() != "file"):
                continue
            path = re.sub("^//[^/]*", "", entry[scheme.end() :]) if scheme is not None else entry
            named = path.rpartition("#")[0] or path  # an archive or a file may have another name for jobs
            if any(os.path.isabs(one) and os.path.exists(one) for one in (path, named, unquote(named))):
                continue
            message = f"file {unquote(named)} does not exist on the server's machine"
            if not os.path.isabs(path):
                message = f"expected the absolute path of a file on the server's machine, got {entry}"
            raise InvalidSetting(key=key, message=message)


def heap_size(key: str, value: str, conf: Mapping[str, str]) -> str:
    """Return the memory of a driver or an executor as Spark writes it, without blanks and with a unit.

    Spark takes a bare number for MiB in some places, and for bytes in others.

    Raises:
        InvalidSetting: It is not a size, or too small for Spark.
    """
    if parse_memory(key, value) < LEAST_MEMORY * 2**20 and "spark.testing.reservedMemory" not in conf:
        raise InvalidSetting(key=key, message=f"Spark needs at least {LEAST_MEMORY}m, got {value!r}")
    text = value.replace(" ", "").lower()
    return f"{text}m" if text.isdecimal() else text


def parse_memory(key: str, value: str) -> int:
    """Return a size in bytes; a bare number counts MiB, as in Spark.

    Raises:
        InvalidSetting: The value is not a size.
    """
    match = _MEMORY.fullmatch(value.strip())
    if match is None:
        raise InvalidSetting(key=key, message=f"expected a size such as 512m or 2g, got {value!r}")
    number, unit, plain_bytes = match.groups()
    return int(number) if plain_bytes else int(number) * _KIB[(unit or "m").lower()] * 1024


def parse_count(key: str, value: str) -> int:
    """Return a whole number from 1.

    Raises:
        InvalidSetting: The value is not such a number.
    """
    number = int(value) if value.isdecimal() else 0
    if number < 1:
        raise InvalidSetting(key=key, message=f"expected a whole number from 1, got {value!r}")
    return number


def java_options(key: str, value: str) -> list[str]:
    """Return the options of a JVM as a list; the heap size and Spark's settings are not allowed in it.

    Spark reads its settings from system properties too, where nothing here would see them.

    Raises:
        InvalidSetting: The quotes are unbalanced, or ``-Xmx`` or ``-Dspark.…`` is given.
    """
    try:
        options = shlex.split(value)
    except ValueError as error:
        raise InvalidSetting(key=key, message=f"cannot be split into options: {error}") from None
    if any(option.startswith("-Xmx") for option in options):
        memory = "spark.executor.memory" if ".executor." in key else "spark.driver.memory"
        raise InvalidSetting(key=key, message=f"must not have -Xmx: set {memory} instead")
    for option in options:
        if option.startswith("-Dspark."):
            name = option.removeprefix("-D").partition("=")[0]
            raise InvalidSetting(key=key, message=f"must not have -D{name}: set {name} itself instead")
    return options
