"""A metadata store with any of these faults fails the contract."""

import threading

import pytest
from faults import LEFT_THREADS, cases
from metadata_faults import FAULTS
from metadata_faults.fault import Fault
from metadata_faults.persistent import (
    PERSISTENT_FAULTS,
    Persistent,
    PersistentSuite,
    TakesABrokenDatabaseForEmpty,
)
from metadata_faults.returns import ReturnsTheNumberOfRows
from test_metadata import TestMemoryMetadataStore as Suite

from jobserver_core.memory import MemoryMetadataStore
from jobserver_core.testing.metadata import MetadataStoreContract


def _failure(
    store: type[MemoryMetadataStore], name: str, suite: type[MetadataStoreContract] = Suite
) -> BaseException | None:
    """Return how a test of the contract fails for a store, with any of its parameters, or None."""
    ran = 0
    for test, arguments in cases(suite):
        if test != name:
            continue
        ran += 1
        try:
            getattr(suite(), test)(store=store(), **arguments)
        except (Exception, pytest.fail.Exception) as error:
            return error
    assert ran, f"the contract has no test {name}"
    return None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_contract_catches(fault: type[Fault]) -> None:
    assert not _failure(MemoryMetadataStore, fault.caught_by), "the test fails for a store without a fault"
    failure = _failure(fault, fault.caught_by)
    assert failure is not None
    if isinstance(failure, (AssertionError, pytest.fail.Exception)):
        assert "MetadataStore." in str(failure), "the failure does not quote the port"


@pytest.mark.parametrize("fault", PERSISTENT_FAULTS, ids=lambda fault: fault.__name__)
def test_the_contract_of_persistent_stores_catches(fault: type[Persistent]) -> None:
    assert not _failure(Persistent, fault.caught_by, PersistentSuite), "the test fails without a fault"
    try:
        assert _failure(fault, fault.caught_by, PersistentSuite)
    finally:
        LEFT_THREADS.end()


def test_a_wrong_type_is_named_with_its_call_and_what_the_port_declares() -> None:
    with pytest.raises(
        AssertionError, match=r"renew_server of the metadata store .* returned int instead of bool"
    ):
        Suite().test_every_call_returns_what_the_port_declares(ReturnsTheNumberOfRows())


def test_calls_that_hide_an_unusable_database_are_named() -> None:
    wrong = "while the data is unusable, each call has to raise StorageError, but job returned"
    with pytest.raises(AssertionError, match=wrong):
        PersistentSuite().test_what_the_database_fails_at_is_a_storage_error(TakesABrokenDatabaseForEmpty())


def test_no_thread_is_left_behind() -> None:
    assert [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon] == []
