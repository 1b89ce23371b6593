"""Whatever a plug-in returns from any call of its port is right, or an error in words at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from jobserver_core import errors
from jobserver_core.memory import (
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.ports import (
    Backend,
    BlobStore,
    BlobWriter,
    ContextHandle,
    Fetcher,
    Launcher,
    MetadataStore,
    Transport,
)
from jobserver_core.ports.checked import _BinaryFile, checked
from jobserver_http import Authenticator
from jobserver_http.authentication import AuthenticatorFailed, checked_authenticator

VALUES: dict[str, Any] = {
    "None": None,
    "bool": False,
    "int": 5,
    "float": 0.5,
    "str": "bad",
    "bytes": b"bad",
    "object": object(),
    "a list of str": ["bad"],
    "a list of object": [object()],
    "dict": {"bad": 1},
    "type": int,
}
"""Values by the words for what came."""

RIGHT: dict[str, tuple[set[str], str]] = {
    "None": ({"None"}, "None; if that means a failure, raise an error instead"),
    "bool": ({"bool"}, "bool"),
    "int": ({"int"}, "int"),
    "int | None": ({"int", "None"}, "int or None"),
    "str": ({"str"}, "str"),
    "str | None": ({"str", "None"}, "str or None"),
    "bytes": ({"bytes"}, "bytes"),
    "tuple[int, int]": (set(), "(int, int)"),
    "list[str]": ({"a list of str"}, "a list of str"),
    "tuple[str, ...]": ({"a list of str"}, "a tuple of str"),
    "ClassVar[tuple[str, ...] | None]": ({"a list of str", "None"}, "a tuple of str or None"),
    "ClassVar[bool]": ({"bool"}, "bool"),
    "Iterator[str]": ({"a list of str"}, "an iterator of str"),
    "BinaryIO": (set(), "a file in binary mode"),
    "AbstractContextManager[Path]": (set(), "a with block for Path"),
    "AbstractContextManager[Fetched]": (set(), "a with block for Fetched"),
    "Sequence[ContextSpec]": (set(), "a sequence of ContextSpec"),
    "Sequence[SparePool]": (set(), "a sequence of SparePool"),
}
"""Which of these values each annotation allows, and the words for what would be right. Those that are a
class, a list of one, or one or None, need no line."""


def right(annotation: str) -> tuple[set[str], str]:
    if annotation in RIGHT:
        return RIGHT[annotation]
    name = annotation.removesuffix(" | None")
    words = f"a list of {name[5:-1]}" if name.startswith("list[") else name
    return ({"None"}, f"{words} or None") if name != annotation else (set(), words)


class KnowsNobody(Authenticator):
    def authenticate(self, credentials: Any) -> None:
        return None


class Subject:
    """An object of a plug-in behind its stand-in, one of whose members a test replaces."""

    def __init__(
        self, port: type, words: str, error: type[Exception], stand_in: Callable[[Any], Any], part: Any = None
    ) -> None:
        self.port, self.words, self.error, self.stand_in = port, words, error, stand_in
        self.part: type = part or type(port.__name__, (port,), dict.fromkeys(port.__abstractmethods__))  # type: ignore[attr-defined]

    def made(self, name: str, member: object) -> Any:
        """Return the stand-in for an object with another member."""
        made = type("Faulty", (self.part,), {name: member})()
        vars(made)[name] = member  # also if __init__ sets it
        return self.stand_in(made)


def backend(port: type[Backend], words: str, error: type[Exception], part: type) -> Subject:
    return Subject(port, words, error, lambda made: checked(port, made), part)


def returned_by(port: type[Backend], call: str) -> Callable[[Any], Any]:
    """Return a function that makes the stand-in for what a call of a plug-in has returned."""
    part = {BlobStore: MemoryBlobStore, Launcher: InlineLauncher}[port]
    methods = {call: lambda self: self.result}

    def stand_in(result: Any) -> Any:
        made = type("Faulty", (part,), methods)()
        made.result = result
        return getattr(checked(port, made), call)()

    return stand_in


SUBJECTS = [
    backend(MetadataStore, "the metadata store", errors.StorageError, MemoryMetadataStore),
    backend(BlobStore, "the blob store", errors.StorageError, MemoryBlobStore),
    backend(Fetcher, "the fetcher", errors.BackendError, MemoryFetcher),
    backend(Launcher, "the launcher", errors.LaunchError, InlineLauncher),
    backend(Transport, "the transport", errors.TransportError, MemoryTransport),
    Subject(Authenticator, "the authenticator", AuthenticatorFailed, checked_authenticator, KnowsNobody),
    Subject(BlobWriter, "the blob store", errors.StorageError, returned_by(BlobStore, "create")),
    Subject(_BinaryFile, "the blob store", errors.StorageError, returned_by(BlobStore, "open")),
    Subject(ContextHandle, "the launcher", errors.LaunchError, returned_by(Launcher, "start_context")),
]


async def _never_awaited() -> None:
    pass


def members() -> Iterator[Any]:
    """Every member of each port, with its annotation."""
    for subject in SUBJECTS:
        for name in dir(subject.port):
            if name.startswith("_") or name in ("kind", "check_options", "from_settings"):
                continue
            member = inspect.getattr_static(subject.port, name)
            if inspect.isfunction(member) or isinstance(member, property):
                function = member.fget if isinstance(member, property) else member
                annotation = inspect.signature(function).return_annotation  # type: ignore[arg-type]
            else:
                annotation = subject.port.__annotations__[name]
            yield pytest.param(subject, name, annotation, id=f"{subject.port.__name__}.{name}")


def used(found: Any, value: Any) -> object:
    """Return what a caller gets, who looks at each element and enters each block."""
    if isinstance(found, Iterator):
        return list(found)
    if isinstance(found, AbstractContextManager) and found is not value:
        return found.__enter__()
    return found


@pytest.mark.parametrize(("subject", "name", "annotation"), list(members()))
def test_a_value_is_as_the_port_declares_or_an_error_names_call_plug_in_and_both_types(
    subject: Subject, name: str, annotation: str
) -> None:
    is_call = inspect.isfunction(inspect.getattr_static(subject.port, name))
    allowed, expected = right(annotation)
    for words, value in VALUES.items():

        def get(value: Any = value) -> object:
            if not is_call:
                return used(getattr(subject.made(name, value), name), value)
            return used(getattr(subject.made(name, lambda *_, **__: value), name)(), value)

        if words in allowed:
            assert get() == value
            continue
        if name == "challenges":  # are checked when the stand-in is made
            with pytest.raises(errors.BackendError, match="Faulty must name its challenges"):
                get()
            continue
        with pytest.raises(subject.error) as raised:
            get()
        fault = f"{name} of {subject.words} Faulty returned {words} instead of {expected}"
        assert str(raised.value) == fault
    if is_call:
        made = subject.made(name, lambda *_, **__: _never_awaited())
        with pytest.raises(
            subject.error, match=r"returned coroutine instead of .+; declare it without async"
        ):
            getattr(made, name)()
