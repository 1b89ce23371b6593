"""The PySpark launcher."""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import attrs

from jobserver_core.config.machine import usable_cores, usable_memory
from jobserver_core.config.settings import Settings
from jobserver_core.data_directory import create_private
from jobserver_core.disk_cache import DiskCache
from jobserver_core.errors import JobServerError, LaunchError
from jobserver_core.models.contexts import Context, Resources, SparePool
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextHandle, ContextListener, ContextSpec, JobSpec, Launcher
from jobserver_core.shutdown import FORCE
from jobserver_pyspark.installation.class_data import ArchiveMaker, ClassData
from jobserver_pyspark.installation.compiler import JvmToolchain
from jobserver_pyspark.installation.driver_jvm import spark_defaults
from jobserver_pyspark.installation.environment import check_yarn, hadoop_directories
from jobserver_pyspark.installation.java import Java, find_java
from jobserver_pyspark.installation.libraries import LibrarySource
from jobserver_pyspark.installation.spark import Installation, SparkInstall, find_installation
from jobserver_pyspark.installation.training_session import TrainingSession
from jobserver_pyspark.launcher.connections import HostConnections
from jobserver_pyspark.launcher.context_settings import ContextSettings, check_heap, flattened, read_settings
from jobserver_pyspark.launcher.descriptors import check_descriptors
from jobserver_pyspark.launcher.environments import (
    Environments,
    Pythons,
    Unpacking,
    is_packed,
    without_environments,
)
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.hosted_context import HostedContext, LauncherResources
from jobserver_pyspark.launcher.kubernetes import ClusterFiles, lost_objects
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers, write_private
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.resources import resources
from jobserver_pyspark.launcher.spare_hosts import SpareHosts
from jobserver_pyspark.launcher.spare_pools import Pool, SparePools, read_pools
from jobserver_pyspark.processes import available_memory
from jobserver_pyspark.protocol.messages import Reattachment

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 0.45 * FORCE
"""Seconds until killed contexts must have ended: less than a server has left after it has waited for that."""
_LOWEST_PRIORITY = 19
"""The nice value of training, so that it uses only cores that no context needs: Linux has none above it."""
_TRAINING_TIMEOUT = 180.0
"""Seconds for each part of the training of an archive beside the contexts of a server."""
_PREPARE_TIMEOUT = 900.0
"""The same when someone waits for it, maybe on a slow machine that builds an image."""
_MAX_TMP_PATH = 60
"""The longest path, in bytes, of a directory for Unix sockets; with their names, 108 are allowed."""


