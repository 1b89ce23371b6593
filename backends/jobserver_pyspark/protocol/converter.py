"""Convert messages to JSON and back.

A message is a frozen dataclass. On the wire it is a JSON object with the name of its class as ``kind`` and
its fields by name; a field of type ``bytes`` is sent unchanged as the payload of the frame.

The peers do not trust each other: a runner executes job code, which can write anything to its connection. So
reading is strict. Each direction accepts only its own kinds; all fields must be present with exactly the
declared types, and unknown fields are refused. Anything else raises :class:`ProtocolError`, which is the only
exception.

Messages are dataclasses, not attrs with cattrs, because this code runs in the interpreter of the context,
which may lack these packages, and a job may bring its own versions. Importing them would also cost each
context a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    from jobserver_core.models.json_values import JsonObject
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        """Tell type checkers, and only them, that subclasses of a class are dataclasses."""
        return lambda cls: cls


Payload = bytes | memoryview
"""The type of a field that is sent as the payload of a frame; it is received as ``bytes``."""

_MAX_SHOWN = 80
"""The most characters of a wrong value that an error shows; it may be a whole configuration."""


class ProtocolError(Exception):
    """A peer sent something that is not a message of the protocol; the text says which peer and why."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class ProtocolMessage:
    """Base class of all messages.

    A direct subclass is a direction: it names sender and receiver. Its subclasses are the kinds of messages
    in that direction. Being below a direction makes a class a frozen dataclass with keyword arguments.
    """

    sender: ClassVar[str]
    receiver: ClassVar[str]
    kinds: ClassVar[dict[str, type[ProtocolMessage]]]

    def __init_subclass__(cls) -> None:
        if ProtocolMessage in cls.__bases__:
            cls.kinds = {}
        else:
            cls.kinds[cls.__name__] = dataclasses.dataclass(frozen=True, kw_only=True)(cls)


_R = TypeVar("_R", bound=ProtocolMessage)


def encode(message: ProtocolMessage) -> tuple[bytes, Payload]:
    """Return the header and the payload of a message."""
    fields: JsonObject = {"kind": type(message).__name__, **vars(message)}
    payload: Payload = b""
    if (name := _shape(type(message)).payload) is not None:
        payload = fields.pop(name)
    # A job's error may contain lone surrogates, which strict UTF-8 has no form for.
    return _ENCODER.encode(fields).encode("utf-8", "surrogatepass"), payload


def decode(direction: type[_R], header: bytes, payload: bytes = b"") -> _R:
    """Return the message of a header and a payload in one direction.

    Raises:
        ProtocolError: They are not a message of this direction.
    """
    try:
        tree = _DECODER.decode(header.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{direction.sender} sent a header that is not JSON: {error}") from None
    kind = tree.pop("kind", None) if isinstance(tree, dict) else None
    message_class = direction.kinds.get(kind) if isinstance(kind, str) else None
    if message_class is None:
        raise ProtocolError(
            f"{direction.sender} sent a message of unknown kind {_shown(kind)} to {direction.receiver}; "
            f"expected one of {', '.join(direction.kinds)}"
        )
    payload_field = _shape(message_class).payload
    if payload_field is not None:
        tree[payload_field] = payload
    try:
        if payload and payload_field is None:
            raise _unlike("no payload", payload)
        message: _R = _structure(message_class, tree)
    except _Mismatch as error:
        where = ".".join([message_class.__name__, *error.path])
        raise ProtocolError(f"{direction.sender} sent a malformed {kind}: {where} {error}") from None
    return message


def prepare(*directions: type[ProtocolMessage]) -> None:
    """Inspect the messages of these directions now, so that the first of each kind is not slower."""
    for direction in directions:
        for message_class in direction.kinds.values():
            _shape(message_class)


# -- writing -------------------------------------------------------------------------------------------


def _unstructure(value: object) -> object:
    """Return the JSON form of types that JSON lacks: nested classes and paths."""
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value):
        return vars(value)
    raise TypeError(f"a message cannot contain {type(value).__name__}")


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_unstructure)


_DECODER = json.JSONDecoder()


# -- reading -------------------------------------------------------------------------------------------

_Reader = Callable[[Any], Any]


