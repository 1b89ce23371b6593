"""Recognize ZIP archives from untrusted senders, and unpack them safely.

Jars, eggs and wheels are ZIP archives. The sender controls everything in one: names, sizes, counts,
overlaps. :func:`open_archive` reads the list of members only; :func:`unpack` trusts no number in it
and counts what it writes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jobserver_core.errors import NotAnArchive, StorageError, TooLarge
from jobserver_core.models.binaries import BinaryType

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

MAX_MEMBERS = 250_000
"""The most members that an archive may have; the largest assembled jars have about half of that."""

_MAX_DIRECTORY = 64 * 1024**2
"""The most bytes of the list of members, which is read into memory: 268 for each member."""
_MAX_RATIO = 200
"""How many times larger than its archive the content may be; a ZIP bomb reaches a thousand."""
_RATIO_FLOOR = 16 * 1024**2
"""Bytes that any archive may unpack to, whatever the ratio: a small one may consist of zeros."""
_STALE_SECONDS = 24 * 3600
"""A day, in which any unpacking ends or fails."""
_CHUNK = 1024 * 1024
"""Bytes of a member to copy at a time."""

_START = b"PK\x03\x04"
_ENTRY = struct.Struct("<4s24x3H12x")
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = 30
"""Bytes before the name in the header of a member (APPNOTE.TXT, 4.3.7)."""
_ENCRYPTED = 0x1
"""The bit of an encrypted member among its flags (APPNOTE.TXT, 4.4.4)."""
_METHODS = {0: "stored", 8: "deflated", 12: "bzip2", 14: "lzma"}
_DRIVE = re.compile(r"[A-Za-z]:")
_SPREAD = re.compile(r"[^/]+\.data/(?:purelib|platlib)/(.+)")
_DATA = re.compile(r"[^/]+\.data/")


def check_archive(file: BinaryIO, kind: BinaryType | None = None) -> None:
    """Check that :func:`open_archive` would open the file.

    Raises:
        NotAnArchive: It would not; the error says why.
    """
    open_archive(file, kind).close()


def open_archive(file: BinaryIO, kind: BinaryType | None = None) -> ZipFile:
    """Open a ZIP archive that is safe to keep.

    It must begin with a member (``PK 03 04``), have a readable list of members of bounded length, and
    no member that is encrypted, overlaps another, is a symbolic link or a device, or has a name which
    could lead out of a directory: absolute, with ``..``, a drive letter, a backslash or a NUL. For a jar
    the compression method must be one that Java can read. The contents are not decompressed. The file stays
    open when the archive is closed, at any position.

    Raises:
        NotAnArchive: It is any other file; the error has the reason.
    """
    import zipfile  # noqa: PLC0415 - keeps the import of the library light

    noun = f"{'an' if kind is BinaryType.EGG else 'a'} {kind.value.lower()}" if kind else "it"
    if _read_at(file, 0, 4) != _START:
        raise NotAnArchive(reason=f"{noun} must be a ZIP archive, which begins with the bytes PK 03 04")
    _check_directory(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise NotAnArchive(reason=f"its list of members cannot be read: {error}") from None
    members = archive.infolist()
    if not members:
        raise NotAnArchive(reason="it has no members")
    for member in members:
        _check_member(member, kind)
    _check_overlaps(members, archive.start_dir)
    return archive


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _check_directory(file: BinaryIO) -> None:
    """Check the size of the list of members before it is parsed."""
    size = file.seek(0, os.SEEK_END)
    offset = max(0, size - _END.size - 65535)
    tail = _read_at(file, offset, size - offset)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise NotAnArchive(reason="its end is missing: it is cut off, or not a ZIP archive")
    end, length = _end64(file, offset + found, _END.unpack_from(tail, found)[5])
    if length > min(end, _MAX_DIRECTORY):
        allowed = f"at most {_MAX_DIRECTORY} bytes, within the file, are allowed"
        raise NotAnArchive(reason=f"its list of members has {length} bytes; {allowed}")
    _check_count(_read_at(file, end - length, length))


def _end64(file: BinaryIO, end: int, length: int) -> tuple[int, int]:
    """Return where the list of members ends and its length, by the 64-bit end record if there is one."""
    at = end - _END64_LOCATOR.size
    if at < _END64.size or _read_at(file, at, 4) != b"PK\x06\x07":
        return end, length
    record = _read_at(file, at - _END64.size, _END64.size)
    if record[:4] != b"PK\x06\x06":
        raise NotAnArchive(reason="its 64-bit end record is not where it must be")
    return at - _END64.size, _END64.unpack(record)[8]


def _check_count(directory: bytes) -> None:
    """Count the listed members; the number in the end record may be wrong."""
    at = count = 0
    while at + _ENTRY.size <= len(directory):
        signature, name, extra, comment = _ENTRY.unpack_from(directory, at)
        if signature != b"PK\x01\x02":
            raise NotAnArchive(reason="its list of members cannot be read")
        at += _ENTRY.size + name + extra + comment
        count += 1
        if count > MAX_MEMBERS:
            raise NotAnArchive(reason=f"it lists more than the allowed {MAX_MEMBERS} members")


_UNKNOWN_MODE = 0xFFFF
"""What old versions of Maven write for the directories in ``META-INF/maven``."""


def _check_member(member: ZipInfo, kind: BinaryType | None) -> None:
    _check_name(member.orig_filename)
    shown = repr(member.orig_filename)
    if member.flag_bits & _ENCRYPTED:
        raise NotAnArchive(reason=f"member {shown} is encrypted")
    if member.compress_type not in _METHODS or (
        kind is BinaryType.JAR and member.compress_type not in (0, 8)
    ):
        method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
        raise NotAnArchive(reason=f"member {shown} is compressed in a way that cannot be read: {method}")
    mode = member.external_attr >> 16
    unknown = mode == _UNKNOWN_MODE and member.is_dir()
    if not unknown and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind_of = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
        raise NotAnArchive(reason=f"member {shown} is {kind_of}")


def _check_name(name: str) -> None:
    reason = None
    if name.startswith("/") or not _segments(name):
        reason = "is absolute or empty"
    elif "\0" in name:
        reason = "has a NUL character"
    elif "\\" in name:
        reason = "has a backslash; directories are separated by /"
    elif _DRIVE.match(name):
        reason = "begins with a drive letter"
    elif ".." in name.split("/"):
        reason = "leads out of its directory (..)"
    if reason:
        raise NotAnArchive(reason=f"the name of member {name!r} {reason}")


def _segments(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _check_overlaps(members: list[ZipInfo], end: int) -> None:
    """Refuse members that share bytes: that is how a small archive lists petabytes."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    for member, limit in zip(ordered, [*(m.header_offset for m in ordered[1:]), end], strict=True):
        name = len(member.orig_filename.encode("utf-8", "surrogateescape"))
        # Names in code page 437 have one byte for each character, which is never more than in UTF-8.
        least = _LOCAL_HEADER + min(name, len(member.orig_filename)) + member.compress_size
        if member.header_offset < 0 or member.header_offset + least > limit:
            raise NotAnArchive(reason=f"member {member.orig_filename!r} overlaps what follows it")


