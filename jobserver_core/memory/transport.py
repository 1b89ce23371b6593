"""A transport that records callbacks, for the tests of programs that embed the server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobserver_core.callbacks.transports import CallableTransport
from jobserver_core.models.arguments import check_several
from jobserver_core.models.callbacks import Answer
from jobserver_core.models.json_values import Json, loads
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.uris import receiver_of

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
        """Plan the answers to the next attempts at the URL's receiver, one each."""
        with self._changed:
            self._once.setdefault(receiver_of(url), deque()).extend(map(_as_answer, answers))

    def always_answer(self, url: str, answer: Answer | int) -> None:
        """Set the answer to attempts for which none was planned."""
        with self._changed:
            self._always[receiver_of(url)] = _as_answer(answer)

    def pass_on(self, url: str, function: Callable[[Message], Answer | int | None]) -> None:
        """Pass what arrives at the URL's receiver on to a function, which gives the answers not planned here.

        This is how a function gets the callbacks of ``call:billing``: see :class:`CallableTransport`.
        """
        with self._changed:
            self._functions[receiver_of(url)] = CallableTransport(function)

    def hang(self, url: str) -> None:
        """Do not answer this receiver's attempts until :meth:`release`, including those in progress."""
        with self._changed:
            self._hanging.add(receiver_of(url))

    def release(self, url: str) -> None:
        """Answer again, including the attempts that hang."""
        with self._changed:
            self._hanging.discard(receiver_of(url))
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


def _as_answer(answer: Answer | int) -> Answer:
    return answer if isinstance(answer, Answer) else Answer(status=answer)
