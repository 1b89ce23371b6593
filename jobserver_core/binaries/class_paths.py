"""Class paths: resolve names and URIs to stored bytes, and those to files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs

from jobserver_core.binaries.archives import check_archive
from jobserver_core.binaries.pins import BlobPins
from jobserver_core.errors import BinaryNotFound, FetchError, InvalidRequest, NotAnArchive
from jobserver_core.models.arguments import chunks_of
from jobserver_core.models.binaries import Binary, BinaryType, ClassPathEntry, ResolvedEntry
from jobserver_core.models.jobs import JobRequest
from jobserver_core.ports import Blob, BlobStore, Fetched, JobCode, MetadataStore
from jobserver_core.ports.faults import release
from jobserver_core.uris import Uri

_VERSION = re.compile(r"(?P<name>.+)@(?P<digits>[0-9a-f]{8,64})")
"""A version of a binary: its name, and the first digits of its SHA-256."""


def uris_of(entries: Iterable[ClassPathEntry]) -> list[str]:
    """Return the URIs to fetch before a class path can be resolved."""
    return [entry.uri for entry in entries if entry.uri is not None]


@attrs.frozen(eq=False)
class ClassPaths:
    """Resolves class paths, and leases their files."""

    _metadata: MetadataStore
    _blobs: BlobStore
    _pins: BlobPins

    def resolve(
        self, entries: Iterable[ClassPathEntry], fetched: Mapping[str, Fetched], until: ExitStack
    ) -> tuple[ResolvedEntry, ...]:
        """Return the bytes that each entry refers to now; ``fetched`` has the files of all URIs.

        Nothing refers to the bytes of a fetched file yet: they stay until the stack is closed.

        Raises:
            BinaryNotFound: No binary has this name, or no version begins with these digits.
            InvalidRequest: The digits do not identify a version.
            FetchError: A file is not among ``fetched``.
            NotAnArchive: A fetched file is not an archive.
            StorageError: The blob store does not take a fetched file.
        """
        return tuple(
            self._named(entry.name) if entry.name is not None else self._store(str(entry.uri), fetched, until)
            for entry in entries
        )

    def resolve_job(
        self, request: JobRequest, fetched: Mapping[str, Fetched], until: ExitStack
    ) -> tuple[ResolvedEntry, ...]:
        """Resolve the class path of a job, followed by its further packages.

        Raises:
            InvalidRequest: The class path is neither jars only nor one Python package (the contract's rule),
                or there are further packages that the job cannot import from.
            JobServerError: Any error of :meth:`resolve`.
        """
        entries = self.resolve(request.class_path, fetched, until)
        packages = self.resolve(request.packages, fetched, until)
        python = entries[0].type.python
        if len(entries) > 1 and any(entry.type.python for entry in entries):
            raise InvalidRequest(
                message=f"For Python jobs only one package file can be used, got {len(entries)}; put the "
                "others into packages of the job or cp of its context, or install them into the environment "
                "of the context (python.executable, spark.archives)"
            )
        if packages and not python:
            raise InvalidRequest(message="packages are for Python jobs; a JVM job has all its jars in cp")
        if jars := [entry.source for entry in packages if not entry.type.python]:
            raise InvalidRequest(
                message=f"packages takes wheels, eggs and ZIP files, but {jars[0]} is a jar; put it into cp "
                "of the context"
            )
        return (*entries, *packages)

    def pin(self, entries: Iterable[ResolvedEntry | JobCode], until: ExitStack) -> None:
        """Keep the bytes of the entries until the stack is closed, although no record refers to them."""
        for entry in entries:
            until.enter_context(self._pins.pinned(entry.digest))

    def lease(self, entries: Iterable[ResolvedEntry | JobCode], until: ExitStack) -> tuple[JobCode, ...]:
        """Return the entries as files on this machine, which stay until the stack is closed."""
        return tuple(
            JobCode(
                path=self._local(entry.digest, until),
                type=entry.type,
                digest=entry.digest,
                source=entry.source,
            )
            for entry in entries
        )

    def _local(self, digest: str, until: ExitStack) -> Path:
        lease = ExitStack()
        path = lease.enter_context(self._blobs.local_path(digest))
        until.callback(release, f"the file of blob {digest}", lease.close)
        return path

    def _named(self, name: str) -> ResolvedEntry:
        # A name may contain @ as well. It has precedence, so that it keeps its meaning.
        binary = self._metadata.binary(name) or self._version(name)
        if binary is None:
            raise BinaryNotFound(name=name)
        return ResolvedEntry(
            source=name, type=binary.type, digest=binary.digest, size=binary.size, binary_id=binary.id
        )

    def _version(self, given: str) -> Binary | None:
        """Return the version that ``NAME@DIGITS`` means, or None."""
        found = _VERSION.fullmatch(given)
        if found is None:
            return None
        versions = self._metadata.binary_versions(found["name"])
        matching = [one for one in versions if one.digest.startswith(found["digits"])]
        if len({one.digest for one in matching}) > 1:
            raise InvalidRequest(
                message=f"{given} matches several versions of {found['name']}; add more digits"
            )
        return matching[0] if matching else None

    def _store(self, uri: str, files: Mapping[str, Fetched], until: ExitStack) -> ResolvedEntry:
        fetched = files.get(uri)
        if fetched is None:
            raise FetchError(url=str(Uri.parse(uri)), reason="it was not fetched in advance")
        kind = BinaryType.from_file_name(uri)
        with fetched.path.open("rb") as file:
            check_archive(file, kind)
            if kind is None:
                kind = _guess(file.name)
        until.enter_context(self._pins.pinned(fetched.digest))
        blob = Blob(digest=fetched.digest, size=fetched.size)
        if self._blobs.size(blob.digest) != blob.size:
            with fetched.path.open("rb") as file:
                blob = self._blobs.put(chunks_of(file))
        return ResolvedEntry(source=str(Uri.parse(uri)), type=kind, digest=blob.digest, size=blob.size)


def _guess(path: str) -> BinaryType:
    """Detect whether a file is a jar or a Python package from its contents, if its URI does not say."""
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
