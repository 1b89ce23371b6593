"""Commands that are sent together, to a gateway of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from jobserver_pyspark.gateway_calls import GatewayBroken, pipelined
from jobserver_pyspark.runner.jvm_commands import Commands

CONTEXT = "c\nz:org.apache.spark.SparkContext\ngetOrCreate\ne\n"
CONF = "c\no0\nconf\ne\n"
OWN = "i\norg.apache.spark.api.python.PythonAccumulatorV2\ns/tmp/%s.sock\ne\n"
REGISTER = "c\no0\nregister\nro2\ne\n"
OTHER = "c\no0\nversion\ne\n"


class Gateway:
    """Answers commands on a socket with the numbers of new objects, as py4j does.

    ``asked`` has all of them, and ``alone`` those whose sender waited for the answer before the next one.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.asked: list[str] = []
        self.alone: list[str] = []
        self.released: list[str] = []
        self._connection = SimpleNamespace(socket=ours, stream=ours.makefile("rb"), close=ours.close)
        self._thread = threading.Thread(target=self._serve, args=(theirs,))
        self._thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("r") as stream:
            command = ""
            for line in stream:
                command += line
                if line == "e\n":
                    self.asked.append(command)
                    connection.sendall(f"!yro{len(self.asked) - 1}\n".encode())
                    command = ""

    def _get_connection(self) -> Any:
        return self._connection

    def _give_back_connection(self, connection: Any) -> None:
        assert connection is self._connection

    def send_command(self, command: str) -> str:
        self.alone.append(command)
        (answer,) = pipelined(self, [command])
        return answer

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
    """Send commands as an attachment does; return their answers, and the script for the next one."""
    sender = Commands(gateway, {})
    with sender.scripted(script) as made:
        return [sender(command) for command in commands], made


def test_commands_are_answered_in_order(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    assert pipelined(jvm, [CONTEXT, CONF]) == ["yro0", "yro1"]
    assert pipelined(jvm, []) == []
    assert pipelined(jvm, [OTHER]) == ["yro2"]


def test_a_connection_that_ends_is_an_error(gateway: Callable[[], Gateway]) -> None:
    jvm = gateway()
    jvm._connection.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(GatewayBroken):
        pipelined(jvm, [CONTEXT])


def test_the_second_process_waits_only_for_the_commands_that_differ(gateway: Callable[[], Gateway]) -> None:
    first, second = gateway(), gateway()
    answers, script = attach(first, [], CONTEXT, CONF, OWN % "a", REGISTER, OTHER)
    assert first.alone == [CONTEXT, CONF, OWN % "a", REGISTER, OTHER]
    assert attach(second, script, CONTEXT, CONF, OWN % "b", REGISTER, OTHER) == (answers, script)
    assert second.alone == [OWN % "b"]
    assert second.asked == [CONTEXT, CONF, OWN % "b", REGISTER, OTHER]


def test_a_process_that_sends_another_command_than_expected_gets_its_own_answers(
    gateway: Callable[[], Gateway],
) -> None:
    first, second = gateway(), gateway()
    _, script = attach(first, [], CONTEXT, CONF, REGISTER)
    answers, made = attach(second, script, CONTEXT, OTHER, REGISTER)
    assert second.asked == [CONTEXT, CONF, REGISTER, OTHER, REGISTER]
    assert answers == ["yro0", "yro3", "yro4"]
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
