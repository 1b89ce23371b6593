"""What is added to the errors of JVM jobs."""

from __future__ import annotations

import pytest

from jobserver_pyspark.host.jvm_jobs import with_hint
from jobserver_pyspark.protocol.messages import ErrorDetails, JobFailureKind

MISSING = "com.typesafe.config.ConfigException$Missing"
NEST = """; the configuration has a key named 'input.path' with a dot; nest it: {"input": {"path": …}}"""


@pytest.mark.parametrize(
    ("error_class", "message", "failure"),
    [
        (MISSING, "String: 1: No configuration setting found for key 'input'", "raised"),
        (MISSING, "No configuration setting found for key 'input.path'", "raised"),
        (f"shaded.{MISSING}", "No configuration setting found for key '\"input\".path'", "raised"),
        ("java.util.NoSuchElementException", "key not found: path", "raised"),
        ("java.lang.Throwable", "One(SingleProblem(No input.path param))", "validation"),
    ],
)
def test_a_missing_value_whose_key_has_a_dot_comes_with_the_way_to_nest_it(
    error_class: str, message: str, failure: JobFailureKind
) -> None:
    error = ErrorDetails(message=message, error_class=error_class, stack="at x")
    found = with_hint(error, failure, '{"input.path": "s.csv", "n": 1}')
    assert found == ErrorDetails(message=message + NEST, error_class=error_class, stack="at x")
    for config in ('{"input": {"path": "s.csv"}, "input.path": 1}', '{"inputs.paths": 1}', "{}"):
        assert with_hint(error, failure, config) == error


def test_other_errors_of_jvm_jobs_stay_as_they_are() -> None:
    for error_class, message in [("x.E", "input"), (MISSING, "no input.path"), ("", "")]:
        error = ErrorDetails(message=message, error_class=error_class)
        assert with_hint(error, "raised", '{"input.path": 1}') == error
