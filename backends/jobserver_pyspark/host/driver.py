"""The context's JVM, with the Spark application in it."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jobserver_pyspark import processes
from jobserver_pyspark.gateway_calls import call, construction, mute_lost_connections, results
from jobserver_pyspark.host.jvm_threads import OWNER, JvmThreads, StartingThread
from jobserver_pyspark.host.logs import BoundedLog, Output, OutputPump
from jobserver_pyspark.host.setting_values import check_values
from jobserver_pyspark.host.yarn import YarnApplication, YarnStatus, log_states, provide_jars
from jobserver_pyspark.java_objects import JavaObject
from jobserver_pyspark.protocol.failures import ContextFailure, describe
from jobserver_pyspark.protocol.messages import JOB_CLASSES, HostSpec, JvmCommand

JVM_VARIABLE = "_PYSPARK_DRIVER_CONN_INFO_PATH"
"""The environment variable with the file for the address of the JVM's gateway; its children inherit it."""

_SERVER_CLASS = "org.apache.spark.api.python.Py4JServer"
_POLL = 0.003
"""Seconds between two checks for the address of the JVM's gateway, for which the whole start waits."""
_LOG_SIZE = 32 * 1024
"""Bytes at the end of the log in which the JVM's last error is searched."""
_ERROR_LINE = re.compile(
    r"(?:Exception in thread \S+ |Error: |Caused by: |Unrecognized |Invalid |[\w.$]+(?:Exception|Error): )"
)


