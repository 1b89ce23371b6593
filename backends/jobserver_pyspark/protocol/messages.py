"""Every message between the processes of the launcher.

Peers. A context is a host process, which its server starts. The host starts the driver's JVM and a zygote,
and the zygote forks runners::

    server <-- TCP on loopback --> host <-- socket pair --> runner
                                    ^
                                    +-- sequenced packets --> zygote

The server and a runner never communicate directly: the host translates. The host calls the JVM through py4j;
the messages in such calls are in :mod:`jobserver_pyspark.protocol.jvm_messages`.

Order. A connection delivers messages in the order in which they were sent; between connections there is none.
The server receives about one job: ``JobRunning`` at most once, then any number of ``ResultChunk``, then
``JobEnded`` exactly once. A ``ProgressReport`` may come at any time, also before and after these: another
thread sends it. After the end, it has no effect, and messages to the host about the job have
none either: a kill may cross the end. ``ContextReady``, or a ``ContextResumed`` with it, comes before all
messages about jobs in both directions, except for ``AcknowledgeJob``: a job may have ended before the context
was ready, without being submitted. ``StopContext`` may come at any time. ``ContextDied`` or
``ContextStopped`` is the last message of all.

End of stream. Each process notices the end of another one by the closed connection. If the server ends, the
host waits for the next one (see below), or ends the whole context without a report. If the host ends, the
server ends the rest of the context and reports it as lost, and a runner ends itself. If a runner ends, or
sends something that is not a message of this module, the host ends the job as crashed. The server ends a host
that breaks the protocol. A host that gets a malformed message reports ``ContextDied`` and ends its context,
with the text of the :class:`~jobserver_pyspark.protocol.converter.ProtocolError` as the reason.

Versions. The host is started from the package as it is on disk, which may have been upgraded since the server
was started. So ``Hello``, the first message, has the host's version of the protocol, and a server with
another one ends the host and reports both. ``Connect``, ``Hello`` and ``Reattach`` keep their fields forever;
any other change to the messages between server and host, or to their order, is a new
:data:`PROTOCOL_VERSION`. The other processes of a context come from the same package as their host.

Re-attachment. If its server has ended, a host with a ``Reattachment`` keeps its jobs running, and dials the
address in a file, which the next server writes when it finds contexts to take over, until a server takes it
over or the timeout has passed. Neither side sends the secret on such a connection: something else may listen
at an old address. Each proves that it knows the secret by a keyed hash over the nonces of both sides::

    host      Reattach(marker, nonce)
    server    ReattachChallenge(nonce, proof)
    host      ReattachProof(proof)
    host      ContextResumed(ready, jobs), and then all reports about jobs that are not acknowledged

So the host keeps ``JobRunning``, the last ``ProgressReport``, ``ResultChunk`` and ``JobEnded`` of each job,
in a file if they are large, until the server has stored the end of the job and sends ``AcknowledgeJob``. The
id of the job makes repeated reports recognizable, so there are no sequence numbers. The new server submits
the jobs that the host does not list, since they have not arrived; it kills those that it does not know, and
acknowledges their end.

A new message is a new class below its direction; its name is its ``kind``. The page about the architecture
(``docs/explanation/architecture.md``) says where messages are sent and handled. The first ones of a
connection are handled where it is opened: in ``launcher/connections.py``, ``launcher/spare_hosts.py``,
``launcher/hosted_context.py`` (``_reattach``), ``host/host.py`` (``run`` and ``_adopt``), ``host/redial.py``
and ``host/runners.py``. ``ZygoteProcess`` and ``runner/zygote.py`` handle those of the zygote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from jobserver_pyspark.protocol.converter import Payload, ProtocolMessage

PROTOCOL_VERSION = 6
"""The version of this module's messages; server and host must have the same one."""

JOB_CLASSES = "job-classes"
"""The directory in ``tmp_dir`` of a host for classes that the Java class path of its JVM gets later."""

ContextType = Literal["any", "spark", "session", "sql", "hive", "streaming", "custom"]
"""The type of the jobs' context; with ``any``, the class of each job decides."""

