from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from launcher_world import Context, code_of

from conditions import wait_until
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.failures import FailureKind
from jobserver_core.ports import JobCode

pytestmark = pytest.mark.spark


def test_a_job_is_given_its_session_its_id_and_its_configuration(context: Context) -> None:
    told = context.run("work.Tell", {"own": [1, {"a": None}]})
    assert told.value == {
        "context": "SparkSession",
        "job_id": told.id,
        "setting": "of the context",
        "merged": "of the context",
        "own": [1, {"a": None}],
        "config": "ConfigTree",
    }


def test_a_jobs_configuration_wins_over_the_contexts_settings(context: Context) -> None:
    told = context.run("work.Tell", {"spark": {"my": {"setting": "of the job"}}}).value
    assert told["merged"] == "of the job"
    assert told["setting"] == "of the context"


def test_two_versions_of_a_package_are_isolated_when_run_concurrently(
    context: Context, code: JobCode, other_code: JobCode
) -> None:
    jobs = [
        (context.submit("work.Version", {"rounds": 8}, code=each), version)
        for each, version in ((code, "1.0"), (other_code, "2.0")) * 2
    ]
    for job, version in jobs:
        assert context.end_of(job).value == {"driver": version, "executors": version}


def test_an_egg_runs_as_a_wheel_does(context: Context, code: JobCode, tmp_path: Path) -> None:
    egg = tmp_path / "launcher_jobs-3.0-py3.egg"
    with zipfile.ZipFile(code.path) as wheel, zipfile.ZipFile(egg, "w") as target:
        for name in wheel.namelist():
            if name.startswith("launcher_jobs/"):
                target.writestr(name, wheel.read(name))
        target.writestr("EGG-INFO/PKG-INFO", "Name: launcher_jobs\n")
    egg_code = code_of(egg, BinaryType.EGG)
    assert context.run("work.Version", code=egg_code).value == {"driver": "1.0", "executors": "1.0"}


def test_a_compiled_extension_in_a_wheel_can_be_imported_everywhere(context: Context, tmp_path: Path) -> None:
    extension = _an_extension_module()
    wheel = tmp_path / "compiled-1.0-cp3-none-any.whl"
    source = (
        "import launcher_compiled_ext\n"
        "def made(_n=0):\n    return launcher_compiled_ext.__file__.endswith('.so')\n"
        "class Job:\n"
        "    def validate(self, context, runtime, config):\n        return None\n"
        "    def run_job(self, context, runtime, data):\n"
        "        return [made(), *context.sparkContext.parallelize([0, 1], 2).map(made).collect()]\n"
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("launcher_jobs/compiled.py", source)
        archive.writestr("launcher_jobs/__init__.py", "")
        archive.write(extension, f"launcher_compiled_ext/{extension.name}")
        stem = extension.name.partition(".")[0]
        archive.writestr(
            "launcher_compiled_ext/__init__.py", f"from . import {stem}\n__file__ = {stem}.__file__\n"
        )
    assert context.run("compiled.Job", code=code_of(wheel)).value == [True] * 3


def test_a_wheel_for_another_machine_is_named_when_it_cannot_be_imported(
    context: Context, tmp_path: Path
) -> None:
    wheel = tmp_path / "foreign-1.0-cp39-cp39-manylinux_2_17_sparc.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("launcher_jobs/__init__.py", "from launcher_jobs import _fast\n")
        archive.writestr("launcher_jobs/_fast.cpython-39-sparc-linux-gnu.so", b"\x7fELF of elsewhere")
        archive.writestr(
            "foreign-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: cp39-cp39-manylinux_2_17_sparc\n"
        )
    outcome = context.run("Job", code=code_of(wheel)).outcome
    assert outcome.failure is FailureKind.LOADING
    assert outcome.error is not None
    assert (
        "the wheel foreign-1.0 is made for cp39-cp39-manylinux_2_17_sparc, and this is"
        in outcome.error.message
    )


def _an_extension_module() -> Path:
    """A compiled module that can be imported from any package: one of the interpreter's own."""
    import _json

    path = Path(_json.__file__)
    assert path.suffix == ".so"
    return path


def test_only_data_files_are_found_by_name(context: Context) -> None:
    file = context.spec.data_dir / "words-2026-01-01T00_00_00.000Z.dat"
    file.write_text("uploaded")
    assert context.run("work.Upload", {"name": str(file)}).value == "uploaded"
    assert context.run("work.Upload", {"name": file.name}).value == "uploaded"
    for name in ("../secret", "/etc/passwd", "absent.dat"):
        refused = context.run("work.Upload", {"name": name})
        assert refused.outcome.error is not None
        assert refused.outcome.error.error_class == "FileNotFoundError"


def test_stopping_the_session_in_a_job_does_not_stop_the_context(context: Context) -> None:
    result = context.run("work.Stop")
    assert result.value == 3
    assert "the context belongs to the job server" in result.log


@pytest.mark.parametrize(
    ("name", "failure", "text"),
    [
        ("nowhere.Job", FailureKind.CLASS_NOT_FOUND, "launcher_jobs.nowhere.Job"),
        ("work.Nobody", FailureKind.CLASS_NOT_FOUND, "launcher_jobs.work.Nobody"),
        ("broken.Job", FailureKind.LOADING, "this module cannot be imported"),
        ("lacking.Lacking", FailureKind.LOADING, "a_library_that_is_not_installed"),
        (
            "trouble.NoMethods",
            FailureKind.WRONG_TYPE,
            "NoMethods has no method validate and no method run_job",
        ),
        ("trouble.NOT_A_CLASS", FailureKind.WRONG_TYPE, "NOT_A_CLASS has no method validate"),
        ("work.Accepting", FailureKind.WRONG_TYPE, "Accepting does not define run_job"),
        ("trouble.BadConstructor", FailureKind.RAISED, "cannot be made"),
        ("trouble.BadValidation", FailureKind.RAISED, "validation broke"),
        ("trouble.SysExit", FailureKind.RAISED, "not today"),
        ("trouble.BadText", FailureKind.RAISED, "cannot be read"),
    ],
)
def test_a_job_that_cannot_run_fails_with_a_clear_message(
    context: Context, name: str, failure: FailureKind, text: str
) -> None:
    outcome = context.run(name).outcome
    assert outcome.failure is failure
    assert outcome.error is not None
    assert text in outcome.error.message


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("GET / HTTP/1.1\r\n\r\n", "the job's process sent a frame of "),
        (
            '\0\0\0\x14\0\0\0\0{"kind":"JobFooled"}',
            "the job's process sent a message of unknown kind 'JobFooled",
        ),
        (
            '\0\0\0\x14\0\0\0\0{"kind":"JobEnded"} ',
            "the job's process sent a message of unknown kind 'JobEnded",
        ),
        ('\0\0\0\x14\0\0\0\0{"kind":"WarmedUp"} ', "the job's process sent WarmedUp out of turn"),
    ],
)
def test_a_job_that_breaks_the_protocol_is_ended_with_the_reason(
    context: Context, sent: str, reason: str
) -> None:
    outcome = context.run("trouble.Intruder", {"bytes": sent}).outcome
    assert outcome.failure is FailureKind.CRASHED
    assert outcome.error is not None
    assert reason in outcome.error.message
    assert context.run("work.WordCount", {"input": {"string": "a b a"}}).value == {"a": 2, "b": 1}


