"""Metadata stores with one fault each, and the name of the test of the contract that fails for it.

Each class is the in-memory store with one fault, which lives in its dictionaries only.
"""

from metadata_faults import (  # noqa: F401 - they define the subclasses
    binaries,
    changes,
    deliveries,
    lists,
    pins,
    queued_jobs,
    removals,
    returns,
    servers,
    values,
)
from metadata_faults.fault import Fault

FAULTS = Fault.__subclasses__()
