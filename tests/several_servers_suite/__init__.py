"""The tests that hold for several servers on every store that they can share."""

from several_servers_suite.blobs import SharedBlobs
from several_servers_suite.dead import DeadServers
from several_servers_suite.living import LivingServers
from several_servers_suite.logs import LogsOfOthers
from several_servers_suite.paused import PausedServers
from several_servers_suite.requesting import Requesting
from several_servers_suite.submitting import Submitting
from several_servers_suite.supervised import SupervisedContexts


class SeveralServersSuite(
    LivingServers,
    Submitting,
    Requesting,
    LogsOfOthers,
    SharedBlobs,
    DeadServers,
    SupervisedContexts,
    PausedServers,
):
    """What several servers on one store owe. Subclasses supply stores, and a way to let leases expire."""
