"""The messages about JVM jobs, between a context's host and the JVM runner (``JobRunner.scala``).

The host calls the JVM through py4j. These messages are the arguments and the replies of such calls, as JSON
text; so the order is that of the calls, and the end of the stream is py4j's own error. Nothing of a job ever
passes the gateway in another form. There is no version: the host compiles the Scala sources of its own
package.

They have a module of their own because only contexts that run JVM jobs load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobserver_pyspark.protocol.converter import ProtocolMessage
from jobserver_pyspark.protocol.messages import ErrorDetails, JobFailureKind

JvmContextType = Literal["any", "spark", "session", "sql", "hive", "streaming"]


@dataclass(frozen=True, kw_only=True)
class JvmJar:
    """A jar on the driver's machine. ``sha256`` is the hexadecimal digest of its content, its identity."""

    path: Path
    sha256: str


class HostToJvm(ProtocolMessage):
    """Messages from the host to the JVM."""

    sender, receiver = "the context's host", "the JVM"


class JvmJars(HostToJvm):
    """Jars that every class path gets: ``JobRunner.addLibraries`` and ``addJobApi``."""

    jars: tuple[JvmJar, ...]


class JvmJobRequest(HostToJvm):
    """A JVM job to run: ``JobRunner.start``.

    ``config`` is the job's configuration, a JSON object as text, whose numbers the job can read as they were
    written; ``context_config`` the context's settings likewise (``streaming.batch_interval`` in milliseconds
    and ``streaming.stopGracefully`` are read from it). A result that is not small is written to
    ``result_path``; ``log_path`` is appended to. ``max_result_bytes`` of 0 means no limit. ``data_dir`` has
    the files that ``getDataFile`` returns.
    """

    job_id: str
    main_class: str
    jars: tuple[JvmJar, ...]
    context_type: JvmContextType
    result_path: Path
    log_path: Path
    config: str = "{}"
    context_config: str = "{}"
    max_result_bytes: int = 0
    max_log_bytes: int = 64 * 1024 * 1024
    data_dir: Path | None = None


class JvmToHost(ProtocolMessage):
    """Messages from the JVM to the host."""

    sender, receiver = "the JVM", "the context's host"


class JvmJobState(JvmToHost):
    """The state of a job: the reply of ``JobRunner.start`` and ``awaitEnded``.

    ``finished``: the result is one JSON value or the bytes of a streamed result, ``size`` bytes in all. A
    small one is in ``inline``, as Base64; any other one is in the request's ``result_path``. ``failed``:
    ``failure`` and ``error`` say why. ``validated`` says whether a job that has ended before ``start``
    returned had passed its own validation.
    """

    status: Literal["running", "finished", "failed", "killed"]
    failure: JobFailureKind | None = None
    error: ErrorDetails | None = None
    result: Literal["json", "stream"] | None = None
    size: int = 0
    inline: str | None = None
    validated: bool = False
