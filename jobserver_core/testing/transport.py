"""The contract of every transport."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import attrs
import pytest

from jobserver_core.errors import InvalidCallbackUrl
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.testing.contract import returned, wait_until
from jobserver_core.testing.options import OptionsContract

_SECRET = "correct-horse-battery"
_TIMEOUT = 10.0
"""Seconds for an attempt that succeeds at once unless the machine is busy."""


@attrs.frozen(kw_only=True)
class Received:
    """One attempt as it arrived at the receiver; the names of ``headers`` are in lower case."""

    delivery_id: str
    body: bytes
    headers: Mapping[str, str]


class Receiver(ABC):
    """The receiver of callbacks, under the control of the test."""

    url: str
    """A callback URL of this receiver, without a query."""

    @abstractmethod
    def received(self) -> list[Received]:
        """Return every attempt that arrived, in order."""

    @abstractmethod
    def vanish(self) -> None:
        """Become unavailable, like a server that has ended or a directory that was removed."""


class HangingReceiver(Receiver):
    """A receiver that can let attempts wait, like one that is busy or a file that is locked."""

    @abstractmethod
    def hang(self) -> None:
        """Let attempts wait until :meth:`release`."""

    @abstractmethod
    def release(self) -> None:
        """Let attempts finish, including those that wait."""


class AnsweringReceiver(HangingReceiver):
    """A receiver that can refuse; it accepts every attempt for which no answer was planned.

    While it hangs, attempts arrive, but are not answered.
    """

    @abstractmethod
    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        """Plan the answers to the next attempts, one each."""

    @abstractmethod
    def drip(self) -> None:
        """Send an answer byte by byte, one in at most 0.1 s, that does not end before :meth:`release`.

        Where an answer has no parts, as that of a function, this is :meth:`hang`.
        """

    def answer_malformed(self) -> int:
        """Plan malformed answers to the next attempts, one each, and return their number.

        They are what a broken receiver may send: no status, a status or a delay that is not a number. The
        default plans none, for receivers that cannot do that.
        """
        return 0


_BODY = b'{"jobId": "job-1", "result": 42}'


def message(url: str, *, delivery_id: str = "delivery-1", attempt: int = 1, body: bytes = _BODY) -> Message:
    """Return a message to send."""
    return Message(
        delivery_id=delivery_id,
        job_id="job-1",
        url=url,
        attempt=attempt,
        timestamp=1_700_000_000,
        body=body,
        headers={"link": '<http://jobs.example/jobs/job-1>; rel="related"'},
    )


def with_secrets(url: str) -> str:
    """Return the URL with a password, where it has a host, and a secret in its query."""
    return url.replace("://", f"://user:{_SECRET}@", 1) + f"?token={_SECRET}"


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect every line that is logged, at any level."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter().format(record))

    root, collector = logging.getLogger(), Collector()
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(collector)


def _sent(transport: Transport, one: Message, timeout: float = _TIMEOUT) -> Answer:
    """Send a message, and check that there is an answer."""
    try:
        answer = transport.send(one, timeout=timeout)
    except Exception as error:
        raise AssertionError(f"send raised {error!r}; it has to return Answer(error=…)") from error
    return returned("send", answer, Answer)


class Sending:
    """Sends on threads of its own, and collects the answers."""

    def __init__(self, transport: Transport, messages: list[Message], timeout: float = _TIMEOUT) -> None:
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []

        def send(one: Message) -> None:
            try:
                self.answers.append(_sent(transport, one, timeout))
            except BaseException as error:  # noqa: BLE001 - raised in the test's thread by join
                self.errors.append(error)

        self._threads = [threading.Thread(target=send, args=(one,), daemon=True) for one in messages]
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> list[Answer]:
        """Wait for all the answers; fail when one takes longer than ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a send did not return within {timeout:g} s"
        if self.errors:
            raise self.errors[0]
        return self.answers


