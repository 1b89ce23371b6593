"""The metadata contract's part about blobs that servers pin and remove."""

from __future__ import annotations

from functools import partial

import pytest

from jobserver_core.models.lifecycle import JobState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_binary, a_job, an_entry, digest_of
from jobserver_core.testing.metadata.access import HOUR, ODD_TEXTS, StoreAccess, add, register
from jobserver_core.testing.metadata.races import ROUNDS, WRITERS, race

BLOB, OTHER = digest_of("blob"), digest_of("other")


def _pin(store: MetadataStore, pin_id: str, digest: str = BLOB, server_id: str = "s") -> bool:
    return store.pin_blob(pin_id, server_id=server_id, digest=digest)


def _remove(store: MetadataStore, *digests: str, server_id: str = "s", lease: float = HOUR) -> list[str]:
    return store.begin_removal(digests, server_id=server_id, lease=lease)


def pinned_and_removed(store: MetadataStore, other: MetadataStore, pin_id: str, digest: str) -> None:
    """Pin a blob through one store while the other one begins to remove it: not both succeed."""
    free, removed = race(partial(_pin, store, pin_id, digest), partial(_remove, other, digest))
    assert (free, removed) != (True, [digest])
    if removed:
        assert not _pin(store, pin_id, digest)
        other.end_removal(removed, server_id="s")
    assert _pin(store, pin_id, digest)
    assert _remove(other, digest) == []


class PinsContract(StoreAccess):
    """Pins and removals, of which at least one sees the other."""

    def test_a_blob_is_removed_unless_it_is_referred_to(self, store: MetadataStore) -> None:
        binary, entry = a_binary("b"), an_entry(digest=digest_of("job"))
        add(store, binary, a_job(class_path=(entry,), state=JobState.RUNNING))
        assert _remove(store, OTHER, binary.digest, BLOB, entry.digest, OTHER) == [OTHER, BLOB]

    def test_a_blob_is_not_removed_until_its_last_pin_is_gone(self, store: MetadataStore) -> None:
        register(store, "s")
        assert _pin(store, "first")
        assert _pin(store, "second")
        assert _remove(store, BLOB, OTHER) == [OTHER]
        store.unpin_blobs(["first", "unknown"])
        assert _remove(store, BLOB) == []
        store.unpin_blobs(["second"])
        assert _remove(store, BLOB) == [BLOB]

    def test_a_pin_waits_for_a_removal_and_is_kept_meanwhile(self, store: MetadataStore) -> None:
        register(store, "s")
        assert _remove(store, BLOB) == [BLOB]
        assert not _pin(store, "pin")
        assert not _pin(store, "pin")
        store.end_removal([BLOB, OTHER], server_id="s")
        assert _remove(store, BLOB) == []
        assert _pin(store, "pin")

    def test_a_removal_that_found_a_pin_holds_up_nobody(self, store: MetadataStore) -> None:
        register(store, "s")
        _pin(store, "first")
        assert _remove(store, BLOB) == []
        assert _pin(store, "second")

    def test_a_pin_that_is_stored_twice_is_one_pin(self, store: MetadataStore) -> None:
        register(store, "s")
        assert _pin(store, "pin")
        assert _pin(store, "pin")
        store.unpin_blobs(["pin"])
        assert _remove(store, BLOB) == [BLOB]

    def test_a_removal_whose_lease_has_expired_is_over(self, store: MetadataStore) -> None:
        register(store, "s")
        assert _remove(store, BLOB, lease=0) == [BLOB]
        assert _remove(store, BLOB, server_id="other", lease=0) == [BLOB]
        assert _pin(store, "pin")

    def test_a_server_ends_only_its_own_removals(self, store: MetadataStore) -> None:
        assert _remove(store, BLOB) == [BLOB]
        store.end_removal([BLOB], server_id="other")
        assert not _pin(store, "pin")
        assert _remove(store, BLOB, server_id="other") == []

    def test_pins_outlive_the_registration_of_their_server(self, store: MetadataStore) -> None:
        register(store, "s")
        _pin(store, "pin")
        register(store, "s")
        assert _remove(store, BLOB) == []
        store.remove_server("s")
        assert _remove(store, BLOB) == []
        _pin(store, "stray", OTHER, server_id="never registered")
        assert _remove(store, OTHER) == []

    def test_any_number_of_blobs_can_be_removed_at_once(self, store: MetadataStore) -> None:
        digests = [digest_of(str(number)) for number in range(1100)]
        pins = [f"pin{number}" for number in range(3)]
        register(store, "s")
        for pin_id, digest in zip(pins, digests, strict=False):
            _pin(store, pin_id, digest)
        assert store.begin_removal(iter(digests), server_id="s", lease=HOUR) == digests[3:]
        store.end_removal(iter(digests), server_id="s")
        store.unpin_blobs(iter(pins))
        assert store.begin_removal(iter(digests), server_id="s", lease=HOUR) == digests

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_ids_and_digests_can_be_any_strings(self, store: MetadataStore, text: str) -> None:
        register(store, text)
        assert _pin(store, text, text, server_id=text)
        assert _remove(store, text, server_id=text) == []
        store.unpin_blobs([text])
        assert _remove(store, text, server_id=text) == [text]
        store.end_removal([text], server_id=text)
        assert _pin(store, text, text, server_id=text)

    def test_of_many_that_remove_a_blob_one_wins(self, store: MetadataStore) -> None:
        for number in range(ROUNDS):
            digest = digest_of(str(number))
            removed = race(*(partial(_remove, store, digest, server_id=str(n)) for n in range(WRITERS)))
            assert sorted(removed) == [*[[]] * (WRITERS - 1), [digest]]

    def test_a_pin_and_a_removal_never_miss_each_other(self, store: MetadataStore) -> None:
        register(store, "s")
        for number in range(ROUNDS):
            pinned_and_removed(store, store, f"pin{number}", digest_of(str(number)))
