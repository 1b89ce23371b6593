"""Translates a context's settings, as the HTTP contract lists them, for Spark."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from jobserver_core.config.old_settings import IGNORED_IN_CONTEXTS
from jobserver_core.config.settings import CONTEXT_KEYS
from jobserver_core.errors import InvalidSetting, UnknownContextFactory, amount_of
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_pyspark.launcher.spark_values import (
    check_files,
    check_programs,
    check_python_paths,
    check_values,
    heap_size,
    parse_count,
    parse_memory,
)
from jobserver_pyspark.protocol.failures import details_of
from jobserver_pyspark.protocol.messages import ContextType, FactoryClass

CONTEXT_TYPES: dict[str, ContextType] = {
    "DefaultSparkContextFactory": "spark",
    "JavaContextFactory": "spark",
    "JavaSparkContextFactory": "spark",
    "PythonContextFactory": "spark",
    "PythonSparkContextFactory": "spark",
    "SessionContextFactory": "session",
    "JavaSessionContextFactory": "session",
    "PythonSessionContextFactory": "session",
    "SQLContextFactory": "sql",
    "JavaSqlContextFactory": "sql",
    "PythonSQLContextFactory": "sql",
    "HiveContextFactory": "hive",
    "JavaHiveContextFactory": "hive",
    "PythonHiveContextFactory": "hive",
    "StreamingContextFactory": "streaming",
    "JavaStreamingContextFactory": "streaming",
}
"""The context types, by the last part of the name of a factory of the old server."""

CUSTOM: ContextType = "custom"
"""The context type, and its name as a setting, for which Python jobs build their context themselves."""

PREPARED = frozenset(
    {"spark.jars.packages", "spark.jars", "spark.files", "spark.archives", "spark.submit.pyFiles"}
)
"""Settings that Spark's own submission processes before the application starts."""

LOOPBACK = "127.0.0.1"

_FACTORY = "context-factory"
_CORES = "num-cpu-cores"
_MEMORY = "memory-per-node"
_DRIVER_MEMORY = "spark.driver.memory"
_KEYS = (
    *CONTEXT_KEYS,
    "python.executable",
    "python.paths",
    "python.preload",
    "python.process",
    "jvm.isolation",
    "hadoop-conf-dir",
    "pod-template",
    "streaming.batch_interval",
    "streaming.stopGracefully",
)
_PREFIXES = ("spark.", "passthrough.", "hadoop.", "launcher.")
_LISTS = frozenset({"dependent-jar-uris", "cp", "python.paths", "python.preload"})
"""The keys of ``_KEYS`` that take lists; all others take one value."""
_MAX_PRELOADED = 100
"""The most modules in ``python.preload``, each of which delays the start of a context."""
_MAX_MODULE_NAME = 128
"""The most characters of a module's name in ``python.preload``, which errors repeat."""
_LOCAL = re.compile(r"local(?:\[.*\])?")
_LOOPBACK = re.compile(
    r"spark://(?:127\.[0-9.]+|localhost|\[::1\])(?::\d+)?(?:,(?:127\.[0-9.]+|localhost|\[::1\])(?::\d+)?)*"
)


@attrs.frozen(kw_only=True)
class ContextSettings:
    """A context's settings, translated for Spark.

    ``conf`` is for the SparkConf, ``hadoop`` for the Hadoop configuration. ``context_type`` is the type of
    the jobs' context; ``any``, without a factory, lets each job choose. ``factory`` is a class of the user's
    own, which the driver must have. ``hive`` says whether its tables are Hive's. ``jvm_isolation`` is how
    versions of JVM code are isolated (``session``, ``shared``), None for the default. ``preload`` are the
    modules that are imported before any job runs. ``cores`` is the number of cores that the context asks for,
    None for any. ``hadoop_conf_dir`` is the directory of the cluster's Hadoop configuration, if the context
    has one of its own, and ``pod_template`` the pod in YAML or JSON from which those of its executors are
    made.
    """

    master: str
    context_type: ContextType
    factory: FactoryClass | None = None
    conf: dict[str, str] = attrs.field(factory=dict, hash=False)
    hadoop: dict[str, str] = attrs.field(factory=dict, hash=False)
    proxy_user: str | None = None
    python: str | None = None
    python_paths: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    reuse: bool = True
    jvm_isolation: str | None = None
    hive: bool = False
    cores: int | None = None
    hadoop_conf_dir: Path | None = None
    pod_template: str | None = None

    @property
    def local(self) -> bool:
        """Whether driver and executors are one process."""
        return bool(_LOCAL.fullmatch(self.master))

    @property
    def loopback(self) -> bool:
        """Whether the whole application runs on this machine."""
        return self.local or bool(_LOOPBACK.fullmatch(self.master))

    @property
    def yarn(self) -> bool:
        """Whether the application runs on YARN."""
        return self.master == "yarn"

    @property
    def kubernetes(self) -> bool:
        """Whether the application runs on Kubernetes."""
        return self.master.startswith("k8s://")

    @property
    def containers(self) -> bool:
        """Whether executors run in containers of a cluster manager: on YARN or Kubernetes."""
        return not self.local and not self.master.startswith("spark://")

    @property
    def needs_submit(self) -> bool:
        """Whether Spark's own submission is needed: for packages, impersonation, YARN or Kubernetes."""
        return self.containers or self.proxy_user is not None or not PREPARED.isdisjoint(self.conf)