def unpack(
    path: Path,
    directory: Path,
    *,
    kind: BinaryType | None = None,
    max_bytes: int = 16 * 1024**3,
    max_members: int = MAX_MEMBERS,
    max_ratio: float = _MAX_RATIO,
) -> Path:
    """Unpack a ZIP archive into a new directory, completely or not at all, and return the directory.

    An existing directory counts as unpacked, so name it after the archive's hash. If several processes
    unpack at once, one creates the directory and all return it. For a wheel, the contents of
    ``<name>.data/purelib`` and ``platlib`` go to the top, where they can be imported, and the rest
    of ``<name>.data`` is left out (the binary distribution format, "Installing a wheel"). Files keep
    their executable bit, and are otherwise private to the user.

    Unpacking is atomic if the process is killed, but not across a power cut.

    Raises:
        NotAnArchive: :func:`open_archive` refuses it, or its contents are damaged.
        TooLarge: More than ``max_bytes``, or than ``max_ratio`` times the archive's size (but at least 16
            MiB), was written.
        StorageError: The disk reported an error.
    """
    if directory.is_dir():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".part", dir=directory.parent))
    except OSError as error:
        raise StorageError(
            message=f"cannot create a directory in {directory.parent}: {error.strerror}"
        ) from None
    try:
        limit = min(max_bytes, max(_RATIO_FLOOR, int(path.stat().st_size * max_ratio)))
        _extract_checked(path, temporary, kind, limit, max_members)
        _publish(temporary, directory)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise NotAnArchive(reason="a name in it is too long for this file system") from None
        raise StorageError(message=f"cannot unpack {path.name}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _remove_stale(directory: Path) -> None:
    """Remove leftovers of processes that were killed while unpacking this archive."""
    for left in directory.parent.glob(f".{directory.name}.*.part"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _publish(temporary: Path, directory: Path) -> None:
    try:
        temporary.rename(directory)
    except OSError:
        if not directory.is_dir():  # another process was first; its directory has the same content
            raise


def _extract_checked(path: Path, directory: Path, kind: BinaryType | None, limit: int, count: int) -> None:
    import zipfile  # noqa: PLC0415 - keeps the import of the library light
    import zlib  # noqa: PLC0415

    with path.open("rb") as file, open_archive(file, kind) as archive:
        if len(archive.infolist()) > count:
            raise NotAnArchive(reason=f"it has more than the allowed {count} members")
        try:
            _extract(archive, directory, kind, limit)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            name = Path(str(error.filename)).name
            raise NotAnArchive(reason=f"{name!r} is both a file and a directory in it") from None
        except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, zlib.error) as error:
            raise NotAnArchive(reason=f"its content is damaged: {error}") from None


def _extract(archive: ZipFile, directory: Path, kind: BinaryType | None, limit: int) -> None:
    written = 0
    for member, name in _targets(archive, kind):
        target = directory / name
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > limit:
                    raise TooLarge(what="the unpacked archive", limit=limit)
                file.write(chunk)
        executable = (member.external_attr >> 16) & 0o111
        target.chmod(0o700 if executable else 0o600)


def _targets(archive: ZipFile, kind: BinaryType | None) -> Iterator[tuple[ZipInfo, str]]:
    """Yield the members to unpack and their targets; the last of several equal names wins, as for imports."""
    found: dict[str, ZipInfo] = {}
    for member in archive.infolist():
        name = "/".join(_segments(member.filename))
        if kind is BinaryType.WHEEL and _DATA.match(name + "/"):
            spread = _SPREAD.fullmatch(name)
            if spread is None:
                continue
            name = spread[1]
        found[name] = member
    for name, member in found.items():
        yield member, name
