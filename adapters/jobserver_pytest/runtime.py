"""What a job gets as ``runtime`` when it runs alone: its ID, settings, named objects and data files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jobserver_pyspark.runner.named_objects import kind_of
from sparkjobserver.api import JobEnvironment, NamedObjects

T = TypeVar("T")


class FakeNamedObjects(NamedObjects):
    """Named objects in a dictionary. What a server would refuse to share is refused here too.

    A test can read :attr:`objects`, and put anything into it, such as a fake DataFrame.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        return self.objects.get(name)

    def get_or_else_create(self, name: str, create: Callable[[], T]) -> T:
        if name not in self.objects:
            self.update(name, create())
        existing: T = self.objects[name]
        return existing

    def update(self, name: str, value: T | Callable[[], T]) -> T:
        made = value() if callable(value) else value
        kind_of(made)
        self.objects[name] = made
        return made

    def forget(self, name: str) -> None:
        self.objects.pop(name, None)

    def destroy(self, name: str) -> None:
        unpersist = getattr(self.objects.pop(name, None), "unpersist", None)
        if unpersist is not None:
            unpersist()

    def get_names(self) -> list[str]:
        return sorted(self.objects)


class FakeRuntime(JobEnvironment):
    """The ``runtime`` of a job that runs alone.

    ``data_files`` maps the names that uploads would have returned to local files.
    """

    def __init__(
        self,
        job_id: str,
        named_objects: NamedObjects,
        context_config: Any,
        data_files: Mapping[str, Path],
    ) -> None:
        super().__init__(job_id, named_objects, context_config)
        self._data_files = data_files

    def data_file(self, name: str) -> Path:
        """Return the path of a data file, by its name.

        Raises:
            FileNotFoundError: The test has passed no such file.
        """
        if name not in self._data_files:
            raise FileNotFoundError(
                f"the server has no data file named {name!r}; in a test, pass data_files={{{name!r}: path}}"
            )
        return self._data_files[name]
