"""A blob store with any of these faults fails the contract."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import pytest
import test_blobs
from faults import LEFT_THREADS, failing

from jobserver_core.errors import BlobNotFound, StorageError
from jobserver_core.ports.blobs import Blob, BlobStore, BlobWriter
from jobserver_fsspec.directory import DirectoryBlobStore

FAR = datetime(9999, 1, 1, tzinfo=timezone.utc)


class Writer(BlobWriter):
    """A writer around another, for faults to be planted in."""

    def __init__(self, store: DirectoryBlobStore, inner: BlobWriter) -> None:
        self.store, self.inner = store, inner
        self.written = b""

    def write(self, data: bytes) -> None:
        if len(self.written) < 64 * 1024:
            self.written += data
        self.inner.write(data)

    @property
    def digest(self) -> str:
        return self.inner.digest

    def commit(self) -> Blob:
        return self.inner.commit()

    def discard(self) -> None:
        self.inner.discard()


class Faulty(DirectoryBlobStore):
    writer: type[Writer] = Writer
    caught_by: ClassVar[str | None] = None
    """The test that catches the fault."""

    def create(self) -> BlobWriter:
        return self.writer(self, super().create())


class HalfWrittenIsVisible(Faulty):
    caught_by = "test_nothing_is_visible_before_the_commit"

    class writer(Writer):  # noqa: N801
        def write(self, data: bytes) -> None:
            super().write(data)
            put_raw(self.store, self.written)


class HashOfTheFirstPieceOnly(Faulty):
    caught_by = "test_a_committed_blob_is_named_by_the_hash_of_its_content"

    class writer(Writer):  # noqa: N801
        first = b""

        def write(self, data: bytes) -> None:
            self.first = self.first or data
            super().write(data)

        def commit(self) -> Blob:
            blob = super().commit()
            return Blob(digest=hashlib.sha256(self.first).hexdigest(), size=blob.size)


class SizeOfTheLastPieceOnly(Faulty):
    caught_by = "test_a_committed_blob_is_named_by_the_hash_of_its_content"

    class writer(Writer):  # noqa: N801
        last = 0

        def write(self, data: bytes) -> None:
            self.last = len(data) or self.last
            super().write(data)

        def commit(self) -> Blob:
            return Blob(digest=super().commit().digest, size=self.last)


class LosesTheEndOfLargeBlobs(Faulty):
    caught_by = "test_a_blob_of_many_chunks_comes_back_unchanged"

    class writer(Writer):  # noqa: N801
        def write(self, data: bytes) -> None:
            super().write(data[: 1024 * 1024])


class KeepsTheTemporaryFileOfADiscard(Faulty):
    caught_by = "test_a_discarded_writer_leaves_nothing"

    class writer(Writer):  # noqa: N801
        def discard(self) -> None:
            Path(self.store._temporaries, "left").touch()
            super().discard()


class DiscardCommits(Faulty):
    caught_by = "test_a_discarded_writer_leaves_nothing"

    class writer(Writer):  # noqa: N801
        def discard(self) -> None:
            try:
                self.inner.commit()
            except Exception:
                self.inner.discard()


class DiscardAfterTheCommitDeletes(Faulty):
    caught_by = "test_a_discard_after_the_commit_changes_nothing"

    class writer(Writer):  # noqa: N801
        digest = ""

        def commit(self) -> Blob:
            blob = super().commit()
            self.digest = blob.digest
            return blob

        def discard(self) -> None:
            self.store.delete(self.digest)
            super().discard()


class PutKeepsWhatCameBeforeAnError(Faulty):
    caught_by = "test_an_error_while_iterating_stores_nothing"

    def put(self, chunks: Iterable[bytes]) -> Blob:
        with self.create() as writer:
            try:
                for chunk in chunks:
                    writer.write(chunk)
            finally:
                blob = writer.commit()
            return blob


class OpensInTextMode(Faulty):
    caught_by = "test_an_empty_blob_is_a_blob"

    def open(self, digest: str) -> BinaryIO:
        with super().open(digest) as file:
            return cast("BinaryIO", io.TextIOWrapper(io.BytesIO(file.read()), encoding="latin-1"))


class DoesNotRenewTheTime(Faulty):
    caught_by = "test_committing_known_content_again_renews_its_time"

    class writer(Writer):  # noqa: N801
        def commit(self) -> Blob:
            path = path_of(self.store, hashlib.sha256(self.written).hexdigest())
            before = path.stat().st_mtime if path.exists() else None
            blob = super().commit()
            if before is not None:
                os.utime(path, (before, before))
            return blob


class HasTheTimeOfTheLastWrite(Faulty):
    caught_by = "test_the_time_of_a_blob_is_that_of_its_commit"

    class writer(Writer):  # noqa: N801
        at = 0.0

        def write(self, data: bytes) -> None:
            super().write(data)
            self.at = time.time()

        def commit(self) -> Blob:
            blob = super().commit()
            os.utime(path_of(self.store, blob.digest), (self.at, self.at))
            return blob


class TimeOfTheLastFlush(Faulty):
    caught_by = "test_the_time_of_a_blob_is_that_of_its_commit"

    class writer(Writer):  # noqa: N801
        def __init__(self, store: DirectoryBlobStore, inner: BlobWriter) -> None:
            super().__init__(store, inner)
            self.file = tempfile.NamedTemporaryFile(buffering=1024 * 1024)  # noqa: SIM115

        def write(self, data: bytes) -> None:
            super().write(data)
            self.file.write(data)

        def commit(self) -> Blob:
            blob = super().commit()
            with self.file:
                self.file.flush()
                at = os.fstat(self.file.fileno()).st_mtime
            os.utime(path_of(self.store, blob.digest), (at, at))
            return blob


class WritesTheWholeBlobAtOnce(Faulty):
    caught_by = "test_a_large_blob_is_never_whole_in_memory"

    class writer(Writer):  # noqa: N801
        def __init__(self, store: DirectoryBlobStore, inner: BlobWriter) -> None:
            super().__init__(store, inner)
            self.whole = bytearray()

        def write(self, data: bytes) -> None:
            self.whole += data

        def commit(self) -> Blob:
            self.inner.write(bytes(self.whole))
            return super().commit()


class ReadsTheWholeBlobAtOnce(Faulty):
    caught_by = "test_a_large_blob_is_never_whole_in_memory"

    def open(self, digest: str) -> BinaryIO:
        with super().open(digest) as file:
            return io.BytesIO(file.read())


class LetsOSErrorsOfReadingOut(Faulty):
    caught_by = "test_what_the_storage_fails_at_is_a_storage_error"

    def open(self, digest: str) -> BinaryIO:
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError:
            raise BlobNotFound(digest=digest) from None


class LetsOSErrorsOfWritingOut(Faulty):
    caught_by = "test_what_the_storage_fails_at_is_a_storage_error"

    def create(self) -> BlobWriter:
        self._temporaries.mkdir(parents=True, exist_ok=True)
        return super().create()


class TakesBrokenStorageForEmpty(Faulty):
    caught_by = "test_what_the_storage_fails_at_is_a_storage_error"

    def size(self, digest: str) -> int | None:
        try:
            return super().size(digest)
        except StorageError:
            return None


class LooksAtEachListedBlobAgain(Faulty):
    caught_by = "test_blobs_may_be_deleted_before_the_listing_reaches_them"

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        for digest in list(super().digests(modified_before=modified_before)):
            path_of(self, digest).stat()
            yield digest


class LeavesATemporaryFileOfADuplicate(Faulty):
    caught_by = "test_a_commit_leaves_no_temporary_file"

    class writer(Writer):  # noqa: N801
        def commit(self) -> Blob:
            if path_of(self.store, hashlib.sha256(self.written).hexdigest()).exists():
                Path(self.store._temporaries, "duplicate").touch()
            return super().commit()


class AllWritersShareOneFile(Faulty):
    caught_by = "test_writers_do_not_disturb_one_another"

    def _create_temporary(self) -> tuple[Path, int]:
        first, descriptor = super()._create_temporary()
        os.close(descriptor)
        first.unlink()
        path = self._temporaries / "the-only-one"
        return path, os.open(path, os.O_WRONLY | os.O_CREAT)


class DoesNotDelete(Faulty):
    caught_by = "test_a_deleted_blob_is_gone"

    def delete(self, digest: str) -> None:
        return


class DeletesByEmptying(Faulty):
    caught_by = "test_a_blob_deleted_while_it_is_open_can_be_read_to_its_end"

    def delete(self, digest: str) -> None:
        if self.size(digest) is not None:
            with open(path_of(self, digest), "r+b") as file:
                file.truncate()
        super().delete(digest)


class DeletingTheAbsentRaises(Faulty):
    caught_by = "test_deleting_an_unknown_blob_does_nothing"

    def delete(self, digest: str) -> None:
        if self.size(digest) is None:
            raise BlobNotFound(digest=digest)
        super().delete(digest)


class ListsAllWhateverTheTime(Faulty):
    caught_by = "test_digests_are_those_that_were_last_committed_before_the_time"

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        return super().digests(modified_before=FAR)


class ListsThoseAfterTheTime(Faulty):
    caught_by = "test_nothing_is_visible_before_the_commit"

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        before = set(super().digests(modified_before=modified_before))
        return (digest for digest in super().digests(modified_before=FAR) if digest not in before)


class ListsNothing(Faulty):
    caught_by = "test_nothing_is_visible_before_the_commit"

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        return iter(())


class SweepsNothing(Faulty):
    caught_by = "test_sweeping_removes_what_abandoned_writers_left"

    def sweep(self, *, modified_before: datetime) -> None:
        return


class SweepsWhateverTheTime(Faulty):
    caught_by = "test_sweeping_leaves_writers_that_are_younger_than_the_time"

    def sweep(self, *, modified_before: datetime) -> None:
        super().sweep(modified_before=FAR)


class SweepsBlobsToo(Faulty):
    caught_by = "test_sweeping_removes_what_abandoned_writers_left"

    def sweep(self, *, modified_before: datetime) -> None:
        super().sweep(modified_before=modified_before)
        for digest in self.digests(modified_before=modified_before):
            self.delete(digest)


class TellsTheAbsentInWordsOfItsOwn(Faulty):
    caught_by = "test_an_unknown_blob_is_not_found"

    def open(self, digest: str) -> BinaryIO:
        return path_of(self, digest).open("rb")


class OpensTheAbsentAsEmpty(Faulty):
    caught_by = "test_an_unknown_blob_is_not_found"

    def open(self, digest: str) -> BinaryIO:
        return io.BytesIO() if self.size(digest) is None else super().open(digest)


class TrustsDigests(Faulty):
    caught_by = "test_an_unknown_blob_is_not_found"

    def _path(self, digest: str) -> Path:
        return Path(self._root, digest[:2], digest[2:4], digest)


class FindsDigestsInAnyCase(Faulty):
    caught_by = "test_an_unknown_blob_is_not_found"

    def _path(self, digest: str) -> Path:
        return super()._path(digest.lower())


class SizeOfTheAbsentIsZero(Faulty):
    caught_by = "test_an_unknown_blob_is_not_found"

    def size(self, digest: str) -> int | None:
        return super().size(digest) or 0


class CannotSeek(Faulty):
    caught_by = "test_an_open_blob_can_be_read_in_parts_and_from_any_position"

    def open(self, digest: str) -> BinaryIO:
        inner = super().open(digest)

        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False

        with inner:
            return Pipe(inner.read())


class ReadersShareTheirPlace(Faulty):
    caught_by = "test_two_readers_of_one_blob_have_their_own_positions"

    shared: dict[str, BinaryIO] = {}

    def open(self, digest: str) -> BinaryIO:
        class Shared(io.BytesIO):
            def close(self) -> None:
                return

        with super().open(digest) as file:
            return self.shared.setdefault(f"{self._root}{digest}", Shared(file.read()))


class ReadsLazilyByName(Faulty):
    caught_by = "test_a_blob_deleted_while_it_is_open_can_be_read_to_its_end"

    def open(self, digest: str) -> BinaryIO:
        path = path_of(self, digest)
        super().open(digest).close()

        class Lazy(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                with path.open("rb") as file:
                    file.seek(self.tell())
                    data = file.read(-1 if size is None else size)
                self.seek(len(data), os.SEEK_CUR)
                return data

        return Lazy(bytes(self.size(digest) or 0))


class LocalPathIsACopyLeftInTheStore(Faulty):
    caught_by = "test_using_local_paths_leaves_nothing_in_the_store"

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        with super().local_path(digest) as path:
            copy = Path(self._root, "copy")
            copy.write_bytes(path.read_bytes())
            yield copy


class LocalPathGoesWithTheFirstUser(Faulty):
    caught_by = "test_a_local_path_stays_valid_until_its_own_block_ends"

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        with super().local_path(digest) as path:
            copy = Path(self._root).with_name(f"copy-{digest}")
            copy.write_bytes(path.read_bytes())
            try:
                yield copy
            finally:
                copy.unlink(missing_ok=True)


class LocalPathOutlivesTheBlob(Faulty):
    caught_by = "test_no_copy_of_a_deleted_blob_outlives_the_close"

    kept: dict[str, bytes] = {}

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        copy = Path(self._root).with_name(f"kept-{digest[:64]}".replace("/", "_").replace("\0", ""))
        if not copy.exists():
            with super().local_path(digest) as path:
                copy.write_bytes(path.read_bytes())
        yield copy


class CheckLeavesItsFile(Faulty):
    caught_by = "test_a_check_of_a_store_that_works_raises_nothing_and_leaves_nothing"

    def check(self) -> None:
        super().check()
        Path(self._temporaries, "probe").touch()


class CheckLeavesABlob(Faulty):
    caught_by = "test_a_check_of_a_store_that_works_raises_nothing_and_leaves_nothing"

    def check(self) -> None:
        self.put([b"probe"])


class ClosingTwiceFails(Faulty):
    caught_by = "test_closing_twice_is_allowed"

    closed = False

    def close(self) -> None:
        if self.closed:
            self.closed = False
            raise ValueError("closed")
        self.closed = True


class ReadsAllForALocalPath(Faulty):
    caught_by = "test_a_large_blob_is_never_whole_in_memory"

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        with super().local_path(digest) as path, tempfile.NamedTemporaryFile() as copy:
            copy.write(path.read_bytes())
            copy.flush()
            yield Path(copy.name)


class LeavesALocalCopy(Faulty):
    caught_by = "test_no_copy_of_a_deleted_blob_outlives_the_close"

    @contextmanager
    def local_path(self, digest: str) -> Iterator[Path]:
        copy = self._root.parent / "copy"
        with super().local_path(digest) as path:
            shutil.copyfile(path, copy)
        yield copy


class LeavesAThread(Faulty):
    caught_by = "test_no_thread_or_process_of_a_store_outlives_its_close"

    def put(self, chunks: Iterable[bytes]) -> Blob:
        LEFT_THREADS.add()
        return super().put(chunks)


class SweepsNothingOfABrokenStore(Faulty):
    caught_by = "test_what_the_storage_fails_at_is_a_storage_error"

    def sweep(self, *, modified_before: datetime) -> None:
        with suppress(StorageError):
            super().sweep(modified_before=modified_before)


class TakesALostDirectoryForANewOne(Faulty):
    caught_by = "test_a_storage_that_is_gone_is_not_taken_for_an_empty_one"

    def _check_there(self) -> None:
        return


class ListsNothingOfALostDirectory(Faulty):
    caught_by = "test_a_storage_that_is_gone_is_not_taken_for_an_empty_one"

    def digests(self, *, modified_before: datetime) -> Iterator[str]:
        with suppress(StorageError):
            yield from super().digests(modified_before=modified_before)


class TakesABrokenStoreForUnused(Faulty):
    caught_by = "test_what_the_storage_fails_at_is_a_storage_error"

    def usage(self) -> tuple[int, int]:
        try:
            return super().usage()
        except StorageError:
            return 0, 0


@pytest.fixture
def directory() -> Iterator[Path]:
    """An in-memory directory if available: these tests write a lot and do not test syncing."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def path_of(store: DirectoryBlobStore, digest: str) -> Path:
    return Path(store._root, digest[:2], digest[2:4], digest)


def put_raw(store: DirectoryBlobStore, content: bytes) -> None:
    path = path_of(store, hashlib.sha256(content).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _failing(kind: type[Faulty], directory: Path) -> Iterator[str]:
    count = iter(range(10_000))

    def make(suite: Any) -> BlobStore:
        suite.root = directory / str(next(count)) / "blobs"
        return kind(suite.root)

    return failing(test_blobs.TestDirectoryOfFsspecBlobStore, "blobs", make, only=kind.caught_by)


def test_a_store_without_a_fault_passes(directory: Path) -> None:
    assert list(_failing(Faulty, directory)) == []


@pytest.mark.parametrize("fault", Faulty.__subclasses__(), ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_store_with_a_fault_fails(fault: type[Faulty], directory: Path) -> None:
    try:
        assert next(_failing(fault, directory), None) is not None
    finally:
        LEFT_THREADS.end()