def read_settings(settings: JsonMapping, *, default_master: str, accepted: bool = False) -> ContextSettings:
    """Read the merged tree of a context's settings.

    With ``accepted``, they were checked when the context was created. A running context does not need the
    programs and archives any more that it was started with, so nothing is checked against the files of this
    machine.

    Raises:
        InvalidSetting: A value can never work.
    """
    flat = flattened(settings)
    _check_keys(flat)
    _check_shapes(settings)
    try:
        return _read(settings, flat, default_master, accepted)
    except InvalidSetting as error:
        given = _key_of(error.key, flat)
        if given == error.key:
            raise
        raise type(error)(**{**error.fields, "key": given}) from None


def _read(
    settings: JsonMapping, flat: Mapping[str, str], default_master: str, accepted: bool
) -> ContextSettings:
    conf = spark_settings(settings)
    cores = parse_count(_CORES, flat[_CORES]) if _CORES in flat else None
    master = conf.pop("spark.master", default_master)
    if cores is not None and master in ("local", "local[*]"):
        master = f"local[{cores}]"
    elif cores is not None and not _LOCAL.fullmatch(master):
        conf.setdefault("spark.cores.max", str(cores))
    _set_memory(conf, master, flat)
    check_values(conf, master=master)
    python_paths = tuple(p.strip() for p in re.split("[,:]", flat.get("python.paths", "")) if p.strip())
    hadoop_conf_dir = Path(flat["hadoop-conf-dir"]) if flat.get("hadoop-conf-dir") else None
    if not accepted:
        check_programs(conf, master=master, python=flat.get("python.executable"))
        check_python_paths(python_paths)
        _check_user(flat.get(_PROXY_USER, ""))
        check_files(conf)
        _check_streaming(flat)
        if flat.get(_FACTORY) == "":
            message = "must not be empty; without it, each job chooses the type of its context"
            raise UnknownContextFactory(key=_FACTORY, message=message)
        _choice(flat, _SESSION_HIVE, "true", "false")
        if hadoop_conf_dir and master != "yarn" and not hadoop_conf_dir.is_dir():  # on YARN, more is checked
            message = f"directory '{hadoop_conf_dir}' does not exist on the server's machine"
            raise InvalidSetting(key="hadoop-conf-dir", message=message)
    context_type, factory = _context_type_of(flat.get(_FACTORY, ""))
    return ContextSettings(
        master=master,
        context_type=context_type,
        factory=factory,
        hive=context_type == "hive"
        or (context_type in ("session", "any") and flat.get(_SESSION_HIVE) == "true"),
        conf=conf,
        hadoop={k[len("hadoop.") :]: v for k, v in flat.items() if k.startswith("hadoop.")},
        proxy_user=flat.get(_PROXY_USER) or None,
        python=flat.get("python.executable"),
        cores=cores,
        hadoop_conf_dir=hadoop_conf_dir,
        pod_template=flat.get("pod-template"),
        reuse=_choice(flat, "python.process", "reuse", "fresh") != "fresh",
        jvm_isolation=_choice(flat, "jvm.isolation", "session", "shared"),
        python_paths=python_paths,
        preload=_modules("python.preload", flat.get("python.preload", "")),
    )


