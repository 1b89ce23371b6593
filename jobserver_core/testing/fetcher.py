"""The contract of every fetcher."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from jobserver_core.errors import FetchError, MalformedUrl, TooLarge
from jobserver_core.ports.fetcher import Cancellation, Fetched, Fetcher, ProgressCallback
from jobserver_core.testing.contract import entered, in_threads
from jobserver_core.testing.options import OptionsContract

_CONTENT = b"the content of a file " * 50
_E = TypeVar("_E", bound=Exception)


class _StopHereError(Exception):
    """Raised on purpose."""


def files_in(directory: Path) -> set[str]:
    """Return the relative paths of all files below a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


@contextmanager
def _fetching(
    fetcher: Fetcher,
    uri: str,
    *,
    progress: ProgressCallback | None = None,
    cancellation: Cancellation | None = None,
) -> Iterator[Fetched]:
    """Fetch a URI, and check the types of what that gives."""
    block = fetcher.fetch(uri, progress=progress, cancellation=cancellation)
    with entered("fetch", block, Fetched) as fetched:
        yield fetched


def _error_of_fetch(
    fetcher: Fetcher,
    uri: str,
    kind: type[_E] | tuple[type[_E], ...],
    *,
    progress: ProgressCallback | None = None,
    cancellation: Cancellation | None = None,
) -> _E:
    """Return the error with which a fetch ends before its block."""
    kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    try:
        block = _fetching(fetcher, uri, progress=progress, cancellation=cancellation)
        block.__enter__()
    except kind as error:
        return error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"fetch({uri!r}) raised {error!r}; it has to raise {kinds}") from error
    block.__exit__(None, None, None)
    raise AssertionError(f"fetch({uri!r}) entered its block; it has to raise {kinds} instead")


def _assert_refused(fetcher: Fetcher, uri: str) -> None:
    """Check that a check refuses a URI, with a reason."""
    found: MalformedUrl | None = None
    try:
        fetcher.check(uri)
    except MalformedUrl as error:
        found = error
    assert found is not None, f"check({uri!r}) accepted it; it has to raise MalformedUrl"
    assert found.reason, f"the error of check({uri!r}) has to say why in `reason`"


