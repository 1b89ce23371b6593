"""Checks of the values of Spark's settings, as Spark checks them, before the application starts.

Spark reads many settings only when it needs them: a wrong ``spark.sql.shuffle.partitions`` would fail every
query of a context that has started well. Its registry knows the type and the allowed values of each setting.
Settings that Spark does not know, such as those of jobs and of libraries, are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobserver_pyspark.gateway_calls import call_with, results, static_call
from jobserver_pyspark.java_objects import JavaClient, JavaObject

_REGISTRY = "org.apache.spark.internal.config.ConfigEntry"
_SQL_PREFIX = "spark.sql."
_SQL_ENTRIES = ("org.apache.spark.sql.internal.SQLConf$", "org.apache.spark.sql.internal.StaticSQLConf$")
"""The classes that enter the settings of SQL into the registry when they are loaded, which takes a moment."""


def check_values(jvm: Any, client: JavaClient, conf: JavaObject, keys: Iterable[str]) -> None:
    """Check the values that a SparkConf has for some keys.

    Raises:
        Py4JJavaError: Spark refuses one; its message names the key, the value, and what is right.
    """
    keys = list(keys)
    if any(key.startswith(_SQL_PREFIX) for key in keys):
        for name in _SQL_ENTRIES:
            jvm.java.lang.Class.forName(name)
    entries = results(client, [static_call(_REGISTRY, "findEntry", key) for key in keys])
    results(client, [call_with(conf, "get", entry) for entry in entries if entry is not None])
