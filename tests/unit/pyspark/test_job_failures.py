"""Failures of Python jobs, as their authors read them."""

from __future__ import annotations

import functools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobserver_pyspark.host.jvm_jobs import nearest_class
from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.runner.job_class import Runtime, load_job, new_job


def test_a_misspelled_class_gets_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sales_of_may.py").write_text("class Summary: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobFailure, match=r"class sales_of_may\.Summry not found") as caught:
        load_job("sales_of_may.Summry")
    assert caught.value.error.stack == ("sales_of_may has no attribute 'Summry'; did you mean 'Summary'?")


JOBS = """
import abc
from dataclasses import dataclass

class Job(abc.ABC):
    @abc.abstractmethod
    def run_job(self, context, runtime, data): ...
    def validate(self, context, runtime, config): ...

class ByRegion(Job):
    def run_job(self, context, runtime, data): ...

class Break(ByRegion): ...

@dataclass
class Row: ...
"""


@pytest.fixture
def sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A class path with a package, a module of it, and one with a syntax error."""
    for file, text in {
        "fixture_sales/__init__.py": JOBS,
        "fixture_sales/jobs.py": JOBS.replace("ByRegion", "ByDay").replace("Break", "ByMonth"),
        "fixture_sales/rows.py": "class Row: ...",
        "fixture_sales/broken.py": "class Broken(: ...",
        "fixture_sales-1.0.dist-info/METADATA": "",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "fixture_sales" / "latin.py").write_bytes(b"# \xe9")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fixture_sales")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "fixture_sales",
            "fixture_sales is a module; its jobs are fixture_sales.ByRegion and fixture_sales.Break",
        ),
        (
            "fixture_sales.jobs",
            "fixture_sales.jobs is a module; its jobs are fixture_sales.jobs.ByDay and "
            "fixture_sales.jobs.ByMonth",
        ),
        ("fixture_sales.rows", "fixture_sales.rows is a module without a job"),
        ("ByRegion", "no module 'ByRegion' on the class path; did you mean 'fixture_sales.ByRegion'?"),
        ("bymonth", "no module 'bymonth' on the class path; did you mean 'fixture_sales.jobs.ByMonth'?"),
        ("sale.ByDay", "no module 'sale' on the class path; did you mean 'fixture_sales.jobs.ByDay'?"),
        (
            "fixture_sale.ByRegon",
            "no module 'fixture_sale' on the class path; did you mean 'fixture_sales.ByRegion'?",
        ),
        (
            "fixture_sales.ByMonth",
            "fixture_sales has no attribute 'ByMonth'; did you mean 'fixture_sales.jobs.ByMonth'?",
        ),
        ("fixture_sales.Brake", "fixture_sales has no attribute 'Brake'; did you mean 'Break'?"),
        ("words.Count", "no module 'words' on the class path"),
        ("fixture_sales.Words", "fixture_sales has no attribute 'Words'"),
    ],
)
def test_a_name_that_is_not_a_class_gets_the_jobs_of_the_class_path(
    sales: Path, name: str, reason: str
) -> None:
    with pytest.raises(JobFailure, match=f"^class {name} not found$") as caught:
        load_job(name, [str(sales)])
    assert (caught.value.kind, caught.value.error.stack) == ("class-not-found", reason)


def test_a_module_that_fails_on_import_is_not_called_missing(sales: Path) -> None:
    with pytest.raises(JobFailure, match="invalid syntax") as caught:
        load_job("fixture_sales.broken.Job", [str(sales)])
    assert caught.value.kind == "loading"


class Right:
    def validate(self, context: Any, runtime: Any, config: Any) -> None: ...

    def run_job(self, context: Any, runtime: Any, data: Any) -> None: ...


class Star:
    def validate(self, *given: Any) -> None: ...

    @staticmethod
    async def run_job(context: Any, runtime: Any, data: Any = None, more: int = 0) -> None: ...


def with_session_only(function: Callable[[Any, Any], None]) -> Callable[..., None]:
    @functools.wraps(function)
    def called(*given: Any) -> None:
        function(*given[:2])

    return called


class Decorated(Right):
    @with_session_only
    def run_job(self, context: Any) -> None: ...


@pytest.mark.parametrize(
    ("method", "function", "words"),
    [
        ("validate", lambda self, context, config: None, "has validate(self, context, config), expected"),
        ("run_job", lambda self, context, runtime: None, "has run_job(self, context, runtime), expected"),
        ("run_job", lambda self, a, b, c, d: None, "expected run_job(self, context, runtime, data)"),
        (
            "validate",
            staticmethod(lambda a, b: None),
            "has validate(a, b), expected validate(self, context, ",
        ),
        ("validate", lambda self, a, b, *, c: None, "expected validate(self, context, runtime, config)"),
    ],
)
def test_a_method_with_other_parameters_is_refused_with_those_it_must_have(
    method: str, function: Any, words: str
) -> None:
    with pytest.raises(JobFailure) as caught:
        new_job(type("Job", (Right,), {method: function}), "sales.Job")
    assert caught.value.kind == "wrong-type"
    assert caught.value.error.message.startswith("sales.Job has ")
    assert words in caught.value.error.message
    assert caught.value.error.stack == ""


@pytest.mark.parametrize("job", [Right, Star, Decorated])
def test_every_signature_that_takes_the_arguments_is_accepted(job: type) -> None:
    assert isinstance(new_job(job, "sales.Job"), job)


RAISE = """
import sys
from types import SimpleNamespace
from pyspark.errors import AnalysisException
from jobserver_pyspark.runner.attachment import mute_query_errors

