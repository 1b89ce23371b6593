"""Stand-ins for plug-ins, which check every call: a fault becomes an error that names the plug-in.

Theory
======

The problem: backends are plug-ins. One that raises a ``KeyError``, or returns a tuple where its port promises
an object, would fail somewhere in the core, on any thread, with an error that says nothing about the cause.
A check at each call would have to be repeated a hundred times, and forgotten at the next new one.

The idea: the core never calls a plug-in itself. At assembly, each is replaced by a *stand-in*: a subclass of
its port in which every public method makes the same call to the plug-in. What the port promises is known
from the annotations of its methods, so new methods are checked as well. Returned objects that have methods of
their own (writers, handles, files, ``with`` blocks, iterators) get stand-ins, too.

The invariants: a call through a stand-in returns what the port promises, or raises an error of the library.
An unexpected exception becomes the typed error of its port, such as StorageError, so it is treated like a
failure that the plug-in has reported itself: a change that could not be stored is retried. Its traceback is
logged, at most once a minute for the same fault of the same plug-in. Neither shows secrets of a URL.

Attributes that a port declares, such as ``shared``, are checked as well. A method that promises None must
return nothing else: ``return "no cores"`` may be meant as a refusal, which would be taken for a success.

Deliberately not handled: wrong values of the right type, and an error of the library that only other methods
of the port may raise. The contract suites find these.
"""

from __future__ import annotations

