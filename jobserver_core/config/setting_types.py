"""The types of settings: how values are parsed, validated and shown.

Each function here creates the attrs field of one setting. The field converts and validates its value, and
raises :class:`~jobserver_core.errors.InvalidSetting` with the setting's key.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import attrs

from jobserver_core.config.units import duration_text, parse_duration, parse_size, size_text
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import Json, JsonObject
from jobserver_core.models.redaction import (
    Secret,
    redacted,
    redacted_options,
    redacted_strings,
    redacted_url,
)

Field: TypeAlias = Any
"""The attrs field of one setting, which has the type of its annotation to type checkers."""
_Attribute: TypeAlias = "attrs.Attribute[Any]"
_METADATA_KEY = "setting"
N = TypeVar("N", int, float)
_URI_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@attrs.frozen(kw_only=True)
class SettingType:
    """The type of a setting.

    Attributes:
        name: The type's name in the reference documentation.
        doc: The meaning of the setting.
        parse: Converts a value to the typed value, or raises ValueError.
        show: Converts a typed value to JSON as in a configuration file, with secrets redacted.
        nullable: Whether the setting can be null.
        free: Whether the value is an object with arbitrary keys.
        anchor: Makes relative paths relative to a directory.
    """

    name: str
    doc: str
    parse: Callable[[Json], object]
    show: Callable[[Any], Json]
    nullable: bool = False
    free: bool = False
    anchor: Callable[[Any, Path], object] = lambda value, _directory: value

    def convert(self, value: Json, key: str) -> object:
        """Return the typed value.

        Raises:
            InvalidSetting: The value is invalid.
        """
        if value is None:
            if self.nullable:
                return None
            if self.free:
                return {}  # null removes what an included file has
            raise InvalidSetting(key=key, message=f"must not be null; its type is {self.name}")
        try:
            return self.parse(value)
        except ValueError as error:
            raise InvalidSetting(key=key, message=str(error)) from None


def setting_key(prefix: str, attribute: str) -> str:
    """Return the dotted key of an attribute, with hyphens instead of underscores."""
    return f"{prefix}.{attribute.replace('_', '-')}"


class Section:
    """A group of settings with the same ``prefix``. Subclasses are frozen attrs classes."""

    prefix: ClassVar[str]

    def __init_subclass__(cls, *, prefix: str | None = None) -> None:
        super().__init_subclass__()
        if prefix is not None:  # attrs creates each class again, with what the first one has
            cls.prefix = prefix

    @classmethod
    def setting_types(cls) -> dict[str, SettingType]:
        """Return the types of the section's settings by attribute name."""
        fields = attrs.fields_dict(cls)  # type: ignore[arg-type]
        return {n: f.metadata[_METADATA_KEY] for n, f in fields.items() if _METADATA_KEY in f.metadata}


def bind(cls: type[Section], fields: list[_Attribute]) -> list[_Attribute]:
    """Add a converter to every setting of a section (an attrs ``field_transformer``)."""
    return [_bound(cls.prefix, field) if _METADATA_KEY in field.metadata else field for field in fields]


def _bound(prefix: str, field: _Attribute) -> _Attribute:
    kind: SettingType = field.metadata[_METADATA_KEY]
    key = setting_key(prefix, field.name)
    return field.evolve(converter=lambda value: kind.convert(value, key))


def _field(
    name: str,
    doc: str,
    default: object,
    parse: Callable[[Json], object],
    show: Callable[[Any], Json],
    *,
    shown: bool | Callable[[Any], str] = True,
    **more: Any,
) -> Field:
    """Create the field of a setting, nullable if its default is None; ``more`` are fields of its type."""
    more["nullable"] = more.get("nullable") or default is None
    metadata = {_METADATA_KEY: SettingType(name=name, doc=doc, parse=parse, show=show, **more)}
    if callable(default):
        return attrs.field(factory=default, metadata=metadata, repr=shown)
    return attrs.field(default=default, metadata=metadata, repr=shown)


def _in_range(value: N, minimum: N, maximum: N, show: Callable[[N], str]) -> N:
    if value < minimum:
        raise ValueError(f"must be at least {show(minimum)}, got {show(value)}")
    if value > maximum:
        raise ValueError(f"must be at most {show(maximum)}, got {show(value)}")
    return value


def duration(
    default: float | None,
    doc: str,
    *,
    minimum: float = 0.0,
    maximum: float = 10 * 365 * 86400.0,
    nullable: bool = False,
) -> Field:
    """Create a duration field in seconds."""

    def parse(value: Json) -> float:
        return _in_range(parse_duration(value), minimum, maximum, duration_text)

    return _field("duration", doc, default, parse, duration_text, nullable=nullable)


def size(default: int | None, doc: str, *, minimum: int = 0, nullable: bool = False) -> Field:
    """Create a size field in bytes."""

    def parse(value: Json) -> int:
        return _in_range(parse_size(value), minimum, 2**62, size_text)

    return _field("size", doc, default, parse, size_text, nullable=nullable)


