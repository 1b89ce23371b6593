"""What all contexts of this server together may use: their number, their cores, and their memory.

Every context counts with what its settings ask for *at most*, from its acceptance until its end: also while
it waits in the start queue, and while dynamic allocation has given its executors back. So the sum does not
depend on what runs at the moment, an accepted context can always grow to what it was promised, and a refusal
never follows from another context's growth.

Pools of spares count in full, whether or not their spares are up: a pool refills as soon as a spare was
taken, and the context that took it counts for itself. So a pool can neither be refused a spare nor exceed a
limit later.

Contexts that outlived an earlier server run already. They count, but are never refused, so after a start
with lower limits more may be in use than is allowed.

What a job asks Spark for by itself, such as another resource profile, is not counted. The cluster's own
quotas are for that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from jobserver_core.errors import CapacityReached, ContextTooLarge, InvalidSetting, amount_of
from jobserver_core.models.contexts import Resources, ResourceUsage, SparePool

if TYPE_CHECKING:
    from jobserver_core.config.settings import ContextLimits

__all__ = ["Capacity"]

Amounts = dict[str, int | None]
"""The amount of each resource; None has no upper bound."""


class Capacity:
    """The limits of a server, and the part of them that its pools of spares use. Immutable."""

    def __init__(self, limits: ContextLimits, pools: Collection[SparePool]) -> None:
        """Raise InvalidSetting if the pools leave no room for contexts."""
        self._limits: Amounts = {
            "contexts": limits.max_contexts,
            "cores": limits.max_cores,
            "memory": limits.max_memory,
        }
        self._reserved = _sum([_amounts(pool.resources) for pool in pools for _ in range(pool.size)])
        for resource, reserved in self._reserved.items():
            limit = self._limits[resource]
            if limit is not None and (reserved is None or reserved >= limit):
                asked = f"have no upper bound for their {resource}"
                if reserved is not None:
                    asked = f"ask for {amount_of(resource, reserved)}"
                raise InvalidSetting(
                    key="jobserver.contexts.pools",
                    message=f"its spares {asked}, but {_setting(resource)} allows only "
                    f"{amount_of(resource, limit)}, and contexts need room too",
                )

    def check_fits(self, wanted: Resources) -> None:
        """Raise ContextTooLarge for a context that would exceed a limit even if it were the only one."""
        for resource, requested in _amounts(wanted).items():
            limit, reserved = self._limits[resource], self._reserved[resource] or 0
            if limit is not None and (requested is None or reserved + requested > limit):
                raise ContextTooLarge(
                    resource=resource,
                    setting=_setting(resource),
                    requested=requested,
                    limit=limit,
                    reserved=reserved,
                )

    def check_room(self, wanted: Resources, living: Collection[Resources]) -> None:
        """Raise CapacityReached if a context that fits would exceed a limit beside those that live."""
        for usage in self.usage(living):
            requested = _amounts(wanted)[usage.resource]
            if usage.limit is None or requested is None:
                continue
            if usage.used is None or usage.used + requested > usage.limit:
                raise CapacityReached(
                    resource=usage.resource,
                    setting=_setting(usage.resource),
                    requested=requested,
                    used=usage.used,
                    limit=usage.limit,
                )

    def usage(self, living: Collection[Resources]) -> list[ResourceUsage]:
        """Return what living contexts and the pools use, and what is allowed, by resource."""
        used = _sum([self._reserved, *map(_amounts, living)])
        return [
            ResourceUsage(resource=resource, used=used[resource], limit=limit)
            for resource, limit in self._limits.items()
        ]


def _setting(resource: str) -> str:
    return f"jobserver.contexts.max-{resource}"


def _amounts(context: Resources) -> Amounts:
    return {"contexts": 1, "cores": context.cores, "memory": context.memory}


def _sum(amounts: Collection[Amounts]) -> Amounts:
    total: Amounts = {"contexts": 0, "cores": 0, "memory": 0}
    for one in amounts:
        for resource, number in one.items():
            before = total[resource]
            total[resource] = None if before is None or number is None else before + number
    return total
