"""Uploads: binaries, class paths that refer to them, and data files.

A binary is a name with versions. Each upload adds a version, which later jobs use. Running jobs keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path, PurePosixPath

import attrs

from jobserver_core.errors import InvalidName, InvalidRequest, MalformedUrl, UnsupportedMediaType
from jobserver_core.models.arguments import check_kind, member
from jobserver_core.models.validation import aware, check_binary_name, non_negative, sha256

__all__ = ["Binary", "BinaryType", "ClassPathEntry", "DataFile", "ResolvedEntry", "parse_class_path"]

_MAX_SHOWN = 255
"""The most characters of a wrong name that an error shows; no valid name is longer."""
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)


class BinaryType(str, Enum):
    """The types of code that can be uploaded. The values are those of ``binary-type`` in the HTTP API."""

    JAR = "Jar"
    EGG = "Egg"
    WHEEL = "Wheel"

    @classmethod
    def of(cls, value: BinaryType | str) -> BinaryType:
        """Return the type with this name, in any case.

        Raises:
            InvalidRequest: No type has this name.
        """
        return member(cls, value, "type of binary")

    @classmethod
    def from_media_type(cls, media_type: str | None) -> BinaryType:
        """Return the type for a Content-Type, ignoring its parameters.

        Raises:
            UnsupportedMediaType: It is missing, or not that of a binary.
        """
        essence = (media_type or "").split(";")[0].strip().lower()
        if essence not in _MEDIA_TYPES:
            raise UnsupportedMediaType(media_type=media_type, supported=tuple(_MEDIA_TYPES))
        return _MEDIA_TYPES[essence]

    @classmethod
    def from_file_name(cls, name: str) -> BinaryType | None:
        """Return the type for the suffix of a file name, or None."""
        path = name.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0].lower()
        return next((kind for end, kind in _ENDINGS.items() if path.endswith(end)), None)

    @property
    def media_type(self) -> str:
        """The preferred Content-Type of an upload of this type."""
        return next(text for text, kind in _MEDIA_TYPES.items() if kind is self)

    @property
    def python(self) -> bool:
        """Whether jobs of this type are Python jobs."""
        return self is not BinaryType.JAR


_MEDIA_TYPES = {
    "application/java-archive": BinaryType.JAR,
    "application/python-egg": BinaryType.EGG,
    "application/python-wheel": BinaryType.WHEEL,
    "application/python-archive": BinaryType.EGG,
    "python-archive": BinaryType.EGG,
}
_ENDINGS = {
    ".jar": BinaryType.JAR,
    ".egg": BinaryType.EGG,
    ".zip": BinaryType.EGG,
    ".whl": BinaryType.WHEEL,
}


@attrs.frozen(kw_only=True)
class Binary:
    """One version of a binary: ``size`` bytes with the SHA-256 ``digest``.

    ``package`` is the name and version that the uploaded package carries in itself, such as
    ``words 1.2.0``, or None if it has none.
    """

    id: str
    name: str = attrs.field(validator=lambda _i, _a, value: check_binary_name(value))
    type: BinaryType
    uploaded_at: datetime = attrs.field(validator=aware)
    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=non_negative)
    package: str | None = None


@attrs.frozen(kw_only=True)
class ClassPathEntry:
    """One entry of a requested class path: the name of a binary, or a URI. Exactly one is set.

    A name means the newest version. ``words@4517bab2`` means the version of ``words`` whose SHA-256 begins
    with these digits, at least eight, unless a binary has exactly this name.
    """

    name: str | None = None
    uri: str | None = None

    def __attrs_post_init__(self) -> None:
        if (self.name is None) == (self.uri is None):
            raise InvalidRequest(message="a class-path entry is either a binary name or a URI")

    @classmethod
    def parse(cls, text: str) -> ClassPathEntry:
        """Parse an entry of the ``cp`` parameter. With a scheme, it is a URI, otherwise a name.

        Raises:
            MalformedUrl: Nothing follows the scheme.
            InvalidName: The name is not allowed.
        """
        found = _URI.fullmatch(text)
        if not found and "/" in text:
            uri = PurePosixPath(text[:_MAX_SHOWN]).as_uri() if text[0] == "/" else "file:/directory/words.whl"
            rule = (
                "it looks like a path; upload the file and use the name of the binary, or write "
                f"{uri} for a file of the server's machine"
            )
            raise InvalidName(kind="binary", name=text[:_MAX_SHOWN], rule=rule)
        if not found:
            return cls(name=check_binary_name(text))
        if not found[2].strip("/"):
            raise MalformedUrl(url=text, reason="nothing follows the scheme")
        return cls(uri=text)

    def __str__(self) -> str:
        return self.name or self.uri or ""


def parse_class_path(entries: str | Sequence[str]) -> tuple[ClassPathEntry, ...]:
    """Parse a class path, given as a list or a comma-separated string. Empty entries are dropped."""
    texts = entries.split(",") if isinstance(entries, str) else entries
    for text in texts:
        check_kind("an entry of a class path", text, str, "a string: the name of a binary, or a URI")
    return tuple(ClassPathEntry.parse(t.strip()) for t in texts if t.strip())


@attrs.frozen(kw_only=True)
class ResolvedEntry:
    """One entry of a resolved class path: the requested name or URI, and the bytes that it referred to.

    ``binary_id`` is the ID of the binary's version, or None for a URI.
    """

    source: str
    type: BinaryType
    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=non_negative)
    binary_id: str | None = None


@attrs.frozen(kw_only=True)
class DataFile:
    """A data file on the server's machine. ``path`` is absolute, and ``size`` is in bytes."""

    path: Path
    size: int = attrs.field(validator=non_negative)
    created_at: datetime = attrs.field(validator=aware)
