"""The types of py4j's objects, which py4j does not declare.

Only the JVM knows which attributes a Java object has. So to type checkers, it has every attribute, of any
type. A Python object, such as PySpark's session, is not accepted as one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol


class JavaObject(Protocol):
    """An object of the JVM, a class of it, or a package; its attributes are looked up in the JVM."""

    def __getattr__(self, name: str) -> Any: ...


class JavaArray(Protocol):
    """An array of the JVM."""

    def __setitem__(self, index: int, value: object) -> None: ...


class GatewayConnection(Protocol):
    """A connection to the JVM, which serves one call at a time."""

    socket: socket.socket
    stream: BinaryIO

    def close(self) -> None: ...


class JavaClient(Protocol):
    """What sends commands to the JVM; it has a connection for each thread."""

    send_command: Callable[..., str]
    garbage_collect_object: Callable[..., None]

    def _get_connection(self) -> GatewayConnection: ...

    def _give_back_connection(self, connection: GatewayConnection) -> None: ...


class JavaGateway(Protocol):
    """A gateway to a JVM, whose ``jvm`` is the root of all packages."""

    jvm: JavaObject
    _gateway_client: JavaClient

    def new_array(self, java_class: JavaObject, *dimensions: int) -> JavaArray: ...
