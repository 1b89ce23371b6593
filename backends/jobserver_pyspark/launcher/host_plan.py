"""The plan of a context host: its command, its environment, and its spec."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from jobserver_core.config.trees import as_objects
from jobserver_core.models import json_values
from jobserver_core.models.binaries import BinaryType
from jobserver_core.ports import ContextSpec
from jobserver_pyspark.installation.driver_jvm import JVM_OPTIONS, has_hive, java_class_path, spark_defaults
from jobserver_pyspark.installation.environment import (
    HADOOP_VARIABLES,
    allowed_environment,
    hadoop_directories,
)
from jobserver_pyspark.installation.java import Java, utf8_locale
from jobserver_pyspark.installation.spark import Installation, python_view, spark_home_view
from jobserver_pyspark.jvm.jobs import context_settings
from jobserver_pyspark.launcher.context_settings import LOOPBACK, PREPARED, ContextSettings
from jobserver_pyspark.launcher.environments import EnvironmentLock, Pythons
from jobserver_pyspark.launcher.factory_classes import check_factory
from jobserver_pyspark.launcher.kubernetes import TEMPLATE_FILE, ClusterObjects, driver_settings, identity
from jobserver_pyspark.launcher.leftovers import LeftoverRecord
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.resources import executor_settings
from jobserver_pyspark.launcher.spark_values import java_options, parse_memory
from jobserver_pyspark.processes import MARKER
from jobserver_pyspark.protocol.messages import (
    JOB_CLASSES,
    HostSpec,
    JvmCommand,
    JvmToolchainSpec,
    Reattachment,
)
from jobserver_pyspark.runner.config_trees import FALLBACK_PATH

_GATEWAY = "org.apache.spark.api.python.PythonGatewayServer"
_SUBMIT = "org.apache.spark.deploy.SparkSubmit"


@attrs.frozen(kw_only=True)
class HostPlan:
    """How to start a context host, and the spec of its context.

    ``locks`` are those of unpacked Python environments; the host inherits them. ``pod_template`` is the
    content of the file that the SparkConf names as the template of executor pods, if that has to be written.
    """

    command: list[str]
    environment: dict[str, str]
    spec: HostSpec
    locks: tuple[EnvironmentLock, ...] = ()
    pod_template: str | None = None

    def record(self, work_dir: Path) -> LeftoverRecord:
        """Return what to remove after a host with this working directory, before it is started."""
        return LeftoverRecord(
            marker=self.spec.marker,
            directories=(work_dir, self.spec.tmp_dir),
            cluster=ClusterObjects.of(self.spec.conf),
        )


def make_plan(
    spec: ContextSpec,
    settings: ContextSettings,
    installation: Installation,
    java: Java,
    options: LauncherOptions,
    *,
    tmp_dir: Path,
    log_limit: int,
    result_limit: int,
    class_data: list[str],
    reattachment: Reattachment | None = None,
    pythons: Pythons | None = None,
) -> HostPlan:
    """Return the plan of a context's host; writes only directories of links, into the cache.

    Without ``pythons``, executors run the interpreter of the installation.

    Raises:
        UnknownContextFactory: The class of the context's factory certainly does not exist.
    """
    marker = f"{spec.id}:{secrets.token_hex(8)}"
    hadoop = hadoop_directories(settings.hadoop_conf_dir or options.hadoop_conf_dir)
    conf = _conf(spec, settings, installation, hadoop)
    if settings.factory is not None:
        known = java_class_path(installation, hadoop=hadoop).split(os.pathsep)
        site = {**spark_defaults(installation), **settings.conf}
        check_factory(
            settings.factory.name, [*(code.path for code in spec.class_path), *map(Path, known)], site
        )
    pod_template = settings.pod_template if settings.kubernetes else None
    if pod_template is not None:
        conf[TEMPLATE_FILE] = str(tmp_dir / "executor-pod.yaml")
    submitted = settings.needs_submit or not PREPARED.isdisjoint(spark_defaults(installation))
    classes = java_class_path(
        installation,
        before=conf.get("spark.driver.extraClassPath"),
        hadoop=hadoop,
        after=[tmp_dir / JOB_CLASSES, *_jars(spec)],
    )
    jvm_environment = {
        "SPARK_HOME": str(spark_home_view(installation, options.cache_dir, python=settings.yarn)),
        "SPARK_LOCAL_DIRS": conf.get("spark.local.dir", str(spec.work_dir / "local")),
    }
    if conf.get("spark.driver.bindAddress") == LOOPBACK and "SPARK_LOCAL_IP" not in os.environ:
        jvm_environment["SPARK_LOCAL_IP"] = LOOPBACK  # of Spark's own user interface
    return HostPlan(
        command=[installation.python, "-m", "jobserver_pyspark.host"],
        environment={
            **_environment(settings, installation, java, options),
            MARKER: marker,
            "PYSPARK_PYTHON": pythons.executors if pythons is not None else installation.python,
            "TMPDIR": str(tmp_dir),
        },
        locks=pythons.locks if pythons is not None else (),
        pod_template=pod_template,
        spec=HostSpec(
            marker=marker,
            jvm=JvmCommand(
                command=(
                    *(str(java.program), *class_data, "-cp", classes, *_jvm_options(spec, conf, tmp_dir)),
                    *(_submission(settings, tmp_dir) if submitted else [_GATEWAY]),
                ),
                environment=jvm_environment,
            ),
            conf=conf,
            submitted=submitted,
            hadoop=settings.hadoop,
            hive=settings.hive,
            session=settings.context_type not in ("spark", "custom"),
            context_type=settings.context_type,
            factory=settings.factory,
            jvm_isolation=settings.jvm_isolation,
            jars=tuple(_jars(spec)),
            cluster=not settings.local,
            spark_version=installation.release,
            settings=json_values.dumps(as_objects(spec.settings), allow_nan=True),
            preload=settings.preload,
            api_path=python_view(["sparkjobserver"], options.cache_dir),
            log_path=spec.log_path,
            log_limit=log_limit,
            work_dir=spec.work_dir,
            tmp_dir=tmp_dir,
            data_dir=spec.data_dir,
            spare_runners=options.spare_runners,
            reuse=settings.reuse,
            result_limit=result_limit,
            toolchain=JvmToolchainSpec(
                jars=installation.package / "jars",
                java=str(java.program),
                cache_dir=options.cache_dir,
                libraries=options.jvm_libraries,
            ),
            reattachment=reattachment,
        ),
    )


def _environment(
    settings: ContextSettings, installation: Installation, java: Java, options: LauncherOptions
) -> dict[str, str]:
    """Return the environment of a host, with only the allowed variables of the server's environment."""
    kept = allowed_environment(options.environment)
    hadoop = settings.hadoop_conf_dir or options.hadoop_conf_dir
    if hadoop is not None:
        kept = {name: value for name, value in kept.items() if name not in HADOOP_VARIABLES}
        kept["HADOOP_CONF_DIR"] = str(hadoop)
    borrowed = ["pyspark", "py4j"] if installation.borrowed else []
    view = python_view(["jobserver_pyspark", "sparkjobserver", *borrowed], options.cache_dir)
    fallback = python_view(["attr", "attrs", "jobserver_core", "pyhocon", "pyparsing"], options.cache_dir)
    return {
        **kept,
        **utf8_locale(kept),
        FALLBACK_PATH: str(fallback),
        "PYTHONPATH": os.pathsep.join([str(view), *settings.python_paths]),
        "PYSPARK_DRIVER_PYTHON": installation.python,
        "JAVA_HOME": str(java.home),
    }


