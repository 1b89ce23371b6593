"""A JVM for PySpark in this process, which starts as that of a context does.

The scripts of Spark, with which PySpark would start it, cannot use the archive of the JVM's classes.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from conditions import wait_until
from jobserver_pyspark.installation.class_data import ClassData
from jobserver_pyspark.installation.driver_jvm import JVM_OPTIONS, java_class_path, spark_defaults
from jobserver_pyspark.installation.java import find_java
from jobserver_pyspark.installation.spark import default_cache_dir, find_installation

__all__ = ["own_gateway"]

_TIMEOUT = 60.0


@contextmanager
def own_gateway(directory: Path, jars: Sequence[Path]) -> Iterator[None]:
    """Start a JVM with these jars and directories after those of Spark, and let PySpark use it alone."""
    from pyspark import SparkContext
    from pyspark.java_gateway import launch_gateway

    assert SparkContext._gateway is None, "a JVM of another test still runs"
    address = directory / "address"
    environment = {**os.environ, "_PYSPARK_DRIVER_CONN_INFO_PATH": str(address)}
    with subprocess.Popen(_command(jars), stdin=subprocess.PIPE, env=environment) as process:
        try:
            wait_until(lambda: address.exists() or process.poll() is not None, "the address of the JVM")
            port, length = struct.unpack(">ii", address.read_bytes()[:8])
            secret = address.read_bytes()[8 : 8 + length].decode()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYSPARK_GATEWAY_PORT", str(port))
                patch.setenv("PYSPARK_GATEWAY_SECRET", secret)
                gateway = launch_gateway()
            SparkContext._ensure_initialized(gateway=gateway)
            yield
            gateway.shutdown()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_TIMEOUT)
        finally:
            SparkContext._gateway = SparkContext._jvm = None
            process.kill()


def _command(jars: Sequence[Path]) -> list[str]:
    installation, java = find_installation(sys.executable), find_java()
    defaults = spark_defaults(installation)
    return [
        str(java.program),
        *ClassData(installation, java, default_cache_dir()).options(),
        *("-cp", java_class_path(installation, after=jars)),
        *(*JVM_OPTIONS, *defaults.get("spark.driver.extraJavaOptions", "").split(), "-Xmx1g"),
        *(f"-D{key}={value}" for key, value in defaults.items()),
        "org.apache.spark.api.python.PythonGatewayServer",
    ]