import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from types import TracebackType, UnionType
from typing import (
    Any,
    BinaryIO,
    ClassVar,
    Generic,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import attrs

from jobserver_core.plugins import Backend
from jobserver_core.ports.blobs import BlobWriter
from jobserver_core.ports.faults import RULES, Calling, Plugin, PortRules, name_of
from jobserver_core.ports.launcher import ContextHandle

__all__ = ["checked", "unchecked"]

B = TypeVar("B", bound=Backend)
T = TypeVar("T")

_NOT_CALLS = ("kind", "check_options", "from_settings")
"""The members of a backend's class, which are used before it has an instance."""


def checked(port: type[B], part: B, rules: PortRules | None = None) -> B:
    """Return a stand-in for a backend, which checks every call. A stand-in is returned as it is.

    The stand-in's class has the name of the backend's class. Attributes that the port lacks are those of the
    backend.
    """
    if isinstance(part, _StandIn):
        return part
    rules = rules or RULES[port.kind]
    name = type(part).__name__
    plugin = Plugin(f"the {rules.description} {name}", rules)
    return cast("B", _stand_in_class(port, name)(part, plugin))


def unchecked(part: B) -> B:
    """Return the backend that a stand-in calls. Any other backend is returned as it is."""
    return cast("B", part._part) if isinstance(part, _StandIn) else part


# -- what a call promises to return ----------------------------------------------------------------------

Wrap = Callable[[Plugin, str, Any, Sequence[object]], object]
"""Makes a stand-in for a value, given the plug-in, the name of the call, the value, and the arguments."""


@attrs.frozen
class Expectation:
    """What a call promises to return, made from its annotation.

    ``description`` is for error messages. ``accepts`` returns whether a value is as promised.
    """

    description: str
    accepts: Callable[[Any], bool]
    wrap: Wrap | None = None

    def checked(self, plugin: Plugin, call: str, value: object, arguments: Sequence[object] = ()) -> Any:
        """Return what a call has returned, or the stand-in for it; raise the error if it is wrong."""
        if not self.accepts(value):
            raise plugin.returned(call, value, self.description, arguments)
        return value if self.wrap is None else self.wrap(plugin, call, value, arguments)


def _expectation(hint: Any) -> Expectation:
    """Return what an annotation promises. It must be one of the few forms that the ports use."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return _KNOWN.get(hint) or _instance(hint)
    if Ellipsis in arguments:
        return _several((Sequence, Set), _expectation(arguments[0]), "a tuple")
    return _GENERIC[origin](*map(_expectation, arguments))


def _instance(kind: type, wrap: Wrap | None = None) -> Expectation:
    return Expectation(name_of(kind), lambda value: isinstance(value, kind), wrap)


def _either(first: Expectation, second: Expectation) -> Expectation:
    accepted, also_accepted = first.accepts, second.accepts
    return Expectation(
        f"{first.description} or {second.description}",
        lambda value: accepted(value) or also_accepted(value),
    )


def _several(kind: type | tuple[type, ...], element: Expectation, words: str) -> Expectation:
    accepts = element.accepts

    def check(values: Any) -> bool:
        is_kind = isinstance(values, kind) and not isinstance(values, (str, bytes))
        return is_kind and all(map(accepts, values))

    return Expectation(f"{words} of {element.description}", check)


def _pair(first: Expectation, second: Expectation) -> Expectation:
    return Expectation(
        f"({first.description}, {second.description})",
        lambda value: (
            isinstance(value, tuple)
            and len(value) == 2
            and first.accepts(value[0])
            and second.accepts(value[1])
        ),
    )


# -- objects that calls return ---------------------------------------------------------------------------


def _stand_in_of(kind: type, *, raises: bool = True) -> Wrap:
    """Return a function that makes a stand-in for an object with methods, which a call has returned.

    ``raises``: whether callers expect errors of the library from these methods.
    """

    def stand_in(plugin: Plugin, _call: str, value: object, _arguments: Sequence[object]) -> object:
        if not raises:
            plugin = attrs.evolve(plugin, rules=attrs.evolve(plugin.rules, expected=()))
        return _stand_in_class(kind, type(value).__name__)(value, plugin)

    return stand_in


def _iterator(element: Expectation) -> Expectation:
    description = f"an iterator of {element.description}"

    def checked_values(
        plugin: Plugin, call: str, values: Iterable[object], arguments: Sequence[object]
    ) -> Iterator[object]:
        iterator, end = iter(values), object()
        while True:
            with Calling(plugin, call, arguments):
                value = next(iterator, end)
            if value is end:
                return
            if not element.accepts(value):
                raise plugin.returned(call, [value], description, arguments)
            yield value

    def accepts(values: object) -> bool:
        return isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping))

    return Expectation(description, accepts, checked_values)


@attrs.frozen(eq=False)
class _Block(AbstractContextManager[T], Generic[T]):
    """A ``with`` block of a plug-in."""

    _plugin: Plugin
    _call: str
    _block: AbstractContextManager[T]
    _arguments: Sequence[object]
    _value: Expectation

    def __enter__(self) -> T:
        with Calling(self._plugin, self._call, self._arguments):
            value = self._block.__enter__()
        return cast("T", self._value.checked(self._plugin, self._call, value, self._arguments))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Calling(self._plugin, self._call, self._arguments, passes=error):
            self._block.__exit__(kind, error, trace)


def _block(value: Expectation) -> Expectation:
    return Expectation(
        f"a with block for {value.description}",
        lambda block: hasattr(type(block), "__enter__") and hasattr(type(block), "__exit__"),
        lambda plugin, call, block, arguments: _Block(plugin, call, block, arguments, value),
    )


class _BinaryFile(ABC):
    """The methods of an open file that the core uses."""

    @abstractmethod
    def read(self, size: int = -1) -> bytes: ...

    @abstractmethod
    def seek(self, offset: int, whence: int = 0) -> int: ...

    @abstractmethod
    def tell(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> _BinaryFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


_KNOWN: dict[Any, Expectation] = {
    int: Expectation("int", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    BinaryIO: Expectation(
        "a file in binary mode",
        lambda value: hasattr(value, "read") and not isinstance(value, io.TextIOBase),
        _stand_in_of(_BinaryFile),
    ),
    BlobWriter: _instance(BlobWriter, _stand_in_of(BlobWriter)),
    ContextHandle: _instance(ContextHandle, _stand_in_of(ContextHandle, raises=False)),
}
_GENERIC: dict[Any, Callable[..., Expectation]] = {
    ClassVar: lambda declared: declared,
    Union: _either,
    UnionType: _either,
    list: partial(_several, list, words="a list"),
    Sequence: partial(_several, Sequence, words="a sequence"),
    tuple: _pair,
    Iterator: _iterator,
    AbstractContextManager: _block,
}


# -- stand-ins -------------------------------------------------------------------------------------------


class _StandIn:
    """Forwards each call of a port to an object of a plug-in, and checks it."""

    def __init__(self, part: object, plugin: Plugin) -> None:
        self._part = part
        self._plugin = plugin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@lru_cache(maxsize=100)
def _stand_in_class(port: type, name: str) -> type[_StandIn]:
    """Return the class of stand-ins for the objects of a class with this name."""
    return cast("type[_StandIn]", type(port)(name, (_StandIn, port), _members(port)))


@lru_cache(maxsize=100)
def _members(port: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in dir(port):
        if name.startswith("_") or name in _NOT_CALLS:
            continue
        member = inspect.getattr_static(port, name)
        if inspect.isfunction(member):
            found[name] = _method(name, _expectation(get_type_hints(member)["return"]))
        elif isinstance(member, property):
            found[name] = _property(name, _expectation(get_type_hints(member.fget)["return"]))
        else:
            found[name] = _property(name, _expectation(get_type_hints(port)[name]))
    return found


def _method(name: str, expected: Expectation) -> Callable[..., object]:
    accepts, wrap = expected.accepts, expected.wrap  # many calls are short, so this does without checked()

    def call(self: _StandIn, *arguments: Any, **named: Any) -> object:
        try:
            value = getattr(self._part, name)(*arguments, **named)
        except BaseException as error:  # noqa: BLE001 - nothing that a plug-in raises may pass unseen
            raise self._plugin.raised(name, error, arguments)  # noqa: B904 - it has its cause
        if not accepts(value):
            raise self._plugin.returned(name, value, expected.description, arguments)
        return value if wrap is None else wrap(self._plugin, name, value, arguments)

    call.__name__ = name
    return call


def _property(name: str, expected: Expectation) -> property:
    def get(self: _StandIn) -> object:
        with Calling(self._plugin, name):
            value = getattr(self._part, name)
        return expected.checked(self._plugin, name, value)

    return property(get)