JobFailureKind = Literal[
    "raised", "validation", "class-not-found", "wrong-type", "loading", "crashed", "result"
]
"""Why a job failed; the values of the core's ``FailureKind`` that concern one job."""


# -- parts of messages ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ErrorDetails:
    """An error with the texts of the language that raised it; see the core's ``ErrorInfo``."""

    message: str
    error_class: str = ""
    stack: str = ""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Python package of a class path: the digest of its archive, and the directory where it is unpacked."""

    digest: str
    directory: str


@dataclass(frozen=True, kw_only=True)
class Jar:
    """A jar of a class path."""

    digest: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class JvmCommand:
    """The start of the driver's JVM; ``environment`` is added to the host's own."""

    command: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class JvmToolchainSpec:
    """The inputs to compile the JVM parts for a Spark: its jars, a Java, and a cache for the results.

    ``libraries`` is a directory with the libraries of the old job API, for sites without a repository.
    """

    jars: Path
    java: str
    cache_dir: Path
    libraries: Path | None


@dataclass(frozen=True, kw_only=True)
class Reattachment:
    """How a host waits for the next server: how many milliseconds, and the file with that server's address.

    The file is a JSON object with ``host`` and ``port``.
    """

    server_file: Path
    timeout_ms: int


@dataclass(frozen=True, kw_only=True)
class FactoryClass:
    """A context factory of the user's own: the name of its class, and the error if there is no such class."""

    name: str
    missing: ErrorDetails


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """The spec of a context for its host: everything that is known before it starts.

    ``marker`` is in the environment of all processes of the context. ``conf`` is the SparkConf, which Spark's
    own submission has prepared where ``submitted``. With ``session``, a SparkSession is made at the start.
    ``jars`` are those of the context's class path. ``cluster`` says whether executors are other processes
    than the driver. ``settings`` are the context's as JSON text, so that jobs can read numbers as they were
    written. The zygote imports the modules ``preload``. ``api_path`` is the directory of the job API, for
    executors. The class of ``factory`` has to be on the Java class path of the driver. Limits are in bytes; a
    ``result_limit`` of 0 is none. With ``reuse``, runners serve several jobs. Without ``reattachment``, the
    context ends with its server.
    """

    marker: str
    jvm: JvmCommand
    conf: dict[str, str]
    submitted: bool
    hadoop: dict[str, str]
    hive: bool
    session: bool
    context_type: ContextType
    factory: FactoryClass | None
    jvm_isolation: str | None
    jars: tuple[Path, ...]
    cluster: bool
    spark_version: tuple[int, ...]
    settings: str
    preload: tuple[str, ...]
    api_path: Path
    log_path: Path
    log_limit: int
    work_dir: Path
    tmp_dir: Path
    data_dir: Path
    spare_runners: int
    reuse: bool
    result_limit: int
    toolchain: JvmToolchainSpec
    reattachment: Reattachment | None


# -- server to host ------------------------------------------------------------------------------------


class ServerToHost(ProtocolMessage):
    """Messages from a server to the host of a context."""

    sender, receiver = "the server", "the context's host"


class Connect(ServerToHost):
    """The address of the server, and the secret that identifies the host, also to later servers.

    Only this message is not sent over the connection: it is a line of JSON on the host's standard input,
    which no other process can read. The input stays open: its end means that the server has ended.
    """

    host: str
    port: int
    token: str


class StartContext(ServerToHost):
    """Start a context: the first message after ``Hello``."""

    spec: HostSpec


class StartSpare(ServerToHost):
    """Start a context that waits for ``AdoptContext``: the other first message. ``SpareReady`` follows.

    A spare ends with its server, whatever the spec says about re-attachment.
    """

    spec: HostSpec


class AdoptContext(ServerToHost):
    """Become the host of a context: sent once, to a spare that is ready. ``ContextReady`` follows.

    The spare keeps its application, JVM, marker and temporary directory, whatever the spec says about them.
    The name, the settings for jobs, the log and other directories may differ from the spare's own.
    """

    spec: HostSpec


class SubmitJob(ServerToHost):
    """Run a job; sent after ``ContextReady``. ``config`` is its configuration, as JSON text in UTF-8."""

    job_id: str
    class_name: str
    python: bool
    log_path: Path
    packages: tuple[Package, ...]
    jars: tuple[Jar, ...]
    config: Payload


