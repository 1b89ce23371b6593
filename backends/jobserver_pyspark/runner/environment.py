"""The runtime of a Python job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Runtime"]


class Runtime:
    """The environment of a job; the ``JobEnvironment`` of ``sparkjobserver.api``."""

    def __init__(self, job_id: str, attachment: Any, context_config: Any, data_dir: Path) -> None:
        self.jobId = job_id
        self.contextConfig = context_config
        self._attachment = attachment
        self.data_dir = data_dir
        self._named_objects: Any = None

    @property
    def namedObjects(self) -> Any:  # noqa: N802 - the old server's name
        """The objects that the jobs of this context share."""
        if self._named_objects is None:
            from jobserver_pyspark.runner.named_objects import NamedObjects  # noqa: PLC0415 - few jobs use them

            self._named_objects = NamedObjects(self._attachment.session, self.jobId)
        return self._named_objects

    def data_file(self, name: str) -> Path:
        """Return the path of a data file, by the name that its upload returned, or the last part of that.

        Raises FileNotFoundError for anything else.
        """
        path = (self.data_dir / name).resolve()
        if path.parent != self.data_dir.resolve() or not path.is_file():
            raise FileNotFoundError(f"the server has no data file named {name!r}")
        return path
