"""What a Python job is, and what it is given.

A job is a class with a constructor that takes nothing and two methods; it may inherit from
:class:`SparkJob`, and need not. Names are those of the old server's Python API, so that jobs
written for it run unchanged. Nothing but the standard library is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["JobEnvironment", "NamedObjects", "SparkJob", "ValidationProblem", "build_problems"]


class ValidationProblem:
    """One reason why a job's configuration is refused, in words for the caller."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __str__(self) -> str:
        return self.problem

    def __repr__(self) -> str:
        return f"ValidationProblem({self.problem!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ValidationProblem) and self.problem == other.problem

    def __hash__(self) -> int:
        return hash(self.problem)


def build_problems(problems: Iterable[str]) -> list[ValidationProblem]:
    """Return a validation problem for each text; what ``validate`` returns to refuse a job."""
    return [ValidationProblem(problem) for problem in problems]


class NamedObjects(ABC):
    """Objects that the jobs of one context share under names: DataFrames and RDDs.

    They live in the context's JVM until it ends, whichever job made them.
    """

    @abstractmethod
    def get(self, name: str) -> Any:
        """Return the object of this name, or None."""

    @abstractmethod
    def get_or_else_create(self, name: str, create: Callable[[], Any]) -> Any:
        """Return the object of this name; when there is none, store and return what ``create`` makes."""

    @abstractmethod
    def update(self, name: str, value: Any) -> Any:
        """Store the object under the name, in place of what was there, and return it."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Drop the name; the object's cached data stays until it is not used any more."""

    @abstractmethod
    def destroy(self, name: str) -> None:
        """Drop the name, and free the object's cached data at once."""

    @abstractmethod
    def get_names(self) -> list[str]:
        """Return the names that are taken, sorted."""


class JobEnvironment:
    """What a job can ask about where it runs: the ``runtime`` of its methods.

    A job is given one. The test of a job can make its own, in which there are no data files:
    ``jobId`` is the job's id, ``namedObjects`` the objects that the jobs of the context share, and
    ``contextConfig`` the context's settings, a pyhocon ConfigTree.
    """

    def __init__(self, job_id: str, named_objects: NamedObjects | None, context_config: Any) -> None:
        self.jobId = job_id
        self.namedObjects = named_objects
        self.contextConfig = context_config

    def data_file(self, name: str) -> Path:
        """Return the path of an uploaded data file, by the name that its upload was answered with.

        Raises FileNotFoundError when the server holds no such file.
        """
        raise FileNotFoundError(f"no data file {name!r}: only a job server has them")


class SparkJob(ABC):
    """A job that can be inherited from.

    ``fresh_process``: whether the job needs a process that no other job has used or will use. Needed only
    where it replaces values inside libraries; everything else that a job leaves is put back after it.
    """

    fresh_process = False

    @abstractmethod
    def validate(self, context: Any, runtime: JobEnvironment, config: Any) -> Any:
        """Return the job's data, which ``run_job`` is given; or a list of problems, to refuse.

        ``context`` is what the context's factory says: a SparkContext, a SparkSession, …
        ``config`` is a pyhocon ConfigTree: the job's configuration over the context's settings.
        """

    @abstractmethod
    def run_job(self, context: Any, runtime: JobEnvironment, data: Any) -> Any:
        """Do the work, and return the result."""

    def build_context(self, gateway: Any, jvmContext: Any, sparkConf: Any) -> Any:  # noqa: N803 - the old names
        """Return the context that the methods get, where the context's factory is one of your own.

        ``gateway`` is Py4J's, ``jvmContext`` the JavaSparkContext, ``sparkConf`` its SparkConf. None, as
        here, is a refusal: this job does not fit such contexts.
        """
        return None
