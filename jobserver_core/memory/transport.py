"""A transport that records callbacks, for the tests of programs that embed the server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.callbacks.transports import CallableTransport
from jobserver_core.errors import InvalidRequest
from jobserver_core.models.arguments import check_kind, check_several
from jobserver_core.models.callbacks import Answer
from jobserver_core.models.json_values import Json, loads
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.uris import receiver_of, scheme_of

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_ACCEPTED = Answer(status=200)


class MemoryTransport(Transport):
    """Records every attempt, and returns planned answers; the default is 200.

    Serves http and https too, so that a test can use the URLs of production without a network. Answers
    are planned for a receiver: the scheme, host and port of a URL, or all of ``call:billing``. If a receiver
    hangs, attempts last until :meth:`release`, or until their timeout in real seconds.
    """

    options = ()

    def __init__(self, *, schemes: tuple[str, ...] = ("http", "https", "memory")) -> None:
        check_several("schemes", schemes, str, "strings")
        self.schemes = schemes
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self._once: dict[str, deque[Answer]] = {}
        self._always: dict[str, Answer] = {}
        self._functions: dict[str, CallableTransport] = {}
        self._hanging: set[str] = set()
        self._under_way: list[Message] = []
        self._closed = False

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> MemoryTransport:
        """Create a transport for ``memory:`` URLs only, to use it together with the one for HTTP."""
        return cls(schemes=("memory",))

    # -- for the server ----------------------------------------------------------------------------

    def send(self, message: Message, *, timeout: float) -> Answer:
        receiver = receiver_of(message.url)
        with self._changed:
            if self._closed:
                return Answer(error="the transport is closed")
            self._messages.append(message)
            self._under_way.append(message)
            self._changed.notify_all()
            released = self._changed.wait_for(lambda: receiver not in self._hanging or self._closed, timeout)
            planned = self._once.get(receiver)
            function = None if planned or receiver in self._always else self._functions.get(receiver)
            if not released:
                answer = Answer(error=f"no response within {timeout:g} s")
            elif function is None:
                answer = planned.popleft() if planned else self._always.get(receiver, _ACCEPTED)
        if released and function is not None:
            answer = function.send(message, timeout=timeout)
        with self._changed:
            self._under_way.remove(message)
            self._changed.notify_all()
        return answer

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- for tests ---------------------------------------------------------------------------------

    def answer(self, url: str, *answers: Answer | int) -> None:
        """Plan the answers to the next attempts at the URL's receiver, one each.

        Raises:
            InvalidRequest: The URL has no scheme, or an answer is neither an Answer nor a status.
        """
        receiver, planned = _receiver(url), [_as_answer(answer) for answer in answers]
        with self._changed:
            self._once.setdefault(receiver, deque()).extend(planned)

    def always_answer(self, url: str, answer: Answer | int) -> None:
        """Set the answer to attempts for which none was planned."""
        receiver, planned = _receiver(url), _as_answer(answer)
        with self._changed:
            self._always[receiver] = planned

    def pass_on(self, url: str, function: Callable[[Message], Answer | int | None]) -> None:
        """Pass what arrives at the URL's receiver on to a function, which gives the answers not planned here.

        This is how a function gets the callbacks of ``call:billing``: see :class:`CallableTransport`.
        """
        receiver, transport = _receiver(url), CallableTransport(function)
        with self._changed:
            self._functions[receiver] = transport

    def hang(self, url: str) -> None:
        """Do not answer this receiver's attempts until :meth:`release`, including those in progress."""
        receiver = _receiver(url)
        with self._changed:
            self._hanging.add(receiver)

    def release(self, url: str) -> None:
        """Answer again, including the attempts that hang."""
        receiver = _receiver(url)
        with self._changed:
            self._hanging.discard(receiver)
            self._changed.notify_all()

    @property
    def messages(self) -> list[Message]:
        """Every attempt so far, in order."""
        with self._changed:
            return list(self._messages)

    @property
    def under_way(self) -> list[Message]:
        """The attempts that have not been answered yet."""
        with self._changed:
            return list(self._under_way)

    def wait_for(self, condition: Callable[[MemoryTransport], bool], timeout: float = 5.0) -> bool:
        """Wait until a condition on this transport holds; False when that takes over ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout)

    def bodies(self, count: int = 1, timeout: float = 60.0) -> list[Json]:
        """Wait for ``count`` messages, and return the JSON in the bodies of all that have arrived, in order.

        Raises:
            TimeoutError: Fewer have arrived within ``timeout`` seconds.
        """
        if not self.wait_for(lambda _transport: len(self._messages) >= count, timeout):
            raise TimeoutError(f"{len(self.messages)} of {count} callbacks arrived within {timeout:g} s")
        return [loads(message.body.decode()) for message in self.messages]


def _receiver(url: str) -> str:
    if not isinstance(url, str) or not scheme_of(url):
        given = repr(url) if isinstance(url, str) else type(url).__name__
        raise InvalidRequest(message=f"url must be a callback URL, such as call:billing, not {given}")
    return receiver_of(url)


def _as_answer(answer: Answer | int) -> Answer:
    check_kind("an answer", answer, (Answer, int), "an Answer or an HTTP status")
    return answer if isinstance(answer, Answer) else Answer(status=answer)