kind, muted = sys.argv[1:]
if muted == "muted":
    mute_query_errors()
AnalysisException("no such table", contexts=[SimpleNamespace(
    contextType=lambda: SimpleNamespace(name=kind), callSite=lambda: "a.py:1", fragment=lambda: "x"
)])._log_exception()
"""


@pytest.mark.parametrize(("muted", "logged"), [("muted", False), ("as PySpark does it", True)])
@pytest.mark.parametrize("kind", ["SQL", "DataFrame"])
def test_an_error_of_a_query_is_not_logged_as_well(kind: str, muted: str, logged: bool) -> None:
    pytest.importorskip("pyspark.logger")
    # In a process of its own, since PySpark's loggers change the format of every handler that they get.
    done = subprocess.run(
        [sys.executable, "-c", RAISE, kind, muted], capture_output=True, text=True, check=True
    )
    assert ("no such table" in done.stderr) == logged


def test_a_traceback_has_no_frames_of_the_runner(tmp_path: Path) -> None:
    runtime = Runtime("job", None, {}, tmp_path)

    def reads() -> None:
        runtime.data_file("/no/such.csv")

    with pytest.raises(FileNotFoundError, match="upload the file with `jobserver data upload ") as caught:
        reads()
    stack = JobFailure.of("raised", caught.value).error.stack
    assert "in reads" in stack
    assert "in data_file" not in stack


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("examples.TopRow", "examples.TopRows"),
        ("TopRows", "examples.TopRows"),
        ("examples.toprows", "examples.TopRows"),
        ("other.TopRow", None),
        ("examples.Nothing", None),
    ],
)
def test_a_misspelled_class_gets_the_nearest_class_of_its_jars(
    tmp_path: Path, name: str, nearest: str | None
) -> None:
    jar = tmp_path / "rows.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        for entry in ("examples/TopRows.class", "examples/TopRows$1.class", "examples/notes.txt"):
            archive.writestr(entry, "")
    (tmp_path / "no.jar").write_text("no jar")
    assert nearest_class(name, [tmp_path / "no.jar", tmp_path / "gone.jar", jar]) == nearest


def test_a_constructor_with_arguments_is_refused_without_frames_of_the_server() -> None:
    def fails(self: Any) -> None:
        raise TypeError("the job's own")

    with pytest.raises(JobFailure) as caught:
        new_job(type("Job", (Right,), {"__init__": lambda self, factor: None}), "sales.Job")
    assert caught.value.kind == "wrong-type"
    assert caught.value.error.message.startswith("sales.Job cannot be created without arguments: ")
    with pytest.raises(JobFailure) as caught:
        new_job(type("Job", (Right,), {"__init__": fails}), "sales.Job")
    assert (caught.value.kind, caught.value.error.message) == ("raised", "the job's own")