class TransportContract(OptionsContract):
    """The behavior of every transport. Fixtures: ``transport``, and a ``receiver`` that accepts all."""

    timeout: ClassVar[float] = 15.0
    """Seconds after which a test fails because a call did not return."""

    def test_its_schemes_are_a_tuple(self, transport: Transport) -> None:
        schemes: object = transport.schemes
        assert isinstance(schemes, tuple), f"schemes must be a tuple, not {schemes!r}"

    def test_its_schemes_are_in_lower_case(self, transport: Transport) -> None:
        assert transport.schemes, "`schemes` has to name the schemes of the URLs that it sends to"
        assert all(scheme == scheme.lower() for scheme in transport.schemes), (
            f"schemes have to be in lower case: {transport.schemes}"
        )

    def test_its_options_are_a_tuple_of_keys_or_not_known(self, transport: Transport) -> None:
        options: object = transport.options
        assert options is None or isinstance(options, tuple), f"options must be a tuple, not {options!r}"
        assert all(isinstance(key, str) and key for key in options or ())

    def test_a_url_of_its_own_is_allowed(self, transport: Transport, receiver: Receiver) -> None:
        transport.check(receiver.url)

    def test_checking_a_url_sends_nothing(self, transport: Transport, receiver: Receiver) -> None:
        transport.check(receiver.url)
        assert receiver.received() == []

    def test_a_url_of_another_scheme_is_refused_with_those_allowed(self, transport: Transport) -> None:
        with pytest.raises(InvalidCallbackUrl) as refused:
            transport.check("nobody-serves-this://host/path")
        assert all(scheme in refused.value.reason for scheme in transport.schemes), (
            f"the reason has to name the allowed schemes, {transport.schemes}: {refused.value.reason!r}"
        )

    def test_a_refusal_shows_nothing_secret_of_the_url(self, transport: Transport) -> None:
        with pytest.raises(InvalidCallbackUrl) as refused:
            transport.check(with_secrets("nobody-serves-this://host/path"))
        assert _SECRET not in str(refused.value), "the error shows a secret of the URL"

    def test_a_message_arrives_once_and_whole(self, transport: Transport, receiver: Receiver) -> None:
        sent = message(receiver.url)
        _sent(transport, sent)
        (came,) = receiver.received()
        assert (came.delivery_id, came.body) == (sent.delivery_id, sent.body)
        assert {name: came.headers.get(name) for name in sent.headers} == sent.headers

    def test_an_accepted_message_is_reported_as_accepted(
        self, transport: Transport, receiver: Receiver
    ) -> None:
        assert _sent(transport, message(receiver.url)).accepted, (
            "a message that the receiver took has to be accepted"
        )

    def test_bodies_arrive_byte_for_byte(self, transport: Transport, receiver: Receiver) -> None:
        bodies = [
            b"{}",
            '{"result": "Grüße, 世界 \U0001f600"}'.encode(),
            b'{\r\n"result": "\\u0000 \\n"\n}\n',
            b'{"result": "' + b"x" * (1 << 20) + b'"}',
        ]
        for number, body in enumerate(bodies):
            _sent(transport, message(receiver.url, body=body, delivery_id=f"d-{number}"))
        assert [came.body for came in receiver.received()] == bodies

    def test_a_second_attempt_has_the_id_of_the_first(self, transport: Transport, receiver: Receiver) -> None:
        for attempt in (1, 2):
            _sent(transport, message(receiver.url, attempt=attempt))
        assert [came.delivery_id for came in receiver.received()] == ["delivery-1"] * 2

    def test_many_threads_may_send_at_once(self, transport: Transport, receiver: Receiver) -> None:
        ids = [f"delivery-{number}" for number in range(24)]
        sending = Sending(transport, [message(receiver.url, delivery_id=one) for one in ids])
        answers = sending.join(self.timeout)
        assert all(answer.accepted for answer in answers), (
            f"messages that the receiver took have to be accepted: {answers}"
        )
        assert sorted(came.delivery_id for came in receiver.received()) == sorted(ids)

    def test_nothing_secret_of_a_url_is_logged(self, transport: Transport, receiver: Receiver) -> None:
        url = with_secrets(receiver.url)
        with logged() as lines:
            transport.check(url)
            assert _sent(transport, message(url)).accepted, (
                "a message that the receiver took has to be accepted"
            )
        assert [line for line in lines if _SECRET in line] == []

    def test_a_receiver_that_is_gone_is_an_answer(self, transport: Transport, receiver: Receiver) -> None:
        receiver.vanish()
        answer = _sent(transport, message(receiver.url))
        assert not answer.accepted, "nothing was received, so the answer must not be accepted"
        assert answer.error, "the answer has to say in `error` why nothing was delivered"

    def test_what_went_wrong_is_reported_without_secrets(
        self, transport: Transport, receiver: Receiver
    ) -> None:
        receiver.vanish()
        with logged() as lines:
            answer = _sent(transport, message(with_secrets(receiver.url)))
        assert _SECRET not in (answer.error or ""), "the answer shows a secret of the URL"
        assert [line for line in lines if _SECRET in line] == []

    def test_after_close_nothing_is_sent(self, transport: Transport, receiver: Receiver) -> None:
        transport.close()
        transport.close()
        answer = _sent(transport, message(receiver.url))
        assert not answer.accepted, "nothing was received, so the answer must not be accepted"
        assert answer.error, "the answer has to say in `error` why nothing was delivered"
        assert receiver.received() == []


