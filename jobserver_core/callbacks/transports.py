"""Transports without dependencies: to the log, and to a Python function."""

from __future__ import annotations

import logging
import reprlib
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from jobserver_core.models.arguments import check_callable, check_kind, check_several
from jobserver_core.models.callbacks import Answer
from jobserver_core.models.failures import message_of
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.uris import redacted, without_secrets

__all__ = ["CallableTransport", "LoggingTransport"]

_log = logging.getLogger(__name__)

_ACCEPTED = Answer(status=200)
_CLOSED = Answer(error="the transport is closed")


class LoggingTransport(Transport):
    """Writes callbacks to the log, for ``log:`` URLs such as ``log:audit``.

    Each is one record of level INFO, by the logger ``jobserver.callbacks``, with the whole message as
    ``record.callback``.
    """

    options = ()

    def __init__(self, *, logger: str = "jobserver.callbacks", schemes: tuple[str, ...] = ("log",)) -> None:
        check_several("schemes", schemes, str, "strings")
        check_kind("logger", logger, str, "the name of a logger")
        self.schemes = schemes
        self._logger = logging.getLogger(logger)
        self._closed = False

    def send(self, message: Message, *, timeout: float) -> Answer:
        if self._closed:
            return _CLOSED
        # repr keeps any body on one line.
        text = "callback of job %s (delivery %s, attempt %d) to %s: %r"
        names = (message.job_id, message.delivery_id, message.attempt, redacted(message.url))
        try:
            self._logger.info(text, *names, message.body, extra={"callback": message})
        except Exception as error:  # noqa: BLE001 - the handlers are the embedder's
            kind = type(error).__qualname__
            return Answer(error=without_secrets(f"a log handler raised {kind}: {error}", message.url))
        return _ACCEPTED

    def close(self) -> None:
        self._closed = True


class CallableTransport(Transport):
    """Passes callbacks to a Python function, for ``call:`` URLs such as ``call:billing``.

    ``call`` is given the :class:`Message` and returns an :class:`Answer`, a status as a number, or None
    for "accepted"; an exception is a failed attempt. It is called on several threads at once. A call that
    exceeds the timeout is left running; while ``max_overdue`` of these run, attempts fail at once.
    """

    options = ()

    def __init__(
        self,
        call: Callable[[Message], Answer | int | None],
        *,
        schemes: tuple[str, ...] = ("call",),
        max_overdue: int = 16,
    ) -> None:
        check_callable("the call of a CallableTransport", call, arguments=1)
        check_several("schemes", schemes, str, "strings")
        check_kind("max_overdue", max_overdue, int, "an integer")
        self.schemes = schemes
        self._call = call
        self._max_overdue = max_overdue
        self._lock = threading.Lock()
        self._overdue: set[str] = set()
        self._closed = False

    def send(self, message: Message, *, timeout: float) -> Answer:
        """Call the function, and wait for it up to ``timeout`` seconds."""
        if self._closed:
            return _CLOSED
        with self._lock:
            if len(self._overdue) >= self._max_overdue:
                return Answer(error="the function is still busy with earlier callbacks")
        future: Future[Answer] = Future()
        name = f"jobserver-callback-{message.delivery_id}"
        threading.Thread(target=self._run, args=(message, future), name=name, daemon=True).start()
        try:
            return future.result(timeout)
        except FutureTimeout:
            return self._give_up(message, future, timeout)

    def _give_up(self, message: Message, future: Future[Answer], timeout: float) -> Answer:
        attempt = f"{message.delivery_id}-{message.attempt}"
        with self._lock:
            self._overdue.add(attempt)
        future.add_done_callback(lambda _: self._forget_attempt(attempt))
        return Answer(error=f"no response within {timeout:g} s")

    def _forget_attempt(self, attempt: str) -> None:
        with self._lock:
            self._overdue.discard(attempt)

    def _run(self, message: Message, future: Future[Answer]) -> None:
        try:
            answer = _answer(self._call(message), message)
        except BaseException as error:  # noqa: BLE001 - the function is the embedder's, and may call sys.exit
            kind = type(error).__qualname__
            trace = without_secrets("".join(traceback.format_exception(error)), message.url)
            names = (message.delivery_id, message.job_id)
            _log.warning("the function for callback %s of job %s raised an exception:\n%s", *names, trace)
            reason = f"the function raised {kind}: {message_of(error)}"
            answer = Answer(error=without_secrets(reason, message.url))
        future.set_result(answer)

    def close(self) -> None:
        """Stop calling the function; running calls continue."""
        self._closed = True


def _answer(returned: Answer | int | None, message: Message) -> Answer:
    if returned is None:
        return _ACCEPTED
    if isinstance(returned, Answer):
        return returned
    if isinstance(returned, int) and not isinstance(returned, bool):
        return Answer(status=int(returned))
    kind = type(returned).__qualname__
    shown = reprlib.repr(returned) if isinstance(returned, str) else f"a {kind}"
    _log.warning("the function for callback %s returned a %s", message.delivery_id, kind)
    error = f"the function returned {shown}; expected None, an HTTP status (int) or an Answer"
    return Answer(error=without_secrets(error, message.url))
