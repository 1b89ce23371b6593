"""A fetcher with any of these faults fails the contract."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import test_fetcher
from faults import failing
from test_fetcher import DENIED_HOST

from jobserver_core.errors import FetchError, MalformedUrl, TooLarge
from jobserver_core.memory import MemoryFetcher
from jobserver_core.ports.fetcher import Cancellation, Fetched, ProgressCallback
from jobserver_core.uris import Uri


class Faulty(MemoryFetcher):
    """A fetcher to plant faults in. It knows the directory of its files."""

    caught_by: ClassVar[str | None] = None
    """The test that catches the fault."""

    directory: Path


class Changed(Faulty):
    """A fetcher that changes the file before it returns it."""

    def changed(self, fetched: Fetched) -> Fetched:
        raise NotImplementedError

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            yield self.changed(fetched)


class HashOfSomethingElse(Changed):
    caught_by = "test_a_fetched_file_has_content_digest_and_size"

    def changed(self, fetched: Fetched) -> Fetched:
        return Fetched(path=fetched.path, digest="0" * 64, size=fetched.size)


class SizeOfSomethingElse(Changed):
    caught_by = "test_a_fetched_file_has_content_digest_and_size"

    def changed(self, fetched: Fetched) -> Fetched:
        return Fetched(path=fetched.path, digest=fetched.digest, size=fetched.size + 1)


class CutsOff(Changed):
    caught_by = "test_a_fetched_file_has_content_digest_and_size"

    def changed(self, fetched: Fetched) -> Fetched:
        os.truncate(fetched.path, min(fetched.size, 65_536))
        return fetched


class OnePathForAll(Changed):
    caught_by = "test_the_file_is_not_changed_inside_the_block"

    def changed(self, fetched: Fetched) -> Fetched:
        path = self.directory / "the-file"
        shutil.copyfile(fetched.path, path)
        return Fetched(path=path, digest=fetched.digest, size=fetched.size)


class NeverAsksAgain(Faulty):
    caught_by = "test_a_changed_file_is_fetched_anew"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: dict[str, bytes] = {}

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        canonical = Uri.parse(uri).canonical
        if canonical in self.kept:
            fetcher = MemoryFetcher({uri: self.kept[canonical]})
            with fetcher.fetch(uri, **options) as fetched:
                yield fetched
        else:
            with super().fetch(uri, **options) as fetched:
                self.kept[canonical] = fetched.path.read_bytes()
                yield fetched


class CachesByName(NeverAsksAgain):
    caught_by = "test_a_changed_file_is_fetched_anew"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        name = f"http://host.example/{Uri.parse(uri).name}"
        if name not in self.kept:
            with MemoryFetcher.fetch(self, uri, **options) as fetched:
                self.kept[name] = fetched.path.read_bytes()
        with MemoryFetcher({name: self.kept[name]}).fetch(name) as fetched:
            yield fetched


class LeavesFilesBehind(Faulty):
    caught_by = "test_a_missing_file_is_a_fetch_error_and_leaves_nothing"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        part = self.directory / "part"
        part.touch()
        with super().fetch(uri, **options) as fetched:
            part.unlink()
            yield fetched


class NeverTellsProgress(Faulty):
    caught_by = "test_progress_grows_up_to_the_size"

    @contextmanager
    def fetch(
        self, uri: str, *, progress: ProgressCallback | None = None, **options: Any
    ) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            yield fetched


class ProgressGoesBack(Faulty):
    caught_by = "test_progress_grows_up_to_the_size"

    @contextmanager
    def fetch(
        self, uri: str, *, progress: ProgressCallback | None = None, **options: Any
    ) -> Iterator[Fetched]:
        with super().fetch(uri, progress=progress, **options) as fetched:
            if progress is not None:
                progress(0, None)
            yield fetched


class SwallowsWhatProgressRaises(Faulty):
    caught_by = "test_what_the_progress_callback_raises_ends_the_fetch"

    @contextmanager
    def fetch(
        self, uri: str, *, progress: ProgressCallback | None = None, **options: Any
    ) -> Iterator[Fetched]:
        def quiet(done: int, total: int | None) -> None:
            try:
                if progress is not None:
                    progress(done, total)
            except Exception:
                return

        with super().fetch(uri, progress=quiet, **options) as fetched:
            yield fetched


class IgnoresCancellation(Faulty):
    caught_by = "test_a_fetch_that_was_cancelled_before_it_began_ends_with_the_reason"

    @contextmanager
    def fetch(
        self, uri: str, *, cancellation: Cancellation | None = None, **options: Any
    ) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            yield fetched


class SaysNothingOfTheReason(Faulty):
    caught_by = "test_a_fetch_that_was_cancelled_before_it_began_ends_with_the_reason"

    @contextmanager
    def fetch(
        self, uri: str, *, cancellation: Cancellation | None = None, **options: Any
    ) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            if cancellation is not None and cancellation.reason is not None:
                raise FetchError(url=uri, reason="cancelled")
            yield fetched


class CancelledToTheEnd(Faulty):
    caught_by = "test_a_cancellation_inside_the_block_changes_nothing"

    @contextmanager
    def fetch(
        self, uri: str, *, cancellation: Cancellation | None = None, **options: Any
    ) -> Iterator[Fetched]:
        with super().fetch(uri, cancellation=cancellation, **options) as fetched:
            stop = cancellation.subscribe(lambda reason: fetched.path.unlink()) if cancellation else None
            yield fetched
            if stop is not None:
                stop()


class HasNoLimit(Faulty):
    caught_by = "test_a_file_of_the_limit_is_fetched_and_a_larger_one_is_too_large"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_size": 2**40})


class RefusesTheLimitItself(Faulty):
    caught_by = "test_a_file_of_the_limit_is_fetched_and_a_larger_one_is_too_large"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_size": options["max_size"] - 1})


class FetchesWithoutTheCheck(Faulty):
    caught_by = "test_a_string_that_is_not_a_uri_is_malformed"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        try:
            self.check(uri)
        except MalformedUrl:
            uri = "http://host.example/"
            self.publish(uri, b"")
        with super().fetch(uri, **options) as fetched:
            yield fetched


class AllowsEveryHost(Faulty):
    caught_by = "test_a_uri_that_the_policy_refuses_is_malformed"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"denied_hosts": ()})


class AllowsEveryScheme(Faulty):
    caught_by = "test_a_string_that_is_not_a_uri_is_malformed"

    def __init__(self, **options: Any) -> None:
        schemes = ("http", "https", "ftp", "file", "local", "gopher", "javascript", "s3")
        super().__init__(**options | {"schemes": schemes})


class CheckAllowsAll(Faulty):
    caught_by = "test_a_string_that_is_not_a_uri_is_malformed"

    def check(self, uri: str) -> None:
        return


class CheckLooks(Faulty):
    caught_by = "test_a_check_touches_nothing"

    def check(self, uri: str) -> None:
        super().check(uri)
        (self.directory / "looked").touch()


class MissingIsEmpty(Faulty):
    caught_by = "test_a_missing_file_is_a_fetch_error_and_leaves_nothing"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        self.check(uri)
        if Uri.parse(uri).canonical not in self._files:
            self.publish(uri, b"")
        with super().fetch(uri, **options) as fetched:
            yield fetched


class MissingIsSaidInWordsOfItsOwn(Faulty):
    caught_by = "test_a_missing_file_is_a_fetch_error_and_leaves_nothing"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        self.check(uri)
        if Uri.parse(uri).canonical not in self._files:
            raise FileNotFoundError(uri)
        with super().fetch(uri, **options) as fetched:
            yield fetched


class TooLargeIsAFetchError(Faulty):
    caught_by = "test_a_file_of_the_limit_is_fetched_and_a_larger_one_is_too_large"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        try:
            with super().fetch(uri, **options) as fetched:
                yield fetched
        except TooLarge as error:
            raise FetchError(url="x", reason=str(error)) from None


class ShowsThePassword(Faulty):
    caught_by = "test_no_error_shows_a_password"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        try:
            with super().fetch(uri, **options) as fetched:
                yield fetched
        except FetchError as error:
            raise FetchError(url=uri, reason=error.reason) from None


class ShowsThePasswordOfWhatItRefuses(Faulty):
    caught_by = "test_no_error_shows_a_password"

    def check(self, uri: str) -> None:
        try:
            super().check(uri)
        except MalformedUrl as error:
            raise MalformedUrl(url=uri, reason=error.reason) from None

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        self.check(uri)
        with super().fetch(uri, **options) as fetched:
            yield fetched


class SwallowsWhatTheBlockRaises(Faulty):
    caught_by = "test_an_error_inside_the_block_is_raised_unchanged"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            try:
                yield fetched
            except Exception:
                return


class FileGoesBeforeTheBlock(Faulty):
    caught_by = "test_a_fetched_file_has_content_digest_and_size"

    @contextmanager
    def fetch(self, uri: str, **options: Any) -> Iterator[Fetched]:
        with super().fetch(uri, **options) as fetched:
            gone = fetched
        yield gone


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An in-memory directory if available; it is the temporary directory during the test."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def _failing(kind: type[Faulty], directory: Path) -> Iterator[str]:
    def make(suite: Any) -> Faulty:
        suite.directory = directory
        for left in directory.iterdir():
            left.unlink()
        fetcher = kind(denied_hosts=[DENIED_HOST], max_size=suite.max_size)
        fetcher.directory = directory
        return fetcher

    return failing(test_fetcher.TestMemoryFetcher, "fetcher", make, only=kind.caught_by)


def _faults(kind: type[Faulty]) -> list[type[Faulty]]:
    return [fault for child in kind.__subclasses__() for fault in (child, *_faults(child))]


def test_a_fetcher_without_a_fault_passes(directory: Path) -> None:
    assert list(_failing(Faulty, directory)) == []


@pytest.mark.parametrize(
    "fault", [fault for fault in _faults(Faulty) if fault is not Changed], ids=lambda kind: kind.__name__
)
def test_a_fetcher_with_a_fault_fails(fault: type[Faulty], directory: Path) -> None:
    assert next(_failing(fault, directory), None) is not None
