"""Contexts whose processes have imported modules before a job does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyhocon
import pytest
from launcher_world import Context, Start, code_of
from package_checks import Wheel

from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import ContextEnd, JobCode
from jobserver_pyspark.demo import build_wheel

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def preloading(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    paths = tmp_path_factory.mktemp("paths")
    (paths / "rates.py").write_text("VALUE = 'of the paths'\nprint('rates', 'are imported')\n")
    settings = {"paths": [str(paths)], "preload": ["pandas", "pyarrow.compute", "rates"]}
    context = start_shared({"python": settings}).wait_ready()
    assert context.spec.log_path.read_text().count("rates are imported\n") == 1
    yield context
    context.handle.kill()
    context.wait_end()


def test_jobs_compute_with_libraries_that_were_imported_before_their_process_existed(
    preloading: Context,
) -> None:
    jobs = [preloading.submit("preload.Computes") for _ in range(3)]
    found = [*(preloading.end_of(job).value for job in jobs), preloading.run("preload.Computes").value]
    numbers = {each.pop("random") for each in found}
    assert len(numbers) == 4, "no two jobs have the same random numbers"
    assert found == 4 * [
        {
            "before": ["numpy", "pandas", "pyarrow.compute"],
            "dot": 700.0**3,
            "arrow": [2499950000, 2500000000],
            "pandas": [4.0, 2.0],
        }
    ]


def test_a_job_imports_its_own_version_of_a_module_that_its_process_had_imported(
    preloading: Context, rates: Wheel, tmp_path: Path
) -> None:
    package = tmp_path / "pyhocon"
    shutil.copytree(Path(pyhocon.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "__init__.py").open("a") as file:
        file.write("\nVALUE = 'of the job'\n")
    own = code_of(build_wheel(package, tmp_path, version="1.0"))

    def value(module: str, *packages: JobCode) -> Any:
        job = preloading.submit("preload.Value", {"module": module}, packages=packages)
        return preloading.end_of(job).value

    for _ in range(3):  # in a new process, and in one that is reused
        assert value("rates") == "of the paths"
        assert value("rates", rates("1.0", "of the job")) == "of the job"
        assert value("pyhocon", own) == "of the job"


def test_a_job_with_another_version_of_a_compiled_module_is_refused(
    preloading: Context, tmp_path: Path
) -> None:
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 'of the job'\n")
    own = code_of(build_wheel(package, tmp_path, version="1.0"))
    job = preloading.submit("preload.Value", {"module": "numpy"}, packages=[own])
    outcome = preloading.end_of(job).outcome
    assert outcome.failure is FailureKind.LOADING
    assert outcome.error is not None
    assert "the class path has its own 'numpy', but python.preload of the context" in outcome.error.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nosuchthing", "python.preload: cannot import 'broken': No module named 'nosuchthing'"),
        (
            "import threading as t\nt.Thread(target=t.Event().wait, daemon=True, name='poll').start()",
            "python.preload: the import of 'broken' leaves the thread 'poll' running",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_the_reason_of_a_failed_start(
    start: Start, tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    settings: dict[str, Any] = {"python": {"paths": str(tmp_path), "preload": "colorsys, broken"}}
    end, error = start(settings).wait_end()
    assert end is ContextEnd.FAILED
    assert error.message.startswith(message)
