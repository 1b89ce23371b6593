"""A job server in memory to which a test adds jobs by name, without building and uploading archives.

A server runs classes from uploaded archives; the launcher in memory runs Python functions, by the name of the
class, and never opens an archive. So :meth:`InMemoryJobServer.define` registers the function, and uploads a
wheel without code, because requests name a binary and the server resolves it as in production.
"""

from __future__ import annotations

import io
import zipfile

from jobserver_core.errors import BinaryNotFound
from jobserver_core.memory import InlineLauncher
from jobserver_core.memory.inline_jobs import JobFunction
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports.checked import unchecked
from jobserver_core.server import JobServer


class InMemoryJobServer(JobServer):
    """A job server whose jobs are Python functions of the test.

    Create it with :meth:`~jobserver_core.JobServer.in_memory`. Everything above the ports is the code of
    production: slots, queues, kills, callbacks, states.
    """

    def define(self, class_name: str, function: JobFunction, *, binary: str | None = None) -> None:
        """Let jobs of this class call the function, from now on.

        The function gets an :class:`~jobserver_core.memory.InlineJob`, and what it returns is the result.
        ``binary`` is the class path that requests name, by default the first part of the class name. It is
        uploaded if the server does not have it.

        Raises:
            TypeError: The server has another launcher than that of :meth:`in_memory`.
            InvalidName: The binary cannot have this name.
            InvalidRequest: It is not a function, or one that is declared with ``async def``.
        """
        launcher = unchecked(self._services.launcher)
        if not isinstance(launcher, InlineLauncher):
            raise TypeError(
                f"jobs can be defined for an InlineLauncher only, not a {type(launcher).__name__}"
            )
        name = binary or class_name.partition(".")[0]
        try:
            self.binary(name)
        except BinaryNotFound:
            self.upload(name, BinaryType.WHEEL, empty_wheel())
        launcher.register(class_name, function)


def empty_wheel() -> bytes:
    """Return a wheel without code, for launchers that take the code of jobs from elsewhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("empty-0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("empty-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: empty\nVersion: 0\n")
    return buffer.getvalue()
