"""Commands that are sent together, to a gateway of the test's own."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from py4j import java_gateway  # noqa: F401 - defines what replies become
from py4j.protocol import Py4JJavaError

from jobserver_pyspark.gateway_calls import GatewayBroken, results, send_pipelined
from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.runner.jvm_commands import Commands

CONTEXT = "c\nz:org.apache.spark.SparkContext\ngetOrCreate\ne\n"
CONF = "c\no0\nconf\ne\n"
OWN = "i\norg.apache.spark.api.python.PythonAccumulatorV2\ns/tmp/%s.sock\ne\n"
REGISTER = "c\no0\nregister\nro2\ne\n"
OTHER = "c\no0\nversion\ne\n"


class Gateway:
    """Answers commands on a socket with the numbers of new objects, as py4j does.

    ``asked`` has all of them, and ``alone`` those whose sender waited for the reply before the next one.
    Those in ``failing`` have an error as their reply, which is a new object too.
    """

    address, port, converters = "127.0.0.1", 1, ()
    gateway_property = SimpleNamespace(auto_field=False, enable_memory_management=True, pool=None)

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.alone: list[str] = []
        self.released: list[str] = []
        self._connection = SimpleNamespace(
            socket=ours, stream=ours.makefile("rb"), close=lambda: ours.shutdown(socket.SHUT_RDWR)
        )
        self._thread = threading.Thread(target=self._serve, args=(theirs,))
        self._thread.start()

    def _serve(self, connection: socket.socket) -> None:
        ended = contextlib.suppress(ConnectionError)  # the test closed its end before the reply
        with connection, ended, connection.makefile("r") as stream:
            command = ""
            for line in stream:
                command += line
                if line == "e\n":
                    self.asked.append(command)
                    outcome = "x" if command in self.failing else "y"
                    connection.sendall(f"!{outcome}ro{len(self.asked) - 1}\n".encode())
                    command = ""

    def _get_connection(self) -> Any:
        return self._connection

    def _give_back_connection(self, connection: Any) -> None:
        assert connection is self._connection

    def send_command(self, command: str) -> str:
        self.alone.append(command)
        (reply,) = send_pipelined(self, [command])
        return reply

    def garbage_collect_object(self, target_id: str) -> None:
        self.released.append(target_id)

    def close(self) -> None:
        self._connection.stream.close()
        self._connection.socket.close()
        self._thread.join()


@pytest.fixture
def gateway() -> Iterator[Callable[[], Gateway]]:
    made: list[Gateway] = []

    def make() -> Gateway:
        made.append(Gateway())
        return made[-1]

    yield make
    for each in made:
        each.close()


def attach(gateway: Gateway, script: list[str], *commands: str) -> tuple[list[str], list[str]]:
    """Send commands as an attachment does; return their replies, and the script for the next one."""
    sender = Commands(gateway, {})
    with sender.scripted(script) as made:
        return [sender(command) for command in commands], made


def test_commands_are_answered_in_order(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    assert send_pipelined(jvm, [CONTEXT, CONF]) == ["yro0", "yro1"]
    assert send_pipelined(jvm, []) == []
    assert send_pipelined(jvm, [OTHER]) == ["yro2"]


def test_a_connection_that_ends_is_an_error(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    jvm._connection.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(GatewayBroken):
        send_pipelined(jvm, [CONTEXT])


@pytest.mark.parametrize("stream", ["closed", "none"])
def test_a_connection_that_another_thread_closes_is_an_error(
    gateway: Callable[[], Gateway], stream: str
) -> None:
    jvm = gateway()
    jvm._connection.stream.close()
    if stream == "none":  # py4j closes the stream, and forgets it
        jvm._connection.stream = None
    with pytest.raises(GatewayBroken):
        send_pipelined(jvm, [CONTEXT])
    jvm._connection.stream = SimpleNamespace(close=lambda: None)


def test_a_call_that_fails_leaves_no_object_of_the_others(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    jvm.failing = {CONF, REGISTER}
    with pytest.raises(Py4JJavaError) as raised:
        results(jvm, [CONTEXT, CONF, OTHER, REGISTER])
    assert raised.value.java_exception._get_object_id() == "o1"
    del raised
    gc.collect()
    assert sorted(jvm.released) == ["o0", "o1", "o2", "o3"]


def test_a_gateway_server_whose_start_fails_is_shut_down(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    driver = Driver.__new__(Driver)  # without a JVM
    driver.gateway = SimpleNamespace(_gateway_client=jvm)
    driver.context = driver._starter_conf = SimpleNamespace(_get_object_id=lambda: "o100")
    driver._starting_thread = SimpleNamespace(start_in_group=lambda name: f"c\no101\nset\ns{name}\ne\n")
    jvm.failing = {"c\no4\nstart\ne\n"}
    with pytest.raises(Py4JJavaError):
        driver._start_gateway_server("tag")
    assert jvm.alone == ["c\no4\nshutdown\ne\n"]


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as stream:
        connection = SimpleNamespace(socket=ours, stream=stream, close=ours.close)
        theirs.sendall(b"!yro0\n!yr")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(GatewayBroken):
            send_pipelined(SimpleNamespace(_get_connection=lambda: connection), [CONTEXT, CONF])


def test_a_command_after_an_interrupted_one_does_not_get_its_answer(gateway: Callable[[], Gateway]) -> None:
    class Interrupted(BaseException):
        pass

    class Interrupting:
        def readline(self) -> bytes:
            raise Interrupted

    jvm = gateway()
    stream, jvm._connection.stream = jvm._connection.stream, Interrupting()
    with pytest.raises(Interrupted):
        send_pipelined(jvm, [CONTEXT])
    jvm._connection.stream = stream
    with pytest.raises(GatewayBroken):
        send_pipelined(jvm, [OTHER])


def test_the_second_process_waits_only_for_the_commands_that_differ(gateway: Callable[[], Gateway]) -> None:
    first, second = gateway(), gateway()
    replies, script = attach(first, [], CONTEXT, CONF, OWN % "a", REGISTER, OTHER)
    assert first.alone == [CONTEXT, CONF, OWN % "a", REGISTER, OTHER]
    assert attach(second, script, CONTEXT, CONF, OWN % "b", REGISTER, OTHER) == (replies, script)
    assert second.alone == [OWN % "b"]
    assert second.asked == [CONTEXT, CONF, OWN % "b", REGISTER, OTHER]


def test_a_process_that_sends_another_command_than_expected_gets_its_own_answers(
    gateway: Callable[[], Gateway],
) -> None:
    first, second = gateway(), gateway()
    _, script = attach(first, [], CONTEXT, CONF, REGISTER)
    replies, made = attach(second, script, CONTEXT, OTHER, REGISTER)
    assert second.asked == [CONTEXT, CONF, REGISTER, OTHER, REGISTER]
    assert replies == ["yro0", "yro3", "yro4"]
    assert made == [CONTEXT, OTHER, REGISTER]


def test_a_process_that_sends_more_or_less_than_expected_is_attached(
    gateway: Callable[[], Gateway],
) -> None:
    first, more, less = gateway(), gateway(), gateway()
    _, script = attach(first, [], CONTEXT, CONF)
    assert attach(more, script, CONTEXT, CONF, OTHER)[0] == ["yro0", "yro1", "yro2"]
    assert attach(less, script, CONTEXT)[0] == ["yro0"]


def test_garbage_of_an_attachment_is_not_released_and_later_garbage_is(
    gateway: Callable[[], Gateway],
) -> None:
    jvm = gateway()
    commands = Commands(jvm, {})
    with commands.scripted([]):
        jvm.garbage_collect_object("o0")
    jvm.garbage_collect_object("o1")
    assert jvm.released == ["o1"]
    assert commands.count == 0
