"""Runs an executor of Spark in a pod.

The driver describes the executor in the environment: ``SPARK_DRIVER_URL``, ``SPARK_EXECUTOR_ID`` and so on,
and the options of its JVM in ``SPARK_JAVA_OPT_0``, ``SPARK_JAVA_OPT_1`` and so on. The only argument is
``executor``.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jobserver_pyspark.installation.java import find_java
from jobserver_pyspark.installation.spark import python_view

BACKEND = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
ARGUMENTS = {
    "--driver-url": "SPARK_DRIVER_URL",
    "--executor-id": "SPARK_EXECUTOR_ID",
    "--cores": "SPARK_EXECUTOR_CORES",
    "--app-id": "SPARK_APPLICATION_ID",
    "--hostname": "SPARK_EXECUTOR_POD_IP",
    "--resourceProfileId": "SPARK_RESOURCE_PROFILE_ID",
    "--podName": "SPARK_EXECUTOR_POD_NAME",
}


def java_options(java: str) -> list[str]:
    """Return the options of the JVM in their order, without modules that this Java does not have."""
    found = {re.fullmatch(r"SPARK_JAVA_OPT_(\d+)", name): value for name, value in os.environ.items()}
    numbered = {int(match[1]): value for match, value in found.items() if match}
    modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    known = {line.partition("@")[0] for line in modules.split()}
    prefix = "--add-modules="
    return [
        option
        for _, option in sorted(numbered.items())
        if not option.startswith(prefix) or known.issuperset(option.removeprefix(prefix).split(","))
    ]


def class_path() -> str:
    """Return the site's additions, and Spark's jars."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        sys.exit("PySpark is not installed in this image")
    additions = [os.environ.get(name, "") for name in ("SPARK_CLASSPATH", "SPARK_EXTRA_CLASSPATH")]
    return os.pathsep.join([*filter(None, additions), str(Path(spec.origin).parent / "jars" / "*")])


def python_path() -> str:
    """Return a path with PySpark and nothing else, for interpreters of packed environments, which lack it."""
    view = python_view(["pyspark", "py4j"], Path(tempfile.mkdtemp(prefix="spark-python-")))
    return os.pathsep.join(filter(None, [str(view), os.environ.get("PYTHONPATH", "")]))


def main() -> None:
    """Become the executor, so that signals reach it."""
    if sys.argv[1:] != ["executor"]:
        sys.exit("this image runs executors only: the driver passes `executor` as the argument")
    missing = [name for name in (*ARGUMENTS.values(), "SPARK_EXECUTOR_MEMORY") if name not in os.environ]
    if missing:
        sys.exit(f"the driver of Spark sets {', '.join(missing)}: is this pod one of its executors?")
    java, memory = str(find_java().program), os.environ["SPARK_EXECUTOR_MEMORY"]
    arguments = [part for option, name in ARGUMENTS.items() for part in (option, os.environ[name])]
    options = [f"-Xms{memory}", f"-Xmx{memory}", *java_options(java), "-cp", class_path()]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    os.execve(java, [java, *options, BACKEND, *arguments], environment)  # noqa: S606 - the Java of this image


if __name__ == "__main__":
    main()
