"""Limits on all contexts of this server together: their number, cores and memory.

Every context counts with the *maximum* that its settings ask for, from the moment it is accepted until it
ends, even while it waits in the start queue or after dynamic allocation has released its executors. So the
sum does not depend on what is running right now. An accepted context can always grow to its maximum, and its
growth never causes another context to be refused.

Pools of spares count at their full size, whether or not their spares are running: a pool refills as soon as a
spare is taken, and the context that took the spare is counted separately. So a pool is never refused a spare,
and never exceeds a limit later.

Contexts that outlived an earlier server count too, but are never refused, because they are already running.
So after a restart with lower limits, usage may exceed the limits.

Resources that a job itself requests from Spark, for example with a resource profile, are not counted. Use the
cluster's quotas to limit those.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from jobserver_core.errors import CapacityReached, ContextTooLarge, InvalidSetting, Resource, amount_of
from jobserver_core.models.contexts import Resources, ResourceUsage, SparePool

if TYPE_CHECKING:
    from jobserver_core.config.settings import ContextLimits

Amounts = dict[Resource, int | None]
"""The amount of each resource; None has no upper bound."""


class Capacity:
    """The limits of a server, and how much of them its pools of spares reserve. Immutable."""

    def __init__(self, limits: ContextLimits, pools: Collection[SparePool]) -> None:
        """Add up what the pools reserve.

        Raises:
            InvalidSetting: They leave no room for contexts.
        """
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
        """Check that a context could start if it were the only one.

        Raises:
            ContextTooLarge: Alone, it exceeds a limit already.
        """
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
        """Check that there is room for a context in addition to the living ones.

        Raises:
            CapacityReached: It would exceed a limit.
        """
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
        """Return the usage of living contexts and pools, and the limit, for each resource."""
        used = _sum([self._reserved, *map(_amounts, living)])
        return [
            ResourceUsage(resource=resource, used=used[resource], limit=limit)
            for resource, limit in self._limits.items()
        ]


def _setting(resource: Resource) -> str:
    return f"jobserver.contexts.max-{resource}"


def _amounts(context: Resources) -> Amounts:
    return {"contexts": 1, "cores": context.cores, "memory": context.memory}


def _sum(amounts: Collection[Amounts]) -> Amounts:
    total: Amounts = {"contexts": 0, "cores": 0, "memory": 0}
    for each in amounts:
        for resource, number in each.items():
            before = total[resource]
            total[resource] = None if before is None or number is None else before + number
    return total