def error_line(log: str) -> str:
    """Return the line of a JVM's output that says why it ended: the last cause, or else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    causes = [line for line in errors if line.startswith("Caused by: ")]
    return next(iter([*causes[-1:], *errors[-1:], *lines[-1:]]), "it printed nothing")


class GatewayServer(NamedTuple):
    """A py4j server in the JVM, for one runner."""

    server: JavaObject
    port: int
    secret: str

    def shutdown(self) -> None:
        """Close its connections, and release every JVM object that the runner held.

        The py4j of Spark 4 interrupts the threads that are in a call: one that sleeps or waits ends.
        """
        self.server.shutdown()


class KnownReplies(NamedTuple):
    """What the first runners have asked the JVM, and every other one would ask again.

    ``conf`` is the application's configuration, ``names`` has replies about the names of Spark's classes.
    ``script`` has the commands with which the last runner was attached.
    """

    conf: dict[str, str]
    names: dict[str, str]
    script: list[str]


class Driver:
    """The JVM process and its Spark application.

    The host's main thread must start it, because the JVM is killed when that thread ends. Any thread may use
    it: py4j gives each its own connection to the gateway.
    """

    def __init__(self, spec: HostSpec, log: BoundedLog, pump: OutputPump) -> None:
        self._spec = spec
        self._log = log
        self._info = spec.tmp_dir / "gateway"
        self.job_classes = spec.tmp_dir / JOB_CLASSES
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="gateway servers")
        self.process = self._start(spec.jvm, pump)
        self.jvm: Any = None
        self.gateway: Any = None
        self.context: Any = None
        self.session: Any = None
        self.loader: Any = None  # in which Python jobs find the classes of their jars
        self._threads: JvmThreads  # as soon as the application runs
        self._yarn: YarnApplication | None = None
        self.known = KnownReplies({}, {}, [])

    def _start(self, jvm: JvmCommand, pump: OutputPump) -> subprocess.Popen[bytes]:
        # A JVM treats an entry of its Java class path as a directory only if it exists when the JVM starts.
        self.job_classes.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        parent = os.getpid()
        environment = {**os.environ, **jvm.environment, JVM_VARIABLE: str(self._info)}
        process = subprocess.Popen(  # noqa: S603 - the command is the launcher's own
            jvm.command,
            stdin=subprocess.PIPE,
            stdout=writer,
            stderr=writer,
            env=environment,
            preexec_fn=lambda: processes.die_with_parent(parent),  # noqa: PLW1509 - no other thread forks
        )
        os.close(writer)
        self._output: Output = pump.add(reader, self._log.write)
        self._pump = pump
        return process

    def adopt(self, spec: HostSpec, log: BoundedLog) -> None:
        """Become the driver of a context, and write the JVM's output to its log from now on.

        The application gets the context's name where jobs see it. Spark's web UI, its event log and the
        cluster have read the name already.
        """
        self._spec = spec
        self._log = log
        self._output.write = log.write
        name = spec.conf["spark.app.name"]
        self.context.conf().set("spark.app.name", name)
        self.known.conf["spark.app.name"] = name
        if self.session is not None:
            self.session.sessionState().conf().setConfString("spark.app.name", name)

    def connect(self) -> None:
        """Wait for the JVM's gateway and connect to it.

        Raises:
            ContextFailure: The JVM ended instead.
        """
        port, secret = self._address()
        from py4j.clientserver import ClientServer, JavaParameters, PythonParameters  # noqa: PLC0415 - after the JVM

        mute_lost_connections()
        self.gateway = ClientServer(
            java_parameters=JavaParameters(port=port, auth_token=secret, auto_convert=True),
            python_parameters=PythonParameters(port=0, eager_load=False),
        )
        self.jvm = self.gateway.jvm

    def _address(self) -> tuple[int, str]:
        while not self._info.exists():
            if self.process.poll() is not None:
                self._pump.finish(self._output)
                ended = f"the driver's JVM ended with status {self.process.returncode}"
                raise self._failure(f"{ended}: {error_line(self._log.tail(_LOG_SIZE))}")
            time.sleep(_POLL)
        data = self._info.read_bytes()
        self._info.unlink()
        port, length = struct.unpack(">ii", data[:8])
        return port, data[8 : 8 + length].decode()

    def check_factory(self) -> None:
        """Check that the class of the user's own context factory is on the Java class path of the driver.

        The class is not loaded: it may extend a class of another job server.

        Raises:
            ContextFailure: There is no such class.
        """
        factory = self._spec.factory
        if factory is None:
            return
        loader = self.jvm.java.lang.Thread.currentThread().getContextClassLoader()
        if loader.getResource(f"{factory.name.replace('.', '/')}.class") is None:
            error = factory.missing
            raise ContextFailure(error.message, error_class=error.error_class, stack=error.stack)

    def start_spark(self) -> None:
        """Create the Spark application.

        Raises:
            ContextFailure: Spark failed; the message has its reason.
        """
        try:
            conf = self.jvm.org.apache.spark.SparkConf(True)
            put = conf.setIfMissing if self._spec.submitted else conf.set
            for key, value in self._spec.conf.items():
                put(key, value)
            check_values(self.jvm, self.gateway._gateway_client, conf, self._spec.conf)
            on_yarn = conf.get("spark.master") == "yarn"
            if on_yarn:
                log_states(self.jvm)
                provide_jars(self.jvm, conf, self._spec.toolchain.jars)
            context = self.jvm.org.apache.spark.SparkContext(conf)
            if on_yarn:
                self._yarn = YarnApplication(self.jvm, context)
            for key, value in self._spec.hadoop.items():
                context.hadoopConfiguration().set(key, value)
            self.context = context
            self._threads = JvmThreads(self.gateway, context.localProperties())
            # A thread that Spark ends with the application.
            self._event_loop = context.dagScheduler().eventProcessLoop().eventThread()
            parent = self.jvm.java.lang.Thread.currentThread().getContextClassLoader()
            nothing = self.gateway.new_array(self.jvm.java.net.URL, 0)
            self.loader = self.jvm.org.apache.spark.util.MutableURLClassLoader(nothing, parent)
            self._starter.submit(self._prepare_starter).result()
        except Exception as error:
            raise self._failure_of(error) from error

    def start_session(self) -> None:
        """Create the application's session.

        Raises:
            ContextFailure: Spark failed; the message has its reason.
        """
        try:
            sql = self.jvm.org.apache.spark.sql
            session_class = sql.SparkSession if self._spec.spark_version < (4,) else sql.classic.SparkSession
            builder = session_class.builder().sparkContext(self.context)
            if self._spec.hive:
                builder = builder.enableHiveSupport()
            session = builder.getOrCreate()
            if self._spec.hive:
                session.sessionState()  # fail the start if the metastore does not work
            self.session = session
        except Exception as error:
            raise self._failure_of(error) from error

    def warm_session(self) -> None:
        """Prepare the session, so that its first use does not wait."""
        if self.session is not None:
            self.session.sessionState()

    def _failure_of(self, error: Exception) -> ContextFailure:
        java = getattr(error, "java_exception", None)
        if java is None:
            self.process.poll()
            return self._failure(f"the connection to the driver's JVM broke: {describe(error)}")
        cause = java
        while cause.getMessage() is None and cause.getCause() is not None:
            cause = cause.getCause()
        writer = self.jvm.java.io.StringWriter()
        java.printStackTrace(self.jvm.java.io.PrintWriter(writer))
        message = str(cause.getMessage() or cause.toString())
        return self._failure(message, str(java.getClass().getName()), str(writer))

    def _failure(self, message: str, error_class: str = "", stack: str = "") -> ContextFailure:
        time.sleep(0.05)  # the last output of the JVM is still in the pipe
        tail = f"last lines of the driver's log:\n{self._log.tail()}"
        return ContextFailure(message, error_class=error_class, stack=f"{stack}\n{tail}".strip())

    @property
    def application_id(self) -> str:
        return str(self.context.applicationId())

    @property
    def url(self) -> str | None:
        """The application's page on YARN, elsewhere Spark's own user interface; None if it is off."""
        status = self._yarn.status() if self._yarn is not None else None
        if status is not None and status.tracking_url is not None:
            return status.tracking_url
        found = self.context.uiWebUrl()
        return str(found.get()) if found.isDefined() else None

    def gateway_server(self, tag: str) -> GatewayServer:
        """Start a gateway server for one runner; the Spark jobs of all its threads carry ``tag``.

        Threads inherit local properties, class loaders and groups. So all servers are started by one thread
        of the JVM, which serves nothing else and keeps what is the same for all of them.
        """
        return self._starter.submit(self._start_gateway_server, tag).result()

    def _prepare_starter(self) -> None:
        self._starter_conf = self.context.conf()
        self._starting_thread = StartingThread(self.gateway)
        self.jvm.java.lang.Thread.currentThread().setContextClassLoader(self.loader)
        self.context.setLocalProperty("spark.job.interruptOnCancel", "true")

    def _start_gateway_server(self, tag: str) -> GatewayServer:
        client = self.gateway._gateway_client
        keys = ("spark.jobGroup.id", "spark.job.tags", OWNER)
        properties = [call(self.context, "setLocalProperty", key, tag) for key in keys]
        group = self._starting_thread.start_in_group(tag)
        *_, server = results(client, [*properties, group, construction(_SERVER_CLASS, self._starter_conf)])
        # The constructor created the accepting thread.
        methods = ("start", "getListeningPort", "secret")
        try:
            _, port, secret = results(client, [call(server, method) for method in methods])
        except BaseException:
            with contextlib.suppress(Exception):  # the JVM may have ended
                server.shutdown()
            raise
        return GatewayServer(server, port, secret)

    def cancel(self, tag: str) -> None:
        """Cancel the Spark jobs of a runner, in all groups."""
        self.context.cancelJobsWithTag(tag)

    def has_tasks(self, tag: str) -> bool:
        """Return whether tasks of a runner's Spark jobs run, even if these were cancelled.

        Only this table of the scheduler has a task until its executor reports the end. Sets of tasks forget
        it when they are cancelled, and what Spark shows about stages is late.
        """
        managers = self.context.taskScheduler().taskIdToTaskSetManager()
        # py4j's own ``values`` looks up each key, and finds nothing by an Integer where Spark has a Long.
        [values] = results(self.gateway._gateway_client, [call(managers, "values")])
        sets = self.jvm.java.util.HashSet(values)  # far fewer than tasks
        return any(tasks.taskSet().properties().getProperty(OWNER) == tag for tasks in sets)

    def stop_queries(self, tag: str) -> None:
        """Stop a runner's streaming queries, in all sessions.

        Spark does not record which job started a query. But the query's thread inherits the local properties
        of the thread that started it, from the beginning, so a kill can never come too early.
        """
        if self.session is not None:
            for query in self.session.sharedState().activeStreamingQueries().values():
                if query is not None and self._threads.owner(query.queryExecutionThread()) == tag:
                    query.stop()

    def calls(self, tag: str) -> list[JavaObject]:
        """Return the threads of the JVM that serve a runner: in a call, or waiting for the next one."""
        return self._threads.calls(tag)

    def newest_thread(self) -> int:
        """Return an ID that all later threads of the JVM exceed."""
        return int(self.jvm.java.lang.Thread().getId())

    def stop_streaming(self, tag: str) -> None:
        """Stop the application's StreamingContext, of which a JVM has at most one, if a runner started it."""
        active = self.jvm.org.apache.spark.streaming.StreamingContext.getActive()
        if active.isDefined():
            streaming = active.get()
            if streaming.savedProperties().get().getProperty(OWNER) == tag:
                streaming.stop(False, False)

    def add_archive(self, path: Path, name: str) -> None:
        """Have every executor unpack a ZIP file as the directory ``name`` among its files.

        Neither archives nor jars are artifacts of a session. Spark clones sessions, with their artifacts, for
        cached frames and streaming queries. Tasks of RDDs get the artifacts of all sessions, so an executor
        that joins after the end of such a clone would not find its files.
        """
        self.context.addArchive(f"{path.as_uri()}#{name}")
        self._share_with_session("addedArchives")

    def add_jar(self, path: Path) -> None:
        """Make the classes of a jar available to Python jobs and to the tasks of every job."""
        url = self.jvm.java.net.URL(path.as_uri())
        self.context.addJar(path.as_uri())
        if self._share_with_session("addedJars"):
            self.session.sharedState().jarClassLoader().addURL(url)
        self.loader.addURL(url)

    def _share_with_session(self, name: str) -> bool:
        """Let the session have the application's files of a kind; return False if it has them on this Spark.

        In Spark 4, an isolated session has its own list as soon as something is added to it, for example by
        ``ADD JAR``, and its tasks then get nothing else. So its list becomes that of the application.
        """
        if self._spec.spark_version < (4,):
            return False
        if self.session is None:
            self.start_session()
        lists = getattr(self.context, name)()
        lists.putIfAbsent(self.session.sessionUUID(), lists.apply("default"))
        return True

    def wait_until_stopped(self) -> None:
        """Wait until the application has ended.

        Raises:
            Py4JError: The JVM ended instead.
        """
        self._event_loop.join()

    def yarn_failure(self) -> YarnStatus | None:
        """Return why YARN ended the application, or None if it did not, or does not reply."""
        status = self._yarn.wait_for_end() if self._yarn is not None else None
        return status if status is not None and status.final in ("FAILED", "KILLED") else None

    def stopped_by(self) -> str | None:
        """Return the line of a job's JVM code that stopped the application, or None if it is unknown."""
        try:
            self.context.defaultParallelism()  # any call to a stopped context fails with the caller of stop()
        except Exception as error:  # noqa: BLE001 - a JVM that is ending cannot reply
            java = getattr(error, "java_exception", None)
            return caller_of_stop(str(java.getMessage())) if java is not None else None
        return None

    @property
    def over(self) -> bool:
        """Whether the application or its JVM has ended, or is ending, so that calls may fail."""
        try:
            return self.process.poll() is not None or bool(self.context.isStopped())
        except Exception:  # noqa: BLE001 - any error means a broken connection
            return True

    def stop(self) -> None:
        """Stop the application gracefully, and end the JVM."""
        try:
            if self.context is not None:
                self.context.stop()
        finally:
            if self.process.stdin is not None:
                self.process.stdin.close()  # the gateway's main ends at the end of its input

    def kill(self) -> None:
        processes.kill(self.process.pid)


_NOT_OF_A_JOB = ("java.", "java.base/", "jdk.", "sun.", "scala.", "py4j.", "org.apache.spark.")


def caller_of_stop(message: str) -> str | None:
    """Return the first frame of user code in the error of a stopped SparkContext, or None."""
    _, found, frames = message.partition("it was stopped at:")
    if not found:
        return None
    lines = [line.strip() for line in frames.strip().split("\n\n", 1)[0].splitlines()]
    return next((line for line in lines if line and not line.startswith(_NOT_OF_A_JOB)), None)
