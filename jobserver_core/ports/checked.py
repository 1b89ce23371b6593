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

Deliberately not handled: wrong values of the right type, and an error of the library that only other methods
of the port may raise. The contract suites find these.
"""

from __future__ import annotations

import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from types import NoneType, TracebackType, UnionType
from typing import Any, BinaryIO, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs

from jobserver_core.plugins import Backend
from jobserver_core.ports.blobs import BlobWriter
from jobserver_core.ports.faults import RULES, Calling, Plugin, PortRules
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


# -- what a method promises to return --------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Expectation:
    """What a method promises to return, made from its annotation.

    ``description`` is for error messages. ``accepts`` returns whether a value is as promised. ``wrap``, if
    there is one, makes a stand-in for the value, given the plug-in, the name of the call and its arguments.
    """

    description: str
    accepts: Callable[[object], bool]
    wrap: Callable[[Plugin, str, Any, Sequence[object]], object] | None = None


def _expectation(hint: Any) -> Expectation:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        options = [_expectation(one) for one in arguments if one is not NoneType]
        return _one_of([*options, _NONE] if NoneType in arguments else options)
    if origin is not None:
        return _GENERIC[origin]([_expectation(one) for one in arguments])
    return _KNOWN.get(hint) or _instance(hint)


def _instance(kind: type, wrap: Callable[..., object] | None = None) -> Expectation:
    return Expectation(description=kind.__name__, accepts=lambda value: isinstance(value, kind), wrap=wrap)


def _stand_in_of(
    kind: type, *, raises: bool = True
) -> Callable[[Plugin, str, Any, Sequence[object]], object]:
    """Return a function that makes a stand-in for an object with methods, which a call has returned.

    ``raises``: whether callers expect errors of the library from these methods.
    """

    def stand_in(plugin: Plugin, _call: str, value: object, _arguments: Sequence[object]) -> object:
        if not raises:
            plugin = attrs.evolve(plugin, rules=attrs.evolve(plugin.rules, expected=()))
        return _stand_in_class(kind, type(value).__name__)(value, plugin)

    return stand_in


_NONE = Expectation(description="None", accepts=lambda value: value is None)


def _one_of(options: list[Expectation]) -> Expectation:
    first, second = (option.accepts for option in options)  # each method promises at most two
    return Expectation(
        description=" or ".join(option.description for option in options),
        accepts=lambda value: first(value) or second(value),
    )


def _several(kind: type, elements: list[Expectation]) -> Expectation:
    accepts = elements[0].accepts

    def check(values: object) -> bool:
        is_kind = isinstance(values, kind) and not isinstance(values, (str, bytes))
        return is_kind and all(accepts(value) for value in cast("Sequence[object]", values))

    return Expectation(description=f"a {kind.__name__.lower()} of {elements[0].description}", accepts=check)


def _tuple(elements: list[Expectation]) -> Expectation:
    def check(values: object) -> bool:
        if not isinstance(values, tuple) or len(values) != len(elements):
            return False
        return all(element.accepts(value) for element, value in zip(elements, values, strict=True))

    return Expectation(
        description=f"({', '.join(element.description for element in elements)})", accepts=check
    )


# -- objects that calls return ---------------------------------------------------------------------------


def _iterator(elements: list[Expectation]) -> Expectation:
    (element,) = elements
    description = f"an iterator of {element.description}"
    whole = Expectation(description=description, accepts=lambda value: isinstance(value, Iterable))

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

    return attrs.evolve(whole, wrap=checked_values)


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
        if not self._value.accepts(value):
            raise self._plugin.returned(self._call, value, self._value.description, self._arguments)
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Calling(self._plugin, self._call, self._arguments, passes=error):
            self._block.__exit__(kind, error, trace)


def _block(values: list[Expectation]) -> Expectation:
    return Expectation(
        description=f"a with block for {values[0].description}",
        accepts=lambda block: hasattr(type(block), "__enter__") and hasattr(type(block), "__exit__"),
        wrap=lambda plugin, call, block, arguments: _Block(plugin, call, block, arguments, values[0]),
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


_FILE = Expectation(
    description="a file in binary mode",
    accepts=lambda value: hasattr(value, "read") and not isinstance(value, io.TextIOBase),
    wrap=_stand_in_of(_BinaryFile),
)


_KNOWN: dict[Any, Expectation] = {
    # Other values are ignored, but a coroutine that is never awaited has done nothing.
    NoneType: Expectation(
        description="None", accepts=lambda value: value is None or not inspect.isawaitable(value)
    ),
    int: Expectation(
        description="int", accepts=lambda value: isinstance(value, int) and not isinstance(value, bool)
    ),
    BinaryIO: _FILE,
    BlobWriter: _instance(BlobWriter, _stand_in_of(BlobWriter)),
    ContextHandle: _instance(ContextHandle, _stand_in_of(ContextHandle, raises=False)),
}
_GENERIC: dict[Any, Callable[[list[Expectation]], Expectation]] = {
    list: partial(_several, list),
    Sequence: partial(_several, Sequence),
    tuple: _tuple,
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
    return cast("type[_StandIn]", type(port)(name, (_StandIn, port), dict(_members(port))))


@lru_cache(maxsize=100)
def _members(port: type) -> tuple[tuple[str, object], ...]:
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
            found[name] = _property(name, _ANYTHING)
    return tuple(found.items())


_ANYTHING = Expectation(description="anything", accepts=lambda _value: True)


def _method(name: str, expected: Expectation) -> Callable[..., object]:
    accepts, wrap = expected.accepts, expected.wrap

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
        if not expected.accepts(value):
            raise self._plugin.returned(name, value, expected.description)
        return value

    return property(get)
