"""Build the wheel, install it where nothing else is, and see that it works as users get it.

In an environment with the wheel alone the in-memory server runs a job, and a missing backend names its
extra; with the extra for tests, a job runs alone. The full test suite runs against the editable install.
"""

from __future__ import annotations

import subprocess
import sys
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


def build(directory: Path) -> Path:
    """Build the wheel through a source distribution, as the package index would get it."""
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT, cwd=directory)
    (wheel,) = directory.glob("*.whl")
    return wheel


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
        wheel = build(directory)
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


if __name__ == "__main__":
    main()
