"""The options of the launcher: ``jobserver.launcher.options`` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from jobserver_core.config.settings import Settings
from jobserver_core.config.units import parse_size
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_pyspark.installation.spark import default_cache_dir


@attrs.frozen(kw_only=True)
class LauncherOptions:
    """The options in ``jobserver.launcher.options``.

    ``environment`` names further variables of the server's environment that jobs may see.
    ``spare_runners`` is the number of attached processes that each context keeps ready for Python jobs.
    ``class_data_sharing`` keeps an archive of the JVM's classes, which halves the time a context
    takes to start, in ``cache_dir``. ``packages_size`` is the number of bytes of unpacked packages to keep
    in addition to those that contexts use. ``jvm_libraries`` is a directory with the two libraries of the
    ``spark.jobserver`` API, for sites without a repository. ``hadoop_conf_dir`` is the directory of Hadoop's
    configuration, instead of those that the environment names.
    """

    environment: tuple[str, ...] = ()
    spare_runners: int = 2
    class_data_sharing: bool = True
    cache_dir: Path = attrs.field(factory=default_cache_dir)
    packages_size: int = 10 * 1024**3
    jvm_libraries: Path | None = None
    hadoop_conf_dir: Path | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> LauncherOptions:
        """Read the options, with directories relative to the file that names them.

        Raises:
            InvalidSetting: A key is unknown, or a value is invalid.
        """
        given = settings.launcher.options
        directories = {
            key: settings.option_path(f"{_PREFIX}.{key}", Path())
            for key, value in given.items()
            if _READERS.get(key.replace("-", "_")) is _directory and value and isinstance(value, str)
        }
        return cls.parse({**given, **directories})

    @classmethod
    def parse(cls, tree: JsonMapping) -> LauncherOptions:
        """Read the options.

        Raises:
            InvalidSetting: A key is unknown, or a value is invalid.
        """
        values: JsonObject = {}
        for key, value in tree.items():
            name = str(key).replace("-", "_")
            if name not in _READERS:
                known = ", ".join(sorted(option.replace("_", "-") for option in _READERS))
                raise InvalidSetting(
                    key=f"{_PREFIX}.{key}", message=f"is not an option; expected one of {known}"
                )
            try:
                values[name] = _READERS[name](value)
            except (TypeError, ValueError) as error:
                raise InvalidSetting(key=f"{_PREFIX}.{key}", message=str(error)) from None
        return cls(**values)


_PREFIX = "jobserver.launcher.options"


def _names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a list of names, got {value!r}")
    return tuple(name.strip() for name in names if name.strip())


def _count(value: Any) -> int:
    count = int(value)
    if isinstance(value, bool) or not 0 <= count <= 64:
        raise ValueError(f"expected a number from 0 to 64, got {value!r}")
    return count


def _size(value: Any) -> int:
    size = parse_size(value)
    if size < 0:
        raise ValueError(f"expected a size such as 10 GiB, or 0, got {value!r}")
    return size


def _flag(value: Any) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ValueError(f"expected true or false, got {value!r}")
    return found


def _directory(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"expected a directory, got {value!r}")
    return Path(value).expanduser()


_READERS = {
    "environment": _names,
    "spare_runners": _count,
    "class_data_sharing": _flag,
    "cache_dir": _directory,
    "packages_size": _size,
    "jvm_libraries": _directory,
    "hadoop_conf_dir": _directory,
}
