"""The job server's settings: one frozen class per section, with a documented default for each key.

The attribute ``settings.jobs.max_jobs_per_context`` is the key ``jobserver.jobs.max-jobs-per-context``.
Durations are seconds, sizes are bytes. Constructors take what a configuration file takes, so that
``JobLimits(sync_timeout="2 minutes")`` works, and raise InvalidSetting for what no setting allows.
:mod:`jobserver_core.config.loading` reads settings from files and mappings.
"""

# The functions of setting_types make attrs fields, which the linter takes for shared defaults.
# ruff: noqa: RUF009

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attrs

from jobserver_core.config import setting_types as kinds
from jobserver_core.config.setting_types import Section, bind
from jobserver_core.errors import InvalidSetting
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
    "Settings",
    "SparkSettings",
    "default_data_dir",
]

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3
"""Where clouds answer with a machine's credentials to whoever asks from it."""
_MINUTE, _HOUR = 60.0, 3600.0


def default_data_dir(env: Mapping[str, str] | None = None) -> Path:
    """Return the user's data folder for job servers, after the XDG base directory specification."""
    env = os.environ if env is None else env
    root = env.get("XDG_DATA_HOME", "")
    if os.path.isabs(root):
        return Path(root, "jobserver")
    home = env.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise InvalidSetting(key="jobserver.data-dir", message="there is no home folder; name a folder")
    return Path(home, ".local", "share", "jobserver")


def _network(value: str) -> str:
    import ipaddress  # noqa: PLC0415 - rarely used

    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(f"expected networks such as 10.0.0.0/8 or fd00::/8, got {value!r}") from None


def _host(value: str) -> str:
    if "/" in value or "@" in value or any(letter.isspace() for letter in value):
        raise ValueError(f"expected host names without scheme, port or path, got {value!r}")
    return value.lower().rstrip(".")


def _scheme(value: str) -> str:
    if not value.replace("+", "").replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"expected URL schemes such as https, without ://, got {value!r}")
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


