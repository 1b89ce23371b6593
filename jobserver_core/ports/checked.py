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

Deliberately not handled: wrong values of the right type, and an error of the library that the port does not
allow for a method. The contract suites find these.
"""

from __future__ import annotations

import inspect
import io
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from types import NoneType, TracebackType, UnionType
from typing import Any, BinaryIO, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs

from jobserver_core.errors import (
    BackendError,
    FetchError,
    InvalidCallbackUrl,
    JobServerError,
    LaunchError,
    StorageError,
    TransportError,
)
from jobserver_core.models.failures import message_of
from jobserver_core.plugins import Backend
from jobserver_core.ports.blobs import BlobWriter
from jobserver_core.ports.launcher import ContextHandle
from jobserver_core.repeats import Repeats
from jobserver_core.uris import redacted, without_secrets

__all__ = ["PortRules", "checked", "unchecked"]

_log = logging.getLogger(__name__)

B = TypeVar("B", bound=Backend)
T = TypeVar("T")

_NOT_CALLS = ("kind", "check_options", "from_settings")
"""What belongs to the class of a backend, and is used before there is an object."""


@attrs.frozen(kw_only=True)
class PortRules:
    """What the faults of the backends of one port become.

    ``words`` say what such a backend is. ``error`` makes an error of a message and, if the call was about a
    URL, of that URL without secrets. ``expected`` are the errors of the library that callers get unchanged;
    all others are faults. ``has_urls``: the first argument of a call is a URL or has one as ``url``.
    """

    words: str
    error: Callable[[str, str], Exception]
    expected: tuple[type[JobServerError], ...] = (JobServerError,)
    has_urls: bool = False


def _fetch_error(message: str, url: str) -> Exception:
    return FetchError(url=url, reason=message) if url else BackendError(message=message)


_RULES = {
    "metadata": PortRules(words="metadata store", error=lambda text, _url: StorageError(message=text)),
    "blobs": PortRules(words="blob store", error=lambda text, _url: StorageError(message=text)),
    "launcher": PortRules(words="launcher", error=lambda text, _url: LaunchError(message=text)),
    "fetcher": PortRules(words="fetcher", error=_fetch_error, has_urls=True),
    "transport": PortRules(
        words="transport",
        error=lambda text, _url: TransportError(message=text),
        expected=(InvalidCallbackUrl,),
        has_urls=True,
    ),
}
"""By the ``kind`` of the port."""


def checked(port: type[B], part: B, rules: PortRules | None = None) -> B:
    """Return a stand-in for a backend, which checks every call. A stand-in is returned as it is.

    Attributes that the port does not have are those of the backend. The class has the name of the backend's.
    """
    if isinstance(part, _StandIn):
        return part
    rules = rules or _RULES[port.kind]
    name = type(part).__name__
    plugin = _Plugin(f"the {rules.words} {name}", rules, Repeats(_log))
    return cast("B", _stand_in_class(port, name)(part, plugin))


def unchecked(part: B) -> B:
    """Return the backend that a stand-in calls. Any other backend is returned as it is."""
    return cast("B", part._part) if isinstance(part, _StandIn) else part


@attrs.frozen(eq=False)
class _Plugin:
    """A backend, as errors and the log name it."""

    name: str
    rules: PortRules
    _repeats: Repeats

    def raised(self, call: str, error: BaseException, arguments: Sequence[object] = ()) -> BaseException:
        """Return what a call raises instead of an exception: the same one if it is expected."""
        if isinstance(error, (*self.rules.expected, KeyboardInterrupt)):
            return error
        return self._fault(f"{call} of {self.name} raised {type(error).__name__}", error, arguments)

    def returned(
        self, call: str, value: object, expected: Expectation, arguments: Sequence[object]
    ) -> Exception:
        """Return the error that a call returned something else than its port promises."""
        given = _described(value)
        hint = ""
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python warns about it
            hint = "; declare it without async"
        text = f"{call} of {self.name} returned {given} instead of {expected.words}{hint}"
        return self._fault(text, None, arguments)

    def _fault(self, text: str, error: BaseException | None, arguments: Sequence[object]) -> Exception:
        url = self._url_of(arguments)
        why = message_of(error) if error is not None else ""
        message = f"{text}: {why}" if why else text
        if url:
            message = without_secrets(message, url)
            stack = "".join(traceback.format_exception(error)) if error is not None else ""
            self._repeats.error(text, "%s", f"{message}\n{without_secrets(stack, url)}".rstrip())
        else:
            self._repeats.error(text, "%s", message, exc_info=error)
        fault = self.rules.error(message, redacted(url))
        # Tracebacks of a chain end up in logs, so that one may not show what may be secret in a URL.
        fault.__cause__ = None if url else error
        fault.__suppress_context__ = True
        return fault

    def _url_of(self, arguments: Sequence[object]) -> str:
        first = arguments[0] if self.rules.has_urls and arguments else ""
        url = getattr(first, "url", first)
        return url if isinstance(url, str) else ""


class _Calling:
    """Makes the faults of the block those of a plug-in, unless it is the exception that ``passes``."""

    def __init__(
        self,
        plugin: _Plugin,
        call: str,
        arguments: Sequence[object] = (),
        *,
        passes: BaseException | None = None,
    ) -> None:
        self._plugin, self._call, self._arguments, self._passes = plugin, call, arguments, passes

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or error is self._passes:
            return
        raised = self._plugin.raised(self._call, error, self._arguments)
        if raised is not error:
            raise raised


# -- what a method promises to return --------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Expectation:
    """What a method promises to return, made from its annotation.

    ``words`` name it, ``accepts`` says whether a value is that, and ``wrap``, if there is one, makes a
    stand-in for the value from the plug-in, the name and the arguments of the call.
    """

    words: str
    accepts: Callable[[object], bool]
    wrap: Callable[[_Plugin, str, Any, Sequence[object]], object] | None = None


def _expectation(hint: Any) -> Expectation:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        options = [_expectation(one) for one in arguments if one is not NoneType]
        return _one_of([*options, _NONE] if NoneType in arguments else options)
    if origin is not None:
        return _GENERIC[origin]([_expectation(one) for one in arguments])
    return _KNOWN.get(hint) or _instance(hint)


def _instance(kind: type, wrap: Callable[..., object] | None = None) -> Expectation:
    return Expectation(words=kind.__name__, accepts=lambda value: isinstance(value, kind), wrap=wrap)


def _stand_in_of(
    kind: type, *, raises: bool = True
) -> Callable[[_Plugin, str, Any, Sequence[object]], object]:
    """Return what makes the stand-in for an object with methods that a call has returned.

    ``raises``: whether callers expect errors of the library from these methods.
    """

    def stand_in(plugin: _Plugin, _call: str, value: object, _arguments: Sequence[object]) -> object:
        if not raises:
            plugin = attrs.evolve(plugin, rules=attrs.evolve(plugin.rules, expected=()))
        return _stand_in_class(kind, type(value).__name__)(value, plugin)

    return stand_in


_NONE = Expectation(words="None", accepts=lambda value: value is None)


def _one_of(options: list[Expectation]) -> Expectation:
    first, second = (option.accepts for option in options)  # each method promises at most two
    return Expectation(
        words=" or ".join(option.words for option in options),
        accepts=lambda value: first(value) or second(value),
    )


def _several(kind: type, elements: list[Expectation]) -> Expectation:
    accepts = elements[0].accepts

    def check(values: object) -> bool:
        is_kind = isinstance(values, kind) and not isinstance(values, (str, bytes))
        return is_kind and all(accepts(value) for value in cast("Sequence[object]", values))

    return Expectation(words=f"a {kind.__name__.lower()} of {elements[0].words}", accepts=check)


def _tuple(elements: list[Expectation]) -> Expectation:
    def check(values: object) -> bool:
        if not isinstance(values, tuple) or len(values) != len(elements):
            return False
        return all(element.accepts(value) for element, value in zip(elements, values, strict=True))

    return Expectation(words=f"({', '.join(element.words for element in elements)})", accepts=check)


def _described(value: object) -> str:
    """Return the type of a value, with the types of its elements if it is a small part of many."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)) and value:
        kinds = list(dict.fromkeys(type(element).__name__ for element in value[:100]))
        return f"a {kind} of {' and '.join(kinds[:3])}"
    return "a file in text mode" if isinstance(value, io.TextIOBase) else kind


