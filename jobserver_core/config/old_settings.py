"""Keys of the old server's configuration files: their equivalents here, and keys that have no effect.

Based on the ``application.conf`` files and templates of its versions 0.5 to 0.11.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping

import attrs

from jobserver_core.config.trees import flatten
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


@attrs.frozen
class NoEffect:
    """Why a key of the old server has no effect here.

    ``instead`` says how to get what the key was for. It is None if nothing needs to replace the key.
    """

    why: str
    instead: str | None = None

    def __str__(self) -> str:
        return self.why if self.instead is None else f"{self.why}; {self.instead}"


PEM_COMMANDS = (
    "keytool -importkeystore -srckeystore KEYSTORE -destkeystore store.p12 -deststoretype PKCS12 && "
    "openssl pkcs12 -in store.p12 -nokeys -out certificate.pem && "
    "openssl pkcs12 -in store.p12 -nocerts -nodes -out key.pem"
)
"""The commands that make the files of ``jobserver.http.tls-certificate`` and ``tls-key`` from a keystore."""

_LIMITS_OF_CONNECTIONS = (
    "set jobserver.http.idle-timeout for idle-timeout, and jobserver.jobs.sync-timeout, which limits how "
    "long a request waits for its job, for request-timeout; other limits of connections are in "
    "jobserver.http"
)

_TABLE = (
    (
        "custom-downing .short-timeout .context-lookup-timeout .manager-initialization-timeout",
        "it configured actors, and there are none here",
        None,
    ),
    (
        ".wait-for-manager-start .ignore-akka-hostname .network-address-resolver spark.akka",
        "it configured actors, and there are none here",
        None,
    ),
    ("akka", "there is no Akka here", _LIMITS_OF_CONNECTIONS),
    ("spray", "there is no Spray here", _LIMITS_OF_CONNECTIONS),
    (
        ".context-per-jvm spark.context-per-jvm deploy .use-spark-launcher",
        "each context has its own processes",
        None,
    ),
    (
        "flyway .startH2Server .startup_dao_cleanup_class",
        "the server prepares its database at the start",
        None,
    ),
    (
        "cassandra cassandradao slick .cassandra .cassandradao .jobdao .metadatadao .sqldao .zookeeper "
        ".zookeeperdao .dao-timeout",
        "records are in SQLite or PostgreSQL, and those of the old server are not read",
        "for PostgreSQL, set jobserver.metadata.url",
    ),
    (
        ".binarydao .daorootdir .datadao .filedao .hdfs .jar-store-rootdir .combineddao",
        "files are in the data directory or an object store, and those of the old server are not read",
        "set jobserver.data-dir or jobserver.blobs.url, and upload binaries again",
    ),
    (".cache-on-upload .cachedao spark.job-cache", "caches of binaries need no settings", None),
    (
        ".job-result-cache-size .job-result-cache-ttl-seconds",
        "results are stored, not cached",
        "jobserver.jobs.retention says how long they are kept",
    ),
    (".result-chunk-size", "results of any size are streamed", None),
    (
        ".driver-mode spark.submit.deployMode .ha .kill-context-on-supervisor-down",
        "drivers run on the server's machine",
        "to survive its loss, let several servers share a PostgreSQL database (jobserver.metadata.url)",
    ),
    (
        "spark.driver.supervise",
        "drivers run on the server's machine, and the server starts supervised contexts again",
        "set supervise in spark.context-settings",
    ),
    ("shiro access-control .authentication", "users are configured differently", "set jobserver.auth"),
    ("spark.master-provider", "it is a class of the old server", "set spark.master"),
    (
        ".context-factory spark.temp-contexts",
        "contexts have these settings themselves",
        "set context-factory in spark.context-settings",
    ),
    (".named-object-creation-timeout", "each call that gets a named object has its own timeout", None),
    (".healthcheck", "/healthz checks storage, /readyz all parts of the server", None),
    (
        "spark.ui.port spark.webUrlPort",
        "Spark chooses a free port for the UI of each context",
        "set spark.ui.port in spark.context-settings if you need a certain one",
    ),
    (
        "spark.home",
        "Spark comes with PySpark",
        "to use another one, set python.executable in spark.context-settings",
    ),
    (
        "spark.job-number-cpus",
        "it was the default of an example",
        "set num-cpu-cores in spark.context-settings",
    ),
    (
        "spark.broadcast.factory .yarn-broadcast-factory spark.yarn.isPython",
        "Spark does this by itself",
        None,
    ),
)
"""Keys without effect (with a leading dot: below ``spark.jobserver``), why, and what to do instead."""

IGNORED = {
    f"{_OLD}{key}" if key.startswith(".") else key: NoEffect(why, instead)
    for keys, why, instead in _TABLE
    for key in keys.split()
}
"""Keys and sections of the old server that have no effect here."""

START_TIMEOUTS = dict.fromkeys(
    ["context-init-timeout", "forked-jvm-init-timeout"], "jobserver.contexts.creation-timeout"
)
"""Last parts of keys for how long a context may take to start, and the setting for that."""

IGNORED_IN_CONTEXTS = {
    "context-per-jvm": NoEffect("each context has its own processes"),
    "is-python": NoEffect("a context runs Python jobs and JVM jobs"),
    "sync": NoEffect("it is a parameter of requests"),
    "timeout": NoEffect("it is a parameter of requests"),
    **{
        key: NoEffect("it is a setting of the server", f"set {setting}")
        for key, setting in START_TIMEOUTS.items()
    },
    "streaming.stopSparkContext": NoEffect("a context outlives the streams of its jobs"),
}
"""Settings of contexts of the old server that have no effect here."""
_NO_EFFECT_IN_SPARK = {
    "spark.mesos.": NoEffect("Spark 4 does not support Mesos"),
    "spark.driver.allowMultipleContexts": NoEffect("each context has its own processes"),
}
"""Settings of Spark, by their first letters, that Spark itself no longer reads."""
_OWN_FACTORY = NoEffect(
    "factories of your own are not called, and the context starts only if a jar of its cp has the class",
    "for Python jobs with build_context, set custom, which needs no jar; JVM jobs get a session there",
)


def lost_factory(key: str, value: Json) -> NoEffect | None:
    """Return what becomes of a context factory of the user's own; None for any other setting."""
    own = key == "context-factory" and "." in str(value) and not str(value).startswith(f"{_OLD}.")
    return _OWN_FACTORY if own else None


