"""The one way out to the network: where requests may go, and connections that go nowhere else.

Fetching and callbacks both use this package, so that a protection cannot exist in only one of them:

- :mod:`jobserver_net.policy` decides which URIs and addresses are allowed;
- :mod:`jobserver_net.connections` resolves a host, has its addresses checked, and connects to one of
  those addresses and no other;
- :mod:`jobserver_net.http` sends HTTP requests over such connections, and checks every redirect again;
- :mod:`jobserver_net.deadlines` limits the time that all of this may take, and lets it be cancelled.
"""

from jobserver_net.addresses import METADATA_NETWORKS
from jobserver_net.deadlines import Deadline, Expired
from jobserver_net.policy import AddressPolicy

__all__ = ["METADATA_NETWORKS", "AddressPolicy", "Deadline", "Expired"]
