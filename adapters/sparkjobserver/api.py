"""The API for Python jobs.

A job is a class with two methods and a constructor without arguments. Inheriting from :class:`SparkJob` is
optional. The names are those of spark-jobserver's Python API, so jobs written for it run unchanged. This
package needs only the standard library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["JobEnvironment", "NamedObjects", "SparkJob", "ValidationProblem", "build_problems"]

T = TypeVar("T")


class ValidationProblem:
    """A reason why a job rejects its configuration. The message is shown to the caller."""

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
    """Return a validation problem for each message. A job returns them from ``validate``."""
    return [ValidationProblem(problem) for problem in problems]


class NamedObjects(ABC):
    """DataFrames and RDDs that the jobs of one context share by name.

    They live in the context's JVM until the context ends, no matter which job created them.
    """

    @abstractmethod
    def get(self, name: str) -> Any:
        """Return the object with this name, or None."""

    @abstractmethod
    def get_or_else_create(self, name: str, create: Callable[[], T]) -> T:
        """Return the object with this name. If there is none, store and return the value of ``create()``."""

    @abstractmethod
    def update(self, name: str, value: T | Callable[[], T]) -> T:
        """Store the object, or what ``value`` returns if it is callable, in place of any other; return it."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Remove the name. The object's cached data stays until it is no longer used."""

    @abstractmethod
    def destroy(self, name: str) -> None:
        """Remove the name, and free the object's cached data immediately."""

    @abstractmethod
    def get_names(self) -> list[str]:
        """Return all names, sorted."""


class JobEnvironment:
    """The environment of a running job, which its methods get as ``runtime``.

    A test of a job can create one itself. It has no data files then.

    Attributes:
        jobId: The job's ID.
        namedObjects: The objects that the jobs of the context share.
        contextConfig: The context's settings, a pyhocon ConfigTree.
    """

    def __init__(self, job_id: str, named_objects: NamedObjects | None, context_config: Any) -> None:
        self.jobId = job_id
        self.namedObjects = named_objects
        self.contextConfig = context_config

    def data_file(self, name: str) -> Path:
        """Return the path of an uploaded data file, by the name that the upload returned.

        Raises:
            FileNotFoundError: The server has no such file.
        """
        raise FileNotFoundError(f"no data file {name!r}: data files exist only on a job server")


class SparkJob(ABC):
    """Base class for jobs.

    Set ``fresh_process`` to True if the job needs a process that it does not share with any other job. This
    is necessary only if it modifies libraries; the server restores all other state after each job.
    """

    fresh_process = False

    @abstractmethod
    def validate(self, context: Any, runtime: JobEnvironment, config: Any) -> Any:
        """Check the configuration. Return the data for ``run_job``, or a list of problems to reject the job.

        ``context`` is a SparkContext, a SparkSession, or whatever else the context type provides. ``config``
        is a pyhocon ConfigTree: the context's settings, overridden by the job's configuration.
        """

    @abstractmethod
    def run_job(self, context: Any, runtime: JobEnvironment, data: Any) -> Any:
        """Run the job with the data from ``validate``, and return the result."""

    def build_context(self, gateway: Any, jvmContext: Any, sparkConf: Any) -> Any:  # noqa: N803 - the old names
        """Return the context for the job's methods. Override it for ``context-factory = custom``.

        ``gateway`` is Py4J's gateway, ``jvmContext`` is the JavaSparkContext, and ``sparkConf`` is its
        SparkConf. Returning None, as here, means that the job does not support such contexts.
        """
        return None
