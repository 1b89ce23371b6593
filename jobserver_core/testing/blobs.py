"""The contract of every blob store."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
import tracemalloc
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

import pytest

from jobserver_core.errors import BlobNotFound, StorageError
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter
from jobserver_core.testing.contract import (
    assert_each_raises,
    assert_none_left,
    entered,
    in_threads,
    raised_by,
    returned,
    threads_and_processes,
)
from jobserver_core.testing.options import OptionsContract

_HOUR = timedelta(hours=1)
_MIB = 1024 * 1024
_CONTENT = b"the content of a blob"
_DIGEST = hashlib.sha256(_CONTENT).hexdigest()
_ABSENT = hashlib.sha256(b"never stored").hexdigest()
# No path here leads to a file that could exist: a faulty store would delete it.
_NOWHERE = "/nowhere/of/any/machine"
_NO_DIGESTS = ("", "abc", f"../../..{_NOWHERE}", _NOWHERE, _DIGEST.upper(), _DIGEST + "/..", "\0", "*")


def _now() -> datetime:
    return datetime.now(timezone.utc)


class _StopHereError(Exception):
    """Raised on purpose."""


@contextmanager
def replaced_by_a_file(directory: Path) -> Iterator[None]:
    """Replace a directory with a file, which even root cannot use as a directory."""
    with moved_away(directory):
        directory.touch()
        try:
            yield
        finally:
            directory.unlink()


@contextmanager
def moved_away(directory: Path) -> Iterator[None]:
    """Take a directory away, as when a file system is unmounted."""
    away = directory.with_name(f"{directory.name}-away")
    directory.rename(away)
    try:
        yield
    finally:
        away.rename(directory)


def _created(blobs: BlobStore) -> BlobWriter:
    return returned("create", blobs.create(), BlobWriter)


def _put(blobs: BlobStore, chunks: Iterable[bytes]) -> Blob:
    return returned("put", blobs.put(chunks), Blob)


def _opened(blobs: BlobStore, digest: str) -> BinaryIO:
    file = blobs.open(digest)
    assert callable(getattr(file, "read", None)), f"open returned {file!r}; it has to return a binary file"
    assert not isinstance(file, io.TextIOBase), "open returned a file in text mode; it has to be binary"
    return file


@contextmanager
def _local_path(blobs: BlobStore, digest: str) -> Iterator[Path]:
    with entered("local_path", blobs.local_path(digest), Path) as path:
        yield path


def _listed(blobs: BlobStore, *, modified_before: datetime) -> Iterator[str]:
    found: object = blobs.digests(modified_before=modified_before)
    assert isinstance(found, Iterator), f"digests returned {found!r}; it has to return an iterator"
    return found


class BlobStoreContract(OptionsContract):
    """The behavior of every blob store. Fixtures: ``blobs``, a new, empty store.

    The methods that a subclass supplies access the storage directly, to check the store independently.
    """

    rounding = timedelta(milliseconds=50)
    """How much earlier than it was the storage may say that a blob was committed."""

    @abstractmethod
    def reopen(self, blobs: BlobStore) -> BlobStore:
        """Return another store over the same storage, or the same one if there can be no other."""

    @abstractmethod
    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        """Return the content that the storage has for a digest, or None."""

    @abstractmethod
    def leftovers(self, blobs: BlobStore) -> list[str]:
        """Return the names of all temporary files in the storage."""

    @abstractmethod
    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        """Move the time of a blob's last commit back by ``age``."""

    def _digests(self, blobs: BlobStore) -> set[str]:
        return set(_listed(blobs, modified_before=_now() + _HOUR))

    def _assert_no_leftovers(self, blobs: BlobStore) -> None:
        left = self.leftovers(blobs)
        assert not left, f"the storage still has the temporary files {left}; remove them"

    def _assert_nothing(self, blobs: BlobStore) -> None:
        assert blobs.size(_DIGEST) is None
        assert self.stored(blobs, _DIGEST) is None
        assert self._digests(blobs) == set()

    # -- writing -----------------------------------------------------------------------------------

    def test_a_committed_blob_is_named_by_the_hash_of_its_content(self, blobs: BlobStore) -> None:
        with _created(blobs) as writer:
            writer.write(_CONTENT[:5])
            writer.write(b"")
            assert writer.digest == hashlib.sha256(_CONTENT[:5]).hexdigest()
            writer.write(_CONTENT[5:])
            assert writer.digest == _DIGEST
            assert writer.commit() == Blob(digest=_DIGEST, size=len(_CONTENT))
        assert self.stored(blobs, _DIGEST) == _CONTENT

    def test_an_empty_blob_is_a_blob(self, blobs: BlobStore) -> None:
        blob = _put(blobs, [])
        assert blob == Blob(digest=hashlib.sha256(b"").hexdigest(), size=0)
        assert blobs.size(blob.digest) == 0
        with _opened(blobs, blob.digest) as file:
            assert file.read() == b""
        with _local_path(blobs, blob.digest) as path:
            assert path.read_bytes() == b""

    def test_a_blob_of_many_chunks_comes_back_unchanged(self, blobs: BlobStore) -> None:
        pieces = [os.urandom(size) for size in (1, 7, 64 * 1024, 3 * _MIB + 1, 8191)]
        whole = b"".join(pieces)
        blob = _put(blobs, pieces)
        assert blob == Blob(digest=hashlib.sha256(whole).hexdigest(), size=len(whole))
        with _opened(blobs, blob.digest) as file:
            assert file.read() == whole

    def test_put_takes_any_iterable_once(self, blobs: BlobStore) -> None:
        assert _put(blobs, iter([b"a", b"b"])) == _put(blobs, [b"ab"])

    def test_nothing_is_visible_before_the_commit(self, blobs: BlobStore) -> None:
        with _created(blobs) as writer:
            writer.write(_CONTENT)
            self._assert_nothing(blobs)
            self._assert_nothing(self.reopen(blobs))
            writer.commit()
            assert self._digests(blobs) == {_DIGEST}

    def test_a_committed_blob_is_seen_through_another_store(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        other = self.reopen(blobs)
        assert other.size(_DIGEST) == len(_CONTENT)
        with _opened(other, _DIGEST) as file:
            assert file.read() == _CONTENT

    def test_a_commit_leaves_no_temporary_file(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        _put(blobs, [_CONTENT])
        self._assert_no_leftovers(blobs)

    def test_a_discarded_writer_leaves_nothing(self, blobs: BlobStore) -> None:
        writer = _created(blobs)
        writer.write(_CONTENT)
        writer.discard()
        writer.discard()
        self._assert_nothing(blobs)
        self._assert_no_leftovers(blobs)

    def test_a_block_that_ends_without_a_commit_discards(self, blobs: BlobStore) -> None:
        with _created(blobs) as writer:
            writer.write(_CONTENT)
        self._assert_nothing(blobs)
        self._assert_no_leftovers(blobs)

    def test_an_error_inside_the_block_discards(self, blobs: BlobStore) -> None:
        def write_and_stop(writer: BlobWriter) -> None:
            writer.write(_CONTENT)
            raise _StopHereError

        with pytest.raises(_StopHereError), _created(blobs) as writer:
            write_and_stop(writer)
        self._assert_nothing(blobs)
        self._assert_no_leftovers(blobs)

    def test_an_error_while_iterating_stores_nothing(self, blobs: BlobStore) -> None:
        def chunks() -> Iterator[bytes]:
            yield _CONTENT
            raise _StopHereError

        with pytest.raises(_StopHereError):
            _put(blobs, chunks())
        self._assert_nothing(blobs)
        self._assert_no_leftovers(blobs)

    def test_a_discard_after_the_commit_changes_nothing(self, blobs: BlobStore) -> None:
        writer = _created(blobs)
        writer.write(_CONTENT)
        writer.commit()
        writer.discard()
        writer.discard()
        assert self.stored(blobs, _DIGEST) == _CONTENT

    @pytest.mark.parametrize("end", ["commit", "discard"])
    def test_a_writer_that_has_ended_takes_nothing_more(self, blobs: BlobStore, end: str) -> None:
        writer = _created(blobs)
        writer.write(_CONTENT)
        getattr(writer, end)()
        with pytest.raises(StorageError):
            writer.write(b"more")
        with pytest.raises(StorageError):
            writer.commit()
        assert self._digests(blobs) == ({_DIGEST} if end == "commit" else set())

    def test_writers_do_not_disturb_one_another(self, blobs: BlobStore) -> None:
        with _created(blobs) as first, _created(blobs) as second:
            first.write(b"first ")
            second.write(b"second")
            first.write(b"blob")
            second.discard()
            blob = first.commit()
        assert self.stored(blobs, blob.digest) == b"first blob"
        assert self._digests(blobs) == {blob.digest}

    # -- content that is stored already ------------------------------------------------------------

    def test_the_same_content_is_stored_once(self, blobs: BlobStore) -> None:
        assert _put(blobs, [_CONTENT]) == _put(blobs, [_CONTENT[:3], _CONTENT[3:]])
        assert self._digests(blobs) == {_DIGEST}
        assert self.stored(blobs, _DIGEST) == _CONTENT

    def test_committing_known_content_again_renews_its_time(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        self.make_older(blobs, _DIGEST, 2 * _HOUR)
        assert set(_listed(blobs, modified_before=_now() - _HOUR)) == {_DIGEST}
        _put(blobs, [_CONTENT])
        assert not list(_listed(blobs, modified_before=_now() - _HOUR)), (
            "a commit of content that is stored already has to renew the blob's time"
        )
        assert self._digests(blobs) == {_DIGEST}

    def test_the_time_of_a_blob_is_that_of_its_commit(self, blobs: BlobStore) -> None:
        content = bytes(4 * _MIB)  # more than a buffer holds, or the commit would be the first to write
        with _created(blobs) as writer:
            writer.write(content)
            after_the_write = _now()
            later = after_the_write + self.rounding
            while _now() < later:
                time.sleep(0.005)
            writer.commit()
        assert not list(_listed(blobs, modified_before=after_the_write)), (
            "the time of a blob was earlier than its commit, so the cleanup may sweep a blob right after a "
            "slow upload; take the time of the commit, not that of a write"
        )
        assert self._digests(blobs) == {hashlib.sha256(content).hexdigest()}

    # -- reading -----------------------------------------------------------------------------------

    def test_an_open_blob_can_be_read_in_parts_and_from_any_position(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _opened(blobs, _DIGEST) as file:
            assert file.seekable(), "the file that open returns has to be seekable"
            assert file.read(3) == _CONTENT[:3]
            assert file.seek(-4, os.SEEK_END) == len(_CONTENT) - 4
            assert file.read() == _CONTENT[-4:]
            file.seek(0)
            assert file.read() == _CONTENT
            assert file.read() == b""

    def test_two_readers_of_one_blob_have_their_own_positions(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _opened(blobs, _DIGEST) as first, _opened(blobs, _DIGEST) as second:
            assert first.read(5) == second.read(5) == _CONTENT[:5]
            assert first.read() == _CONTENT[5:]
            assert second.read() == _CONTENT[5:]

    def test_a_blob_deleted_while_it_is_open_can_be_read_to_its_end(self, blobs: BlobStore) -> None:
        content = os.urandom(2 * _MIB)
        digest = _put(blobs, [content]).digest
        with _opened(blobs, digest) as file:
            start = file.read(10)
            blobs.delete(digest)
            assert start + file.read() == content
        assert blobs.size(digest) is None

    def test_a_local_path_has_the_content(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _local_path(blobs, _DIGEST) as path, _local_path(blobs, _DIGEST) as again:
            assert path.is_file(), f"local_path has to be an existing file: {path}"
            assert path.read_bytes() == again.read_bytes() == _CONTENT

    def test_a_local_path_stays_valid_until_its_own_block_ends(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _local_path(blobs, _DIGEST) as path:
            with _local_path(blobs, _DIGEST):
                pass
            _put(blobs, [_CONTENT])
            assert path.read_bytes() == _CONTENT

    def test_using_local_paths_leaves_nothing_in_the_store(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _local_path(blobs, _DIGEST):
            pass
        self._assert_no_leftovers(blobs)
        assert self._digests(blobs) == {_DIGEST}

    def test_no_copy_of_a_deleted_blob_outlives_the_close(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        with _local_path(blobs, _DIGEST) as path:
            pass
        blobs.delete(_DIGEST)
        blobs.close()
        assert not path.exists(), (
            f"{path} has a copy of a deleted blob after close; remove it there at the latest"
        )

    def test_the_size_is_that_of_the_content(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        assert blobs.size(_DIGEST) == len(_CONTENT)

    @pytest.mark.parametrize("digest", [_ABSENT, *_NO_DIGESTS])
    def test_an_unknown_blob_is_not_found(self, blobs: BlobStore, digest: str) -> None:
        _put(blobs, [_CONTENT])
        with pytest.raises(BlobNotFound) as caught:
            blobs.open(digest)
        assert caught.value.digest == digest
        with pytest.raises(BlobNotFound), _local_path(blobs, digest):
            pytest.fail("the block was entered")
        assert blobs.size(digest) is None

    # -- deleting and sweeping ---------------------------------------------------------------------

    def test_a_deleted_blob_is_gone(self, blobs: BlobStore) -> None:
        other = _put(blobs, [b"another blob"])
        _put(blobs, [_CONTENT])
        with _local_path(blobs, _DIGEST):
            pass
        blobs.delete(_DIGEST)
        assert self.stored(blobs, _DIGEST) is None
        assert blobs.size(_DIGEST) is None
        with pytest.raises(BlobNotFound):
            blobs.open(_DIGEST)
        with pytest.raises(BlobNotFound), _local_path(blobs, _DIGEST):
            pytest.fail("the block was entered")
        assert self._digests(blobs) == {other.digest}

    @pytest.mark.parametrize("digest", [_ABSENT, *_NO_DIGESTS])
    def test_deleting_an_unknown_blob_does_nothing(self, blobs: BlobStore, digest: str) -> None:
        _put(blobs, [_CONTENT])
        blobs.delete(digest)
        blobs.delete(digest)
        assert self._digests(blobs) == {_DIGEST}

    def test_a_path_instead_of_a_digest_reaches_no_file(self, blobs: BlobStore) -> None:
        with tempfile.TemporaryDirectory(prefix="jobserver-bystander-") as directory:
            bystander = Path(directory, "bystander")
            bystander.write_bytes(_CONTENT)
            assert blobs.size(str(bystander)) is None
            with pytest.raises(BlobNotFound):
                blobs.open(str(bystander))
            blobs.delete(str(bystander))
            assert bystander.read_bytes() == _CONTENT

    def test_a_deleted_blob_can_be_stored_again(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        blobs.delete(_DIGEST)
        _put(blobs, [_CONTENT])
        assert self.stored(blobs, _DIGEST) == _CONTENT

    def test_digests_are_those_that_were_last_committed_before_the_time(self, blobs: BlobStore) -> None:
        old, older = _put(blobs, [b"old"]).digest, _put(blobs, [b"older"]).digest
        new = _put(blobs, [b"new"]).digest
        self.make_older(blobs, old, 2 * _HOUR)
        self.make_older(blobs, older, 4 * _HOUR)
        assert self._digests(blobs) == {new, old, older}
        assert set(_listed(blobs, modified_before=_now() - _HOUR)) == {old, older}
        assert set(_listed(blobs, modified_before=_now() - 3 * _HOUR)) == {older}
        assert list(_listed(blobs, modified_before=_now() - 5 * _HOUR)) == []

    def test_blobs_can_be_deleted_while_their_digests_are_listed(self, blobs: BlobStore) -> None:
        for number in range(8):
            _put(blobs, [b"%d" % number])
        for digest in _listed(blobs, modified_before=_now() + _HOUR):
            blobs.delete(digest)
        assert self._digests(blobs) == set()

    def test_blobs_may_be_deleted_before_the_listing_reaches_them(self, blobs: BlobStore) -> None:
        stored = {_put(blobs, [b"%d" % number]).digest for number in range(8)}
        listing = _listed(blobs, modified_before=_now() + _HOUR)
        first = next(listing)
        for digest in stored:
            blobs.delete(digest)
        assert {first, *listing} <= stored, "the listing names blobs that were never stored"
        assert self._digests(blobs) == set()

    def test_sweeping_removes_what_abandoned_writers_left(self, blobs: BlobStore) -> None:
        kept = _put(blobs, [_CONTENT])
        abandoned = _created(blobs)
        abandoned.write(b"never committed")
        blobs.sweep(modified_before=_now() + _HOUR)
        self._assert_no_leftovers(blobs)
        assert self.stored(blobs, kept.digest) == _CONTENT
        abandoned.discard()

    def test_sweeping_leaves_writers_that_are_younger_than_the_time(self, blobs: BlobStore) -> None:
        with _created(blobs) as writer:
            writer.write(_CONTENT)
            blobs.sweep(modified_before=_now() - _HOUR)
            writer.commit()
        assert self.stored(blobs, _DIGEST) == _CONTENT

    def test_an_empty_store_has_nothing_to_list_or_sweep(self, blobs: BlobStore) -> None:
        assert self._digests(blobs) == set()
        blobs.sweep(modified_before=_now())

    def test_usage_counts_the_blobs_and_their_bytes(self, blobs: BlobStore) -> None:
        assert blobs.usage() == (0, 0)
        _put(blobs, [b""])
        _put(blobs, [b"x" * 10])
        with _created(blobs) as writer:
            writer.write(b"never committed")
            assert blobs.usage() == (2, 10)

    # -- the store itself --------------------------------------------------------------------------

    def test_a_check_of_a_store_that_works_raises_nothing_and_leaves_nothing(self, blobs: BlobStore) -> None:
        blobs.check()
        self._assert_no_leftovers(blobs)
        assert self._digests(blobs) == set()

    def test_closing_twice_is_allowed(self, blobs: BlobStore) -> None:
        _put(blobs, [_CONTENT])
        blobs.close()
        blobs.close()

    def test_no_thread_or_process_of_a_store_outlives_its_close(self, blobs: BlobStore) -> None:
        before = threads_and_processes()
        for store in (self.reopen(blobs), blobs):
            _put(store, [_CONTENT])
            with _local_path(store, _DIGEST):
                pass
            store.close()
        assert_none_left(
            before, "close() has to end the threads and processes of the store, and wait for them"
        )

    def test_many_threads_can_store_the_same_and_other_content_at_once(self, blobs: BlobStore) -> None:
        common = os.urandom(300_000)

        def run(number: int) -> None:
            own = b"%d" % number
            for _ in range(3):
                for content in (common, own):
                    blob = _put(blobs, [content[:1000], content[1000:]])
                    with _opened(blobs, blob.digest) as file:
                        assert file.read() == content
                    with _local_path(blobs, blob.digest) as path:
                        assert path.read_bytes() == content

        in_threads(run, 6)
        self._assert_no_leftovers(blobs)
        assert len(self._digests(blobs)) == 7


class PersistentBlobStoreContract(BlobStoreContract):
    """The contract of a store that keeps its blobs outside the process's memory."""

    sweeps = True
    """Whether :meth:`BlobStore.sweep` has something to do: writers that end early leave something behind."""
    most_memory = 12 * _MIB
    """The bytes that it may take to write and read a blob of 32 MiB."""

    @abstractmethod
    def broken(self, blobs: BlobStore) -> AbstractContextManager[None]:
        """Make the storage unusable inside the ``with`` block, for instance with a file in its place."""

    def gone(self, blobs: BlobStore) -> AbstractContextManager[None] | None:
        """Take the storage away inside the ``with`` block, like a file system that is unmounted.

        Unlike with :meth:`broken`, the blobs' files are missing, as if there had never been any. None, the
        default, means that this is the same as :meth:`broken`.
        """
        return None

    def test_a_large_blob_is_never_whole_in_memory(self, blobs: BlobStore) -> None:
        piece = os.urandom(_MIB)
        tracemalloc.start()
        try:
            digest = _put(blobs, (piece for _ in range(32))).digest
            with _opened(blobs, digest) as file:
                while file.read(_MIB):
                    pass
            with _local_path(blobs, digest):
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < self.most_memory, (
            f"writing and reading 32 MiB took {peak:,} bytes of memory, but most_memory is "
            f"{self.most_memory:,}; pass the content on in chunks"
        )

    def test_what_the_storage_fails_at_is_a_storage_error(self, blobs: BlobStore) -> None:
        self._assert_fails(blobs, self.broken)

    def test_a_storage_that_is_gone_is_not_taken_for_an_empty_one(self, blobs: BlobStore) -> None:
        self._assert_fails(blobs, lambda store: self.gone(store) or self.broken(store))

    def _assert_fails(
        self, blobs: BlobStore, breaking: Callable[[BlobStore], AbstractContextManager[None]]
    ) -> None:
        _put(blobs, [_CONTENT])
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: blobs.put([b"more"]),
            "open": lambda: blobs.open(_DIGEST),
            "local_path": lambda: blobs.local_path(_DIGEST).__enter__(),
            "size": lambda: blobs.size(_DIGEST),
            "delete": lambda: blobs.delete(_DIGEST),
            "digests": lambda: list(blobs.digests(modified_before=_now() + _HOUR)),
            "sweep": lambda: blobs.sweep(modified_before=_now()),
            "usage": blobs.usage,
            "check": blobs.check,
        }
        if not self.sweeps:
            del calls["sweep"]
        with breaking(blobs):
            raised = {name: raised_by(call) for name, call in calls.items()}
        assert_each_raises(StorageError, raised, "without its storage, which is not an empty one")
        assert self.stored(blobs, _DIGEST) == _CONTENT
        blobs.check()
