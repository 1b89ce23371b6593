"""The name and version that a package carries in itself, such as ``words 1.2.0``.

The sender controls it, so little is read, that is only split into lines, and what a terminal could not show
safely counts as missing. It is for people: nothing depends on it, and no upload is refused because of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobserver_core.models.binaries import BinaryType

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

MAX_LENGTH = 200
"""The most characters of a name and version; longer ones count as missing."""

_MAX_READ = 64 * 1024
"""How many bytes of a member are read; the name and version are at its beginning."""
_MAX_COMPRESSED = 1024 * 1024
"""The most compressed bytes of a member; any number of them can be decompressed to nothing."""
_CHEAP_METHODS = (0, 8)
"""Stored and deflated. Others can need gigabytes of memory, if the sender wants it."""

_SOURCES = {
    BinaryType.WHEEL: ((r"[^/]+\.dist-info/METADATA", "name", "version"),),
    BinaryType.EGG: (("EGG-INFO/PKG-INFO", "name", "version"),),
    BinaryType.JAR: (
        (r"META-INF/MANIFEST\.MF", "implementation-title", "implementation-version"),
        (r"META-INF/maven/[^/]+/[^/]+/pom\.properties", "artifactid", "version"),
    ),
}
"""The members that can have the fields, and the names of these."""
_FIELD = re.compile(r"([^:=]+)[:=](.*)")


def package_of(archive: ZipFile, kind: BinaryType) -> str | None:
    """Return the name and version of a package, or None if it has none that can be shown.

    If several members could have them, as in a jar that was assembled from others, none of them counts.
    """
    for pattern, name, version in _SOURCES[kind]:
        found = [member for member in archive.infolist() if re.fullmatch(pattern, member.filename)]
        if len(found) == 1:
            fields = _fields(_beginning(archive, found[0]))
            package = f"{fields.get(name, '')} {fields.get(version, '')}"
            if package == package.strip() and package.isprintable() and len(package) <= MAX_LENGTH:
                return package
    return None


def _beginning(archive: ZipFile, member: ZipInfo) -> bytes:
    """Return the complete lines at the beginning of a member, or nothing if it cannot be read."""
    import zipfile  # noqa: PLC0415 - keeps the import of the library light
    import zlib  # noqa: PLC0415

    if member.compress_type not in _CHEAP_METHODS or member.compress_size > _MAX_COMPRESSED:
        return b""
    try:
        with archive.open(member) as file:
            data = file.read(_MAX_READ)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, zlib.error):
        return b""
    return data if len(data) < _MAX_READ else data.rpartition(b"\n")[0]


def _fields(data: bytes) -> dict[str, str]:
    """Parse lines like ``Name: value`` or ``name=value`` up to the first empty one.

    A line that begins with a space continues the one before it. The first of equal names counts, in any case.
    """
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n ", b"").split(b"\n\n", 1)[0]
    found = map(_FIELD.fullmatch, lines.decode("utf-8", "replace").split("\n"))
    pairs = [(field[1].strip().lower(), field[2].strip()) for field in found if field is not None]
    return dict(reversed(pairs))