class PySparkLauncher(Launcher):
    """Starts each context as a process with a JVM, and runs each Python job as a process of its own.

    ``directory`` is the launcher's own, for unpacked packages and the records of living contexts.
    ``log_limit`` is the size of each log in bytes, ``result_limit`` that of the result of a JVM job.
    ``reattach_timeout`` is the number of seconds that contexts wait for the next server after theirs has
    ended; with 0 they end with it. ``pools`` says how many contexts with which settings are kept started for
    new ones; spares older than ``spare_max_age`` seconds are replaced. ``cluster_files`` are those that
    contexts on Kubernetes may name.
    """

    writes_json = True

    def __init__(
        self,
        directory: Path,
        *,
        master: str = "local[*]",
        options: LauncherOptions | None = None,
        log_limit: int = 16 * 1024 * 1024,
        result_limit: int = 10 * 1024**3,
        pools: Sequence[Pool] = (),
        spare_max_age: float = 86400.0,
        reattach_timeout: float = 0.0,
        cluster_files: ClusterFiles | None = None,
    ) -> None:
        self._master = master
        self._cluster_files = cluster_files or ClusterFiles()
        self._options = options or LauncherOptions()
        self._log_limit = log_limit
        self._result_limit = result_limit
        self._lock = threading.Lock()
        self._closed = False
        self._detached = False
        self._contexts: set[HostedContext] = set()
        self._reattach_timeout = reattach_timeout
        self._server_file = directory / "server.json"
        self._training = directory / "training"
        self._serves = False
        """Whether this is the launcher of a running server, and not one that only checks settings."""
        self._survivors: dict[str, LeftoverRecord] = {}
        self._taken_over: set[str] = set()
        self._archives = ArchiveMaker()
        self._leftovers = Leftovers(directory / "contexts")
        connections = HostConnections()
        self._pools = pools
        self._spares = SparePools(
            pools,
            SpareHosts(
                directory / "spares",
                connections,
                self._leftovers,
                lambda spec, settings: self._plan(spec, settings, None),
            ),
            max_age=spare_max_age,
            may_start=self._may_start_spare,
            busy=lambda: any(context.busy for context in self._living()),
        )
        self._resources = LauncherResources(
            connections=connections,
            leftovers=self._leftovers,
            spares=self._spares,
            unpacked=DiskCache(directory / "packages", limit=self._options.packages_size),
        )

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        LauncherOptions.from_settings(settings)
        read_pools(settings)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> PySparkLauncher:
        return cls(
            data_dir / "pyspark",
            master=settings.spark.master,
            options=LauncherOptions.from_settings(settings),
            log_limit=settings.limits.log_size,
            result_limit=settings.jobs.max_result_size,
            pools=read_pools(settings),
            spare_max_age=settings.contexts.spare_max_age,
            reattach_timeout=settings.contexts.reattach_timeout,
            cluster_files=ClusterFiles.of(settings),
        )

    def check(self) -> None:
        """Check the limit of file descriptors, Java and PySpark."""
        check_descriptors()
        find_java()
        self._find_installation(sys.executable)

    def _find_installation(self, python: str) -> Installation:
        return find_installation(python, self._options.environment)

    def validate(self, settings: JsonMapping) -> None:
        found = self._check_settings(settings)
        if found.yarn:
            check_yarn(hadoop_directories(found.hadoop_conf_dir or self._options.hadoop_conf_dir))

    def _check_settings(self, settings: JsonMapping) -> ContextSettings:
        found = read_settings(settings, default_master=self._master)
        if found.kubernetes:
            self._cluster_files.check(found.conf)
        if self._serves:
            check_heap(found.conf, usable_memory(), flattened(settings))
        return found

    def resources(self, settings: JsonMapping) -> Resources:
        """Return what a context with these settings, over those of the site, asks for at most."""
        return self._resources_of(read_settings(settings, default_master=self._master, accepted=True))

    def _resources_of(self, settings: ContextSettings) -> Resources:
        python = settings.python or sys.executable
        try:
            # A packed interpreter is not unpacked for this: most have the server's PySpark, and its site.
            site = spark_defaults(self._find_installation(sys.executable if is_packed(python) else python))
        except JobServerError:  # the start of the context reports it
            site = {}
        return resources(settings, site, cores_here=usable_cores())

    def start_context(self, spec: ContextSpec, listener: ContextListener) -> ContextHandle:
        return self._begin(spec, listener, self._check_settings(spec.settings))

    def _begin(
        self,
        spec: ContextSpec,
        listener: ContextListener,
        settings: ContextSettings,
        *,
        class_data: list[str] | None = None,
        priority: int = 0,
        survivor: LeftoverRecord | None = None,
        jobs: Sequence[JobSpec] = (),
    ) -> HostedContext:
        context = HostedContext(
            spec,
            listener,
            self._resources,
            make_plan=lambda unpacking: self._plan(spec, settings, class_data, unpacking),
            on_end=self._forget,
            priority=priority,
            survivor=survivor,
            jobs=jobs,
            reattach_timeout=self._reattach_timeout,
        )
        with self._lock:
            if self._closed:
                raise LaunchError(message="the launcher is closed")
            self._contexts.add(context)
        context.begin()
        return context

    def _living(self) -> list[HostedContext]:
        with self._lock:
            return list(self._contexts)

    def _may_start_spare(self, pool: Pool) -> bool:
        """Whether no other context is starting, and the memory for one more JVM is free."""
        return not any(context.starting for context in self._living()) and pool.fits(available_memory())

    def _plan(
        self,
        spec: ContextSpec,
        settings: ContextSettings,
        class_data: list[str] | None,
        unpacking: Unpacking = nullcontext,
    ) -> HostPlan:
        environments = Environments(self._resources.unpacked, unpacking)
        pythons = environments.pythons(settings.python, settings.conf, local=settings.local)
        installation, java = self._find_installation(pythons.driver), find_java()
        if settings.local:
            _check_versions(installation, self._find_installation(pythons.executors), pythons)
            settings = attrs.evolve(settings, conf=without_environments(settings.python, settings.conf))
        return make_plan(
            spec,
            settings,
            installation,
            java,
            self._options,
            tmp_dir=_tmp_dir(spec),
            log_limit=self._log_limit,
            result_limit=self._result_limit,
            class_data=class_data if class_data is not None else self._class_data(installation, java),
            reattachment=self._reattachment if class_data is None else None,
            pythons=pythons,
        )

    @property
    def _reattachment(self) -> Reattachment | None:
        if not self.reattaches:
            return None
        return Reattachment(server_file=self._server_file, timeout_ms=round(1000 * self._reattach_timeout))

    def _class_data(self, installation: Installation, java: Java) -> list[str]:
        """Return the JVM's options to use the archive of its classes; a missing one is created later."""
        if not self._options.class_data_sharing:
            return []
        data = ClassData(installation, java, self._options.cache_dir)
        if not data.exists:
            self._archives.begin(
                data, lambda options: self._train(installation, options, priority=_LOWEST_PRIORITY)
            )
        return data.options()

    def prepare(self) -> None:
        """Compile the JVM side and create the archive of the JVM's classes, in about a minute.

        Otherwise the first JVM job waits for the compilation, and the archive is created some time after the
        server's first context.
        """
        installation, java = self._find_installation(sys.executable), find_java()
        toolchain = JvmToolchain(
            spark=SparkInstall.of(installation.package / "jars"),
            java=str(java.program),
            cache_dir=self._options.cache_dir,
            libraries=LibrarySource.from_conf(spark_defaults(installation), self._options.jvm_libraries),
        )
        try:
            toolchain.prepare()
        except OSError as error:
            raise LaunchError(message=f"cannot compile the JVM side: {error}") from error
        if not self._options.class_data_sharing:
            return
        data = ClassData(installation, java, self._options.cache_dir)
        if data.exists:
            return
        try:
            data.make(lambda options: self._train(installation, options, timeout=_PREPARE_TIMEOUT), wait=True)
        except (OSError, subprocess.SubprocessError, LaunchError) as error:
            raise LaunchError(message=f"cannot create the archive of the JVM's classes: {error}") from error

    def _train(
        self,
        installation: Installation,
        options: list[str],
        *,
        timeout: float = _TRAINING_TIMEOUT,
        priority: int = 0,
    ) -> None:
        """Run a context that creates an archive of its JVM's classes when it stops."""
        create_private(self._training)
        with tempfile.TemporaryDirectory(dir=self._training, ignore_cleanup_errors=True) as directory:
            session = TrainingSession(Path(directory), installation.python, timeout)
            settings = self._check_settings(session.spec.settings)
            handle = self._begin(session.spec, session, settings, class_data=options, priority=priority)
            session.follow(handle)

    def _forget(self, context: HostedContext) -> None:
        with self._lock:
            self._contexts.discard(context)

    def spare_pools(self) -> Sequence[SparePool]:
        return [
            attrs.evolve(found, resources=asked)
            for found, asked in zip(self._spares.status, self._resources_of_pools, strict=True)
        ]

    @functools.cached_property
    def _resources_of_pools(self) -> list[Resources]:
        """What the spares of each pool ask for: asked once, because it starts their interpreters."""
        return [self._resources_of(pool.settings) for pool in self._pools]

    @property
    def reattaches(self) -> bool:
        return self._reattach_timeout > 0

    def survivors(self) -> Sequence[ContextSpec]:
        """Return the recorded contexts whose hosts run, and let those hosts find this server.

        Raises:
            LaunchError: The address of this server cannot be stored. The contexts wait on.
        """
        self._serves = True
        if not self.reattaches:
            return ()
        found = [(record.spec, record) for record in self._leftovers.all() if record.secret and record.alive]
        self._survivors = {spec.id: record for spec, record in found if spec is not None}
        if self._survivors:
            self._publish_address()
        return [spec for spec, _ in found if spec is not None]

    def _publish_address(self) -> None:
        host, port = self._resources.connections.address
        try:
            write_private(self._server_file, json.dumps({"host": host, "port": port}))
        except OSError as error:
            # Going on without these contexts would kill them and their jobs, and a full disk is temporary.
            raise LaunchError(
                message=f"cannot write {self._server_file}, in which {len(self._survivors)} running contexts "
                f"search for this server: {error.strerror or error}; they wait up to "
                f"{self._reattach_timeout:g} s for a server that starts"
            ) from error

    def reattach(
        self, spec: ContextSpec, jobs: Sequence[JobSpec], listener: ContextListener
    ) -> ContextHandle:
        survivor = self._survivors.pop(spec.id, None)
        if survivor is None:
            return super().reattach(spec, jobs, listener)
        settings = read_settings(spec.settings, default_master=self._master, accepted=True)
        context = self._begin(spec, listener, settings, survivor=survivor, jobs=jobs)
        self._taken_over.add(spec.id)
        return context

    def sweep(self) -> None:
        """Remove leftovers of the contexts of an earlier server that were not taken over.

        Then spares are started.
        """
        self._leftovers.sweep(self._taken_over)
        if self._training.exists():  # of a server that was killed meanwhile
            threading.Thread(target=shutil.rmtree, args=(self._training, True), daemon=True).start()
        self._spares.begin()

    def sweep_lost(self, contexts: Sequence[Context]) -> None:
        """Remove what contexts of dead servers left on Kubernetes; what fails is tried at the next start."""
        try:
            site = spark_defaults(self._find_installation(sys.executable))
            found = {context.id: lost_objects(context, self._master, site) for context in contexts}
            self._leftovers.sweep_objects({key: objects for key, objects in found.items() if objects})
        except (OSError, JobServerError) as error:
            _log.warning("cannot remove what contexts of dead servers left in clusters: %s", error)

    def detach(self) -> None:
        """Leave the contexts that are connected, and kill the others."""
        self._detached = True
        self._end_all(HostedContext.detach)

    def close(self) -> None:
        """Kill all contexts at once, and wait a moment for their end and for the removal of their files.

        The next server removes what is left then. A detached launcher is closed already, even if it still
        waits for a call of a listener.
        """
        if not self._detached:
            self._end_all(HostedContext.kill)

    def _end_all(self, end: Callable[[HostedContext], None]) -> None:
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        with self._lock:
            self._closed = True
            contexts = list(self._contexts)
        self._archives.stop()
        for context in contexts:
            end(context)
        self._spares.close(deadline)
        for context in contexts:
            context.join(max(0.0, deadline - time.monotonic()))
        self._leftovers.join(deadline)
        self._archives.join(deadline)
        self._resources.connections.close()
        if self._serves:
            self._server_file.unlink(missing_ok=True)


