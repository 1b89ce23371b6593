"""Keys of the old server's configuration files: their equivalents here, and keys that have no effect.

Based on the ``application.conf`` files and templates of its versions 0.5 to 0.11.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import Json

_OLD = "spark.jobserver"

ALIASES = {
    f"{_OLD}.port": "jobserver.http.port",
    f"{_OLD}.bind-address": "jobserver.http.host",
    f"{_OLD}.master": "spark.master",
    f"{_OLD}.max-jobs-per-context": "jobserver.jobs.max-jobs-per-context",
    f"{_OLD}.context-creation-timeout": "jobserver.contexts.creation-timeout",
    f"{_OLD}.yarn-context-creation-timeout": "jobserver.contexts.creation-timeout",
    f"{_OLD}.context-deletion-timeout": "jobserver.contexts.deletion-timeout",
    f"{_OLD}.yarn-context-deletion-timeout": "jobserver.contexts.deletion-timeout",
    f"{_OLD}.job-binary-paths": "jobserver.job-binary-paths",
    f"{_OLD}.job-bin-paths": "jobserver.job-binary-paths",
    f"{_OLD}.job-jar-paths": "jobserver.job-binary-paths",
    f"{_OLD}.dao-cleanup-after": "jobserver.jobs.retention",
    f"{_OLD}.default-sync-timeout": "jobserver.jobs.sync-timeout",
    "akka.http.server.parsing.max-content-length": "jobserver.limits.upload-size",
    "spray.can.server.parsing.max-content-length": "jobserver.limits.upload-size",
}
"""Keys of the old server and the equivalent settings."""

_TOP_LEVEL = """
    access-control akka cassandra cassandradao custom-downing deploy flyway shiro slick spray
"""
_OF_SPARK = """
    akka broadcast.factory context-per-jvm driver.supervise home job-cache job-number-cpus master-provider
    submit.deployMode temp-contexts ui.port webUrlPort yarn.isPython
"""
_OF_JOBSERVER = """
    authentication binarydao cache-on-upload cachedao cassandra cassandradao combineddao context-factory
    context-lookup-timeout context-per-jvm dao-timeout daorootdir datadao driver-mode filedao ha hdfs
    healthcheck ignore-akka-hostname jar-store-rootdir job-result-cache-size job-result-cache-ttl-seconds
    jobdao kill-context-on-supervisor-down manager-initialization-timeout metadatadao
    named-object-creation-timeout network-address-resolver result-chunk-size short-timeout sqldao
    startH2Server startup_dao_cleanup_class use-spark-launcher wait-for-manager-start
    yarn-broadcast-factory zookeeper zookeeperdao
"""
IGNORED = frozenset(
    _TOP_LEVEL.split()
    + [f"spark.{key}" for key in _OF_SPARK.split()]
    + [f"{_OLD}.{key}" for key in _OF_JOBSERVER.split()]
)
"""Keys and sections of the old server that have no effect here."""

_OFF = (False, "off", "false", "no", None, "")


def inside(tree: Json, path: str) -> Json:
    """Return the value at a dotted path in a tree, or None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _is_on(value: Json) -> bool:
    return value is True or value in ("on", "true", "yes")


def check_ignored(key: str, value: Json) -> None:
    """Reject ignored keys that enable access control or encryption. ``key`` is one of :data:`IGNORED`.

    Raises:
        InvalidSetting: The message names the settings to use instead.
    """
    provider = inside(value, "provider")
    on = inside(value, "authentication") not in _OFF
    if key == f"{_OLD}.authentication":
        on = any(map(_is_on, value.values() if isinstance(value, dict) else [value]))
    refused = key in ("shiro", f"{_OLD}.authentication") and on
    if refused or (key == "access-control" and provider and "AllowAll" not in str(provider)):
        raise InvalidSetting(
            key=key,
            message="the old server's access control is not supported; remove it, and set jobserver.auth",
        )
    server = {"akka": "http.server", "spray": "can.server"}.get(key)
    if server and inside(value, f"{server}.ssl-encryption") not in _OFF:
        raise InvalidSetting(
            key=f"{key}.{server}.ssl-encryption",
            message="is not supported; remove it, and set jobserver.http.tls-certificate and tls-key",
        )