def check_heap(conf: Mapping[str, str], memory: int, given: Mapping[str, str]) -> None:
    """Check that the heap of a driver fits into the memory of this machine, in bytes.

    A JVM starts with any heap, and is killed when it has used what there is. ``given`` has the context's
    settings by their dotted keys.

    Raises:
        InvalidSetting: It does not fit.
    """
    text = conf.get(_DRIVER_MEMORY)
    if text is None or parse_memory(_DRIVER_MEMORY, text) <= memory:
        return
    key = _key_of(_DRIVER_MEMORY, given)
    key = key if key in given or _MEMORY not in given else _MEMORY
    message = (
        f"the driver runs on the server's machine, which has {amount_of('memory', memory)}, got {text!r}"
    )
    raise InvalidSetting(key=key, message=message)


def spark_settings(tree: JsonMapping) -> dict[str, str]:
    """Return what a tree of settings has for the SparkConf."""
    flat = flattened(tree)
    conf = {key: value for key, value in flat.items() if key.startswith("spark.") and key != _PROXY_USER}
    for prefix in ("passthrough.", "launcher."):
        conf.update({k[len(prefix) :]: v for k, v in flat.items() if k.startswith(prefix)})
    return conf


def _key_of(key: str, given: Mapping[str, str]) -> str:
    """Return the key from which :func:`spark_settings` takes the value of a key of the SparkConf."""
    return next(
        (f"{prefix}{key}" for prefix in ("launcher.", "passthrough.") if f"{prefix}{key}" in given), key
    )


def _check_shapes(settings: JsonMapping) -> None:
    """Check that settings of contexts that take one value have one.

    Raises:
        InvalidSetting: It is a list or an object; the items of a list would become one string, and an empty
            object would be ignored.
    """
    for key, value in _values(settings):
        is_list = isinstance(value, (list, tuple))
        if key in _ONE_VALUE and (is_list or isinstance(value, Mapping)):
            raise InvalidSetting(
                key=key, message=f"takes one value, got {'a list' if is_list else 'an object'}"
            )
        if key in _LISTS and isinstance(value, Mapping):
            raise InvalidSetting(key=key, message="takes a list or a comma-separated string, got an object")


def _check_keys(keys: Iterable[str]) -> None:
    """Check the dotted keys of a context's settings.

    Raises:
        InvalidSetting: Some keys are unknown; it names all of them, and the nearest match of the first.
    """
    if any(key.startswith("pod-template.") for key in keys):
        raise InvalidSetting(
            key="pod-template", message="takes a pod as a string of YAML or JSON, got an object of settings"
        )
    known = {*_KEYS, *IGNORED_IN_CONTEXTS}
    unknown = [key for key in keys if key not in known and not key.startswith(_PREFIXES)]
    if not unknown:
        return
    patterns = [f"{prefix}*" for prefix in _PREFIXES]
    near = difflib.get_close_matches(unknown[0], [*_KEYS, *patterns], n=1, cutoff=0.6)
    message = "a context has no such setting"
    if len(unknown) > 1:
        message += f", nor {', '.join(map(repr, unknown[1:]))}"
    if not near:
        message += "; it takes " + ", ".join([*_KEYS, *patterns])
    raise InvalidSetting(key=unknown[0], message=message, nearest=near[0] if near else None)


_PROXY_USER = "spark.proxy.user"
_SESSION_HIVE = "spark.session.hive.enabled"
"""The old server's setting for sessions. It was on by default there, which costs seconds at each start."""
_ONE_VALUE = frozenset({*_KEYS, _PROXY_USER, _SESSION_HIVE}) - _LISTS


_OLD_FACTORIES = "spark.jobserver."
"""The beginning of the old server's names, which can be left out."""


