"""Reads the pools of spares in ``jobserver.contexts.pools``."""

from __future__ import annotations

from jobserver_core.config.settings import Settings
from jobserver_core.config.trees import merged
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import Json, JsonMapping
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.spare_pools import Pool

MAX_SPARES = 64
"""The maximum of all sizes together."""
_OWN_PROCESS_ONLY = ("dependent-jar-uris", "cp")


def read_pools(settings: Settings) -> list[Pool]:
    """Return the pools of the settings; each has the default settings of contexts under its own.

    Raises:
        InvalidSetting: A pool has an invalid size, or settings with which no spare can start.
    """
    trees = settings.contexts.pools
    pools = [_pool(name, tree, settings) for name, tree in trees.items()]
    if sum(pool.size for pool in pools) > MAX_SPARES:
        raise InvalidSetting(
            key="jobserver.contexts.pools", message=f"the sizes of all pools may add up to {MAX_SPARES}"
        )
    return pools


def _pool(name: str, tree: JsonMapping, settings: Settings) -> Pool:
    key = f"jobserver.contexts.pools.{name}"
    own = {field: value for field, value in tree.items() if field != "size"}
    spark = settings.spark
    effective = merged({"spark": {"master": spark.master}}, spark.context_settings, own)
    for field in _OWN_PROCESS_ONLY:
        if effective.get(field):
            raise InvalidSetting(
                key=f"{key}.{field}",
                message="a pool cannot have a class path; contexts with one always start anew",
            )
    try:
        read = read_settings(effective, default_master=spark.master)
    except InvalidSetting as error:
        raise InvalidSetting(key=f"{key}.{error.key}", message=error.message, nearest=error.nearest) from None
    return Pool(name=name, size=_size(f"{key}.size", tree.get("size", 1)), settings=read)


def _size(key: str, value: Json) -> int:
    number = int(value) if isinstance(value, (int, str)) and str(value).isdecimal() else -1
    if isinstance(value, bool) or not 0 <= number <= MAX_SPARES:
        raise InvalidSetting(
            key=key, message=f"expected a whole number from 0 to {MAX_SPARES}, got {value!r}"
        )
    return number
