"""JVM jobs: jars in the same warm contexts as Python jobs, and the named objects that both share.

For the context host, which owns the gateway of the context's JVM and a live session::

    from jobserver_pyspark.jvm import JvmJobRunner, JvmSession, JvmToolchain, context_settings, isolation_for

    conf.update(context_settings("spark"))             # before the SparkContext is made; costs nothing
    session = JvmSession(gateway, java_session)
    jobs = JvmJobRunner(session, JvmToolchain(java="java"), job_classes, isolation=isolation_for("spark"))
    state = jobs.run(request, on_running=...)          # blocks its thread until the job has ended
    jobs.cancel(job_id, wait=2.0)                      # from any other thread
    jobs.close(wait=5.0)                               # before the context is stopped

Nothing is compiled, loaded or resolved before the first JVM job of a context. The first one on a machine,
for a version of Spark, compiles the runner (5 s); one that uses the ``spark.jobserver`` API also resolves
two libraries and compiles that API (about 8 s more). Both are kept in the toolchain's cache directory;
``JvmToolchain.prepare()`` does both in advance.

**Threads.** ``run`` blocks; call it on a separate thread for each job. PySpark's gateway gives each Python
thread its own connection. ``cancel`` may be called from any thread at any time.

**Messages.** A job is a :class:`JvmJobRequest`, and its outcome is a :class:`JvmJobState`: ``finished``,
``failed`` or ``killed``. A result is one JSON value or the bytes of a streamed result (``state.result`` says
which). Only a small one passes the gateway, as text; the JVM writes any other one to the file
``result_path``. Output and log lines of the job's threads go to ``log_path``; all others stay in the driver's
log. Spark jobs carry the job's id as their job group. ``on_running`` is called once the job passed its own
validation, unless it has ended at once.

**Kill.** ``cancel`` ends everything that the job has started: Spark tasks, streams, threads with their timers
and pools, processes. It repeats that until nothing is left or ``wait`` seconds have passed. The job's
``StreamingContext`` first finishes its batches, for at most ``drain`` seconds, unless
``streaming.stopGracefully`` is off or the job is killed again. It returns False if code that never checks for
interruption still runs; only the end of the JVM ends such code. The outcome of a cancelled job is ``killed``
unless it was decided before, and is reported when none of its code runs. Streams end with every job; see
``JobRemains.scala`` for the rest.

**Java class path.** The runner and the API are in a directory on the Java class path of the driver, which is
empty until the first job. It comes above the loaders of all jobs and before the jars of the context, so these
jars can use the API, and copies of it in other jars are never loaded.

**Isolation.** ``session`` (Spark 4): a session per class path, identified by its jars' contents, so that
two versions of a class are right on the driver and on executors, at once and in turn. Temporary views are
carried over to the context's own session when a job ends. Spark actions should be started on the job's own
thread: others do not carry the class path, and are refused once the context has seen two versions of a file.
``shared`` (Spark 3.5, streaming contexts, and on request): one set of jars for the context, on every thread.
A jar with another version of a file that was loaded before is refused (``FailureKind.LOADING``), so that a
job never silently runs old code.

**Named objects** live in :mod:`jobserver_pyspark.runner.named_objects`, which needs no compiled code:
Python jobs use it through any gateway connection to the context's JVM, whether or not a JVM job ever runs.
"""

from jobserver_pyspark.installation.compiler import CompilationFailed, JvmToolchain
from jobserver_pyspark.installation.libraries import LibrariesUnavailable, LibrarySource
from jobserver_pyspark.installation.spark import SparkInstall
from jobserver_pyspark.jvm.jobs import CallThreads, JvmJobRunner, JvmSession, context_settings, isolation_for
from jobserver_pyspark.protocol.jvm_messages import JvmJar, JvmJobRequest, JvmJobState
from jobserver_pyspark.runner.named_objects import NamedObjects

__all__ = [
    "CallThreads",
    "CompilationFailed",
    "JvmJar",
    "JvmJobRequest",
    "JvmJobRunner",
    "JvmJobState",
    "JvmSession",
    "JvmToolchain",
    "LibrariesUnavailable",
    "LibrarySource",
    "NamedObjects",
    "SparkInstall",
    "context_settings",
    "isolation_for",
]
