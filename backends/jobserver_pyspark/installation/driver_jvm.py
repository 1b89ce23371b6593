"""The driver JVM: the options and the class path that every context's JVM starts with."""

from __future__ import annotations

import os
from pathlib import Path

from jobserver_pyspark.installation import site_configuration
from jobserver_pyspark.installation.spark import Installation

__all__ = ["JVM_OPTIONS", "class_path"]

_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
    "java.security.jgss/sun.security.krb5",
)
JVM_OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.allocator.type=pooled",
    "-Dio.netty.handler.ssl.defaultEndpointVerificationAlgorithm=NONE",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dderby.connection.requireAuthentication=false",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
)
"""The options that Spark's own launcher passes to a driver, without a module that it does not need and that
some JDKs lack. Two are ours: a JVM that runs out of memory exits instead of thrashing, and no JVM leaves a
file in ``/tmp``."""


def class_path(
    installation: Installation, *, before: str | None = None, after: list[Path] | None = None
) -> str:
    """Return the driver's class path: Spark's jars, the site's configuration, then the context's own jars."""
    first = [before] if before else []
    return os.pathsep.join(
        [
            *first,
            *map(str, installation.jars),
            *site_configuration.class_path(installation),
            *map(str, after or []),
        ]
    )
