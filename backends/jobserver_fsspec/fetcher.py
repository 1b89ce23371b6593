"""The fetcher: downloads URIs of all allowed schemes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.disk_cache import Part
from jobserver_core.errors import FetchError, InvalidSetting, TooLarge
from jobserver_core.models.arguments import check_callable, check_kind, check_several
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports.fetcher import Cancellation, Fetched, Fetcher, ProgressCallback
from jobserver_core.uris import FILE_SCHEMES, HOST_SCHEMES, Uri
from jobserver_fsspec.cache import FetchCache, Pinned
from jobserver_fsspec.driver_source import DriverSource
from jobserver_fsspec.ftp_source import FtpSource
from jobserver_fsspec.http_source import HttpSource
from jobserver_fsspec.sources import FileSource, Interrupted, Opened, Source, Stamp
from jobserver_net.connections import Connector, Resolver, resolve
from jobserver_net.deadlines import Deadline, Expired
from jobserver_net.policy import AddressPolicy

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_FRUITLESS_ATTEMPTS = 3
"""Attempts in a row without data after which a source counts as unreachable."""
_ATTEMPTS = 20
"""The most attempts of one fetch, even if each brings data: a source may break off every time."""
_FIRST_PAUSE = 0.1
"""Seconds before the second attempt; each fruitless one doubles the pause."""
_RECENT = 1024
"""The number of fetches to remember, so that the memory for many different URIs stays bounded."""


class FsspecFetcher(Fetcher):
    """Fetches ``http``, ``https``, ``ftp``, ``file`` and ``local`` URIs, and others with an fsspec driver.

    Sizes are in bytes. ``timeout`` is in seconds, and covers the whole fetch: resolving names, redirects,
    retries, and waiting for another fetch of the same URI. A failed connection is retried until three
    attempts in a row bring no data, and resumes where it stopped if the source can. Responses such as "not
    found" are final. Files are cached in ``cache_directory`` (default: a temporary directory that
    :meth:`close` removes), up to ``cache_size``, and revalidated with conditional requests.

    In the configuration, ``jobserver.fetcher.options`` has the options of fsspec's drivers by scheme.
    """

    def __init__(
        self,
        *,
        policy: AddressPolicy | None = None,
        allowed_folders: Collection[Path] = (),
        max_size: int = 2 * 1024**3,
        timeout: float = 300.0,
        cache_directory: Path | None = None,
        cache_size: int = 10 * 1024**3,
        options: Mapping[str, JsonMapping] | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        check_kind("policy", policy, (AddressPolicy, type(None)), "an AddressPolicy")
        check_several("allowed_folders", allowed_folders, Path, "paths (pathlib.Path)")
        check_kind("cache_directory", cache_directory, (Path, type(None)), "a pathlib.Path")
        check_kind("options", options, (Mapping, type(None)), "a mapping of schemes to options")
        check_callable("resolver", resolver, arguments=2)
        self._policy = policy or AddressPolicy(schemes=(*HOST_SCHEMES, *FILE_SCHEMES))
        self._max_size = max_size
        self._timeout = timeout
        self._directory = cache_directory
        self._cache_size = cache_size
        self._cache: FetchCache | None = None
        self._lock = threading.Lock()
        self._recent: dict[str, tuple[float, str, int]] = {}
        connector = Connector(self._policy, resolver)
        http, ftp = HttpSource(connector), FtpSource(connector)
        self._files = FileSource(allowed_folders)
        self._sources: dict[str, Source] = {"http": http, "https": http, "ftp": ftp}
        self._sources |= dict.fromkeys(FILE_SCHEMES, self._files)
        self._drivers = DriverSource(options or {})

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        for scheme, options in settings.fetcher.options.items():
            if not isinstance(options, Mapping):
                message = "must be an object with the options of the scheme's driver"
                raise InvalidSetting(key=f"jobserver.fetcher.options.{scheme}", message=message)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FsspecFetcher:
        cls.check_options(settings)
        fetcher = settings.fetcher
        return cls(
            policy=AddressPolicy.from_settings(fetcher, schemes=fetcher.allowed_schemes),
            allowed_folders=fetcher.allowed_folders,
            max_size=fetcher.max_size,
            timeout=fetcher.timeout,
            cache_directory=data_dir / "cache" / "fetched",
            cache_size=fetcher.cache_size,
            options=fetcher.options,
        )

    def check(self, uri: str) -> None:
        """Check the URI by the policy. Addresses are checked by the fetch."""
        self._check(uri)

    @contextmanager
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Fetched]:
        """Fetch a URI, or use the cached file if the source reports that it has not changed."""
        parsed = self._check(uri)
        cache = self._open_cache(parsed)
        with Deadline(self._timeout, cancellation) as deadline:
            try:
                pinned = self._pin(cache, parsed, progress, deadline)
            except Expired as error:
                raise FetchError(url=str(parsed), reason=str(error)) from None
        try:
            yield Fetched(path=pinned.lease.path, digest=pinned.digest, size=pinned.size)
        finally:
            pinned.lease.release()

    def close(self) -> None:
        """Remove the cache if it is in a temporary directory. Idempotent."""
        with self._lock:
            cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    def _check(self, text: str) -> Uri:
        uri = self._policy.check(text)
        if uri.scheme in FILE_SCHEMES:
            self._files.check(uri)
        return uri

    def _open_cache(self, uri: Uri) -> FetchCache:
        with self._lock, _local(uri):
            if self._cache is None:
                self._cache = FetchCache(self._directory, limit=self._cache_size)
            return self._cache

    def _pin(
        self, cache: FetchCache, uri: Uri, progress: ProgressCallback | None, deadline: Deadline
    ) -> Pinned:
        begun = time.monotonic()
        key = hashlib.sha256(uri.canonical.encode()).hexdigest()
        with ExitStack() as stack:
            with _local(uri):
                held = stack.enter_context(cache.locked(key, lambda: deadline.expired))
            if not held:
                raise Expired(deadline.reason)
            # Another thread may have fetched it with the same password while this one waited.
            with self._lock:
                at, digest, size = self._recent.get(f"{key}{uri.password}", (0.0, "", 0))
            with _local(uri):
                found = cache.pin(key, digest, size, {}) if at > begun else None
            if found is None:
                return self._download(cache, key, uri, progress, deadline)
        try:
            if progress is not None:
                progress(found.size, found.size)
        except BaseException:
            found.lease.release()
            raise
        return found

    def _download(
        self, cache: FetchCache, key: str, uri: Uri, progress: ProgressCallback | None, deadline: Deadline
    ) -> Pinned:
        with _local(uri):
            part = cache.new_part()
        known = cache.find(key)
        try:
            transfer = _Transfer(uri, part, self._max_size, progress)
            source = self._sources.get(uri.scheme, self._drivers)
            if transfer.run(source, known.stamp if known else {}, deadline):
                with _local(uri):
                    pinned = cache.add(key, part, transfer.stamp, str(uri))
            elif known is None:
                raise FetchError(url=str(uri), reason="the server answered 304 to an unconditional request")
            else:
                transfer.report_whole(known.size)
                pinned, known = known, None
            with self._lock:
                while len(self._recent) >= _RECENT:
                    del self._recent[next(iter(self._recent))]
                self._recent[f"{key}{uri.password}"] = (time.monotonic(), pinned.digest, pinned.size)
            return pinned
        finally:
            part.close()
            if known is not None:
                known.lease.release()


class _Transfer:
    """A transfer of one URI to a file, over one or more connections."""

    def __init__(self, uri: Uri, part: Part, limit: int, progress: ProgressCallback | None) -> None:
        self.uri = uri
        self.part = part
        self.stamp: Stamp = {}
        self._limit = limit
        self._progress = progress

    def run(self, source: Source, known: Stamp, deadline: Deadline) -> bool:
        """Fetch, with retries after interruptions. Return False if the known version is still current.

        Raises:
            FetchError: Several attempts in a row brought no data.
            TooLarge: The content exceeds the size limit.
            Expired: The deadline has passed.
        """
        fruitless = 0
        for _ in range(_ATTEMPTS):
            before = self.part.size
            try:
                with source.open(
                    self.uri, known=known, partial=self.stamp, offset=before, deadline=deadline
                ) as opened:
                    if opened is None:
                        return False
                    self._receive(opened, deadline)
                    return True
            except FetchError:
                deadline.left()
                raise
            except Interrupted as error:
                deadline.left()
                reason = str(error)
            fruitless = 0 if self.part.size > before else fruitless + 1
            if fruitless >= _FRUITLESS_ATTEMPTS:
                break
            deadline.pause(_FIRST_PAUSE * 2**fruitless)
        raise FetchError(url=str(self.uri), reason=reason)

    def _receive(self, opened: Opened, deadline: Deadline) -> None:
        if opened.start != self.part.size:
            self.part.restart()
        self.stamp = opened.stamp
        self._check_size(opened.total or 0)
        for chunk in opened.chunks:
            self._check_size(self.part.size + len(chunk))
            with _local(self.uri):
                self.part.write(chunk)
            if self._progress is not None:
                self._progress(self.part.size, opened.total)
            deadline.left()
        if opened.total is not None and self.part.size != opened.total:
            raise Interrupted(f"it ended after {self.part.size} of {opened.total} bytes")

    def report_whole(self, size: int) -> None:
        self._check_size(size)
        if self._progress is not None:
            self._progress(size, size)

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise TooLarge(what=str(self.uri), limit=self._limit)


@contextmanager
def _local(uri: Uri) -> Iterator[None]:
    """Translate errors of the local disk to FetchError."""
    try:
        yield
    except OSError as error:
        reason = f"cannot store it on this machine: {error.strerror or error}"
        raise FetchError(url=str(uri), reason=reason) from error