def test_a_failure_in_a_task_is_reported_with_its_traceback(context: Context) -> None:
    error = context.run("trouble.SparkFailure").outcome.error
    assert error is not None
    assert error.error_class.rpartition(".")[2] in ("PythonException", "Py4JJavaError")  # by Spark's version
    assert "ValueError: bad row 1" in error.stack
    assert "trouble.py" in error.stack


def test_the_output_of_a_job_is_in_its_own_log(context: Context) -> None:
    log = context.run("work.Talk").log
    for text in ("said on stdout", "said on stderr", "said by logging", "said by a child"):
        assert text in log
    assert "said" not in context.spec.log_path.read_text()


def test_a_job_that_closes_its_output_has_its_result(context: Context) -> None:
    closed = context.run("trouble.ClosesOutput")
    assert closed.value == "closed"
    assert "before it closed" in closed.log


def test_a_log_is_readable_while_its_job_runs(context: Context) -> None:
    job = context.running("work.TalkAndWait")
    wait_until(lambda: job.log_path.exists() and "said before the wait" in job.log_path.read_text())
    context.handle.kill_job(job.id)
    assert "said before the wait" in context.end_of(job).log


def test_a_log_does_not_grow_over_its_limit_and_keeps_its_end(context: Context) -> None:
    limit = 256 * 1024
    result = context.run("work.Chatter", {"lines": 20_000})
    assert len(result.log.encode()) <= limit
    assert result.log.rstrip().endswith("x" * 80)
    assert "line 19999 " in result.log
    assert result.log.startswith("[")
    assert "bytes of earlier output were dropped" in result.log.splitlines()[0]


def test_progress_of_a_running_job_is_reported(context: Context, tmp_path: Path) -> None:
    told = context.progress_of_stages(tmp_path / "gate")
    assert all(p.tasks_done <= p.tasks_total and p.stages_done <= p.stages_total for p in told)
    assert [p.tasks_done for p in told] == sorted(p.tasks_done for p in told)
    assert told[-1].stages_total == 2


def test_named_objects_are_shared_between_jobs(context: Context) -> None:
    assert context.run("results.Share").value == ["frame", "rdd"]
    used = context.run("results.UseShared").value
    assert used == {"frame": 5, "rdd": [0, 1, 4, 9], "left": [], "gone": None}


def test_killing_the_job_that_creates_a_named_object_does_not_block_others(context: Context) -> None:
    maker = context.running("results.CreateSlowly")
    waiting = context.running("results.CreateQuickly")
    context.handle.kill_job(maker.id)
    assert context.end_of(maker).outcome.killed
    ended = context.end_of(waiting)
    if ended.outcome.error is not None:  # it was waiting for the killed job, and its error says so
        assert ended.outcome.failure is FailureKind.RAISED
    assert context.run("results.CreateQuickly").value == 7


def test_the_page_about_failures_names_the_defaults_of_spark_and_yarn(context: Context) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "failures.md"
    table = re.findall(r"^\| .* \| `(\S+)`.* \| (\d+) minutes? \|$", page.read_text("utf-8"), re.MULTILINE)
    assert {setting: int(minutes) * 60 for setting, minutes in table} == context.run("work.Timeouts").value
