"""The API that Python jobs import, as jobs and their own tests use it."""

from __future__ import annotations

from typing import Any

import pytest

from sparkjobserver.api import JobEnvironment, SparkJob, ValidationProblem, build_problems


class Doubling(SparkJob):
    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        return config.get("numbers") or build_problems(["numbers are missing"])

    def run_job(self, context: Any, runtime: Any, data: Any) -> Any:
        return {runtime.jobId: [2 * number for number in data], "of": runtime.contextConfig["name"]}


def test_a_job_test_can_create_its_own_environment() -> None:
    runtime = JobEnvironment("job", None, {"name": "tests"})
    job = Doubling()
    data = job.validate(None, runtime, {"numbers": [1, 2]})
    assert job.run_job(None, runtime, data) == {"job": [2, 4], "of": "tests"}
    assert runtime.namedObjects is None
    with pytest.raises(FileNotFoundError, match="no data file 'x'"):
        runtime.data_file("x")


def test_a_refusal_is_a_list_of_problems() -> None:
    refusal = Doubling().validate(None, None, {})
    assert refusal == [ValidationProblem("numbers are missing")]
    assert [str(problem) for problem in refusal] == ["numbers are missing"]


def test_a_job_builds_no_context_unless_it_says_how() -> None:
    assert Doubling().build_context(None, None, None) is None


def test_a_job_class_without_its_methods_cannot_be_instantiated() -> None:
    class Half(SparkJob):
        def validate(self, context: Any, runtime: Any, config: Any) -> Any:
            return None

    with pytest.raises(TypeError, match="run_job"):
        Half()
