"""What a context asks for at most: cores, and memory.

The rule follows Spark. Without dynamic allocation, a context has a fixed number of executors, with it up to
``spark.dynamicAllocation.maxExecutors``. Each has ``spark.executor.cores`` and its memory. A standalone
cluster also ends at ``spark.cores.max``, which ``num-cpu-cores`` sets; YARN and Kubernetes do not know that
setting, so ``num-cpu-cores`` sets the number of executors there.

Memory is that of the driver's heap and of all executors. An executor has its heap, memory outside the heap,
memory for Python, and on YARN and Kubernetes the overhead with which those size a container. On YARN, the
container of the application master counts as well. The driver's cores do not count: drivers share the
processors of the job server's machine.

YARN rounds each container up to a multiple of its smallest allocation. That is a setting of the
ResourceManager, so it is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import Resources
from jobserver_pyspark.launcher.context_settings import ContextSettings
from jobserver_pyspark.launcher.spark_values import parse_count, parse_memory

_LOCAL_THREADS = re.compile(r"local(?:\[\s*(\d+|\*).*\])?")
_LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")
_DEFAULT_EXECUTORS = "2"
"""On YARN and Kubernetes."""
_INFINITE = str(2**31 - 1)
"""Spark's own word for no bound."""
_LEAST_OVERHEAD = 384
"""MiB that a container has beside the heap, at least."""


def executor_settings(conf: Mapping[str, str], cores: int) -> dict[str, str]:
    """Return the number of executors with so many cores: YARN and Kubernetes ignore ``spark.cores.max``."""
    count = max(1, cores // _count(conf, "spark.executor.cores", "1"))
    key = "spark.dynamicAllocation.maxExecutors" if _dynamic(conf) else "spark.executor.instances"
    return {key: str(count)}


def resources(settings: ContextSettings, site: Mapping[str, str], *, cores_here: int) -> Resources:
    """Return what a context asks for at most.

    ``site`` is the SparkConf of ``spark-defaults.conf``, and ``cores_here`` the cores of this machine, which
    ``local[*]`` uses.

    Raises:
        InvalidSetting: A value of the settings or of the file is invalid.
    """
    conf = {**site, **settings.conf}
    driver = _memory(conf, "spark.driver.memory", "1g")
    if threads := _LOCAL_THREADS.fullmatch(settings.master):
        given = threads[1] or "1"
        return Resources(cores=cores_here if given == "*" else int(given), memory=driver)
    if cluster := _LOCAL_CLUSTER.fullmatch(settings.master):
        workers, cores, megabytes = map(int, cluster.groups())
        return Resources(cores=workers * cores, memory=driver + workers * megabytes * 2**20)
    per_executor = _executor_memory(conf)
    if settings.containers:
        if settings.cores is not None:
            conf = {**executor_settings(conf, settings.cores), **conf}
        executors = (
            _most_executors(conf)
            if _dynamic(conf)
            else _count(conf, "spark.executor.instances", _DEFAULT_EXECUTORS)
        )
        cores_in_total = None if executors is None else executors * _count(conf, "spark.executor.cores", "1")
        per_executor += _overhead(conf)
        if settings.yarn:
            if cores_in_total is not None:
                cores_in_total += _count(conf, "spark.yarn.am.cores", "1")
            driver += _application_master(conf)
    else:
        executors, cores_in_total = _standalone(conf)
    memory = None if executors is None else driver + executors * per_executor
    return Resources(cores=cores_in_total, memory=memory)


def _application_master(conf: Mapping[str, str]) -> int:
    """Return the memory of YARN's container for the application master of a driver outside of the cluster."""
    heap = _memory(conf, "spark.yarn.am.memory", "512m")
    overhead = f"{max(heap // 10 // 2**20, _LEAST_OVERHEAD)}m"
    return heap + _memory(conf, "spark.yarn.am.memoryOverhead", overhead)


def _standalone(conf: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return the most executors and the most cores.

    Without ``spark.executor.cores``, Spark spreads the cores over all workers, so there can be an executor
    for each core.
    """
    cores = _count(conf, "spark.cores.max", "1") if "spark.cores.max" in conf else None
    size = _count(conf, "spark.executor.cores", "1")
    executors = None if cores is None else cores // size
    most = _most_executors(conf) if _dynamic(conf) else None
    if most is not None:
        executors = most if executors is None else min(most, executors)
    if executors is not None and "spark.executor.cores" in conf:
        cores = executors * size
    return executors, cores


def _most_executors(conf: Mapping[str, str]) -> int | None:
    key = "spark.dynamicAllocation.maxExecutors"
    text = conf.get(key, _INFINITE).strip()
    return None if text.lower() == "infinity" or text == _INFINITE else _count(conf, key, text)


def _executor_memory(conf: Mapping[str, str]) -> int:
    memory = _memory(conf, "spark.executor.memory", "1g")
    memory += _memory(conf, "spark.executor.pyspark.memory", "0")
    if _true(conf, "spark.memory.offHeap.enabled"):
        memory += _memory(conf, "spark.memory.offHeap.size", "0")
    return memory


def _overhead(conf: Mapping[str, str]) -> int:
    """Return what a container has beside the heap: a setting, or a part of the heap."""
    if "spark.executor.memoryOverhead" in conf:
        return _memory(conf, "spark.executor.memoryOverhead", "0")
    key = "spark.executor.memoryOverheadFactor"
    text = conf.get(key) or conf.get("spark.kubernetes.memoryOverheadFactor") or "0.1"
    try:
        part = float(text)
    except ValueError:
        raise InvalidSetting(key=key, message=f"expected a number such as 0.1, got {text!r}") from None
    least = _memory(conf, "spark.executor.minMemoryOverhead", f"{_LEAST_OVERHEAD}m")
    return max(int(_memory(conf, "spark.executor.memory", "1g") * part), least)


def _dynamic(conf: Mapping[str, str]) -> bool:
    return _true(conf, "spark.dynamicAllocation.enabled")


def _true(conf: Mapping[str, str], key: str) -> bool:
    return conf.get(key, "false").strip().lower() == "true"


def _count(conf: Mapping[str, str], key: str, default: str) -> int:
    return parse_count(key, conf.get(key, default).strip())


def _memory(conf: Mapping[str, str], key: str, default: str) -> int:
    return parse_memory(key, conf.get(key, default))