class KillJob(ServerToHost):
    """Kill a job; its ``JobEnded`` follows, as ``killed`` unless it had ended by itself."""

    job_id: str


class RefuseResult(ServerToHost):
    """End a job whose result the server cannot take: it is too large, or cannot be stored."""

    job_id: str
    message: str


class AcknowledgeJob(ServerToHost):
    """The end of a job is stored: forget its reports. It may be a job that was never submitted."""

    job_id: str


class ReattachChallenge(ServerToHost):
    """The reply to ``Reattach``: the nonce for the host's proof, and the server's own proof."""

    nonce: str
    proof: str


class StopContext(ServerToHost):
    """Stop the context gracefully; ``ContextStopped`` and the end of the connection follow."""


# -- host to server ------------------------------------------------------------------------------------


class HostToServer(ProtocolMessage):
    """Messages from the host of a context to its server."""

    sender, receiver = "the context's host", "the server"


class Hello(HostToServer):
    """The first message: the secret that identifies the host, and its version of the protocol."""

    protocol: int
    token: str


class Reattach(HostToServer):
    """The first message to a later server: the marker of the context, and a nonce for the server's proof."""

    protocol: int
    marker: str
    nonce: str


class ReattachProof(HostToServer):
    """The reply to ``ReattachChallenge``."""

    proof: str


class ContextReady(HostToServer):
    """The context accepts jobs. ``url`` is the address of Spark's own user interface, if that is on."""

    application_id: str
    url: str | None


class SpareReady(HostToServer):
    """The application of a spare is started, and a runner is attached."""


class ContextResumed(HostToServer):
    """The first message after a re-attachment. Without ``ready``, the context is still starting.

    ``jobs`` are those that arrived and whose end is not acknowledged. Reports about them follow.
    """

    ready: ContextReady | None
    jobs: tuple[str, ...]


class ContextDied(HostToServer):
    """The context could not start, or ended; ``killed_outside`` if others killed it or its processes."""

    error: ErrorDetails
    killed_outside: bool = False


class ContextStopped(HostToServer):
    """The context stopped as ``StopContext`` asked."""


class JobRunning(HostToServer):
    """A job's validation has passed: its own code runs."""

    job_id: str


class ProgressReport(HostToServer):
    """The numbers of stages and tasks of a job's Spark jobs: completed ones, and all so far."""

    job_id: str
    stages_done: int
    stages_total: int
    tasks_done: int
    tasks_total: int


class ResultChunk(HostToServer):
    """A chunk of a job's result: of one JSON value, or with ``stream`` of a streamed result."""

    job_id: str
    stream: bool
    data: Payload


class JobEnded(HostToServer):
    """The last message about a job. It was killed, or it failed with an ``error``, or it finished."""

    job_id: str
    killed: bool = False
    failure: JobFailureKind | None = None
    error: ErrorDetails | None = None


class LogWarning(HostToServer):
    """A line for the server's log; it changes nothing."""

    text: str


JobReport: TypeAlias = JobRunning | ProgressReport | ResultChunk | JobEnded
"""What a host reports about a job, and keeps until the server acknowledges the job's end."""


# -- host to runner ------------------------------------------------------------------------------------


class HostToRunner(ProtocolMessage):
    """Messages from the host to a runner, one request at a time."""

    sender, receiver = "the context's host", "a runner"


class Attach(HostToRunner):
    """Connect to the JVM: the first message. The reply is ``Attached`` or ``NotReady``.

    ``conf``, ``names`` and ``script`` are what earlier runners have sent, empty for the first one.
    """

    port: int
    secret: str
    conf: dict[str, str]
    names: dict[str, str]
    script: tuple[str, ...]


class WarmUp(HostToRunner):
    """Start the context's first Python worker. The reply is ``WarmedUp`` or ``NotReady``.

    With ``context_type``, run typical Spark jobs of such a context too: a spare has time for that.
    """

    context_type: ContextType | None = None


class Prepare(HostToRunner):
    """Prepare for the runner's first job. The reply is ``Prepared`` or ``NotReady``; a job need not wait."""

    context_type: ContextType


