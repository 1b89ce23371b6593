"""Notices between servers, by PostgreSQL's LISTEN and NOTIFY.

Theory
======

The problem: a server has to learn within moments that another one wrote something for it, and should not ask
the database many times a second for that.

The idea: PostgreSQL passes notices on when the sender's transaction is committed. Each server keeps one
connection that listens, on a thread of its own, which waits for the connection's socket. The connection is
not one of the connection pool, because others use those in the meantime.

The invariants: after each connect, the listener reports that notices may have been lost, because those that
were sent before it are gone. A broken connection is replaced, with pauses of up to :data:`LONGEST_PAUSE`.
TCP's keepalive notices a server that has vanished.

Deliberately not handled: notices that are lost while there is no connection. They are hints; a listener also
checks from time to time.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobserver_core.errors import StorageError
from jobserver_core.repeats import Repeats
from jobserver_sql.statements import DriverConnection

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

_repeats = Repeats(logging.getLogger(__name__))

CHANNEL = "jobserver"
FIRST_PAUSE = 0.1
"""Seconds between the loss of a connection and the first attempt to open another."""
LONGEST_PAUSE = 5.0
"""Seconds to which the pause between two attempts to connect grows."""


def notify(connection: DriverConnection, notice: str) -> None:
    """Send a notice with the transaction of the connection."""
    connection.driver.execute("SELECT pg_notify(%s, %s)", (CHANNEL, notice))


class NoticeListener:
    """Calls ``receive`` with every notice, until it is closed; ``connect`` returns a new connection.

    It is called with None whenever notices may have been lost.
    """

    def __init__(
        self, connect: Callable[[], psycopg.Connection[TupleRow]], receive: Callable[[str | None], None]
    ) -> None:
        self._connect = connect
        self._receive = receive
        self._closed = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="jobserver-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and its connection. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._waker.close()
            self._thread.join()
            self._woken.close()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    pause = FIRST_PAUSE
                    self._receive(None)
                    self._pass_on(connection)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the connection, try another
                of_driver = type(error).__module__.startswith("psycopg")
                unexpected = not of_driver and not isinstance(error, StorageError | OSError)
                text = "cannot listen to other servers, trying again: %s"
                _repeats.warning("listen", text, error, exc_info=unexpected)
                self._closed.wait(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    def _pass_on(self, connection: psycopg.Connection[TupleRow]) -> None:
        """Receive until the connection breaks, which raises, or this is closed."""
        raw = connection.pgconn
        ready = select.poll()  # unlike select(), it takes descriptors of any number
        ready.register(raw.socket, select.POLLIN)
        ready.register(self._woken, select.POLLIN)
        while not self._closed.is_set():
            ready.poll()
            raw.consume_input()
            while (notice := raw.notifies()) is not None:
                self._receive(notice.extra.decode())