def no_effect_in_context(key: str) -> NoEffect | None:
    """Return why a dotted key of a context's settings has no effect, or None if it may have one."""
    inner = key.removeprefix("passthrough.").removeprefix("launcher.")
    in_spark = (reason for start, reason in _NO_EFFECT_IN_SPARK.items() if inner.startswith(start))
    return IGNORED_IN_CONTEXTS.get(key) or next(in_spark, None)


_LOCAL_DRIVERS = (
    f"{_OLD}.driver-mode",
    "spark.submit.deployMode",
    f"{_OLD}.kill-context-on-supervisor-down",
    "spark.driver.supervise",
)
_ACCESS = ("shiro", "access-control", f"{_OLD}.authentication")
_OFF = (False, "off", "false", "no", None, "")


def inside(tree: Json, path: str) -> Json:
    """Return the value at a dotted path in a tree, or None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


_CONNECTIONS = {
    "idle-timeout": "set jobserver.http.idle-timeout",
    "request-timeout": "set jobserver.jobs.sync-timeout, which limits how long a request waits for its job",
    "max-connections": "set jobserver.http.max-connections",
    "keystore": f"set jobserver.http.tls-certificate and tls-key to files that you make with: {PEM_COMMANDS}",
    "keystorePW": "give jobserver.http.tls-key a key without a password",
}
"""What to set instead of a setting of the HTTP server of Akka or Spray."""
_SECRET = ".keystorePW"  # noqa: S105 - the name of a key
"""The end of a key whose value is not shown."""
_LOG_LEVEL = "start the server with --log-level"
_NAMED = 5
"""How many keys of a section without effect are named."""


def _connections(why: str, section: str, value: Json) -> NoEffect:
    """Return what becomes of each key that a section of Akka or Spray sets."""
    found = flatten(value, f"{section}.") if isinstance(value, Mapping) else {section: value}
    known = {key: instead for key in found if (instead := _instead_of(section, key))}
    rest = [key for key in found if key not in known and key not in ALIASES]
    shown = [f"{key}{_near_connection(section, key)}" for key in rest[:_NAMED]]
    named = ", ".join(shown) + (f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else "")
    lost = f"{named} {'has' if len(rest) == 1 else 'have'} no effect" if rest else ""
    if not known:
        return NoEffect("; ".join(filter(None, [why, lost])))
    parts = [
        f"for {key}{'' if key.endswith(_SECRET) else f' = {found[key]}'}, "
        f"{instead.replace('KEYSTORE', shlex.quote(str(found[key])))}"
        for key, instead in known.items()
    ]
    return NoEffect(why, "; ".join([*parts, *filter(None, [lost])]))


def _instead_of(section: str, key: str) -> str | None:
    """Return what to set instead of a key of Akka or Spray, or None if nothing needs to replace it."""
    if key in (f"{section}.loglevel", f"{section}.stdout-loglevel"):
        return _LOG_LEVEL
    return _CONNECTIONS.get(key.rpartition(".")[2]) if _of_the_server(section, key) else None


def _near_connection(section: str, key: str) -> str:
    """Return a hint at the setting that a misspelled key of Akka's or Spray's server may mean, or ""."""
    leaf = key.rpartition(".")[2]
    near = difflib.get_close_matches(leaf, _CONNECTIONS, n=1, cutoff=0.85)
    return f" (did you mean {near[0]}?)" if near and _of_the_server(section, key) else ""


def _of_the_server(section: str, key: str) -> bool:
    return key.startswith((f"{section}.can.server.", f"{section}.http.server."))


def near_old_key(written: str) -> str | None:
    """Return the key of the old server that a misspelled one may mean, of those without effect here."""
    keys = {key.removeprefix(f"{_OLD}."): key for key in IGNORED}
    near = difflib.get_close_matches(written.removeprefix(f"{_OLD}."), keys, n=1, cutoff=0.85)
    return keys[near[0]] if near else None


def no_effect(key: str, value: Json) -> NoEffect:
    """Return why a key that :func:`check_ignored` accepts has no effect.

    Nothing is to do instead if its value asked for nothing.
    """
    reason = IGNORED[key]
    if key in ("akka", "spray"):
        return _connections(reason.why, key, value)
    if key in _LOCAL_DRIVERS:
        return NoEffect(reason.why) if value in ("client", *_OFF) else reason
    if key in _ACCESS:  # or check_ignored would have refused it
        return NoEffect("access control is off here as well, unless jobserver.auth is set")
    return reason


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
            message="is not supported; remove it, and set jobserver.http.tls-certificate and tls-key "
            f"to files that you make of the keystore with: {PEM_COMMANDS}",
        )
