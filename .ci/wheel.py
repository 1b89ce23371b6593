"""Build the distributions, look into them, and see that the wheel works as users get it.

In an environment with the wheel alone the in-memory server runs a job, and a missing backend names its
extra; with the extra for tests, a job runs alone. With ``--demo``, an environment with the extra ``all`` runs
the first command of the README as well, on Spark. The full test suite runs against the editable install.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

JOB = """
import io, zipfile
from jobserver_core import BinaryType, JobRequest, JobServer, Settings, errors, parse_class_path
from jobserver_core.memory import InlineLauncher

archive = io.BytesIO()
with zipfile.ZipFile(archive, "w") as file:
    file.writestr("words.py", "")

def count(job):
    words = job.config["input"]["string"].split()
    return {word: words.count(word) for word in words}

with JobServer.in_memory(launcher=InlineLauncher({"words.Count": count})) as server:
    server.upload("words", BinaryType.EGG, archive.getvalue())
    request = JobRequest(
        class_name="words.Count",
        class_path=parse_class_path("words"),
        config="input.string = a b c a b see",
    )
    assert server.submit(request).result(30) == {"a": 2, "b": 2, "c": 1, "see": 1}

try:
    JobServer.from_settings(Settings())
except errors.PluginNotFound as error:
    assert "pip install 'jobserver-core[" in str(error), error
else:
    raise AssertionError("a backend that is not installed was found")
print("the wheel alone works")
"""

TEST = """
class Words:
    def validate(self, spark, runtime, config):
        return config.get_string("text").split()

    def run_job(self, spark, runtime, words):
        return {word: words.count(word) for word in words}

def test_a_job_needs_no_spark(run_job, job_server):
    assert run_job(Words, {"text": "a b a"}) == {"a": 2, "b": 1}
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command; its failure is ours."""
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def build(directory: Path) -> tuple[Path, Path]:
    """Build the source distribution, and from it the wheel, as a package index would get them."""
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT, cwd=directory)
    (source,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", source, wheel, cwd=directory)
    return source, wheel


def check_source(source: Path) -> None:
    """See that the source distribution has all that a clone has, and nothing else."""
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert not tracked or tracked <= names, sorted(tracked - names)
    assert not tracked or names <= {*tracked, "PKG-INFO"}, sorted(names - tracked)
    for room in ("docs", "examples", "deploy", "tests", "benchmarks"):
        assert [name for name in names if name.startswith(f"{room}/")], (
            f"{room} is not in the source distribution"
        )


def check_content(wheel: Path) -> None:
    """See that every package of the directories is in the wheel, with its marker of types."""
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = [p for room in ("backends", "adapters") for p in (ROOT / room).iterdir() if p.is_dir()]
    for package in [ROOT / "jobserver_core", *packages]:
        if package.name != "__pycache__":
            assert f"{package.name}/py.typed" in names, f"{package.name} is not in the wheel"
    assert not [name for name in names if name.startswith(("tests/", "backends/", "adapters/"))]


def main() -> None:
    """Build, look inside, install, run."""
    with tempfile.TemporaryDirectory(prefix="jobserver-wheel-") as text:
        directory = Path(text)
        source, wheel = build(directory)
        check_source(source)
        check_content(wheel)
        venv.create(directory / "venv", with_pip=True)
        python = directory / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", wheel, cwd=directory)
        run(python, "-W", "error", "-c", JOB, cwd=directory)
        run(python, "-m", "pip", "install", "-q", f"{wheel}[testing]", cwd=directory)
        (directory / "test_words.py").write_text(TEST, encoding="utf-8")
        run(
            python,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "jobserver_pytest",
            "test_words.py",
            cwd=directory,
        )
        if "--demo" in sys.argv[1:]:
            run(python, "-m", "pip", "install", "-q", f"{wheel}[all]", cwd=directory)
            run(directory / "venv" / "bin" / "jobserver", "demo", cwd=directory)


if __name__ == "__main__":
    main()
