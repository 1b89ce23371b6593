"""Faults in pins and removals of blobs."""

from collections.abc import Iterable

from faults import Rendezvous

from metadata_faults.fault import Fault


class RemovesReferredBlobs(Fault):
    caught_by = "test_a_blob_is_removed_unless_it_is_referred_to"

    def unreferenced(self, digests: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(digests))


class RemovesPinnedBlobs(Fault):
    caught_by = "test_a_blob_is_not_removed_until_its_last_pin_is_gone"

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        pins, self._pins = self._pins, {}
        try:
            return super().begin_removal(digests, server_id=server_id, lease=lease)
        finally:
            self._pins = pins


class RemovesAllPinsOfABlob(Fault):
    caught_by = "test_a_blob_is_not_removed_until_its_last_pin_is_gone"

    def unpin_blobs(self, pin_ids: Iterable[str]) -> None:
        gone = {self._pins[pin_id].digest for pin_id in pin_ids if pin_id in self._pins}
        self._pins = {key: pin for key, pin in self._pins.items() if pin.digest not in gone}


class LetsRemovedBlobsBeUsed(Fault):
    caught_by = "test_a_pin_waits_for_a_removal_and_is_kept_meanwhile"

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        super().pin_blob(pin_id, server_id=server_id, digest=digest)
        return True


class ForgetsPinsOfRemovedBlobs(Fault):
    caught_by = "test_a_pin_waits_for_a_removal_and_is_kept_meanwhile"

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        return not self._is_removed(digest) and super().pin_blob(pin_id, server_id=server_id, digest=digest)


class LeavesMarksOnUsedBlobs(Fault):
    caught_by = "test_a_removal_that_found_a_pin_holds_up_nobody"

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        asked = list(digests)
        removed = super().begin_removal(asked, server_id=server_id, lease=lease)
        self._removals |= dict.fromkeys(asked, (server_id, self._end_of(lease)))
        return removed


class CountsAPinTwice(Fault):
    caught_by = "test_a_pin_that_is_stored_twice_is_one_pin"

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        again = f"{pin_id} again" if pin_id in self._pins else pin_id
        return super().pin_blob(again, server_id=server_id, digest=digest)


class NeverLetsARemovalExpire(Fault):
    caught_by = "test_a_removal_whose_lease_has_expired_is_over"

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        return super().begin_removal(digests, server_id=server_id, lease=max(lease, 3600))


class EndsRemovalsOfOthers(Fault):
    caught_by = "test_a_server_ends_only_its_own_removals"

    def end_removal(self, digests: Iterable[str], *, server_id: str) -> None:
        for digest in digests:
            self._removals.pop(digest, None)


class DropsThePinsOfRemovedServers(Fault):
    caught_by = "test_pins_outlive_the_registration_of_their_server"

    def remove_server(self, server_id: str, *, only_expired: bool = False) -> bool:
        self._pins = {key: pin for key, pin in self._pins.items() if pin.server_id != server_id}
        return super().remove_server(server_id, only_expired=only_expired)


class RemovesAThousandBlobs(Fault):
    caught_by = "test_any_number_of_blobs_can_be_removed_at_once"

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        return super().begin_removal(list(digests)[:1000], server_id=server_id, lease=lease)


class StripsDigests(Fault):
    caught_by = "test_ids_and_digests_can_be_any_strings"

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        return super().pin_blob(pin_id, server_id=server_id, digest=digest.strip("\0\x1a "))


class MarksTwice(Fault):
    caught_by = "test_of_many_that_remove_a_blob_one_wins"

    def _is_removed(self, digest: str) -> bool:
        return False


class PinsAndRemovesInTwoSteps(Fault):
    caught_by = "test_a_pin_and_a_removal_never_miss_each_other"

    def __init__(self) -> None:
        super().__init__()
        self._looked = Rendezvous(2)

    def pin_blob(self, pin_id: str, *, server_id: str, digest: str) -> bool:
        free = not self._is_removed(digest)
        self._looked.wait()
        super().pin_blob(pin_id, server_id=server_id, digest=digest)
        return free

    def begin_removal(self, digests: Iterable[str], *, server_id: str, lease: float) -> list[str]:
        pinned = {pin.digest for pin in self._pins.values()}
        free = [digest for digest in digests if digest not in pinned]
        self._looked.wait()
        self._removals |= dict.fromkeys(free, (server_id, self._end_of(lease)))
        return free
