"""A temporary PostgreSQL server for tests, on a Unix socket."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from sqlalchemy import URL, make_url

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

_USER = "postgres"
_SECONDS_TO_START = 60.0
"""Far longer than PostgreSQL takes to start, on a machine that is busy with other tests."""


def postgresql_programs() -> Path | None:
    """Return the directory of initdb and postgres, from PATH or Debian's location, or None."""
    found = shutil.which("initdb")
    directories = [os.path.dirname(os.path.realpath(found))] if found else []
    directories += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    needed = ("initdb", "postgres")
    usable = (f for f in directories if all(os.access(os.path.join(f, name), os.X_OK) for name in needed))
    return next(map(Path, usable), None)


def missing() -> str | None:
    """Return a description of what is missing to start a server, or None."""
    if postgresql_programs() is None:
        return "PostgreSQL's programs initdb and postgres (apt-get install postgresql)"
    try:
        _identity()
    except KeyError:
        return f"a user {_USER!r}: PostgreSQL refuses to run as root"
    return None


class _Identity(TypedDict, total=False):
    """The arguments of subprocess that say as which user a process runs; none of them for our own."""

    user: int
    group: int
    extra_groups: list[int]


def _identity() -> _Identity:
    """Return the user that the server runs as, as arguments of subprocess."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


class PostgresqlServer:
    """A server that listens on a Unix socket only. A context manager.

    PostgreSQL refuses to run as root, so root starts it as the user ``postgres``. ``durable`` leaves fsync
    on, for measurements.
    """

    def __init__(self, *, durable: bool = False) -> None:
        if problem := missing():
            raise RuntimeError(f"needs {problem}")
        self._programs = postgresql_programs() or Path()
        self._identity = _identity()
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PostgresqlServer:
        self._directory = Path(tempfile.mkdtemp(prefix="jobserver-pg-"))
        try:
            self._create()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return the URL of a database of this server."""
        made = URL.create("postgresql", "postgres", database=database, query={"host": str(self._directory)})
        return made.render_as_string()

    def database(self, name: str) -> str:
        """Create an empty database of this name unless it exists, and return the name."""
        with self.connect(self.url("postgres")) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def drop(self, name: str) -> None:
        """Drop a database, even if it has connections."""
        with self.connect(self.url("postgres")) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def connect(self, url: str) -> psycopg.Connection[TupleRow]:
        """Return a plain connection to a database, bypassing the store."""
        import psycopg  # noqa: PLC0415 - in the extra postgresql

        name = make_url(url).database
        return psycopg.connect(host=str(self._directory), user="postgres", dbname=name, autocommit=True)

    def pause(self) -> None:
        """Stop all processes of the server from running, so that it answers nothing until :meth:`resume`."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all processes of the server run again."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        if self._process is not None:
            parent = self._process.pid
            os.kill(parent, number)  # first, so that it starts no other process
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), number)

    def stop(self, *, abruptly: bool = False) -> None:
        """Stop the server, even if it has connections; ``abruptly`` as in a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if abruptly else signal.SIGINT)
            self._process.wait()
            self._process = None

    def start(self) -> None:
        """Start the server on its data, and wait until it accepts connections."""
        directory = str(self._directory)
        options = {"listen_addresses": "", "unix_socket_directories": directory, "max_connections": "60"}
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(self._programs / "postgres"), "-D", str(self._directory / "data")]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        if setpriv := shutil.which("setpriv"):  # ends the server with this process, even after SIGKILL
            command = [setpriv, "--pdeathsig", "QUIT", *command]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command, stdout=log, stderr=log, **self._identity
            )
        self._wait(self._process)

    def _create(self) -> None:
        if self._identity:
            os.chown(self._directory, self._identity["user"], self._identity["group"])
        options = ["-D", str(self._directory / "data"), "-U", "postgres", "-A", "trust", "-N"]
        command = [str(self._programs / "initdb"), *options, "-E", "UTF8", "--no-locale"]
        subprocess.run(  # noqa: S603 - the command is ours
            command, check=True, cwd=self._directory, capture_output=True, **self._identity
        )

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        import psycopg  # noqa: PLC0415 - in the extra postgresql

        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            try:
                self.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._directory / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return