class RenameApplication(HostToRunner):
    """Show jobs this name of the application, since the spare has become a context. There is no reply."""

    name: str


class RunJob(HostToRunner):
    """Run a job. ``JobAccepted`` follows, then ``RunFinished``, ``RunFailed`` or ``FreshProcessNeeded``.

    ``sys_path`` is where the job's modules are, ``includes`` the same for its tasks. ``worker_pool`` is that
    of its class path, None for the first one of the context. ``settings`` are those of the context and
    ``configuration`` is that of the job, both as the text of a JSON object.
    """

    job_id: str
    class_name: str
    context_type: ContextType
    sys_path: tuple[str, ...]
    includes: tuple[str, ...]
    worker_pool: str | None
    data_dir: Path
    reuse: bool
    settings: str
    configuration: Payload


# -- runner to host ------------------------------------------------------------------------------------


class RunnerToHost(ProtocolMessage):
    """What a runner sends to the host. Job code can forge all of it, so the host trusts none of it."""

    sender, receiver = "the job's process", "the context's host"


class Attached(RunnerToHost):
    """The runner is connected to the JVM.

    ``conf`` is the application's configuration, empty if it was given. ``names`` has py4j's commands that ask
    about names of Spark's classes, with the replies that were not given. ``script`` has the commands that a
    runner sends if it was given ``conf``; it is empty if this one was not.
    """

    conf: dict[str, str]
    names: dict[str, str]
    script: tuple[str, ...]


class Prepared(RunnerToHost):
    """The runner is prepared for its first job. ``names`` is as in ``Attached``."""

    names: dict[str, str]


class WarmedUp(RunnerToHost):
    """The first Python worker runs."""


class NotReady(RunnerToHost):
    """The runner could not carry out the request, and ends."""

    message: str


class JobAccepted(RunnerToHost):
    """The runner begins with the job. Without this message the job can still run in another runner."""


class FreshProcessNeeded(RunnerToHost):
    """The job's class requires a process that has served no other job; the runner has not run it."""


class JobValidated(RunnerToHost):
    """The job's validation has passed; results may follow."""


class QueryStarted(RunnerToHost):
    """The job started a streaming query, so its runner serves no other job."""

    query_id: str


class RunnerResultChunk(RunnerToHost):
    """A chunk of the job's result, as in ``ResultChunk``."""

    stream: bool
    data: Payload


class RunFinished(RunnerToHost):
    """The job finished. ``used_spark``: it called the JVM. ``clean``: it left neither threads nor processes.

    With ``reuse``, ``Restored`` follows once the runner has restored its state.
    """

    used_spark: bool
    clean: bool


class RunFailed(RunnerToHost):
    """The job failed; its runner serves no other job."""

    failure: JobFailureKind
    error: ErrorDetails


class Restored(RunnerToHost):
    """The runner can serve the next job of its class path, unless ``unfit`` says why it cannot."""

    unfit: str | None


# -- host and zygote -----------------------------------------------------------------------------------


class HostToZygote(ProtocolMessage):
    """Messages from the host to the zygote: packets without payload."""

    sender, receiver = "the context's host", "the zygote"


class ForkRunner(HostToZygote):
    """Fork a runner. Two file descriptors come along: the runner's end of its connection, and its output."""

    runner: int


class Preload(HostToZygote):
    """Import modules, which all runners then have; sent at most once, before the first ``ForkRunner``.

    ``Importing`` follows for each, and ``Preloaded`` in the end.
    """

    modules: tuple[str, ...]


class ZygoteToHost(ProtocolMessage):
    """Messages from the zygote to the host: packets without payload."""

    sender, receiver = "the zygote", "the context's host"


class Importing(ZygoteToHost):
    """The zygote begins to import a module of ``Preload``."""

    module: str


class Preloaded(ZygoteToHost):
    """All modules of ``Preload`` are imported; or ``problem`` says why one is not, and the zygote ends."""

    problem: str | None


class RunnerForked(ZygoteToHost):
    """A runner was forked."""

    runner: int
    pid: int


class RunnerExited(ZygoteToHost):
    """A runner and its processes have ended. A negative ``status`` is the signal that ended it."""

    runner: int
    status: int
