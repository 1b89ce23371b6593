from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from jobserver_core import errors
from jobserver_core.errors import JobServerError
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.lifecycle import JobState

VALUES: dict[str, Any] = {
    "line": 3,
    "column": 7,
    "supported": ("a", "b"),
    "limit": 10,
    "requested": 4,
    "used": 7,
    "reserved": 2,
    "job_ids": ("j1", "j2"),
    "allowed": ("run",),
    "running": 8,
    "error": ErrorInfo(message="boom", error_class="E", stack="s"),
    "failure": FailureKind.RAISED,
    "state": JobState.KILLED,
    "seconds": 1.5,
    "known": 3,
    "available": ("memory",),
}


def every_error() -> list[type[JobServerError]]:
    return [
        value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, JobServerError)
    ]


def example(kind: type[JobServerError]) -> JobServerError:
    return kind(**{name: VALUES.get(name, f"the {name}") for name in kind.field_names})


@pytest.mark.parametrize("kind", every_error())
def test_an_error_survives_pickling_and_copying(kind: type[JobServerError]) -> None:
    error = example(kind)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert other == error
        assert str(other) == str(error)
        assert other.fields == error.fields


@pytest.mark.parametrize("kind", every_error())
def test_the_fields_of_an_error_have_types(kind: type[JobServerError]) -> None:
    assert "Any" not in inspect.get_annotations(kind).values()


@pytest.mark.parametrize("kind", every_error())
def test_an_error_has_a_message_made_of_its_fields(kind: type[JobServerError]) -> None:
    text = str(example(kind))
    assert text
    assert "{" not in text


@pytest.mark.parametrize("kind", every_error())
def test_an_error_is_public_and_drawn_in_the_tree(kind: type[JobServerError]) -> None:
    assert kind.__name__ in errors.__all__
    assert kind.__name__ in (errors.__doc__ or "")


def test_codes_are_derived_from_the_class_names() -> None:
    assert errors.BinaryNotFound.code == "binary_not_found"
    assert errors.NotAnArchive(reason="x").code == "not_an_archive"
    assert errors.JobServerError.code == "job_server_error"
    assert len({kind.code for kind in every_error()}) == len(every_error())


def test_an_error_refuses_fields_that_it_does_not_have() -> None:
    with pytest.raises(TypeError, match="BinaryNotFound takes"):
        errors.BinaryNotFound(title="x")
    with pytest.raises(TypeError, match="BinaryNotFound takes"):
        errors.BinaryNotFound()


def test_a_result_timeout_is_a_timeout_error() -> None:
    assert isinstance(errors.ResultTimeout(what="job", seconds=1), TimeoutError)


def test_errors_of_different_kinds_are_not_equal() -> None:
    assert errors.BinaryNotFound(name="a") != errors.ContextNotFound(name="a")
    assert errors.BinaryNotFound(name="a") != errors.BinaryNotFound(name="b")