def _context_type_of(factory: str) -> tuple[ContextType, FactoryClass | None]:
    """Return the type of a context, and the class that must exist if it is one of the user's own.

    Raises:
        UnknownContextFactory: It is no type, and not the name of a class that might exist.
    """
    if not factory:
        return "any", None
    if factory == CUSTOM:
        return CUSTOM, None
    name = factory.rpartition(".")[2]
    own = "." in factory and not factory.startswith(_OLD_FACTORIES)
    if not own and name in CONTEXT_TYPES:
        return CONTEXT_TYPES[name], None
    if own and all(part.replace("$", "_").isidentifier() for part in factory.split(".")):
        return CUSTOM, FactoryClass(name=factory, missing=details_of(missing_factory(factory)))
    nearest = _nearest_factory(name, cutoff=0.95 if own else 0.6)
    message = f"unknown context factory {factory!r}"
    if nearest is None:
        known = ", ".join((*CONTEXT_TYPES, CUSTOM))
        message += f"; expected one of {known}, or a class in a jar of the context's class path"
    raise UnknownContextFactory(key=_FACTORY, message=message, nearest=nearest)


def missing_factory(name: str) -> UnknownContextFactory:
    """Return the error for a class of the user's own that the driver does not have."""
    message = (
        f"class {name} is in no jar of the context's class path (cp, dependent-jar-uris); "
        f"for a context that Python jobs build in build_context, use {CUSTOM}"
    )
    nearest = _nearest_factory(name.rpartition(".")[2], cutoff=0.95)
    return UnknownContextFactory(key=_FACTORY, message=message, nearest=nearest)


def _nearest_factory(name: str, *, cutoff: float) -> str | None:
    names = {known.lower(): known for known in (*CONTEXT_TYPES, CUSTOM)}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def _check_user(name: str) -> None:
    """Check the user of ``spark.proxy.user``.

    Raises:
        InvalidSetting: It has spaces around it or characters that cannot be printed.
    """
    if name != name.strip() or not name.isprintable():
        raise InvalidSetting(key=_PROXY_USER, message=f"takes the name of a user, got {name!r}")


def _check_streaming(flat: Mapping[str, str]) -> None:
    """Check what the contexts of streaming jobs read.

    Raises:
        InvalidSetting: A value has no meaning; the JVM would use the default instead.
    """
    key = "streaming.batch_interval"
    interval = flat.get(key, "1000")
    if not interval.isdecimal() or int(interval) < 1:
        raise InvalidSetting(
            key=key, message=f"takes a whole number of milliseconds, such as 1000, got {interval!r}"
        )
    _choice(flat, "streaming.stopGracefully", "true", "false")


def _choice(flat: Mapping[str, str], key: str, one: str, other: str) -> str | None:
    """Return one of two values, or None if the key is not set.

    Raises:
        InvalidSetting: It is another value.
    """
    value = flat.get(key)
    if value not in (None, one, other):
        raise InvalidSetting(key=key, message=f"takes {one} or {other}, got {value!r}")
    return value


def _modules(key: str, value: str) -> tuple[str, ...]:
    """Return the names of modules in a list with commas, each once.

    Raises:
        InvalidSetting: One is not the name of a module.
    """
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if len(name) > _MAX_MODULE_NAME or not all(part.isidentifier() for part in name.split(".")):
            message = (
                f"takes the names of Python modules, such as pandas or pyarrow.compute, each of at most "
                f"{_MAX_MODULE_NAME} characters, got {name[:_MAX_MODULE_NAME]!r}"
            )
            raise InvalidSetting(key=key, message=message)
    if len(names) > _MAX_PRELOADED:
        raise InvalidSetting(key=key, message=f"takes up to {_MAX_PRELOADED} modules, got {len(names)}")
    return names


def flattened(tree: JsonMapping) -> dict[str, str]:
    """Return the leaves of a tree by their dotted paths, as Spark reads them, without nulls."""
    leaves = ((key, value) for key, value in _values(tree) if value is not None and value != {})
    return {key: _text(value) for key, value in leaves}


def _values(tree: JsonMapping, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield all values of a tree by their dotted paths; of its objects, only empty ones."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _values(value, f"{path}.")
        else:
            yield path, value


def _text(value: Json) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set_memory(conf: dict[str, str], master: str, flat: Mapping[str, str]) -> None:
    """Set the memory of executors; in local mode that of the driver, which is the only executor."""
    for key in ("spark.executor.memory", _DRIVER_MEMORY):
        if key in conf:
            conf[key] = heap_size(key, conf[key], conf)
    if _MEMORY not in flat:
        return
    text = heap_size(_MEMORY, flat[_MEMORY], conf)
    conf.setdefault("spark.executor.memory", text)
    if _LOCAL.fullmatch(master):
        conf.setdefault(_DRIVER_MEMORY, text)