class _Mismatch(Exception):
    """A value is not of the declared type; ``path`` leads to it from the message."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str] = []

    def inside(self, name: str) -> _Mismatch:
        self.path.insert(0, name)
        return self


def _unlike(expected: str, value: object) -> _Mismatch:
    return _Mismatch(f"must be {expected}, got {_shown(value)}")


def _wrong_fields(fields: tuple[_Field, ...], tree: JsonObject) -> _Mismatch:
    """Return the error of an object that lacks a field, or has one too many."""
    names = {field.name for field in fields}
    missing, unknown = names - tree.keys(), tree.keys() - names
    return _Mismatch(f"lacks {min(missing)}" if missing else f"has the unknown field {_shown(min(unknown))}")


def _structure(wanted: type[Any], tree: Any) -> Any:
    fields = _shape(wanted).fields
    if type(tree) is not dict:
        raise _unlike("an object", tree)
    if len(tree) != len(fields):
        raise _wrong_fields(fields, tree)
    values, name = {}, ""
    try:
        for name, exact, read in fields:
            value = tree[name]
            values[name] = value if type(value) is exact else read(value)
    except KeyError:
        raise _wrong_fields(fields, tree) from None
    except _Mismatch as error:
        raise error.inside(name) from None
    made = object.__new__(wanted)
    object.__setattr__(made, "__dict__", values)  # as the class's own __init__ would, field by field
    return made


class _Field(NamedTuple):
    """How a field is read: a value of the type ``exact`` as it is, any other one by ``read``."""

    name: str
    exact: type[object] | None
    read: _Reader


class _Shape(NamedTuple):
    """The fields of a class, and the name of the one that is the payload."""

    fields: tuple[_Field, ...]
    payload: str | None


_shapes: dict[type[object], _Shape] = {}


def _shape(wanted: type[Any]) -> _Shape:
    found = _shapes.get(wanted)
    if found is None:
        hints = typing.get_type_hints(wanted)
        names = [field.name for field in dataclasses.fields(wanted)]
        payload = next((name for name in names if hints[name] == Payload), None)
        fields = tuple(_Field(name, _EXACT.get(hints[name]), _reader(hints[name])) for name in names)
        found = _shapes[wanted] = _Shape(fields, payload)
    return found


def _reader(hint: Any) -> _Reader:
    """Return the function that checks and converts a value of a declared type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin in (types.UnionType, typing.Union):
        read = _reader(next(kind for kind in arguments if kind is not type(None)))
        return lambda value: None if value is None else read(value)
    if origin is Literal:
        return _one_of(arguments)
    if origin is tuple:
        return _tuple_of(_reader(arguments[0]))
    if origin is dict:
        return _strings_by_name
    return lambda value: _structure(hint, value)


def _exactly(wanted: type[Any], expected: str) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not wanted:  # a bool is not an int here
            raise _unlike(expected, value)
        return value

    return read


def _read_path(value: Any) -> Path:
    if type(value) is not str:
        raise _unlike("a path", value)
    return Path(value)


_SCALARS: dict[object, _Reader] = {
    str: _exactly(str, "a string"),
    int: _exactly(int, "an integer"),
    bool: _exactly(bool, "true or false"),
    Path: _read_path,
    Payload: _exactly(bytes, "bytes"),
}
_EXACT: dict[object, type[object]] = {str: str, int: int, bool: bool, Payload: bytes}
"""The types whose values are read as they are."""


def _one_of(choices: tuple[str, ...]) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) is not str or value not in choices:
            raise _unlike(f"one of {', '.join(choices)}", value)
        return value

    return read


def _tuple_of(read: _Reader) -> _Reader:
    def read_all(values: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _unlike("a list", values)
        try:
            return tuple(map(read, values))
        except _Mismatch as error:
            raise error.inside("[]") from None

    return read_all


def _strings_by_name(values: Any) -> dict[str, str]:
    if type(values) is not dict:
        raise _unlike("an object", values)
    for name, value in values.items():
        if type(value) is not str:
            raise _unlike("a string", value).inside(name[:_MAX_SHOWN])
    return values


def _shown(value: object) -> str:
    """Return a short text of a value for an error message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value[:_MAX_SHOWN] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _MAX_SHOWN + 8 else f"{text[:_MAX_SHOWN]}…"