@attrs.frozen(kw_only=True, field_transformer=bind)
class SparkSettings(Section):
    """What contexts get, and which contexts and binaries are there from the start."""

    prefix: ClassVar[str] = "spark"

    master: str = kinds.text(
        "local[*]", "The Spark master of every context: local[n], spark://…, yarn, k8s://…"
    )
    context_settings: dict[str, Any] = kinds.tree(
        "Settings of every context, below its own: num-cpu-cores, memory-per-node, spark.*, …"
    )
    contexts: dict[str, dict[str, Any]] = kinds.named_trees(
        "Contexts that start with the server: name { settings }"
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class MetadataSettings(Section):
    """Where the records of binaries, contexts, jobs and callbacks are."""

    prefix: ClassVar[str] = "jobserver.metadata"

    backend: str = kinds.text("sql", "The metadata backend: sql, memory, or another that is installed")
    url: str | None = kinds.text(
        None, "The database; null is the SQLite file metadata.db in the data folder", url=True
    )
    options: dict[str, Any] = kinds.tree("Options that the backend documents")


@attrs.frozen(kw_only=True, field_transformer=bind)
class BlobSettings(Section):
    """Where the bytes of binaries and large results are."""

    prefix: ClassVar[str] = "jobserver.blobs"

    backend: str = kinds.text("fsspec", "The blob backend: fsspec, memory, or another that is installed")
    url: str | None = kinds.text(
        None, "The file system's folder; null is the folder blobs in the data folder", url=True
    )
    options: dict[str, Any] = kinds.tree("Options that the backend documents")


@attrs.frozen(kw_only=True, field_transformer=bind)
class LauncherSettings(Section):
    """What starts contexts and runs jobs."""

    prefix: ClassVar[str] = "jobserver.launcher"

    backend: str = kinds.text("pyspark", "The launcher: pyspark, memory, or another that is installed")
    options: dict[str, Any] = kinds.tree("Options that the launcher documents")


@attrs.frozen(kw_only=True, field_transformer=bind)
class FetcherSettings(Section):
    """How the URIs of class paths are fetched, and which of them may be."""

    prefix: ClassVar[str] = "jobserver.fetcher"

    backend: str = kinds.text("fsspec", "The fetcher: fsspec, or another that is installed")
    allowed_schemes: tuple[str, ...] = kinds.texts(
        ("http", "https", "ftp", "file", "local"), "URL schemes that may be fetched from", check=_scheme
    )
    allowed_hosts: tuple[str, ...] = kinds.texts(
        (), "Hosts that may be fetched from; empty is any", check=_host
    )
    denied_hosts: tuple[str, ...] = kinds.texts((), "Hosts that are never fetched from", check=_host)
    allowed_networks: tuple[str, ...] = kinds.texts(
        (), "Networks that a host's address must be in; empty is any", check=_network
    )
    denied_networks: tuple[str, ...] = kinds.texts(
        (),
        "Networks that a host's address must not be in, beside link-local and cloud metadata addresses",
        check=_network,
    )
    allowed_folders: tuple[Path, ...] = kinds.paths(
        "Folders that file: and local: URIs may point into; empty is any"
    )
    max_size: int = kinds.size(2 * _GIB, "The largest file that is fetched", minimum=1)
    timeout: float = kinds.duration(
        5 * _MINUTE, "How long one fetch may take, waiting for its turn included", minimum=0.001
    )
    stall_timeout: float = kinds.duration(
        30.0, "How long a fetch may go on without bringing at least 32 KiB", minimum=0.001
    )
    concurrency: int = kinds.number(32, "How many fetches run at once", minimum=1, maximum=1024)
    per_host: int = kinds.number(
        4, "How many fetches from one host run at once; further ones wait", minimum=1, maximum=1024
    )
    per_caller: int = kinds.number(
        8, "How many fetches for one user run at once (one address without log-ins)", minimum=1, maximum=1024
    )
    cache_size: int = kinds.size(10 * _GIB, "How much of what was fetched is kept for the next time")
    options: dict[str, Any] = kinds.tree("Options that the fetcher documents")


@attrs.frozen(kw_only=True, field_transformer=bind)
class ContextLimits(Section):
    """How long contexts may take to come and go, and how many there may be."""

    prefix: ClassVar[str] = "jobserver.contexts"

    creation_timeout: float = kinds.duration(
        60.0, "How long a context may take to start once it is launched; then it has failed", minimum=0.001
    )
    concurrent_starts: int | None = kinds.number(
        None,
        "How many contexts may start at once, further ones wait their turn; null or 0 is one for each core",
        zero_is_none=True,
    )
    start_queue_timeout: float = kinds.duration(
        10 * _MINUTE, "How long a context may wait to be launched; then it has failed", minimum=0.001
    )
    deletion_timeout: float = kinds.duration(
        30.0, "How long a context may take to stop; then it is ended by force"
    )
    max_contexts: int | None = kinds.number(
        None, "How many contexts may live at once; null or 0 is no limit", zero_is_none=True
    )
    spare_hosts: int = kinds.number(
        0, "How many started processes are kept ready for new contexts", maximum=64
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class JobLimits(Section):
    """How many jobs run, how long they are waited for, and what is kept of them."""

    prefix: ClassVar[str] = "jobserver.jobs"

    max_jobs_per_context: int = kinds.number(8, "How many jobs run at once in one context", minimum=1)
    max_queued_jobs: int = kinds.number(
        100, "How many jobs wait for a slot of one context; 0 refuses them (NO SLOTS AVAILABLE)"
    )
    sync_timeout: float = kinds.duration(
        10.0, "How long a synchronous request waits when it does not say", minimum=0.001
    )
    kill_timeout: float = kinds.duration(
        10.0, "How long a killed job may take to end before its context is ended too"
    )
    default_config: dict[str, Any] = kinds.tree("Configuration of every job, below its own")
    start_timeout: float = kinds.duration(
        60.0, "How long an asynchronous request waits for the job's validation"
    )
    inline_result_limit: int = kinds.size(
        64 * _KIB, "Results up to this size are kept with the metadata, larger ones as blobs"
    )
    max_result_size: int = kinds.size(
        10 * _GIB, "The largest result; a larger one is the job's error", minimum=1
    )
    retention: float | None = kinds.duration(
        None, "How long ended jobs and the contexts they ran in are kept; null is for ever", minimum=0.001
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class BinaryLimits(Section):
    """Which versions of binaries are kept. A version that a job which has not ended uses is never removed."""

    prefix: ClassVar[str] = "jobserver.binaries"

    versions: int = kinds.number(10, "How many versions of each binary are kept, however old", minimum=1)
    retention: float | None = kinds.duration(
        30 * 24 * _HOUR,
        "How long versions beyond those are kept; null is for ever",
        minimum=0.001,
        nullable=True,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class DataFileLimits(Section):
    """How long data files are kept."""

    prefix: ClassVar[str] = "jobserver.data-files"

    retention: float | None = kinds.duration(
        None,
        "How long data files are kept, whether or not jobs still read them; null is for ever",
        minimum=0.001,
    )


@attrs.frozen(kw_only=True, field_transformer=bind)
class InputLimits(Section):
    """How large and how deep may be what users send and what jobs write."""

    prefix: ClassVar[str] = "jobserver.limits"

    config_size: int = kinds.size(1 * _MIB, "The largest configuration that may be posted", minimum=1)
    config_depth: int = kinds.number(
        100, "How deep the objects and lists of a posted configuration may nest", minimum=1, maximum=150
    )
    upload_size: int = kinds.size(
        10 * _GIB, "The largest binary or data file that may be uploaded", minimum=1
    )
    log_size: int = kinds.size(16 * _MIB, "How much of each log is kept", minimum=1024)


@attrs.frozen(kw_only=True, field_transformer=bind)
class CallbackSettings(Section):
    """How callbacks are sent, repeated and given up, and where they may go."""

    prefix: ClassVar[str] = "jobserver.callbacks"

    max_attempts: int = kinds.number(5, "How often a callback is tried before it is abandoned", minimum=1)
    retry_delay: float = kinds.duration(10.0, "How long after the first failed attempt the next one follows")
    backoff: float = kinds.number(
        1.0,
        "By what the delay is multiplied after each further attempt; 1 keeps it constant",
        minimum=1,
        maximum=100,
        whole=False,
    )
    max_retry_delay: float = kinds.duration(_HOUR, "The longest delay that backoff or Retry-After lead to")
    timeout: float = kinds.duration(30.0, "How long one attempt may take", minimum=0.001)
    concurrency: int = kinds.number(16, "How many callbacks are sent at once", minimum=1, maximum=1024)
    per_receiver: int = kinds.number(
        1, "How many callbacks are sent at once to one receiver", minimum=1, maximum=1024
    )
    max_payload: int = kinds.size(1 * _MIB, "Results above this size are replaced by a link to them")
    allowed_hosts: tuple[str, ...] = kinds.texts(
        (), "Hosts that callbacks may go to; empty is any", check=_host
    )
    denied_hosts: tuple[str, ...] = kinds.texts((), "Hosts that callbacks never go to", check=_host)
    allowed_networks: tuple[str, ...] = kinds.texts(
        (), "Networks that a receiver's address must be in; empty is any", check=_network
    )
    denied_networks: tuple[str, ...] = kinds.texts(
        (),
        "Networks that a receiver's address must not be in, beside link-local and cloud metadata addresses",
        check=_network,
    )
    signing_secret: Secret | None = kinds.secret(
        "The secret that callbacks are signed with (Standard Webhooks); null is no signature"
    )
    ca_file: Path | None = kinds.path(None, "A file of CA certificates to trust instead of the system's")
    public_url: str | None = kinds.text(
        None, "The base of links to large results, as receivers reach this server", check=_http_url, url=True
    )
    transports: tuple[str, ...] = kinds.texts(
        ("httpx",), "The transports that are used; each serves the URL schemes that it names"
    )
    options: dict[str, Any] = kinds.tree("Options that the transports document")


@attrs.frozen(kw_only=True, field_transformer=bind)
class HttpSettings(Section):
    """Where the HTTP front-end listens."""

    prefix: ClassVar[str] = "jobserver.http"

    host: str = kinds.text("127.0.0.1", "The address to listen on", check=_host)
    port: int = kinds.number(8090, "The port to listen on; 0 is any free one", maximum=65535)
    tls_certificate: Path | None = kinds.path(None, "The certificate chain (PEM) to serve HTTPS with")
    tls_key: Path | None = kinds.path(None, "The private key (PEM) of the certificate")
    allow_unauthenticated: bool = kinds.flag(
        False, "Whether a server without authentication may listen on other than loopback addresses"
    )
    drain_timeout: float = kinds.duration(
        12.0, "How long jobs that have begun may go on at shutdown, before contexts are stopped"
    )
    idle_timeout: float = kinds.duration(
        60.0, "How long a connection without a request is kept open", minimum=1.0, maximum=86400.0
    )
    max_connections: int = kinds.number(
        4000, "The most connections at once; at most half of the limit of open files", minimum=1
    )
    max_connections_per_address: int = kinds.number(
        1000,
        "The most connections of one IPv4 address or IPv6 /64; not for loopback and trusted proxies",
        minimum=1,
    )
    trusted_proxies: tuple[str, ...] = kinds.texts(
        (), "Addresses and networks of proxies whose X-Forwarded-For header is believed", check=_network
    )

    def __attrs_post_init__(self) -> None:
        for given, missing in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                key, other = (kinds.setting_key(self.prefix, name) for name in (missing, given))
                raise InvalidSetting(key=key, message=f"is needed too when '{other}' is set")


@attrs.frozen(kw_only=True, field_transformer=bind)
class AuthSettings(Section):
    """Who may call."""

    prefix: ClassVar[str] = "jobserver.auth"

    backend: str = kinds.text("none", "The authenticator: none, or one that is installed")
    use_as_proxy_user: bool = kinds.flag(
        False, "Whether contexts run as the authenticated user, each user's apart from the others'"
    )
    password_file: Path | None = kinds.path(None, "The file of users with password hashes and permissions")
    token_file: Path | None = kinds.path(None, "The file of bearer tokens with permissions")
    options: dict[str, Any] = kinds.tree("Options that the authenticator documents")


@attrs.frozen(kw_only=True, field_transformer=bind)
class Settings(Section):
    """Every setting of a job server; ``Settings()`` is all defaults.

    ``warnings`` has one text for each key that was accepted and ignored. ``origins`` tells for each key
    that was set where its value is from (``"override"``, or the file's path); the others are defaults.
    """

    prefix: ClassVar[str] = "jobserver"

    data_dir: Path = kinds.path(default_data_dir, "The folder of everything that the server keeps")
    stop_timeout: float = kinds.duration(
        15.0, "How long contexts and stores may take to stop and close at shutdown, after the drain-timeout"
    )
    job_binary_paths: dict[str, str] = kinds.named_paths(
        "Binaries that are uploaded when the server starts: name = path"
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
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = attrs.field(factory=dict, eq=False)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, env: Mapping[str, str] | None = None) -> Settings:
        """Return the settings that a mapping gives, over the defaults; keys may nest or have dots.

        Raises InvalidSetting for an unknown key, with the nearest known one, and for a bad value.
        """
        from jobserver_core.config.loading import load_settings  # noqa: PLC0415 - config builds on this module

        return load_settings(overrides=mapping, env=env)