def _conf(
    spec: ContextSpec, settings: ContextSettings, installation: Installation, hadoop: Sequence[Path]
) -> dict[str, str]:
    """Return the SparkConf: the context's own settings over the site's, over our defaults."""
    conf = {
        **_defaults(spec, settings, installation, hadoop),
        **spark_defaults(installation),
        "spark.app.name": spec.name,
        "spark.submit.deployMode": "client",
        "spark.ui.showConsoleProgress": "false",
        "spark.serializer.objectStreamReset": "100",
        **context_settings(settings.context_type),
    }
    if settings.hive:
        conf["spark.sql.catalogImplementation"] = "hive"
    jars = _jars(spec)
    if jars and not settings.local:
        conf["spark.jars"] = ",".join(jar.as_uri() for jar in jars)
    conf |= {**settings.conf, "spark.master": settings.master}
    if settings.containers and settings.cores is not None:
        conf = {**executor_settings(conf, settings.cores), **conf}
    if settings.yarn:
        own = conf.get("spark.yarn.tags", "").split(",")
        conf["spark.yarn.tags"] = ",".join([*filter(None, own), "jobserver", f"jobserver-context-{spec.id}"])
    if settings.kubernetes:
        conf = {**driver_settings(os.environ), **conf, **identity(spec.id, os.environ)}
    return conf


