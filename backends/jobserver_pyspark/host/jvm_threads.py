"""The threads of the context's JVM in which calls of a runner run.

A runner calls the JVM over connections to its own gateway server. A thread of the JVM serves each of them.
After a kill, the host has to know whether such a call still runs. Java has no API for this, but three facts
together show it:

- *Whose thread it is.* It has inherited the local property :data:`OWNER` from the thread that started the
  runner's gateway server.
- *What it does.* Every thread that a call starts inherits the property too, including those of Spark's
  pools, which then serve all jobs. So only a thread that serves a connection counts, which the bottom of its
  stack shows.
- *Whether it is in a call.* When the server is shut down, its connections are closed. A thread that waits for
  the next call ends then, so those that are left are in a call.

Threads that a call has started are ended only if they run code of the context's jars, because they may
belong to one of these pools: see ``CallThreads.scala``. Some of them do not inherit the property, so the
threads of a runner also have a thread group, whose name is the tag.
"""

from __future__ import annotations

import re
from typing import Any

from jobserver_pyspark.gateway_calls import call_with
from jobserver_pyspark.java_objects import JavaGateway, JavaObject

OWNER = "jobserver.job"
"""The local property that says who starts a Spark job: the tag of a runner, or the ID of a JVM job."""

_DEFAULT_NAME = re.compile(r"Thread-\d+")
"""The names that Java gives to threads without one, such as py4j's. Few others need a look at their stack."""
_NEW_GROUPS = 19
"""The first Java whose groups do not keep their subgroups, and whose threads have a ``holder``."""
_CONNECTIONS = ("py4j.ClientServerConnection", "py4j.GatewayConnection")


class StartingThread:
    """The calling thread of the JVM, which starts threads in groups of their own.

    Java has no API to change the group of a thread, which those that it starts inherit. Until Java 19, a
    group would never be forgotten, because its parent refers to it.
    """

    def __init__(self, gateway: JavaGateway) -> None:
        java = gateway.jvm.java.lang
        thread = java.Thread.currentThread()
        self._new_group = java.ThreadGroup
        self._parent = thread.getThreadGroup()
        self._forget: JavaObject | None = None
        self._holder = thread
        if java.Runtime.version().feature() < _NEW_GROUPS:
            self._arguments = gateway.new_array(java.Object, 1)
            types = gateway.new_array(java.Class, 1)
            types[0] = self._parent.getClass()
            self._forget = _opened(self._parent.getClass().getDeclaredMethod("remove", types))
        else:
            self._holder = _opened(thread.getClass().getDeclaredField("holder")).get(thread)
        self._field = _opened(self._holder.getClass().getDeclaredField("group"))

    def start_in_group(self, name: str) -> str:
        """Return the command that lets threads start in a new group of this name."""
        group = self._new_group(self._parent, name)
        if self._forget is not None:
            self._arguments[0] = group
            self._forget.invoke(self._parent, self._arguments)
        return call_with(self._field, "set", self._holder, group)


def _opened(member: JavaObject) -> JavaObject:
    member.setAccessible(True)
    return member


class JvmThreads:
    """The threads of one JVM, and the local properties that Spark keeps for each of them."""

    def __init__(self, gateway: JavaGateway, properties: JavaObject) -> None:
        self._gateway = gateway
        self._properties = properties

    def owner(self, thread: JavaObject) -> str | None:
        """Return the :data:`OWNER` of another thread. Public methods of Java read only that of the caller."""
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
        """Return the threads that serve connections of the runner with this tag.

        Once its gateway server is shut down, these are the threads in a call.
        """
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
