"""The job server's settings: one frozen class per section, with a documented default for each key.

The attribute ``settings.jobs.max_jobs_per_context`` is the key ``jobserver.jobs.max-jobs-per-context``.
Durations are in seconds, sizes in bytes. Constructors accept the same values as a configuration file, for
example ``JobLimits(sync_timeout="2 minutes")``, and raise InvalidSetting for invalid values.
:mod:`jobserver_core.config.loading` reads settings from files and mappings.
:mod:`jobserver_core.config.reference` generates the page about them: regenerate it after each change.
"""

# The functions of setting_types create attrs fields. The linter mistakes them for shared defaults.
# ruff: noqa: RUF009

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from jobserver_core.config import setting_types as kinds
from jobserver_core.config.setting_types import Section, bind
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.arguments import check_kind
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.models.redaction import Secret, redacted_url

__all__ = [
    "AuthSettings",
    "BinaryLimits",
    "BlobSettings",
    "CallbackSettings",
    "ContextLimits",
    "DataFileLimits",
    "FetcherSettings",
    "HttpSettings",
    "InputLimits",
    "JobLimits",
    "LauncherSettings",
    "MetadataSettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "SparkSettings",
    "default_data_dir",
]

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3
_MINUTE, _HOUR = 60.0, 3600.0


def default_data_dir(env: Mapping[str, str] | None = None) -> Path:
    """Return the user's data directory for job servers, according to the XDG Base Directory Specification."""
    env = os.environ if env is None else env
    root = env.get("XDG_DATA_HOME", "")
    if os.path.isabs(root):
        return Path(root, "jobserver")
    home = env.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise InvalidSetting(
            key="jobserver.data-dir", message="must be set, because there is no home directory"
        )
    return Path(home, ".local", "share", "jobserver")


def _network(value: str) -> str:
    import ipaddress  # noqa: PLC0415 - rarely used

    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(f"expected a network such as 10.0.0.0/8 or fd00::/8, got {value!r}") from None


def _host(value: str) -> str:
    if "/" in value or "@" in value or any(letter.isspace() for letter in value):
        raise ValueError(f"expected a host name without scheme, port or path, got {value!r}")
    return value.lower().rstrip(".")


def _on_shutdown(value: str) -> str:
    if value not in ("stop", "detach"):
        raise ValueError(f"expected stop or detach, got {value!r}")
    return value


def _scheme(value: str) -> str:
    if not value.replace("+", "").replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"expected a URL scheme such as https, without ://, got {value!r}")
    return value.lower()


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ValueError(f"expected an http or https URL without query, got {redacted_url(value)!r}")
    return value.rstrip("/")


CONTEXT_KEYS = (
    "num-cpu-cores",
    "memory-per-node",
    "context-factory",
    "dependent-jar-uris",
    "cp",
    "stop-context-on-job-error",
    "idle-timeout",
    "max-lifetime",
    "max-lifetime-grace",
    "job-max-queue-time",
    "job-max-run-time",
    "supervise",
    "max-restarts",
    "restart-backoff",
    "max-restart-backoff",
    "restart-reset",
)
"""The settings of contexts that do not depend on the launcher."""


