"""What the contexts of one launcher share."""

from __future__ import annotations

import attrs

from jobserver_pyspark.launcher.connections import Connections
from jobserver_pyspark.launcher.leftovers import Leftovers
from jobserver_pyspark.launcher.packages import Packages
from jobserver_pyspark.launcher.spare_hosts import SpareHosts

__all__ = ["Surroundings"]


@attrs.frozen(kw_only=True)
class Surroundings:
    """Where hosts connect, what is recorded of them, and what is kept for them."""

    connections: Connections
    leftovers: Leftovers
    packages: Packages
    spares: SpareHosts