def _defaults(
    spec: ContextSpec, settings: ContextSettings, installation: Installation, hadoop: Sequence[Path]
) -> dict[str, str]:
    """Return the defaults, which keep a context in its directory and on its machine if possible."""
    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.retainedJobs": "200",
        "spark.ui.retainedStages": "200",
        "spark.rdd.compress": "True",
        "spark.python.task.killTimeout": "100ms",
    }
    if settings.local:
        conf["spark.python.daemon.module"] = "jobserver_pyspark.daemon"
    if settings.loopback:
        conf |= {"spark.driver.host": LOOPBACK, "spark.driver.bindAddress": LOOPBACK}
    if installation.release >= (4, 1) and not settings.containers:  # there, paths are too long for them
        conf["spark.python.unix.domain.socket.enabled"] = "true"
    if not has_hive(installation, hadoop):  # otherwise its tables outlive the context
        metastore = f"jdbc:derby:;databaseName={spec.work_dir / 'metastore'};create=true"
        conf["spark.sql.warehouse.dir"] = str(spec.work_dir / "warehouse")
        if settings.hive:
            conf["spark.hadoop.javax.jdo.option.ConnectionURL"] = metastore
    return conf


def _jars(spec: ContextSpec) -> dict[Path, Path]:
    """Return the jars of every job of the context: links whose names end in ``.jar``, as Spark requires."""
    jars = [code for code in spec.class_path if code.type is BinaryType.JAR]
    return {spec.work_dir / "jars" / f"{code.digest}.jar": code.path for code in jars}


def link_jars(spec: ContextSpec) -> None:
    """Make the links to the context's jars that are in its plan."""
    for link, jar in _jars(spec).items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(jar.resolve())


def _submission(settings: ContextSettings, tmp_dir: Path) -> list[str]:
    """Return the main class and the arguments of Spark's own submission."""
    proxy = ["--proxy-user", settings.proxy_user] if settings.proxy_user is not None else []
    return [_SUBMIT, "--properties-file", str(tmp_dir / "spark.properties"), *proxy, "pyspark-shell"]


def _jvm_options(spec: ContextSpec, conf: Mapping[str, str], tmp_dir: Path) -> list[str]:
    heap = parse_memory("spark.driver.memory", conf.get("spark.driver.memory", "1g"))
    keys = ("spark.driver.defaultJavaOptions", "spark.driver.extraJavaOptions")
    return [
        f"-Xmx{heap // 2**20}m",
        *JVM_OPTIONS,
        f"-Djava.io.tmpdir={tmp_dir}",
        # Native libraries are unpacked there and mapped, which many machines forbid below /tmp (noexec).
        f"-Dorg.xerial.snappy.tempdir={spec.work_dir}",
        f"-DZstdTempFolder={spec.work_dir}",
        f"-Dderby.system.home={spec.work_dir}",
        *(option for key in keys for option in java_options(key, conf.get(key, ""))),
    ]


def properties_file(conf: Mapping[str, str]) -> str:
    """Return a SparkConf as the text of a Java properties file."""
    return "".join(f"{_escaped(key)}={_escaped(value)}\n" for key, value in conf.items())


def _escaped(text: str) -> str:
    """Write each character that may have a meaning in such a file, or is not ASCII, as a Unicode escape."""

    def escape(found: re.Match[str]) -> str:
        return "".join(f"\\u{unit}" for unit in found[0].encode("utf-16-be").hex(" ", 2).split())

    return re.sub(r"[^\w./,-]", escape, text, flags=re.ASCII)
