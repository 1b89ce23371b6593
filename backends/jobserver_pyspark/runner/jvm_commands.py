"""The commands that a runner sends to the JVM through py4j, and how it sends fewer, or several at once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile

from jobserver_pyspark.gateway_calls import send_pipelined
from jobserver_pyspark.java_objects import JavaClient

_REFLECTION = "r\n"
"""The beginning of py4j's commands that ask what a name stands for."""
_CLASS_OR_METHOD = ("yc", "ym")
_PACKAGE = "yp"
"""The beginnings of their replies."""
_ROOTS = ("java", "scala", "org", "org.apache", "org.apache.spark")
_LASTING_PACKAGES = ("java.", "scala.", "org.apache.spark.")
_IMPORT = "j\n"
"""The beginning of py4j's commands that import names."""
_VIEW_CHANGES = ("j\ni\nrj\n", "j\nr\nrj\n")
"""The beginnings of those that change what names stand for in the view that all code of a process shares."""
_SPARK = "org.apache.spark."
"""What PySpark's own imports begin with, for example those of streaming queries."""
_RELEASE = "m\nd\n"
"""The beginning of py4j's command that releases an object in the JVM."""
_CONSTRUCTION = "i\n"
"""The beginning of py4j's command that calls a constructor."""
_OWN = ""
"""Stands in a script for a command that is different in each process."""


class Commands:
    """The commands that are sent to the JVM: counted, except for the release of garbage.

    Most questions about names are not sent. py4j asks the JVM what a name such as ``PythonRDD`` stands for
    each time that PySpark uses it, and the JVM searches its whole Java class path for it in every imported
    package, which takes longer than most calls. So a reply is remembered if it cannot change: that the name
    is a class, a method of one, or a package of Java or Spark. The loaders of added jars ask their parents
    first, so a class that was found stays the same. A name that stands for nothing is asked again, because a
    jar with it may come, and so is the value of a field. When a job imports names, which may change what a
    short one stands for, all is forgotten. ``foreign_import`` is the name of such an import, unless it is one
    of Spark's: it lasts as long as the connection.
    """

    def __init__(self, client: JavaClient, names: Mapping[str, str]) -> None:
        self._client = client
        self._send = client.send_command
        self._names = dict(names)
        self._new: dict[str, str] = {}
        self._script: _Script | None = None
        self.count = 0
        self.foreign_import: str | None = None
        client.send_command = self

    def __call__(self, command: str, *args: object, **options: object) -> str:
        if command in self._names:
            return self._names[command]
        if self._script is not None:
            reply = self._script.reply(command)
        else:
            self._notice(command)
            reply = self._send(command, *args, **options)
        if command.startswith(_REFLECTION) and _is_final(command, reply):
            self._names[command] = self._new[command] = reply
        return reply

    def _notice(self, command: str) -> None:
        """Notice what a command of a job changes."""
        if command.startswith(_IMPORT):
            self._names.clear()
        if command.startswith(_VIEW_CHANGES) and not (name := command.split("\n", 4)[3]).startswith(_SPARK):
            self.foreign_import = name
        if not command.startswith(_RELEASE):
            self.count += 1

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count no command inside the block."""
        before = self.count
        try:
            yield
        finally:
            self.count = before

    @contextlib.contextmanager
    def scripted(self, script: Sequence[str]) -> Iterator[list[str]]:
        """Send the commands of PySpark's own start, of which ``script`` says which will come.

        Only the thread that attaches the process sends any. Yield the script for another process, which is
        complete at the end of the block. Objects that become garbage inside the block are not released, for
        which py4j would open another connection: they are few and small, and end with the gateway.
        """
        client = self._client
        self._script = _Script(client, self._send, script)
        client.garbage_collect_object = lambda *_, **__: None
        try:
            yield self._script.sent
        finally:
            self._script = None
            del client.garbage_collect_object

    def new_names(self) -> dict[str, str]:
        """Return the remembered replies that were neither given in advance nor returned before."""
        new, self._new = self._new, {}
        return new


class _Script:
    """Sends the commands that another process has sent, many at once, before PySpark asks for them.

    py4j numbers the objects of a gateway from 0, so two processes that do the same send the same text. The
    replies are the JVM's own. If another command comes than the next of the script, what is left of the
    script is forgotten: commands sent in excess have only created a few unused objects. The arguments of a
    constructor may be the process's own, such as an address. It waits for its turn, and so do the commands
    after it.
    """

    def __init__(self, client: JavaClient, send: Callable[..., str], script: Sequence[str]) -> None:
        self._client = client
        self._send = send
        self._left = deque(script)
        self._replies = deque[str]()
        self.sent: list[str] = []

    def reply(self, command: str) -> str:
        own = command.startswith(_CONSTRUCTION)
        self.sent.append(_OWN if own else command)
        expected = self._left.popleft() if self._left else _OWN
        if own or expected != command:
            if expected != _OWN:
                self._left.clear()
            self._replies.clear()
            return self._send(command)
        if not self._replies:
            self._replies.extend(send_pipelined(self._client, [command, *takewhile(bool, self._left)]))
        return self._replies.popleft()


def _is_final(command: str, reply: str) -> bool:
    """Whether the JVM would always give this reply about a name."""
    if reply.startswith(_PACKAGE):
        name = command.split("\n", 3)[2]
        return name in _ROOTS or (name.startswith(_LASTING_PACKAGES) and name.rpartition(".")[2].islower())
    return reply.startswith(_CLASS_OR_METHOD)
