"""Class paths: from names and URIs to the very bytes, and from those to files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from jobserver_core.binaries.archives import check_archive
from jobserver_core.environment import Environment
from jobserver_core.errors import BinaryNotFound, InvalidRequest, NotAnArchive
from jobserver_core.models.binaries import BinaryType, ClassPathEntry, ResolvedEntry
from jobserver_core.ports import Blob, Fetched, JobCode
from jobserver_core.uris import Uri

__all__ = ["ClassPaths"]


class ClassPaths:
    """Resolves class paths, and lends their files."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def resolve(self, entries: Iterable[ClassPathEntry]) -> tuple[ResolvedEntry, ...]:
        """Return for each entry the bytes it stands for now; fetches what is a URI.

        To be called inside a deposit, since nothing refers to the fetched bytes yet. Raises
        BinaryNotFound, MalformedUrl, FetchError, TooLarge, NotAnArchive.
        """
        entries = tuple(entries)
        for entry in entries:
            if entry.uri is not None:
                self._environment.fetcher.check(entry.uri)
        return tuple(self._resolve(entry) for entry in entries)

    def check_mix(self, entries: tuple[ResolvedEntry, ...]) -> None:
        """Raise InvalidRequest unless these are jars only, or one Python package (the contract's rule)."""
        packages = [entry.source for entry in entries if entry.type.python]
        if packages and len(entries) > 1:
            raise InvalidRequest(
                message=f"For Python jobs only one package file can be used, got {len(entries)}"
            )

    def lend(self, entries: Iterable[ResolvedEntry], until: ExitStack) -> tuple[JobCode, ...]:
        """Return the entries as files on this machine, which stay until the stack is closed."""
        return tuple(
            JobCode(
                path=until.enter_context(self._environment.blobs.local_path(entry.digest)),
                type=entry.type,
                digest=entry.digest,
                source=entry.source,
            )
            for entry in entries
        )

    def _resolve(self, entry: ClassPathEntry) -> ResolvedEntry:
        if entry.name is not None:
            return self._named(entry.name)
        return self._fetched(str(entry.uri))

    def _named(self, name: str) -> ResolvedEntry:
        binary = self._environment.metadata.binary(name)
        if binary is None:
            raise BinaryNotFound(name=name)
        return ResolvedEntry(
            source=name,
            type=binary.type,
            digest=binary.digest,
            size=binary.size,
            binary_id=binary.id,
        )

    def _fetched(self, uri: str) -> ResolvedEntry:
        kind = BinaryType.from_file_name(uri)
        with self._environment.fetcher.fetch(uri) as fetched:
            with fetched.path.open("rb") as file:
                check_archive(file, kind)
                if kind is None:
                    kind = _guess(file.name)
            blob = self._keep(fetched)
        return ResolvedEntry(source=str(Uri.parse(uri)), type=kind, digest=blob.digest, size=blob.size)

    def _keep(self, fetched: Fetched) -> Blob:
        blobs = self._environment.blobs
        if blobs.size(fetched.digest) == fetched.size:
            return Blob(digest=fetched.digest, size=fetched.size)
        with fetched.path.open("rb") as file:
            return blobs.put(iter(lambda: file.read(1024 * 1024), b""))


def _guess(path: str) -> BinaryType:
    """Tell a jar from a Python package by what is inside, for a URI whose name does not say."""
    import zipfile  # noqa: PLC0415 - rarely needed

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise NotAnArchive(reason=str(error)) from error
    if any(name.endswith(".dist-info/WHEEL") for name in names):
        return BinaryType.WHEEL
    if any(name.endswith(".py") for name in names):
        return BinaryType.EGG
    return BinaryType.JAR
