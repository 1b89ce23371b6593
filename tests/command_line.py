"""Running the ``jobserver`` command in this process, and the jobs that tests of it run."""

from __future__ import annotations

import importlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_cli.application import app
from jobserver_core.memory import InlineJob, InlineLauncher, JobRefused
from jobserver_core.models.jobs import JobProgress

HOSTILE = "\x1b]0;owned\x07\x1b[2Jplain"
"""Job output that tries to control the terminal of the reader."""
RAW = b"PK\x00\xff\xfe\r\n\x1b[31mred\x9b}\n\x1c\xe2\x80\xa8end"
"""A streamed result of bytes that are not text."""


@attrs.frozen
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


class CommandLine:
    """Runs the command in this process, with nothing of the caller's environment that it looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.environment = monkeypatch
        self._capsys = capsys
        for name in [name for name in os.environ if name.startswith("JOBSERVER_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("COLUMNS", "80")

    def __call__(self, *arguments: object, stdin: str = "") -> Outcome:
        """Run ``jobserver`` with these arguments."""
        self.environment.setattr("sys.stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        code: Any = 0
        try:
            app([str(argument) for argument in arguments], prog_name="jobserver")
        except SystemExit as ended:
            code = ended.code or 0
        out, err = self._capsys.readouterr()
        return Outcome(int(code), out, err)


def count(job: InlineJob) -> dict[str, int]:
    words = job.config["input"]["string"].split()
    job.print("counting")
    job.report(JobProgress(stages_done=1, stages_total=2, tasks_done=3, tasks_total=4))
    job.sleep(0.3)
    return {word: words.count(word) for word in words}


def fail(job: InlineJob) -> Any:
    raise ValueError("no such table: birds")


def missing(job: InlineJob) -> Any:
    importlib.import_module("rates.daily")


def hostile(job: InlineJob) -> Any:
    job.print(HOSTILE)
    raise ValueError(HOSTILE)


def refuse(job: InlineJob) -> Any:
    raise AssertionError("never runs")


def _refuse(job: InlineJob) -> None:
    raise JobRefused("input.string is missing")


refuse.validate = _refuse  # type: ignore[attr-defined]


def sleep(job: InlineJob) -> Any:
    job.print("sleeping")
    job.sleep(3600)


def deaf(job: InlineJob) -> Any:
    """Sleeps without listening to a kill, for four seconds."""
    job.cancelled.wait(3600)
    import time

    time.sleep(4)


def large(job: InlineJob) -> str:
    return "x" * 5_000_000


def echo(job: InlineJob) -> Any:
    return job.config["value"]


def stream(job: InlineJob) -> Iterator[bytes]:
    return (b"[" if number == 0 else b"%d]" % number for number in range(2))


def raw(job: InlineJob) -> Iterator[bytes]:
    """Stream bytes that are neither text nor JSON, and that would steer a terminal."""
    return iter((RAW[:5], RAW[5:]))


def deep(job: InlineJob) -> Any:
    return outer(5)


def outer(depth: int) -> Any:
    if depth:
        return outer(depth - 1)
    raise ValueError("too deep")


LONG = "words." + "AClassWithAVeryLongName" * 8

JOBS = {
    LONG: count,
    "words.Raw": raw,
    "words.Deep": deep,
    "words.Count": count,
    "words.Fail": fail,
    "words.Missing": missing,
    "words.Hostile": hostile,
    "words.Refuse": refuse,
    "words.Sleep": sleep,
    "words.Deaf": deaf,
    "words.Large": large,
    "words.Stream": stream,
    "words.Echo": echo,
}


class WordsLauncher(InlineLauncher):
    """An inline launcher with the jobs of this module, as a plugin that a configuration can name."""

    @classmethod
    def from_settings(cls, settings: Any, data_dir: Path) -> WordsLauncher:
        return cls(JOBS)


class LeavingLauncher(WordsLauncher):
    """A launcher that says that its contexts outlive the server. They do not, so a test must need none."""

    reattaches = True


class StuckLauncher(WordsLauncher):
    """A launcher of whose threads one never ends, and keeps the process alive."""

    @classmethod
    def from_settings(cls, settings: Any, data_dir: Path) -> StuckLauncher:
        threading.Thread(target=threading.Event().wait, name="stuck").start()
        return cls(JOBS)


def wheel(directory: Path) -> Path:
    """Write a wheel to upload into the directory."""
    path = directory / "words-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words/__init__.py", "")
    return path