def number(
    default: float | None,
    doc: str,
    *,
    minimum: float = 0,
    maximum: float = 2**31 - 1,
    whole: bool = True,
    zero_is_none: bool = False,
    nullable: bool = False,
) -> Field:
    """Create a number field. Numbers can also be strings, as in HOCON."""

    def parse(value: Json) -> float | None:
        parsed = _number(value, whole)
        if parsed == 0 and zero_is_none:
            return None
        return _in_range(parsed, minimum, maximum, "{:g}".format)

    name = "integer" if whole else "number"
    return _field(name, doc, default, parse, lambda value: value, nullable=nullable)


def _number(value: Json, whole: bool) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            parsed = float(value)
            if whole and parsed.is_integer():
                return int(parsed)
            if not whole and math.isfinite(parsed):
                return parsed
    raise ValueError(f"expected {'an integer' if whole else 'a number'}, got {_shortened(value)}")


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


_FLAGS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def flag(default: bool, doc: str) -> Field:
    """Create a boolean field. ``on``, ``off``, ``yes`` and ``no`` are also accepted, as in HOCON."""

    def parse(value: Json) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in _FLAGS:
            return _FLAGS[value.strip().lower()]
        raise ValueError(f"expected true or false, got {_shortened(value)}")

    return _field("boolean", doc, default, parse, bool)


def _text(value: Json) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {_shortened(value)}")
    if "\0" in value or not value.strip():
        raise ValueError("must not be empty" if not value.strip() else "must not contain a NUL character")
    return value.strip()


def text(
    default: str | None, doc: str, *, check: Callable[[str], str] | None = None, url: bool = False
) -> Field:
    """Create a field for a non-empty string. Passwords in URLs are redacted."""

    def parse(value: Json) -> str:
        return check(_text(value)) if check else _text(value)

    def shown(value: str | None) -> str:
        return repr(value and redacted_url(value))

    if url:
        return _field("URL", doc, default, parse, redacted_url, shown=shown)
    return _field("string", doc, default, parse, str)


def _items(value: Json) -> list[Json]:
    if isinstance(value, str):
        return [item for item in value.split(",") if item.strip()]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise ValueError(f"expected a list of strings, got {_shortened(value)}")


def texts(default: tuple[str, ...], doc: str, *, check: Callable[[str], str] | None = None) -> Field:
    """Create a field for several strings: a list, or one comma-separated string."""

    def parse(value: Json) -> tuple[str, ...]:
        items = [_text(item) for item in _items(value)]
        return tuple(check(item) if check else item for item in items)

    return _field("list of strings", doc, default, parse, _show_list)


def _show_list(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]


def parse_path(value: Json) -> Path:
    """Return a path; ``~`` is the user's home directory.

    Raises:
        ValueError: It is not a path.
    """
    if isinstance(value, os.PathLike):
        return Path(value)
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:
        raise ValueError(f"unknown home directory in {value!r}; use an absolute path") from None


def path(default: Callable[[], Path] | None, doc: str) -> Field:
    """Create a path field. ``~`` is the user's home directory."""
    return _field("path", doc, default, parse_path, str, anchor=lambda value, directory: directory / value)


def paths(doc: str) -> Field:
    """Create a field for several paths, empty by default."""

    def parse(value: Json) -> tuple[Path, ...]:
        return tuple(parse_path(item) for item in _items(value))

    def anchor(values: Iterable[Path], directory: Path) -> tuple[Path, ...]:
        return tuple(directory / value for value in values)

    return _field("list of paths", doc, (), parse, _show_list, anchor=anchor)


def secret(doc: str) -> Field:
    """Create a field for a secret string, null by default."""

    def parse(value: Json) -> Secret:
        if isinstance(value, Secret):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError("expected a non-empty string")
        return Secret(value.strip())

    return _field("secret", doc, None, parse, str)


def _mapping(value: Json, of: str) -> JsonObject:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object of {of}, got {_shortened(value)}")
    return copy.deepcopy(dict(value))


def _tree_of(
    doc: str,
    of: str,
    check: Callable[[Json], object],
    *,
    show: Callable[[Json], Json] = redacted,
    **more: Callable[[Any, Path], object],
) -> Field:
    def parse(value: Json) -> JsonObject:
        return {str(name): check(item) for name, item in _mapping(value, of).items()}

    return _field(f"object of {of}", doc, dict, parse, show, shown=False, free=True, **more)


def tree(doc: str) -> Field:
    """Create a field with arbitrary keys. It is not part of the repr, because it may contain secrets."""
    return _tree_of(doc, "anything", lambda item: item)


def options(doc: str, *, secret: bool = False) -> Field:
    """Create a field for the options of a backend. With ``secret``, any string in them may be a secret."""
    show = redacted_strings if secret else redacted_options
    return _tree_of(doc, "anything", lambda item: item, show=show)


def named_trees(doc: str) -> Field:
    """Create a field of objects by name."""
    return _tree_of(doc, "objects", lambda item: _mapping({} if item is None else item, "settings"))


def named_paths(doc: str) -> Field:
    """Create a field of paths or URIs by name."""

    def located(item: str, directory: Path) -> str:
        return item if _URI_SCHEME.match(item) else str(directory / item)

    def anchor(value: dict[str, str], directory: Path) -> dict[str, str]:
        return {name: located(item, directory) for name, item in value.items()}

    def checked(item: Json) -> str:
        return _text(item) if isinstance(item, str) and _URI_SCHEME.match(item) else str(parse_path(item))

    return _tree_of(doc, "paths", checked, anchor=anchor)
