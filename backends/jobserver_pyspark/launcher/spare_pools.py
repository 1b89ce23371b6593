"""Pools of spares: started contexts that wait for a request with the same settings.

Starting a context takes seconds, which is most of the time of an ad-hoc job. So for each pool of the
configuration, some contexts are started before anyone asks for them. Each has a *fingerprint*: everything
that cannot change once an application has started. A new context takes a spare whose fingerprint equals its
own, whatever pool that belongs to, and only its name, log and directories are assigned then.

One thread keeps the pools full. It starts one spare at a time, and none while ``may_start`` returns false or,
for some seconds, while jobs run, so that spares do not delay a request. A spare that died, is
too old, or whose pool would now start another one (its fingerprint changed) is ended before its replacement
is started, so there are never more processes than the sizes of the pools allow.

Invariant: a spare is in ``_spares``, or its taker owns it, or it has been ended. It is handed out at most
once.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from jobserver_core.config.settings import Settings
from jobserver_core.config.trees import merged
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import SparePool
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.repeats import Repeats
from jobserver_pyspark.launcher.context_settings import ContextSettings, read_settings
from jobserver_pyspark.launcher.spark_values import parse_memory

_CHECK_INTERVAL = 10.0
"""Seconds between two checks for spares that have died or become too old."""
_PAUSE = 1.0
"""Seconds from the request for a spare, or an attempt to start one, to the next attempt."""
_LULL_TIMEOUT = 10.0
"""Seconds that a missing spare waits for a moment without running jobs."""
_LONGEST_PAUSE = 300.0
"""Seconds to which the pause grows while spares of a pool fail, for example for wrong settings."""
MAX_SPARES = 64
"""The maximum of the sizes of all pools together."""
_BESIDE_HEAP = 512 * 2**20
"""The bytes that the processes of a context use beside the heap of its JVM."""
_log = logging.getLogger(__name__)
_repeats = Repeats(_log)


@attrs.frozen(kw_only=True)
class Pool:
    """How many contexts with which settings are kept started."""

    name: str
    size: int
    settings: ContextSettings

    def fits(self, memory: int | None) -> bool:
        """Whether one more context fits into this many bytes of free memory; None is an unknown number."""
        heap = parse_memory("spark.driver.memory", self.settings.conf.get("spark.driver.memory", "1g"))
        return memory is None or memory >= heap + _BESIDE_HEAP


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
    key, spark = f"jobserver.contexts.pools.{name}", settings.spark
    own = {field: value for field, value in tree.items() if field != "size"}
    effective = merged({"spark": {"master": spark.master}}, spark.context_settings, own)
    for field in ("dependent-jar-uris", "cp"):
        if effective.get(field):
            raise InvalidSetting(
                key=f"{key}.{field}",
                message="a pool cannot have a class path; contexts with one always start anew",
            )
    try:
        read = read_settings(effective, default_master=spark.master)
    except InvalidSetting as error:
        raise InvalidSetting(key=f"{key}.{error.key}", message=error.message, nearest=error.nearest) from None
    given = tree.get("size", 1)
    size = int(given) if isinstance(given, (int, str)) and str(given).isdecimal() else -1
    if not 0 <= size <= MAX_SPARES:
        raise InvalidSetting(
            key=f"{key}.size", message=f"expected a whole number from 0 to {MAX_SPARES}, got {given!r}"
        )
    return Pool(name=name, size=size, settings=read)


class SpareFailed(Exception):
    """A spare could not be started; the message says why."""


class Spare(ABC):
    """A started context that waits to be taken."""

    def __init__(self, pool: str, fingerprint: str) -> None:
        self.pool = pool
        self.fingerprint = fingerprint
        self.started_at = time.monotonic()

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether its application runs, as far as is known without asking it."""

    @abstractmethod
    def kill(self) -> None:
        """Kill its application without waiting; ``end`` has to follow. Idempotent."""

    @abstractmethod
    def end(self) -> None:
        """End all its processes, and remove its directories. Takes seconds."""


S = TypeVar("S", bound=Spare)


class SpareStarter(ABC, Generic[S]):
    """Starts spares."""

    @abstractmethod
    def fingerprint(self, pool: Pool) -> str | None:
        """Return the fingerprint that a spare of the pool would have now; None if it cannot have spares."""

    @abstractmethod
    def start(self, pool: Pool) -> S:
        """Start a spare, and return it when it is ready.

        Raises:
            SpareFailed: It did not become ready.
        """

    @abstractmethod
    def close(self) -> None:
        """Let a start that is under way fail, and every later one."""