# -- objects that calls return ---------------------------------------------------------------------------


def _iterator(elements: list[Expectation]) -> Expectation:
    (element,) = elements
    words = f"an iterator of {element.words}"
    whole = Expectation(words=words, accepts=lambda value: isinstance(value, Iterable))

    def checked_values(
        plugin: _Plugin, call: str, values: Iterable[object], arguments: Sequence[object]
    ) -> Iterator[object]:
        iterator, end = iter(values), object()
        while True:
            with _Calling(plugin, call, arguments):
                value = next(iterator, end)
            if value is end:
                return
            if not element.accepts(value):
                raise plugin.returned(call, [value], whole, arguments)
            yield value

    return attrs.evolve(whole, wrap=checked_values)


@attrs.frozen(eq=False)
class _Block(AbstractContextManager[T], Generic[T]):
    """A ``with`` block of a plug-in."""

    _plugin: _Plugin
    _call: str
    _block: AbstractContextManager[T]
    _arguments: Sequence[object]
    _value: Expectation

    def __enter__(self) -> T:
        with _Calling(self._plugin, self._call, self._arguments):
            value = self._block.__enter__()
        if not self._value.accepts(value):
            raise self._plugin.returned(self._call, value, self._value, self._arguments)
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _Calling(self._plugin, self._call, self._arguments, passes=error):
            self._block.__exit__(kind, error, trace)


