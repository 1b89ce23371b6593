"""The variables of the server's environment that contexts, jobs and their interpreters see."""

from __future__ import annotations

import os
from collections.abc import Iterable

ALLOWED_VARIABLES = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HADOOP_HOME",
    "HADOOP_CONF_DIR",
    "YARN_CONF_DIR",
    "HIVE_CONF_DIR",
    "KRB5_CONFIG",
    "KRB5CCNAME",
    "SPARK_CONF_DIR",
    "SPARK_LOCAL_IP",
)
"""The variables of the server's environment that contexts and jobs see."""


def allowed_environment(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the allowed variables of the server's environment, and those named ``more``."""
    return {name: os.environ[name] for name in (*ALLOWED_VARIABLES, *more) if name in os.environ}