@attrs.define(eq=False)
class SparePools(Generic[S]):
    """Keeps pools of spares full. ``max_age`` is in seconds.

    ``may_start`` returns whether the machine has the processors and the memory for the start of a spare of a
    pool now, and ``busy`` whether jobs run, which delays a start by a limited time.
    """

    _pools: Sequence[Pool]
    _starter: SpareStarter[S]
    _max_age: float
    _may_start: Callable[[Pool], bool] = lambda _pool: True
    _busy: Callable[[], bool] = lambda: False
    _monotonic: Callable[[], float] = time.monotonic
    _missing_since: float | None = attrs.field(default=None, init=False)
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _taken: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _spares: list[S] = attrs.field(factory=list, init=False)
    _starting: Pool | None = attrs.field(default=None, init=False)
    _failures: dict[str, tuple[int, float]] = attrs.field(factory=dict, init=False)
    """By pool: how many starts failed in a row, and when the next one may be attempted."""
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    @property
    def status(self) -> tuple[SparePool, ...]:
        """The pools, and how many spares each has."""
        with self._changed:
            return tuple(
                SparePool(
                    name=pool.name,
                    size=pool.size,
                    ready=sum(spare.pool == pool.name and spare.alive for spare in self._spares),
                    starting=int(self._starting is pool),
                )
                for pool in self._pools
            )

    def begin(self) -> None:
        """Start to keep the pools full, in the background. Idempotent."""
        with self._changed:
            if self._thread is None and self._pools and not self._closed:
                self._thread = threading.Thread(target=self._run, name="spare contexts", daemon=True)
                self._thread.start()

    def take(self, fingerprint: str) -> S | None:
        """Return the oldest spare with this fingerprint, which the caller then owns, or None."""
        with self._changed:
            for spare in self._spares:
                if spare.fingerprint == fingerprint and spare.alive:
                    self._spares.remove(spare)
                    self._taken = True
                    self._changed.notify_all()
                    return spare
        return None

    def _run(self) -> None:
        delay = _PAUSE  # contexts of the configuration come first
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._taken, delay)
                self._changed.wait_for(lambda: self._closed, _PAUSE if self._taken else 0.0)
                if self._closed:
                    return
                self._taken = False
            try:
                delay = self.step()
            except Exception:  # noqa: BLE001 - a pool that stays empty slows contexts down, but must not end the thread
                _log.exception("the pools of spare contexts cannot be filled")
                delay = _LONGEST_PAUSE

    def step(self) -> float:
        """End unfit spares, and start at most one that is missing; return the seconds to wait then."""
        fingerprints = {pool.name: self._starter.fingerprint(pool) for pool in self._pools}
        self._end_unfit(fingerprints)
        missing = [pool for pool in self._pools if fingerprints[pool.name] and self._lacks(pool)]
        now = self._monotonic()
        if not missing:
            self._missing_since = None
            return _CHECK_INTERVAL
        self._missing_since = self._missing_since or now
        if now < self._missing_since + _LULL_TIMEOUT and self._busy():
            return _PAUSE
        due = [pool for pool in missing if self._failures.get(pool.name, (0, now))[1] <= now]
        pool = next(filter(self._may_start, due), None)
        if pool is None:
            return _PAUSE
        self._add(pool)
        return 0.0

    def _lacks(self, pool: Pool) -> bool:
        with self._changed:
            return sum(spare.pool == pool.name for spare in self._spares) < pool.size

    def _end_unfit(self, fingerprints: dict[str, str | None]) -> None:
        oldest = self._monotonic() - self._max_age
        with self._changed:
            unfit = [
                spare
                for spare in self._spares
                if not spare.alive
                or spare.started_at < oldest
                or spare.fingerprint != fingerprints.get(spare.pool)
            ]
            self._spares = [spare for spare in self._spares if spare not in unfit]
        for spare in unfit:
            spare.end()

    def _add(self, pool: Pool) -> None:
        self._starting = pool
        try:
            spare = self._starter.start(pool)
        except SpareFailed as error:
            self._note_failure(pool, error)
            return
        finally:
            self._starting = None
        self._failures.pop(pool.name, None)
        spare.started_at = self._monotonic()
        with self._changed:
            if not self._closed:
                self._spares.append(spare)
                return
        spare.end()

    def _note_failure(self, pool: Pool, error: SpareFailed) -> None:
        if self._closed:
            return
        count = self._failures.get(pool.name, (0, 0.0))[0] + 1
        pause = min(_LONGEST_PAUSE, _PAUSE * 2**count)
        self._failures[pool.name] = (count, self._monotonic() + pause)
        _repeats.warning(
            pool.name, "a spare context of the pool %s could not be started: %s", pool.name, error
        )

    def close(self, deadline: float) -> None:
        """End every spare and start no more, waiting until ``deadline`` on the monotonic clock at most.

        All spares are killed, even if their directories cannot be removed before the deadline: the next
        server does that.
        """
        with self._changed:
            self._closed = True
            spares, self._spares = self._spares, []
            self._changed.notify_all()
            thread = self._thread
        self._starter.close()
        for spare in spares:
            spare.kill()
        ends = [threading.Thread(target=spare.end, name="end of a spare", daemon=True) for spare in spares]
        for end in ends:
            end.start()
        for one in (*ends, *([] if thread is None else [thread])):
            one.join(max(0.0, deadline - time.monotonic()))
