"""All outgoing connections: a policy for addresses, and connections that enforce it.

Fetching and callbacks both use this package, so that a protection cannot exist in only one of them:

- :mod:`jobserver_net.policy` decides which URIs and addresses are allowed.
- :mod:`jobserver_net.connections` resolves a host, checks its addresses, and connects only to one of those.
- :mod:`jobserver_net.http` sends HTTP requests over such connections, and checks every redirect again.
- :mod:`jobserver_net.deadlines` limits the total time, and supports cancellation.
"""

from jobserver_net.addresses import METADATA_NETWORKS
from jobserver_net.deadlines import Deadline, Expired
from jobserver_net.policy import AddressPolicy

__all__ = ["METADATA_NETWORKS", "AddressPolicy", "Deadline", "Expired"]