class FetcherContract(OptionsContract):
    """The behavior of every fetcher. Fixtures: ``fetcher``, a new one.

    Its size limit is :attr:`max_size`. Its policy allows the URIs that :meth:`publish` returns, and refuses
    those of :meth:`refused`. The subclass is also the source of the files. Write a subclass for each scheme.
    """

    max_size: ClassVar[int] = 256 * 1024
    """The fetcher's size limit in bytes."""
    secret: ClassVar[str] = "hunter2"
    """The password in the URIs of :meth:`missing` and :meth:`refused`."""

    @abstractmethod
    def publish(self, fetcher: Fetcher, name: str, content: bytes) -> str:
        """Publish content under a URI that ends in a name, replacing earlier content, and return the URI."""

    @abstractmethod
    def missing(self) -> str:
        """Return an allowed URI of a missing file, with the password if the scheme has passwords."""

    @abstractmethod
    def refused(self) -> list[str]:
        """Return one or more well-formed URIs that the fetcher's policy refuses."""

    @abstractmethod
    def files(self, fetcher: Fetcher) -> set[str]:
        """Return the names of all files that the fetcher now has on this machine, including its cache."""

    def spellings(self, uri: str) -> list[str]:
        """Return other ways to write the same URI."""
        return []

    def error_of(
        self,
        fetcher: Fetcher,
        uri: str,
        kind: type[_E],
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> _E:
        """Return the error with which a fetch ends before its block; it must leave no file."""
        before = self.files(fetcher)
        error = _error_of_fetch(fetcher, uri, kind, progress=progress, cancellation=cancellation)
        left = self.files(fetcher) - before
        assert not left, f"fetch({uri!r}) failed and left {left}; it has to remove what it wrote"
        return error

    # -- fetching ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 65_536, 200_001])
    def test_a_fetched_file_has_content_digest_and_size(self, fetcher: Fetcher, size: int) -> None:
        content = os.urandom(size)
        with _fetching(fetcher, self.publish(fetcher, "file.jar", content)) as fetched:
            assert fetched.path.read_bytes() == content
            assert fetched.digest == hashlib.sha256(content).hexdigest()
            assert fetched.size == size

    def test_every_spelling_of_a_uri_gives_the_same_file(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        for spelling in [uri, *self.spellings(uri)]:
            fetcher.check(spelling)
            with _fetching(fetcher, spelling) as fetched:
                assert fetched.path.read_bytes() == _CONTENT

    def test_an_unchanged_file_can_be_fetched_again(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        with _fetching(fetcher, uri) as first, _fetching(fetcher, uri) as second:
            assert (first.digest, first.size) == (second.digest, second.size)
            assert second.path.read_bytes() == _CONTENT

    def test_a_changed_file_is_fetched_anew(self, fetcher: Fetcher) -> None:
        for content in (b"first", b"second", b"third!", b"first"):
            uri = self.publish(fetcher, "file.jar", content)
            with _fetching(fetcher, uri) as fetched:
                assert fetched.path.read_bytes() == content
                assert fetched.digest == hashlib.sha256(content).hexdigest()

    def test_the_file_is_not_changed_inside_the_block(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        with _fetching(fetcher, uri) as fetched:
            self.publish(fetcher, "file.jar", b"something else")
            with _fetching(fetcher, uri) as other:
                assert other.path.read_bytes() == b"something else"
            assert fetched.path.read_bytes() == _CONTENT

    def test_the_file_stays_while_others_use_it(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        with _fetching(fetcher, uri) as fetched:
            with _fetching(fetcher, uri):
                pass
            assert fetched.path.read_bytes() == _CONTENT

    def test_an_error_inside_the_block_is_raised_unchanged(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        with pytest.raises(_StopHereError), _fetching(fetcher, uri):
            raise _StopHereError
        with _fetching(fetcher, uri) as fetched:
            assert fetched.path.read_bytes() == _CONTENT

    def test_files_of_one_name_and_different_directories_are_kept_apart(self, fetcher: Fetcher) -> None:
        one = self.publish(fetcher, "one/file.jar", b"one")
        two = self.publish(fetcher, "two/file.jar", b"two")
        with _fetching(fetcher, one) as first, _fetching(fetcher, two) as second:
            assert (first.path.read_bytes(), second.path.read_bytes()) == (b"one", b"two")

    @pytest.mark.parametrize(
        "name", ["with blank.jar", "plus+and&amp=.jar", "größe.jar", "100%.jar", "a#b?c.jar"]
    )
    def test_a_name_with_characters_that_uris_encode_is_found(self, fetcher: Fetcher, name: str) -> None:
        with _fetching(fetcher, self.publish(fetcher, name, _CONTENT)) as fetched:
            assert fetched.path.read_bytes() == _CONTENT

    # -- progress ----------------------------------------------------------------------------------

    def test_progress_grows_up_to_the_size(self, fetcher: Fetcher) -> None:
        content = os.urandom(200_000)
        calls: list[tuple[int, int | None]] = []
        uri = self.publish(fetcher, "file.jar", content)
        with _fetching(fetcher, uri, progress=lambda done, total: calls.append((done, total))):
            pass
        done = [count for count, _ in calls]
        assert done == sorted(done)
        assert done[-1] == len(content)
        assert {total for _, total in calls} <= {None, len(content)}, (
            f"the total is the size, or None while it is unknown: {calls}"
        )

    def test_what_the_progress_callback_raises_ends_the_fetch(self, fetcher: Fetcher) -> None:
        def stop(done: int, total: int | None) -> None:
            raise _StopHereError

        uri = self.publish(fetcher, "file.jar", _CONTENT)
        self.error_of(fetcher, uri, _StopHereError, progress=stop)

    # -- cancellation ------------------------------------------------------------------------------

    def test_a_fetch_that_was_cancelled_before_it_began_ends_with_the_reason(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        cancellation = Cancellation()
        cancellation.cancel("the caller has left")
        error = self.error_of(fetcher, uri, FetchError, cancellation=cancellation)
        assert error.reason == "the caller has left"

    def test_a_fetch_that_is_cancelled_while_it_runs_ends_with_the_reason(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", os.urandom(200_000))
        cancellation = Cancellation()

        def cancel(done: int, total: int | None) -> None:
            cancellation.cancel("it is no longer needed")

        error = self.error_of(fetcher, uri, FetchError, progress=cancel, cancellation=cancellation)
        assert error.reason == "it is no longer needed"

    def test_a_cancellation_inside_the_block_changes_nothing(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        cancellation = Cancellation()
        with _fetching(fetcher, uri, cancellation=cancellation) as fetched:
            cancellation.cancel("too late")
            assert fetched.path.read_bytes() == _CONTENT

    # -- limits ------------------------------------------------------------------------------------

    def test_a_file_of_the_limit_is_fetched_and_a_larger_one_is_too_large(self, fetcher: Fetcher) -> None:
        exact = self.publish(fetcher, "exact.jar", bytes(self.max_size))
        larger = self.publish(fetcher, "larger.jar", bytes(self.max_size + 1))
        with _fetching(fetcher, exact) as fetched:
            assert fetched.size == self.max_size
        error = self.error_of(fetcher, larger, TooLarge)
        assert error.limit == self.max_size

    # -- unavailable files -------------------------------------------------------------------------

    def test_a_missing_file_is_a_fetch_error_and_leaves_nothing(self, fetcher: Fetcher) -> None:
        error = self.error_of(fetcher, self.missing(), FetchError)
        assert error.reason, "the error has to say why in `reason`"

    def test_a_file_that_was_withdrawn_is_not_served_from_a_cache(self, fetcher: Fetcher) -> None:
        uri = self.publish(fetcher, "file.jar", _CONTENT)
        with _fetching(fetcher, uri):
            pass
        self.withdraw(fetcher, uri)
        _error_of_fetch(fetcher, uri, FetchError)

    @abstractmethod
    def withdraw(self, fetcher: Fetcher, uri: str) -> None:
        """Remove the content of a URI."""

    def test_a_check_touches_nothing(self, fetcher: Fetcher) -> None:
        before = self.files(fetcher)
        fetcher.check(self.missing())
        assert self.files(fetcher) == before, "check has to examine the text only, and to leave all files"

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "no-scheme",
            "/etc/passwd",
            "://host/x",
            "http://",
            "http:/path-only",
            "http:///no-host",
            "ftp://",
            "http://host:port/x",
            "http://[::1/x",
            "http://ho st/x",
            "http://host\\@other/x",
            "http://host/x\r\nHost: other",
            "ftp://host/x%0d%0aDELE%20y",
            "file:relative/path.jar",
            "file://other-host/path.jar",
            "file:///a\0b",
            "file:///a%00b",
            "file:///a?b",
            "file:///a#b",
            "gopher://host/x",
            "javascript:alert(1)",
        ],
    )
    def test_a_string_that_is_not_a_uri_is_malformed(self, fetcher: Fetcher, uri: str) -> None:
        before = self.files(fetcher)
        _assert_refused(fetcher, uri)
        assert self.files(fetcher) == before, "check has to examine the text only, and to leave all files"
        self.error_of(fetcher, uri, MalformedUrl)

    def test_a_uri_that_the_policy_refuses_is_malformed(self, fetcher: Fetcher) -> None:
        assert self.refused(), "refused() has to return at least one URI"
        for uri in self.refused():
            _assert_refused(fetcher, uri)
            _error_of_fetch(fetcher, uri, MalformedUrl)

    def test_no_error_shows_a_password(self, fetcher: Fetcher) -> None:
        broken = [
            f"http://user:{self.secret}@ho st/x",
            f"ftp://user:{self.secret}@host:port/x",
            f"x:{self.secret}@",
        ]
        uris = [self.missing(), *self.refused(), *broken, f"gopher://u:{self.secret}@host/x"]
        shown = [_error_of_fetch(fetcher, uri, (FetchError, MalformedUrl)) for uri in uris]
        for error in [*shown, *copy.copy(shown), *pickle.loads(pickle.dumps(shown))]:
            assert self.secret not in f"{error} {error!r} {error.fields}", (
                f"a {type(error).__name__} shows the password of its URI"
            )

    # -- the fetcher itself ------------------------------------------------------------------------

    def test_the_block_can_end_on_another_thread(self, fetcher: Fetcher) -> None:
        block = _fetching(fetcher, self.publish(fetcher, "file.jar", _CONTENT))
        assert block.__enter__().path.read_bytes() == _CONTENT
        in_threads(lambda _number: block.__exit__(None, None, None), 1)

    def test_many_threads_can_fetch_the_same_and_other_files_at_once(self, fetcher: Fetcher) -> None:
        common = os.urandom(100_000)
        uris = {self.publish(fetcher, "common.jar", common): common}
        uris |= {self.publish(fetcher, f"{n}.jar", b"%d" % n): b"%d" % n for n in range(3)}

        def run(_number: int) -> None:
            for uri, content in uris.items():
                with _fetching(fetcher, uri) as fetched:
                    assert fetched.path.read_bytes() == content

        in_threads(run, 6)

    def test_closing_twice_is_allowed(self, fetcher: Fetcher) -> None:
        with _fetching(fetcher, self.publish(fetcher, "file.jar", _CONTENT)):
            pass
        fetcher.close()
        fetcher.close()