@attrs.frozen(kw_only=True, field_transformer=bind)
class SparkSettings(Section, prefix="spark"):
    """Spark's master, the settings of contexts, and contexts that start with the server."""

    master: str = kinds.text(
        "local[*]", "The Spark master of every context: local[n], spark://…, yarn, k8s://…"
    )
    context_settings: JsonObject = kinds.tree(
        "Default settings of all contexts: num-cpu-cores (without effect if the master says it, as local[2] "
        "does), memory-per-node, spark.*, …"
    )
    contexts: dict[str, JsonObject] = kinds.named_trees(
        "Contexts that start with the server: name { settings }"
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class MetadataSettings(Section, prefix="jobserver.metadata"):
    """The storage for records of binaries, contexts, jobs and callbacks."""

    backend: str = kinds.text("sql", "The metadata backend: sql, memory, or an installed plug-in")
    url: str | None = kinds.text(
        None, "The database URL; null is the SQLite file metadata.db in the data directory", url=True
    )
    options: JsonObject = kinds.options("Options of the backend, see its documentation")


@attrs.frozen(kw_only=True, field_transformer=bind)
class BlobSettings(Section, prefix="jobserver.blobs"):
    """The storage for the bytes of binaries and large results."""

    backend: str = kinds.text("fsspec", "The blob backend: fsspec, memory, or an installed plug-in")
    url: str | None = kinds.text(
        None, "The URL of a directory; null is the directory blobs in the data directory", url=True
    )
    options: JsonObject = kinds.options("Options of the backend, see its documentation")


@attrs.frozen(kw_only=True, field_transformer=bind)
class LauncherSettings(Section, prefix="jobserver.launcher"):
    """The launcher, which starts contexts and runs jobs."""

    backend: str = kinds.text("pyspark", "The launcher: pyspark, memory, or an installed plug-in")
    options: JsonObject = kinds.options("Options of the launcher, see its documentation")


@attrs.frozen(kw_only=True, field_transformer=bind)
class FetcherSettings(Section, prefix="jobserver.fetcher"):
    """How URIs of class paths are fetched, and which are allowed."""

    backend: str = kinds.text("fsspec", "The fetcher: fsspec, or an installed plug-in")
    allowed_schemes: tuple[str, ...] = kinds.texts(
        ("http", "https", "ftp", "file", "local"), "Allowed URL schemes", check=_scheme
    )
    allowed_hosts: tuple[str, ...] = kinds.texts((), "Allowed hosts; empty allows all hosts", check=_host)
    denied_hosts: tuple[str, ...] = kinds.texts((), "Denied hosts", check=_host)
    allowed_networks: tuple[str, ...] = kinds.texts(
        (), "Allowed networks for the addresses of hosts; empty allows all networks", check=_network
    )
    denied_networks: tuple[str, ...] = kinds.texts(
        (),
        "Denied networks, in addition to link-local and cloud metadata addresses",
        check=_network,
    )
    allowed_folders: tuple[Path, ...] = kinds.paths(
        "Allowed directories for file: and local: URIs; empty allows all directories"
    )
    max_size: int = kinds.size(2 * _GIB, "The maximum size of a fetched file", minimum=1)
    timeout: float = kinds.duration(
        5 * _MINUTE, "The maximum duration of one fetch, including the time in the queue", minimum=0.001
    )
    stall_timeout: float = kinds.duration(30.0, "How long a fetch may take for each 32 KiB", minimum=0.001)
    concurrency: int = kinds.number(32, "The maximum number of concurrent fetches", minimum=1, maximum=1024)
    per_host: int = kinds.number(
        4, "The maximum number of concurrent fetches from one host; others wait", minimum=1, maximum=1024
    )
    per_caller: int = kinds.number(
        8,
        "The maximum number of concurrent fetches for one user (or address, without authentication)",
        minimum=1,
        maximum=1024,
    )
    cache_size: int = kinds.size(10 * _GIB, "The maximum size of the cache of fetched files")
    options: JsonObject = kinds.options("Options of the fetcher, see its documentation")


@attrs.frozen(kw_only=True, field_transformer=bind)
class ContextLimits(Section, prefix="jobserver.contexts"):
    """Limits on contexts and on what they use in total, and on the time that they take to start and stop."""

    creation_timeout: float = kinds.duration(
        3 * _MINUTE,
        "How long a launched context may take to start before it fails, not counting the time to unpack its "
        "Python environment",
        minimum=0.001,
    )
    concurrent_starts: int | None = kinds.number(
        None,
        "How many contexts start at once; others wait. null or 0 means one per core",
        zero_is_none=True,
    )
    start_queue_timeout: float = kinds.duration(
        10 * _MINUTE, "How long a context may wait to be launched before it fails", minimum=0.001
    )
    deletion_timeout: float = kinds.duration(
        30.0, "The grace period for a context to stop before it is killed"
    )
    max_contexts: int | None = kinds.number(
        None,
        "The maximum number of live contexts, spares of pools included; null or 0 means no limit",
        zero_is_none=True,
    )
    max_cores: int | None = kinds.number(
        None,
        "The maximum number of cores that all live contexts together ask for; null or 0 means no limit",
        zero_is_none=True,
    )
    max_memory: int | None = kinds.size(
        None,
        "The maximum memory that all live contexts together ask for; null means no limit",
        minimum=1,
        nullable=True,
    )
    reattach_timeout: float = kinds.duration(
        0.0,
        "How long contexts wait for a new server after theirs has ended, before they end too; 0 ends them "
        "with their server, so that other servers take over soon and a killed program leaves nothing behind",
    )
    on_shutdown: str = kinds.text(
        "stop",
        "What a server that is shut down does with its contexts: stop ends them, detach leaves them to the "
        "next server and needs reattach-timeout",
        check=_on_shutdown,
    )
    pools: dict[str, JsonObject] = kinds.named_trees(
        "Contexts that are kept started for new ones with the same settings: name { size, settings }"
    )
    spare_max_age: float = kinds.duration(
        24 * _HOUR, "The age at which an unused context of a pool is replaced", minimum=1.0
    )

    def __attrs_post_init__(self) -> None:
        if self.on_shutdown == "detach" and not self.reattach_timeout:
            message = "must be more than 0, such as 60 s, if jobserver.contexts.on-shutdown is detach"
            raise InvalidSetting(key="jobserver.contexts.reattach-timeout", message=message)


@attrs.frozen(kw_only=True, field_transformer=bind)
class JobLimits(Section, prefix="jobserver.jobs"):
    """Limits on concurrent jobs, waits and results, and how long jobs are kept."""

    max_jobs_per_context: int = kinds.number(
        8, "The maximum number of concurrent jobs in one context", minimum=1
    )
    max_queued_jobs: int = kinds.number(
        100,
        "How many jobs may wait for a slot of one context; others are refused with NO SLOTS AVAILABLE",
    )
    sync_timeout: float = kinds.duration(
        10.0, "The timeout of synchronous requests that do not set one", minimum=0.001
    )
    kill_timeout: float = kinds.duration(
        10.0, "The grace period for a killed job to end before its context is killed too"
    )
    default_config: JsonObject = kinds.tree("Default configuration of all jobs")
    start_timeout: float = kinds.duration(
        60.0, "How long an asynchronous request waits for the job's validation"
    )
    inline_result_limit: int = kinds.size(
        64 * _KIB, "Results up to this size are stored with the metadata, larger ones as blobs"
    )
    max_result_size: int = kinds.size(
        10 * _GIB, "The maximum size of a result; a job with a larger one fails", minimum=1
    )
    retention: float | None = kinds.duration(
        30 * 24 * _HOUR,
        "How long ended jobs and their contexts are kept; null keeps them forever",
        minimum=0.001,
        nullable=True,
    )
    max_kept: int | None = kinds.number(
        100_000,
        "How many ended jobs are kept; the oldest are removed. null keeps any number",
        nullable=True,
    )
    max_result_storage: int | None = kinds.size(
        50 * _GIB,
        "The maximum size of all results; the oldest jobs are removed with theirs, but not in the first "
        "10 minutes after their end. null means no limit",
        nullable=True,
    )
    max_log_storage: int | None = kinds.size(
        10 * _GIB,
        "The maximum size of all logs; the oldest of ended jobs and contexts are removed. "
        "null means no limit",
        nullable=True,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class BinaryLimits(Section, prefix="jobserver.binaries"):
    """Which versions of binaries are kept. A version in use by a job that has not ended is never removed."""

    versions: int = kinds.number(
        10, "How many versions of each binary are kept regardless of their age", minimum=1
    )
    retention: float | None = kinds.duration(
        30 * 24 * _HOUR,
        "How long older versions are kept; null keeps them forever",
        minimum=0.001,
        nullable=True,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class DataFileLimits(Section, prefix="jobserver.data-files"):
    """Where data files are, and which are kept."""

    directory: Path | None = kinds.path(
        None,
        "The directory of the data files, such as one that several servers mount; it must exist. null is the "
        "directory data in the data directory",
    )
    retention: float | None = kinds.duration(
        90 * 24 * _HOUR,
        "How long data files are kept, even if jobs still read them; null keeps them forever",
        minimum=0.001,
        nullable=True,
    )
    max_storage: int | None = kinds.size(
        100 * _GIB,
        "The maximum size of all data files; the oldest are removed. null means no limit",
        nullable=True,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class InputLimits(Section, prefix="jobserver.limits"):
    """Limits on the data that users send and on the logs that jobs write."""

    config_size: int = kinds.size(1 * _MIB, "The maximum size of a posted configuration", minimum=1)
    config_depth: int = kinds.number(
        100, "The maximum nesting depth of a posted configuration", minimum=1, maximum=150
    )
    upload_size: int = kinds.size(10 * _GIB, "The maximum size of an uploaded binary or data file", minimum=1)
    log_size: int = kinds.size(16 * _MIB, "The maximum size of each log", minimum=1024)


@attrs.frozen(kw_only=True, field_transformer=bind)
class CallbackSettings(Section, prefix="jobserver.callbacks"):
    """How callbacks are sent, retried and abandoned, and which receivers are allowed."""

    max_attempts: int = kinds.number(5, "The number of attempts before a callback is abandoned", minimum=1)
    retry_delay: float = kinds.duration(10.0, "The delay between the first failed attempt and the next one")
    backoff: float = kinds.number(
        1.0,
        "The factor by which the delay grows after each further attempt; 1 keeps it constant",
        minimum=1,
        maximum=100,
        whole=False,
    )
    max_retry_delay: float = kinds.duration(_HOUR, "The maximum delay, from backoff or Retry-After")
    timeout: float = kinds.duration(30.0, "The timeout of one attempt", minimum=0.001)
    concurrency: int = kinds.number(
        16, "The maximum number of callbacks that are sent at once", minimum=1, maximum=1024
    )
    per_receiver: int = kinds.number(
        1, "The maximum number of callbacks that are sent at once to one receiver", minimum=1, maximum=1024
    )
    max_payload: int = kinds.size(1 * _MIB, "Larger results are replaced by a link")
    allowed_hosts: tuple[str, ...] = kinds.texts((), "Allowed hosts; empty allows all hosts", check=_host)
    denied_hosts: tuple[str, ...] = kinds.texts((), "Denied hosts", check=_host)
    allowed_networks: tuple[str, ...] = kinds.texts(
        (), "Allowed networks for the addresses of receivers; empty allows all networks", check=_network
    )
    denied_networks: tuple[str, ...] = kinds.texts(
        (),
        "Denied networks, in addition to link-local and cloud metadata addresses",
        check=_network,
    )
    signing_secret: Secret | None = kinds.secret(
        "The secret for signing callbacks (Standard Webhooks); null means no signature"
    )
    ca_file: Path | None = kinds.path(
        None, "A file of CA certificates that are trusted instead of the system's"
    )
    public_url: str | None = kinds.text(
        None, "The URL of this server for receivers, for links to large results", check=_http_url, url=True
    )
    transports: tuple[str, ...] = kinds.texts(
        ("httpx",), "The transports; each serves the URL schemes that it declares"
    )
    options: JsonObject = kinds.options("Options of the transports, see their documentation")


@attrs.frozen(kw_only=True, field_transformer=bind)
class HttpSettings(Section, prefix="jobserver.http"):
    """How the HTTP front-end listens, and its limits."""

    host: str = kinds.text("127.0.0.1", "The address to listen on", check=_host)
    port: int = kinds.number(8090, "The port to listen on; 0 means any free port", maximum=65535)
    tls_certificate: Path | None = kinds.path(None, "The certificate chain (PEM); enables HTTPS")
    tls_key: Path | None = kinds.path(None, "The private key (PEM) of the certificate")
    allow_unauthenticated: bool = kinds.flag(
        False, "Allow a server without authentication to listen on addresses other than loopback"
    )
    drain_timeout: float = kinds.duration(
        12.0, "How long running jobs may continue at shutdown before contexts are stopped"
    )
    idle_timeout: float = kinds.duration(
        60.0, "How long an idle connection is kept open", minimum=1.0, maximum=86400.0
    )
    max_connections: int = kinds.number(
        4000,
        "The maximum number of connections; never more than half of the limit of open files",
        minimum=1,
    )
    max_connections_per_address: int = kinds.number(
        1000,
        "The maximum number per IPv4 address or IPv6 /64, except for loopback and trusted proxies",
        minimum=1,
    )
    trusted_proxies: tuple[str, ...] = kinds.texts(
        (), "Addresses and networks of proxies whose X-Forwarded-For header is trusted", check=_network
    )

    def __attrs_post_init__(self) -> None:
        for given, missing in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                key, other = (kinds.setting_key(self.prefix, name) for name in (missing, given))
                raise InvalidSetting(key=key, message=f"is required if {other} is set")


@attrs.frozen(kw_only=True, field_transformer=bind)
class ServerSettings(Section, prefix="jobserver.servers"):
    """How servers that share a metadata store find out which of them are alive."""

    address: str | None = kinds.text(
        None, "Where this server runs, for people who list the servers; null is the name of the machine"
    )
    lease: float = kinds.duration(
        10.0,
        "How long a server counts as alive after its last sign of life; then others end its contexts and run "
        "its waiting jobs. Servers show that they are alive three times as often",
        minimum=0.5,
        maximum=86400.0,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class AuthSettings(Section, prefix="jobserver.auth"):
    """How callers are authenticated."""

    backend: str = kinds.text("none", "The authenticator: none, file, or an installed plug-in")
    use_as_proxy_user: bool = kinds.flag(
        False, "Run contexts as the authenticated user, and separate the contexts of users"
    )
    password_file: Path | None = kinds.path(None, "The file with users, password hashes and permissions")
    token_file: Path | None = kinds.path(None, "The file with hashes of bearer tokens and permissions")
    options: JsonObject = kinds.options("Options of the authenticator, see its documentation", secret=True)


@attrs.frozen(kw_only=True, field_transformer=bind)
class Settings(Section, prefix="jobserver"):
    """All settings of a job server. ``Settings()`` has the defaults.

    ``warnings`` has a message for each key that was ignored. ``origins`` maps each key that was set to its
    origin: ``"override"``, or the file's path. All other keys have their defaults. ``directories`` maps each
    key of the backends' options to what a relative path is relative to.
    """

    data_dir: Path = kinds.path(default_data_dir, "The directory for everything that the server stores")
    stop_timeout: float = kinds.duration(
        15.0, "How long stopping contexts and closing stores may take at shutdown, after the drain"
    )
    job_binary_paths: dict[str, str] = kinds.named_paths(
        "Binaries to upload when the server starts: name = path"
    )
    spark: SparkSettings = attrs.field(factory=SparkSettings)
    metadata: MetadataSettings = attrs.field(factory=MetadataSettings)
    blobs: BlobSettings = attrs.field(factory=BlobSettings)
    launcher: LauncherSettings = attrs.field(factory=LauncherSettings)
    fetcher: FetcherSettings = attrs.field(factory=FetcherSettings)
    contexts: ContextLimits = attrs.field(factory=ContextLimits)
    jobs: JobLimits = attrs.field(factory=JobLimits)
    binaries: BinaryLimits = attrs.field(factory=BinaryLimits)
    data_files: DataFileLimits = attrs.field(factory=DataFileLimits)
    limits: InputLimits = attrs.field(factory=InputLimits)
    callbacks: CallbackSettings = attrs.field(factory=CallbackSettings)
    http: HttpSettings = attrs.field(factory=HttpSettings)
    auth: AuthSettings = attrs.field(factory=AuthSettings)
    servers: ServerSettings = attrs.field(factory=ServerSettings)
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    directories: Mapping[str, Path] = attrs.field(factory=dict, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(type(self)):
            section = getattr(field.default, "factory", None)
            if isinstance(section, type) and issubclass(section, Section):
                check_kind(field.name, getattr(self, field.name), section, f"{section.__name__}(…)")

    def option_path(self, key: str, default: Path) -> Path:
        """Return an option of a backend that is a path, by its whole key: ``jobserver.blobs.options.path``.

        As all paths of the configuration, it is relative to the directory of the file that sets it, or to the
        working directory if code does. ``~`` is the user's home directory.

        Raises:
            InvalidSetting: The value is not a path.
        """
        section, _, name = key.partition(".options.")
        parts = (getattr(self, field.name) for field in attrs.fields(type(self)))
        options = next(part.options for part in parts if getattr(part, "prefix", None) == section)
        if name not in options:
            return default
        try:
            return self.directories.get(key, Path.cwd()) / kinds.parse_path(options[name])
        except ValueError as error:
            raise InvalidSetting(key=key, message=str(error)) from None

    @classmethod
    def from_mapping(cls, mapping: JsonMapping, *, env: Mapping[str, str] | None = None) -> Settings:
        """Create settings from a mapping and the defaults. Keys can be nested or dotted.

        Raises:
            InvalidRequest: It is not a mapping.
            InvalidSetting: A key is unknown, or a value is invalid.
        """
        from jobserver_core.config.loading import load_settings  # noqa: PLC0415 - config builds on this module

        check_kind("the settings", mapping, Mapping, "a mapping, as the sections of a configuration file are")
        return load_settings(overrides=mapping, env=env)