class HangingTransportContract(TransportContract):
    """The behavior of transports whose receivers can hang; ``receiver`` is a HangingReceiver."""

    tolerance: ClassVar[float] = 5.0
    """Seconds by which attempts may exceed their timeout on a busy machine."""

    def test_a_receiver_that_hangs_is_an_answer_in_time(
        self, transport: Transport, receiver: HangingReceiver
    ) -> None:
        (answer,), took = self._attempts_that_hang(transport, receiver, count=1)
        assert answer.status is None, "only a response of the receiver has a status"
        assert answer.error, "the answer has to say in `error` why nothing was delivered"
        assert took > 0.25, "the attempt ended before its timeout, although the receiver was still silent"

    def test_attempts_that_hang_do_not_add_up(self, transport: Transport, receiver: HangingReceiver) -> None:
        answers, _took = self._attempts_that_hang(transport, receiver, count=24)
        assert not any(answer.accepted for answer in answers), (
            f"nothing was answered, but was accepted: {answers}"
        )

    def _attempts_that_hang(
        self,
        transport: Transport,
        receiver: HangingReceiver,
        *,
        count: int,
        hang: Callable[[], None] | None = None,
    ) -> tuple[list[Answer], float]:
        messages = [message(receiver.url, delivery_id=f"d-{number}") for number in range(count)]
        (hang or receiver.hang)()
        try:
            began = time.monotonic()
            answers = Sending(transport, messages, timeout=0.3).join(0.3 + self.tolerance)
            return answers, time.monotonic() - began
        finally:
            receiver.release()


class AnsweringTransportContract(HangingTransportContract):
    """The behavior of transports whose receivers can refuse or hang; ``receiver`` is an AnsweringReceiver."""

    def test_a_receiver_that_sends_single_bytes_is_an_answer_in_time(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        (answer,), _took = self._attempts_that_hang(transport, receiver, count=1, hang=receiver.drip)
        assert answer.status is None, "only a response of the receiver has a status"
        assert answer.error, "the answer has to say in `error` why nothing was delivered"

    def test_answers_below_400_are_accepted(self, transport: Transport, receiver: AnsweringReceiver) -> None:
        statuses = (200, 201, 202, 204)
        receiver.answer(*statuses)
        answers = [_sent(transport, message(receiver.url)) for _ in statuses]
        assert [(answer.status, answer.accepted) for answer in answers] == [(s, True) for s in statuses]

    def test_answers_from_400_are_failures_with_their_status(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        statuses = (400, 401, 404, 410, 429, 500, 503)
        receiver.answer(*statuses)
        answers = [_sent(transport, message(receiver.url)) for _ in statuses]
        assert [(answer.status, answer.accepted) for answer in answers] == [(s, False) for s in statuses]

    def test_a_failed_attempt_is_not_repeated_by_the_transport(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        receiver.answer(503)
        _sent(transport, message(receiver.url))
        assert len(receiver.received()) == 1

    def test_retry_after_is_reported(self, transport: Transport, receiver: AnsweringReceiver) -> None:
        receiver.answer(503, retry_after=7)
        assert _sent(transport, message(receiver.url)).retry_after == 7

    def test_no_retry_after_is_none(self, transport: Transport, receiver: AnsweringReceiver) -> None:
        receiver.answer(503)
        assert _sent(transport, message(receiver.url)).retry_after is None

    def test_a_malformed_answer_is_a_failed_attempt(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        for number in range(receiver.answer_malformed()):
            one = message(receiver.url, delivery_id=f"d-{number}")
            (answer,) = Sending(transport, [one]).join(self.timeout)
            assert not answer.accepted, f"malformed answer {number + 1} was accepted: {answer}"

    def test_an_attempt_after_a_failed_one_arrives(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        receiver.answer(500)
        answers = [_sent(transport, message(receiver.url)) for _ in range(2)]
        assert [answer.accepted for answer in answers] == [False, True]

    def test_attempts_do_not_wait_for_each_other(
        self, transport: Transport, receiver: AnsweringReceiver
    ) -> None:
        receiver.hang()
        sending = Sending(transport, [message(receiver.url, delivery_id=f"d-{n}") for n in range(4)])
        try:
            wait_until(lambda: len(receiver.received()) == 4, "four attempts at once", self.timeout)
        finally:
            receiver.release()
        answers = sending.join(self.timeout)
        assert all(answer.accepted for answer in answers), f"not all were accepted: {answers}"
