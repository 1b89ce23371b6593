"""Several calls of py4j's gateway at once.

py4j waits for the reply to each command before it sends the next one, so that every call costs two switches
between processes. The JVM reads commands from a stream, and replies one after the other. So commands that do
not depend on each other's replies can be sent together.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import Any

from jobserver_pyspark.java_objects import GatewayConnection, JavaClient, JavaObject

_RETURN = b"!"
"""The beginning of a reply; anything else would call Python code, which cannot happen at this stage."""


class GatewayBroken(Exception):
    """The JVM did not reply, or sent something that is not a reply."""


def mute_lost_connections() -> None:
    """Keep py4j from logging a lost connection, with its stack, before it raises the error."""
    logging.getLogger().addFilter(lambda record: record.module != "java_gateway")


def call(target: JavaObject, method: str, *arguments: str) -> str:
    """Return the command that calls a method of a Java object."""
    return _command("c", target._get_object_id(), method, *map(_string, arguments))


def call_with(target: JavaObject, method: str, *arguments: JavaObject) -> str:
    """Return the command that calls a method of a Java object with others."""
    return _command("c", target._get_object_id(), method, *map(_reference, arguments))


def static_call(class_name: str, method: str, *arguments: str) -> str:
    """Return the command that calls a static method of a class."""
    return _command("c", f"z:{class_name}", method, *map(_string, arguments))


def construction(class_name: str, *arguments: JavaObject) -> str:
    """Return the command that makes an object of a class from Java objects."""
    return _command("i", class_name, *map(_reference, arguments))


def _command(*lines: str) -> str:
    return "\n".join((*lines, "e", ""))


def _reference(argument: JavaObject) -> str:
    return f"r{argument._get_object_id()}"


def _string(value: str) -> str:
    from py4j.protocol import get_command_part  # noqa: PLC0415 - the host loads it while the JVM starts

    return str(get_command_part(value)).rstrip("\n")


def results(client: JavaClient, commands: Iterable[str]) -> list[Any]:
    """Send commands as :func:`send_pipelined` does, and return their results as py4j does.

    Raises:
        GatewayBroken: The connection ended.
        Py4JError: The error of the first call that failed. The calls after it were made anyway.
    """
    from py4j.protocol import Py4JError, get_return_value  # noqa: PLC0415 - the host loads it while the JVM starts

    values: list[Any] = []
    errors: list[Py4JError] = []
    for reply in send_pipelined(client, commands):
        try:  # every reply becomes an object of Python's, whose end releases that of the JVM
            values.append(get_return_value(reply, client))
        except Py4JError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return values


def send_pipelined(client: JavaClient, commands: Iterable[str]) -> list[str]:
    """Send commands of py4j's protocol on this thread's connection; return their replies, in order.

    A reply may be an error; nothing is raised for it. ``client`` is a ``JavaClient`` of py4j, which has a
    connection for each thread.

    Raises:
        GatewayBroken: The connection ended.
    """
    sent = list(commands)
    data = "".join(sent).encode()
    connection = client._get_connection()
    try:
        connection.socket.sendall(data)
        lines = [_next_line(connection) for _ in sent]
    except (OSError, ValueError, AttributeError) as error:  # the latter two if another thread closed it
        connection.close()
        raise GatewayBroken(f"the connection to the JVM broke: {error}") from error
    except BaseException:  # interrupted: the next command must not get a reply to these
        connection.close()
        raise
    if not all(line.startswith(_RETURN) and line.endswith(b"\n") for line in lines):
        connection.close()
        raise GatewayBroken("the JVM has ended")
    client._give_back_connection(connection)
    return [line[1:-1].decode() for line in lines]


def _next_line(connection: GatewayConnection) -> bytes:
    """Read a reply, and have the kernel acknowledge it at once.

    The JVM writes each reply by itself, and by Nagle's algorithm its kernel holds the next one back until
    the last one is acknowledged. The kernel here delays that by 40 ms as long as nothing is sent. The option
    lasts only for a while, so it is set before each line.
    """
    if connection.socket.family != socket.AF_UNIX:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return connection.stream.readline()