def _block(values: list[Expectation]) -> Expectation:
    return Expectation(
        words=f"a with block for {values[0].words}",
        accepts=lambda block: hasattr(type(block), "__enter__") and hasattr(type(block), "__exit__"),
        wrap=lambda plugin, call, block, arguments: _Block(plugin, call, block, arguments, values[0]),
    )


class _BinaryFile(ABC):
    """What is used of an open file."""

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
    words="a file in binary mode",
    accepts=lambda value: hasattr(value, "read") and not isinstance(value, io.TextIOBase),
    wrap=_stand_in_of(_BinaryFile),
)


_KNOWN: dict[Any, Expectation] = {
    # Any other object is ignored, but what is never awaited has not been done.
    NoneType: Expectation(
        words="None", accepts=lambda value: value is None or not inspect.isawaitable(value)
    ),
    int: Expectation(
        words="int", accepts=lambda value: isinstance(value, int) and not isinstance(value, bool)
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
    """Makes each call of a port to a part of a plug-in, and checks it."""

    def __init__(self, part: object, plugin: _Plugin) -> None:
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


_ANYTHING = Expectation(words="anything", accepts=lambda _value: True)


def _method(name: str, expected: Expectation) -> Callable[..., object]:
    accepts, wrap = expected.accepts, expected.wrap

    def call(self: _StandIn, *arguments: Any, **named: Any) -> object:
        try:
            value = getattr(self._part, name)(*arguments, **named)
        except BaseException as error:  # noqa: BLE001 - nothing that a plug-in raises may pass unseen
            raise self._plugin.raised(name, error, arguments)  # noqa: B904 - it has its cause
        if not accepts(value):
            raise self._plugin.returned(name, value, expected, arguments)
        return value if wrap is None else wrap(self._plugin, name, value, arguments)

    call.__name__ = name
    return call


def _property(name: str, expected: Expectation) -> property:
    def get(self: _StandIn) -> object:
        with _Calling(self._plugin, name):
            value = getattr(self._part, name)
        if not expected.accepts(value):
            raise self._plugin.returned(name, value, expected, ())
        return value

    return property(get)