def _check_versions(driver: Installation, executors: Installation, pythons: Pythons) -> None:
    """Check that tasks can run in the same version of Python as jobs.

    Raises:
        LaunchError: They cannot.
    """
    if executors.python_version != driver.python_version:
        versions = (executors.python_version, driver.python_version)
        theirs, ours = (".".join(map(str, version)) for version in versions)
        raise LaunchError(
            message=f"spark.pyspark.python is {pythons.executors!r} with Python {theirs}, and jobs run in "
            f"{driver.python!r} with Python {ours}: both need the same minor version; set only "
            "python.executable to use one interpreter for both"
        )


def _tmp_dir(spec: ContextSpec) -> Path:
    """Return a directory for temporary files whose path is short enough for Unix sockets in it.

    Raises:
        LaunchError: No directory is suitable.
    """

    def fits(directory: Path) -> bool:
        return len(os.fsencode(directory)) <= _MAX_TMP_PATH

    inside = spec.work_dir / "tmp"
    if fits(inside):
        return inside
    name = f"js-{secrets.token_hex(8)}"
    parents = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 - the directory gets a secret name and mode
    for directory in (Path(parent, name) for parent in parents):
        if fits(directory) and os.access(directory.parent, os.W_OK | os.X_OK):
            return directory
    raise LaunchError(
        message=f"no directory for temporary files has a path short enough for Unix sockets: {inside} has "
        f"{len(os.fsencode(inside))} bytes where {_MAX_TMP_PATH} are allowed, and none of "
        f"{', '.join(parents)} is short and writable; choose a shorter data directory or a short TMPDIR"
    )
