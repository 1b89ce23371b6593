"""Turns each fault of a plug-in into the typed error of its port, and logs it.

:mod:`~jobserver_core.ports.checked` finds the faults.
"""

from __future__ import annotations

import inspect
import io
import logging
import traceback
from collections.abc import Callable, Sequence
from types import NoneType
from typing import TypeVar

import attrs

from jobserver_core.errors import (
    BackendError,
    BinaryInUse,
    BinaryNotFound,
    BlobNotFound,
    ContextExists,
    ContextNotFound,
    ContextStopping,
    DuplicateId,
    FetchError,
    InvalidCallbackUrl,
    InvalidRequest,
    JobServerError,
    LaunchError,
    NoSlots,
    SchemaTooNew,
    ServerClosed,
    StaleState,
    StorageError,
    TransportError,
)
from jobserver_core.models.failures import message_of
from jobserver_core.repeats import Repeats
from jobserver_core.uris import redacted, without_secrets

__all__ = ["RULES", "Calling", "Plugin", "PortRules", "for_remote_callers", "name_of", "release"]

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)

_FOR_REMOTE_CALLERS = "_for_remote_callers"


@attrs.frozen(kw_only=True)
class PortRules:
    """How faults of the backends of one port are reported.

    ``description`` says what such a backend is, as in "blob store". ``error`` makes the error from a message
    and, if the call was about a URL, that URL without secrets. ``expected`` has the errors of the library
    that callers get unchanged; all others are faults. With ``has_urls``, the first argument of a call is a
    URL, or has one as ``url``.
    """

    description: str
    error: Callable[[str, str], Exception]
    expected: tuple[type[JobServerError], ...] = (JobServerError,)
    has_urls: bool = False


def _fetch_error(message: str, url: str) -> Exception:
    return FetchError(url=url, reason=message) if url else BackendError(message=message)


_METADATA_ERRORS = (
    StorageError,
    SchemaTooNew,
    InvalidRequest,
    BinaryNotFound,
    ContextNotFound,
    BinaryInUse,
    ContextExists,
    ContextStopping,
    DuplicateId,
    StaleState,
    NoSlots,
    ServerClosed,
)
"""The errors of the metadata port. Any other error counts as a failure of the store: it is tried again."""
RULES = {
    "metadata": PortRules(
        description="metadata store",
        error=lambda text, _url: StorageError(message=text),
        expected=_METADATA_ERRORS,
    ),
    "blobs": PortRules(
        description="blob store",
        error=lambda text, _url: StorageError(message=text),
        expected=(StorageError, BlobNotFound),
    ),
    "launcher": PortRules(description="launcher", error=lambda text, _url: LaunchError(message=text)),
    "fetcher": PortRules(description="fetcher", error=_fetch_error, has_urls=True),
    "transport": PortRules(
        description="transport",
        error=lambda text, _url: TransportError(message=text),
        expected=(InvalidCallbackUrl,),
        has_urls=True,
    ),
}
"""The rules of each port, by its ``kind``."""


@attrs.frozen(eq=False)
class Plugin:
    """A backend, as errors and the log name it."""

    name: str
    rules: PortRules
    _repeats: Repeats = attrs.field(factory=lambda: Repeats(_log))

    def raised(self, call: str, error: BaseException, arguments: Sequence[object] = ()) -> BaseException:
        """Return the exception to raise in place of that of a call: the same one if it is expected."""
        if isinstance(error, (*self.rules.expected, KeyboardInterrupt)):
            return error
        return self._fault(f"{call} of {self.name} raised {type(error).__name__}", error, arguments)

    def returned(
        self, call: str, value: object, expected: str, arguments: Sequence[object] = ()
    ) -> Exception:
        """Return the error for a call that returned something that its port does not promise."""
        given = _described(value)
        hint = ""
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python warns about it
            hint = "; declare it without async"
        elif expected == "None":
            hint = "; if that means a failure, raise an error instead"
        text = f"{call} of {self.name} returned {given} instead of {expected}{hint}"
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
        # A chained traceback ends up in logs, and could show secrets of the URL.
        fault.__cause__ = None if url else error
        fault.__suppress_context__ = True
        if error is not None:
            fault.__dict__[_FOR_REMOTE_CALLERS] = self.rules.error(text, redacted(url))
        return fault

    def _url_of(self, arguments: Sequence[object]) -> str:
        first = arguments[0] if self.rules.has_urls and arguments else ""
        url = getattr(first, "url", first)
        return url if isinstance(url, str) else ""


def for_remote_callers(error: E) -> E:
    """Return an error without the words of an unexpected exception of a plug-in, which may be anything.

    Those who embed the server and those who read its log see them. Any other error is returned as it is.
    """
    shown: E = error.__dict__.get(_FOR_REMOTE_CALLERS, error)
    return shown


def release(what: str, call: Callable[[], object]) -> None:
    """Have a plug-in release what is no longer needed. An error is only logged: nothing depends on it."""
    try:
        call()
    except JobServerError as error:
        _log.warning("%s could not be released: %s", what, error)


class Calling:
    """Treats what its block raises as raised by a plug-in, except for the exception ``passes``."""

    def __init__(
        self,
        plugin: Plugin,
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


def name_of(kind: type) -> str:
    """Return the name of a type, as messages show it."""
    return "None" if kind is NoneType else kind.__name__


def _described(value: object) -> str:
    """Return the type of a value; for a list or tuple also the types of its first elements."""
    kind = name_of(type(value))
    if isinstance(value, (list, tuple)) and value:
        kinds = list(dict.fromkeys(name_of(type(element)) for element in value[:100]))
        return f"a {kind} of {' and '.join(kinds[:3])}"
    return "a file in text mode" if isinstance(value, io.TextIOBase) else kind
