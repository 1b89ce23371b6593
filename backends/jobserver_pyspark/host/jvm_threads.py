"""Threads of the context's JVM, and which runner they work for.

The thread that serves a connection of a runner inherits the local property :data:`OWNER` from the thread that
started the runner's gateway server, and passes it on to the threads that it starts. So does every thread of a
pool that Spark makes on the way, although that serves all jobs. So a thread counts as a call of a runner only
if it also serves a connection, which shows at the bottom of its stack.
"""

from __future__ import annotations

import re
from typing import Any

from jobserver_pyspark.java_objects import JavaGateway, JavaObject

OWNER = "jobserver.job"
"""The local property with the tag of the job that starts a Spark job; JVM jobs set it as well."""

_DEFAULT_NAME = re.compile(r"Thread-\d+")
"""The names of threads that have been given none, as py4j's. They save a look at most other threads."""
_CONNECTIONS = ("py4j.ClientServerConnection", "py4j.GatewayConnection")


class JvmThreads:
    """The threads of one JVM, and the local properties that Spark keeps for each of them."""

    def __init__(self, gateway: JavaGateway, properties: JavaObject) -> None:
        self._gateway = gateway
        self._properties = properties

    def owner(self, thread: JavaObject) -> str | None:
        """Return the tag that another thread carries; Java's public methods read only a thread's own."""
        values = self._invoke("java.lang.InheritableThreadLocal", "getMap", self._properties, thread)
        entry = values and self._invoke(
            "java.lang.ThreadLocal$ThreadLocalMap", "getEntry", values, self._properties
        )
        if entry is None:
            return None
        field = entry.getClass().getDeclaredField("value")
        field.setAccessible(True)
        found = field.get(entry).getProperty(OWNER)
        return None if found is None else str(found)

    def calls(self, tag: str) -> list[JavaObject]:
        """Return the threads that serve connections of the runner with this tag."""
        stacks = self._gateway.jvm.java.lang.Thread.getAllStackTraces()
        return [
            thread
            for thread in stacks.keySet()
            if _DEFAULT_NAME.fullmatch(thread.getName())
            and _serves_connection(stacks.get(thread))
            and self.owner(thread) == tag
        ]

    def _invoke(self, class_name: str, method_name: str, target: JavaObject, argument: JavaObject) -> Any:
        """Call a method of the JDK that is not public."""
        methods = self._gateway.jvm.java.lang.Class.forName(class_name).getDeclaredMethods()
        named = (method for method in methods if method.getName() == method_name and not method.isBridge())
        method = next(method for method in named if method.getParameterCount() == 1)
        method.setAccessible(True)
        arguments = self._gateway.new_array(self._gateway.jvm.java.lang.Object, 1)
        arguments[0] = argument
        return method.invoke(target, arguments)


def _serves_connection(stack: Any) -> bool:
    """Return whether a thread was made for a connection; the last frame is that of ``Thread.run``."""
    return len(stack) > 1 and stack[len(stack) - 2].getClassName() in _CONNECTIONS
