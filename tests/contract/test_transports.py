"""Every transport passes the contract, and a broken one fails it."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from conditions import wait_until
from jobserver_core.callbacks.transports import CallableTransport, LoggingTransport
from jobserver_core.errors import InvalidRequest
from jobserver_core.memory.transport import MemoryTransport
from jobserver_core.models.callbacks import Answer
from jobserver_core.plugins import registered
from jobserver_core.ports.transport import Message, Transport
from jobserver_core.testing.options import BackendOptions, OptionsContract
from jobserver_core.testing.transport import (
    AnsweringReceiver,
    AnsweringTransportContract,
    Received,
    Receiver,
    TransportContract,
)
from jobserver_httpx import HttpxTransport
from loopback import Handler, Loopback


def as_received(message: Message) -> Received:
    return Received(delivery_id=message.delivery_id, body=message.body, headers=message.headers)


class MemoryReceiver(AnsweringReceiver):
    url = "https://receiver.example:8443/done"

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def received(self) -> list[Received]:
        return [as_received(message) for message in self.transport.messages]

    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        answers = (Answer(status=status, retry_after=retry_after) for status in statuses)
        self.transport.answer(self.url, *answers)

    def hang(self) -> None:
        self.transport.hang(self.url)

    def drip(self) -> None:
        self.hang()

    def answer_malformed(self) -> int:
        self.transport.pass_on(self.url, lambda _message: "503")  # type: ignore[arg-type,return-value]
        return 1

    def release(self) -> None:
        self.transport.release(self.url)

    def vanish(self) -> None:
        self.transport.always_answer(self.url, Answer(error="connection refused"))


class TestMemoryTransport(AnsweringTransportContract):
    backend = MemoryTransport

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=MemoryTransport, accepted=[{}], refused=[])

    @pytest.fixture
    def transport(self) -> MemoryTransport:
        return MemoryTransport()

    @pytest.fixture
    def receiver(self, transport: MemoryTransport) -> MemoryReceiver:
        return MemoryReceiver(transport)

    def test_close_lets_go_of_attempts_that_hang(
        self, transport: MemoryTransport, receiver: MemoryReceiver
    ) -> None:
        receiver.hang()
        thread = threading.Thread(
            target=transport.send, args=(a_message(receiver.url),), kwargs={"timeout": 60}
        )
        thread.start()
        assert transport.wait_for(lambda t: len(t.under_way) == 1)
        transport.close()
        thread.join(5)
        assert not thread.is_alive()


class FunctionReceiver(AnsweringReceiver):
    """A function with configurable return values, in each form that a function may use."""

    url = "call:billing"

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.planned: list[Any] = []
        self.open = threading.Event()
        self.open.set()
        self.gone = False

    def __call__(self, message: Message) -> Answer | int | None:
        self.got.append(message)
        if self.gone:
            raise ConnectionError(f"nobody at {message.url}")
        planned = self.planned.pop(0) if self.planned else None
        self.open.wait(20)
        return planned

    def received(self) -> list[Received]:
        return [as_received(message) for message in self.got]

    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        for status in statuses:
            self.planned.append(Answer(status=status, retry_after=retry_after) if retry_after else status)

    def hang(self) -> None:
        self.open.clear()

    def drip(self) -> None:
        self.hang()

    def answer_malformed(self) -> int:
        malformed = ["503", 2.5, True, 10**20, -1, Answer, b"200"]
        self.planned += malformed
        return len(malformed)

    def release(self) -> None:
        self.open.set()

    def vanish(self) -> None:
        self.gone = True


class TestCallableTransport(AnsweringTransportContract):
    backend = CallableTransport

    @pytest.fixture
    def receiver(self) -> FunctionReceiver:
        return FunctionReceiver()

    @pytest.fixture
    def transport(self, receiver: FunctionReceiver) -> CallableTransport:
        return CallableTransport(receiver, max_overdue=2)

    def test_functions_that_hang_do_not_pile_up(
        self, transport: CallableTransport, receiver: FunctionReceiver
    ) -> None:
        receiver.hang()
        try:
            errors = [
                transport.send(a_message(receiver.url, delivery_id=f"d-{n}"), timeout=0.02).error
                for n in range(4)
            ]
            wait_until(lambda: len(receiver.got) >= 2, "a second call of the function")
            assert len(receiver.got) == 2
        finally:
            receiver.release()
        assert (
            errors
            == ["no response within 0.02 s"] * 2 + ["the function is still busy with earlier callbacks"] * 2
        )
        wait_until(lambda: transport.send(a_message(receiver.url), timeout=5).accepted)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [("ok", "'ok'"), ({"status": 200}, "a dict"), (True, "a bool"), (200.0, "a float")],
)
def test_what_a_function_may_not_return_is_named_as_the_fault(returned: object, shown: str) -> None:
    transport = CallableTransport(lambda _message: returned)  # type: ignore[arg-type, return-value]
    answer = transport.send(a_message("call:billing"), timeout=5)
    expected = f"the function returned {shown}; expected None, an HTTP status (int) or an Answer"
    assert (answer.accepted, answer.error) == (False, expected)


def test_an_exception_of_a_function_is_logged_with_its_job_and_traceback_and_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(message: Message) -> None:
        raise ValueError(f"nobody at {message.url}")

    CallableTransport(fail).send(a_message("call:billing?token=secret", job_id="8af2"), timeout=5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    first, *trace = record.getMessage().splitlines()
    assert re.fullmatch("the function for callback .* of job 8af2 raised an exception:", first)
    assert "in fail" in "".join(trace)
    assert trace[-1] == "ValueError: nobody at call:billing?…"


def test_a_function_that_ends_its_thread_is_a_failed_attempt_and_takes_no_place() -> None:
    transport = CallableTransport(lambda _message: sys.exit(3), max_overdue=1)
    for _ in range(2):
        assert (
            transport.send(a_message("call:billing"), timeout=5).error == "the function raised SystemExit: 3"
        )


def test_only_what_can_be_called_can_receive_callbacks() -> None:
    with pytest.raises(InvalidRequest, match="the call of a CallableTransport must be a function, not int"):
        CallableTransport(3)  # type: ignore[arg-type]


class LogReceiver(Receiver):
    url = "log:audit"

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        self.gone = False

    def record(self, record: logging.LogRecord) -> None:
        if self.gone:
            raise OSError("no space left on device")
        self.records.append(record)

    def received(self) -> list[Received]:
        return [as_received(record.callback) for record in self.records]  # type: ignore[attr-defined]

    def vanish(self) -> None:
        self.gone = True


class TestLoggingTransport(TransportContract):
    backend = LoggingTransport

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=LoggingTransport, accepted=[{}], refused=[])

    @pytest.fixture
    def transport(self) -> LoggingTransport:
        return LoggingTransport()

    @pytest.fixture
    def receiver(self) -> Iterator[LogReceiver]:
        receiver = LogReceiver()

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                receiver.record(record)

        logger, handler = logging.getLogger("jobserver.callbacks"), Handler()
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        yield receiver
        logger.removeHandler(handler)
        logger.setLevel(level)

    def test_the_log_line_contains_the_job_and_the_body(
        self, transport: LoggingTransport, receiver: LogReceiver
    ) -> None:
        transport.send(a_message(receiver.url, body=b'{"result":\n1}'), timeout=1)
        line = receiver.records[0].getMessage()
        assert "job-1" in line
        assert r'{"result":\n1}' in line


class HttpReceiver(AnsweringReceiver):
    def __init__(self, server: Loopback) -> None:
        self.server = server
        self.url = server.url()
        self.open = threading.Event()
        self.open.set()
        self.planned: list[tuple[int, dict[str, str]]] = []
        self.malformed: list[bytes] = []
        self.drips = False
        server.behave = self.behave

    def behave(self, handler: Handler) -> None:
        if self.drips:
            with suppress(OSError):  # the transport did not wait for the answer
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Padding: ")
                while not self.open.wait(0.05):
                    handler.wfile.write(b"x")
            handler.close_connection = True
            return
        self.open.wait(20)
        if self.malformed:
            handler.wfile.write(self.malformed.pop(0))
            handler.close_connection = True
            return
        status, headers = self.planned.pop(0) if self.planned else (200, {})
        handler.say(status, b"" if status == 204 else b"{}", **headers)

    def received(self) -> list[Received]:
        with self.server.lock:
            return [
                Received(delivery_id=call.headers["webhook-id"], body=call.body, headers=call.headers)
                for call in self.server.calls
            ]

    def answer(self, *statuses: int, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"retry_after": str(retry_after)}
        self.planned += [(status, headers) for status in statuses]

    def hang(self) -> None:
        self.open.clear()

    def drip(self) -> None:
        self.drips = True
        self.hang()

    def answer_malformed(self) -> int:
        self.malformed = [b"\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n", b"\xff" * 9]
        return len(self.malformed)

    def release(self) -> None:
        self.open.set()

    def vanish(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.real
class TestHttpxTransport(AnsweringTransportContract):
    backend = HttpxTransport

    def backend_options(self, directory: Path) -> BackendOptions:
        return BackendOptions(backend=HttpxTransport, accepted=[{}], refused=[])

    @pytest.fixture
    def transport(self) -> HttpxTransport:
        return HttpxTransport()

    @pytest.fixture
    def receiver(self) -> Iterator[HttpReceiver]:
        with Loopback() as server:
            yield HttpReceiver(server)


def test_every_transport_that_is_registered_keeps_the_contract() -> None:
    suites = (TestMemoryTransport, TestCallableTransport, TestLoggingTransport, TestHttpxTransport)
    covered = {suite.backend for suite in suites}
    assert {point.load() for point in registered(Transport).values()} <= covered


def a_message(url: str, **changes: Any) -> Message:
    made = Message(delivery_id="delivery-1", job_id="job-1", url=url, attempt=1, timestamp=1, body=b"{}")
    return attrs.evolve(made, **changes)


# -- the contract finds broken transports ----------------------------------------------------------


class Raising(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        answer = super().send(message, timeout=timeout)
        if answer.error:
            raise ConnectionError(answer.error)
        return answer


class Repeating(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        answer = super().send(message, timeout=timeout)
        return answer if answer.accepted else super().send(message, timeout=timeout)


class Doubling(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        super().send(message, timeout=timeout)
        return super().send(message, timeout=timeout)


class Swallowing(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        return Answer(status=200)


class Optimistic(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        super().send(message, timeout=timeout)
        return Answer(status=200)


class Cutting(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        return super().send(attrs.evolve(message, body=message.body[:65536]), timeout=timeout)


class Renaming(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        renamed = attrs.evolve(message, delivery_id=f"{message.delivery_id}-{message.attempt}")
        return super().send(renamed, timeout=timeout)


class Headless(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        return super().send(attrs.evolve(message, headers={}), timeout=timeout)


class Queueing(MemoryTransport):
    def __init__(self) -> None:
        super().__init__()
        self._one_at_a_time = threading.Lock()

    def send(self, message: Message, *, timeout: float) -> Answer:
        with self._one_at_a_time:
            return super().send(message, timeout=timeout)


class Serial(Queueing):
    """As slow as Queueing, where nothing arrives at a receiver that hangs."""


class Patient(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        return super().send(message, timeout=timeout + 60)


class Talkative(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        logging.getLogger("talkative").debug("sending to %s", message.url)
        return super().send(message, timeout=timeout)


class Telltale(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        answer = super().send(message, timeout=timeout)
        return attrs.evolve(answer, error=f"{message.url}: {answer.error}") if answer.error else answer


class Careless(MemoryTransport):
    def check(self, url: str) -> None:
        return


class Leaking(MemoryTransport):
    def check(self, url: str) -> None:
        from jobserver_core.errors import InvalidCallbackUrl

        if not url.startswith("http"):
            raise InvalidCallbackUrl(url=url, reason=", ".join(self.schemes))


class Curious(MemoryTransport):
    def check(self, url: str) -> None:
        super().check(url)
        self.send(a_message(url), timeout=1)


class Forgetful(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        return attrs.evolve(super().send(message, timeout=timeout), retry_after=None)


class Mute(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Any:
        answer = super().send(message, timeout=timeout)
        return None if answer.error else answer


class Lenient(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        answer = super().send(message, timeout=timeout)
        return Answer(status=200) if answer.error else answer


class Inventive(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        answer = super().send(message, timeout=timeout)
        return attrs.evolve(answer, retry_after=answer.retry_after or 60)


class Shouting(MemoryTransport):
    def __init__(self) -> None:
        super().__init__(schemes=("HTTPS", "https"))


class Unlisted(MemoryTransport):
    schemes: Any = ()

    def __init__(self) -> None:
        super().__init__()
        self.schemes = "https"


class Lettered(MemoryTransport):
    options: ClassVar[Any] = "topic"


class Undead(MemoryTransport):
    def close(self) -> None:
        return


class Brittle(MemoryTransport):
    def send(self, message: Message, *, timeout: float) -> Answer:
        if self._closed:
            raise RuntimeError("closed")
        return super().send(message, timeout=timeout)


FAULTS: dict[type[MemoryTransport], str] = {
    Raising: "test_a_receiver_that_is_gone_is_an_answer",
    Repeating: "test_a_failed_attempt_is_not_repeated_by_the_transport",
    Doubling: "test_a_message_arrives_once_and_whole",
    Swallowing: "test_a_message_arrives_once_and_whole",
    Optimistic: "test_answers_from_400_are_failures_with_their_status",
    Cutting: "test_bodies_arrive_byte_for_byte",
    Renaming: "test_a_second_attempt_has_the_id_of_the_first",
    Headless: "test_a_message_arrives_once_and_whole",
    Queueing: "test_attempts_do_not_wait_for_each_other",
    Serial: "test_attempts_that_hang_do_not_add_up",
    Patient: "test_a_receiver_that_hangs_is_an_answer_in_time",
    Talkative: "test_nothing_secret_of_a_url_is_logged",
    Telltale: "test_what_went_wrong_is_reported_without_secrets",
    Careless: "test_a_url_of_another_scheme_is_refused_with_those_allowed",
    Leaking: "test_a_refusal_shows_nothing_secret_of_the_url",
    Curious: "test_checking_a_url_sends_nothing",
    Forgetful: "test_retry_after_is_reported",
    Mute: "test_a_malformed_answer_is_a_failed_attempt",
    Lenient: "test_a_malformed_answer_is_a_failed_attempt",
    Inventive: "test_no_retry_after_is_none",
    Shouting: "test_its_schemes_are_in_lower_case",
    Unlisted: "test_its_schemes_are_a_tuple",
    Lettered: "test_its_options_are_a_tuple_of_keys_or_not_known",
    Undead: "test_after_close_nothing_is_sent",
    Brittle: "test_after_close_nothing_is_sent",
}


def run(test: Callable[..., None], transport: MemoryTransport) -> None:
    fixtures = {"transport": transport, "receiver": MemoryReceiver(transport)}
    test(**{name: fixtures[name] for name in inspect.signature(test).parameters})


OF_TRANSPORTS = {*AnsweringTransportContract.contract_tests()} - {*OptionsContract.contract_tests()}
"""The tests of the contract that are not about options, for which there are planted faults elsewhere."""


class ImpatientContract(AnsweringTransportContract):
    """The contract for transports that are known to fail: no need to wait long for them."""

    timeout = 0.2
    tolerance = 0.1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_contract_finds_a_transport_that_is(fault: type[MemoryTransport]) -> None:
    suite = ImpatientContract()
    with pytest.raises((AssertionError, pytest.fail.Exception, ConnectionError, RuntimeError, ValueError)):
        run(getattr(suite, FAULTS[fault]), fault())


def test_every_test_of_the_contract_passes_where_nothing_is_broken() -> None:
    suite = AnsweringTransportContract()
    for name in OF_TRANSPORTS:
        run(getattr(suite, name), MemoryTransport())


def test_a_planted_fault_is_known_for_most_tests_of_the_contract() -> None:
    unproven = OF_TRANSPORTS - set(FAULTS.values())
    assert unproven == {
        # Each of these fails together with one above it, or needs a receiver that is broken instead.
        "test_a_url_of_its_own_is_allowed",
        "test_an_accepted_message_is_reported_as_accepted",
        "test_many_threads_may_send_at_once",
        "test_answers_below_400_are_accepted",
        "test_an_attempt_after_a_failed_one_arrives",
        # The tests of the example backends plant a fault for this one.
        "test_a_receiver_that_sends_single_bytes_is_an_answer_in_time",
    }


def test_schemes_of_a_transport_can_be_chosen() -> None:
    transports: list[Transport] = [
        MemoryTransport(schemes=("queue",)),
        LoggingTransport(schemes=("queue",)),
        CallableTransport(lambda _: None, schemes=("queue",)),
    ]
    for transport in transports:
        transport.check("queue:somewhere")
        assert transport.send(a_message("queue:somewhere"), timeout=1).accepted
