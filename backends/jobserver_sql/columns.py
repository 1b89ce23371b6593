"""Column types: how each kind of value is stored, the same in every database."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Generic, TypeVar

from sqlalchemy import BigInteger, Dialect, Double, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from jobserver_core.errors import StorageError
from jobserver_core.models.serialization import dumps, loads

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_SHORT = 4096
"""The most characters of a text whose model is cached: settings and class paths are short, and repeat."""
_UNSTORABLE = re.compile("[\0\x1a\ud800-\udfff]")
_ESCAPE = re.compile("\x1a([0-9a-f]{4})")


class Instant(TypeDecorator[datetime]):
    """A time as whole microseconds since 1970: exact, and ordered as the times are."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Return the time, in UTC."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Seconds(TypeDecorator[float]):
    """A duration. Drivers return it as the same float, so it needs no conversion."""

    impl = Double
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Return None for no conversion. The default needs to know the type of the result."""
        return


class FreeText(TypeDecorator[str]):
    """Any Python string, compared by code points.

    PostgreSQL refuses NUL and orders by the database's language, and no database takes lone
    surrogates. Those characters are written as U+001A and four hex digits (as is U+001A itself).
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Return the type of a column: ordered by code points, which SQLite does by itself."""
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(Text(collation=collation))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            if "\0" not in value and "\x1a" not in value and (value.isascii() or value.encode()):
                return value
        except UnicodeEncodeError:
            pass
        return _UNSTORABLE.sub(lambda found: f"\x1a{ord(found[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or "\x1a" not in value:
            return value
        return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value)


class EnumMember(TypeDecorator[E], Generic[E]):
    """A member of an enumeration, stored as its value, a string."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[E]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:
        """Return the member.

        Raises:
            StorageError: The text is not a valid value.
        """
        try:
            return None if value is None else self.kind(value)
        except ValueError as error:
            raise _damaged(error) from error


class Json(TypeDecorator[T], Generic[T]):
    """A model or a tree that no query searches, as JSON text.

    ``shared`` is for hashable values that repeat: equal short texts may be read as one object, and equal
    objects are serialized once, which saves most of the work for a job's record.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[T], shared: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.shared = shared
        self._read: Callable[[str], T] = functools.partial(loads, kind=kind)
        self._write: Callable[[T], str] = functools.partial(dumps, kind=kind)
        self._read_again = functools.lru_cache(maxsize=1024)(self._read)
        self._write_again = functools.lru_cache(maxsize=1024)(self._write)

    def process_bind_param(self, value: T | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return self._write_again(value) if self.shared else self._write(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> T | None:
        """Return the model.

        Raises:
            StorageError: The text is not a valid value.
        """
        try:
            if value is None:
                return None
            return self._read_again(value) if self.shared and len(value) <= _SHORT else self._read(value)
        except ValueError as error:
            raise _damaged(error) from error


def _damaged(error: ValueError) -> StorageError:
    return StorageError(message=f"the metadata database holds a damaged value: {error}")
