"""What the contexts of one launcher share."""

from __future__ import annotations

import attrs

from jobserver_pyspark.connections import Connections
from jobserver_pyspark.leftovers import Leftovers
from jobserver_pyspark.packages import Packages
from jobserver_pyspark.spare_hosts import SpareHosts

__all__ = ["Surroundings"]


@attrs.frozen(kw_only=True)
class Surroundings:
    """Where hosts connect, what is recorded of them, and what is kept for them."""

    connections: Connections
    leftovers: Leftovers
    packages: Packages
    spares: SpareHosts
