"""What the torture starts and breaks: servers, the database, the cluster, and the processes of contexts.

Everything works below one directory, so whatever is left can be found and ended there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psycopg
from context_processes import command, end_processes_in, marker, processes_in
from standalone_cluster import StandaloneCluster
from torture_inline import plugin_environment

from conditions import WAIT
from jobserver_pyspark import processes
from jobserver_sql.testing import PostgresqlServer
from loopback import Handler, Loopback

__all__ = ["ContextProcess", "Database", "Fleet", "Receiver", "Server", "ServerKind"]

_LEASE = 4.0
"""Seconds of a server's lease without re-attachment, unless a fleet has another."""
REATTACH = 15.0
"""Seconds for which contexts wait for the next server, where they do."""
_RESTART_PAUSE = 1.0
"""Seconds between two starts of a server that ends at once, for example because the database is away."""

_CONFIG = """
spark {{
  master = "local[2]"
  context-settings {{
    num-cpu-cores = 1, memory-per-node = 512m, idle-timeout = 25 s
    restart-backoff = 300 ms, max-restart-backoff = 2 s, max-restarts = off
  }}
}}
jobserver {{
  metadata {{ url = "{database}", options.pool-size = 4 }}
  blobs.url = "{blobs}"
  http {{ port = 0, drain-timeout = 4 s }}
  stop-timeout = 12 s
  servers {{ lease = {lease} s, address = "{name}" }}
  contexts {{
    max-contexts = {contexts}, creation-timeout = 2 minutes, deletion-timeout = 10 s
    reattach-timeout = {reattach} s, on-shutdown = {shutdown}
  }}
  jobs {{ max-jobs-per-context = 3, max-queued-jobs = 30, start-timeout = 2 s, kill-timeout = 5 s }}
  callbacks {{ retry-delay = 1 s, max-attempts = 100, timeout = 5 s }}
  launcher = {launcher}
}}
"""


@attrs.frozen(kw_only=True)
class ServerKind:
    """How a server is configured: what becomes of its contexts when it ends, and how many it may have."""

    reattach: float = 0.0
    shutdown: str = "stop"
    contexts: int = 1


class Server:
    """``jobserver serve`` in a process of its own, on a data directory of its own.

    ``wanted`` says whether it should run; :meth:`tend` starts it until it does, as an init system would.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        kind: ServerKind,
        config: Mapping[str, Any],
        environment: Mapping[str, str],
        lease: float,
    ) -> None:
        self.name, self.kind = name, kind
        self.lease = max(lease, kind.reattach)
        """The seconds after which others declare the server dead."""
        self.directory = directory / name
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.wanted = False
        self.paused = False
        self.starts = 0
        self.listened_at: float | None = None
        self.listens: list[float] = []
        """When it was seen to listen, after each of its starts."""
        self.unexpected: list[str] = []
        self.status: int | None = None
        self._environment = environment
        self._ending = True
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._url_file = self.directory / "url"
        self.directory.mkdir()
        settings = {**config, "name": name, "contexts": kind.contexts, "reattach": kind.reattach}
        text = _CONFIG.format(**settings, shutdown=kind.shutdown, lease=lease)
        (self.directory / "server.conf").write_text(text)

    @property
    def id(self) -> str:
        """Its id in the database; empty before its first start."""
        path = self.data / "server.id"
        return path.read_text().strip() if path.exists() else ""

    @property
    def url(self) -> str | None:
        """Its address, once it listens."""
        try:
            text = self._url_file.read_text()
        except FileNotFoundError:  # also if a restart removes it at this moment
            return None
        return text.strip() if text.endswith("\n") else None

    @property
    def alive(self) -> bool:
        """Whether its process runs or is paused."""
        return self._process is not None and self._process.poll() is None

    def tend(self) -> None:
        """Start it if it should run and does not, and note an end that nobody wanted."""
        if self._process is not None and (status := self._process.poll()) is not None:
            if not self._ending and self.listened_at is not None:
                self.unexpected.append(f"server {self.name} ended by itself with status {status}")
            self._process, self.status = None, status
        if self._process is None and self.wanted and time.monotonic() > self._started_at + _RESTART_PAUSE:
            self._start()
        if self.listened_at is None and self.alive and self.url is not None:
            self.listened_at = time.monotonic()
            self.listens.append(self.listened_at)

    def _start(self) -> None:
        self._url_file.unlink(missing_ok=True)
        self.listened_at, self._ending, self.paused, self.status = None, False, False, None
        self._started_at = time.monotonic()
        self.starts += 1
        variables = {key: value for key, value in os.environ.items() if not key.startswith("JOBSERVER_")}
        temporary = self.directory.parent / "tmp"
        arguments = ["--config", str(self.directory / "server.conf"), "--data-dir", str(self.data)]
        with self.log.open("ab") as log, self._url_file.open("wb") as url_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobserver_cli", "serve", *arguments],
                env={**variables, **self._environment, "TMPDIR": str(temporary), "NO_COLOR": "1"},
                cwd=self.directory,
                stdout=url_file,
                stderr=log,
            )

    def kill(self) -> None:
        """End it with SIGKILL, and wait for that."""
        self.wanted = False
        if self._process is not None:
            self._ending = True
            self._process.kill()
            self._process.wait(WAIT)
            self.paused = False

    def stop(self) -> None:
        """Ask it to shut down."""
        self.wanted = False
        if self._process is not None:
            self._ending = True
            self.resume()
            self._process.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        """Stop its process from running."""
        if self.alive:
            self.paused = True
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its process run again."""
        if self.paused:
            self.paused = False
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def said(self, words: str) -> int:
        """Return how often its log has these words."""
        return self.log.read_text(errors="replace").count(words) if self.log.exists() else 0


class Database:
    """PostgreSQL, and what really happened in it: triggers note each change of a state, behind the store."""

    _NOTES = """
        CREATE TABLE torture_notes (n bigserial, record text, id text, old text, new text, what text);
        CREATE FUNCTION torture_note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.state IS DISTINCT FROM NEW.state OR OLD.state = ANY (TG_ARGV) THEN
                INSERT INTO torture_notes (record, id, old, new, what) SELECT
                    TG_TABLE_NAME, NEW.id, OLD.state, NEW.state, coalesce(string_agg(b.key, ' '), '')
                    FROM jsonb_each(to_jsonb(OLD)) a JOIN jsonb_each(to_jsonb(NEW)) b USING (key)
                    WHERE a.value IS DISTINCT FROM b.value;
            END IF;
            RETURN NULL;
        END $$;
    """
    _FINAL = {
        "jobs": ("FINISHED", "ERROR", "KILLED"),
        "contexts": ("FINISHED", "ERROR", "KILLED"),
        "deliveries": ("DELIVERED", "ABANDONED"),
    }

    def __init__(self, server: PostgresqlServer, name: str) -> None:
        self.server = server
        self.url = server.url(server.database(name))
        self.running = True

    def watch(self) -> None:
        """Note all changes of states from now on; the tables must exist."""
        with self.server.connect(self.url) as connection:
            connection.execute(self._NOTES.encode())
            for table, states in self._FINAL.items():
                listed = ", ".join(f"'{state}'" for state in states)
                connection.execute(
                    f"CREATE TRIGGER torture AFTER UPDATE ON {table} FOR EACH ROW "
                    f"EXECUTE FUNCTION torture_note({listed})".encode()
                )

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return what a query selects, by the names of the columns."""
        with self.server.connect(self.url) as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
            return cursor.execute(query.encode(), values or None).fetchall()

    def cut(self) -> None:
        """Cut all connections of the servers."""
        self.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def stop(self, *, abruptly: bool) -> None:
        self.running = False
        self.server.stop(abruptly=abruptly)

    def start(self) -> None:
        if not self.running:
            self.server.start()
            self.running = True


@attrs.frozen
class ContextProcess:
    """A process of a context: its role and the context's id."""

    pid: int
    role: str
    context_id: str

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


@attrs.define
class Attempt:
    """An attempt to deliver a callback."""

    delivery: str
    job: str
    body: dict[str, Any]
    began: float
    ended: float | None = None
    status: int = 0


class Receiver:
    """Receives callbacks, at its own pace and not always at the first attempt."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._lock = threading.Lock()
        self._server = Loopback(self._receive, host="127.0.0.1")

    def __enter__(self) -> Receiver:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    @property
    def url(self) -> str:
        return self._server.url("/callback")

    def _receive(self, handler: Handler) -> None:
        with self._server.lock:
            call = self._server.calls.pop()
        if "webhook-id" not in call.headers:
            handler.say(400)
            return
        body = json.loads(call.body)
        attempt = Attempt(call.headers["webhook-id"], body["jobId"], body, time.monotonic())
        with self._lock:
            number = len(self.attempts)
            self.attempts.append(attempt)
        time.sleep(0.4 if number % 7 == 0 else 0.01)
        attempt.status = 503 if number % 5 == 0 else 200
        attempt.ended = time.monotonic()
        handler.say(attempt.status)


class Fleet:
    """Three servers with all they need, below one directory.

    Without a cluster they run no Spark: contexts and jobs are threads of the servers.
    """

    KINDS = (
        ServerKind(reattach=REATTACH, shutdown="detach", contexts=2),
        ServerKind(reattach=REATTACH),
        ServerKind(),
    )
    INLINE_KINDS = (ServerKind(contexts=2), ServerKind(contexts=2), ServerKind())

    def __init__(
        self,
        directory: Path,
        postgresql: PostgresqlServer,
        cluster: StandaloneCluster | None,
        name: str,
        *,
        lease: float = _LEASE,
    ) -> None:
        self.directory = directory
        self.cluster = cluster
        self.database = Database(postgresql, name)
        self.receiver = Receiver()
        self.runs = directory / "runs"
        for made in (self.runs, directory / "tmp"):
            made.mkdir()
        self.blobs = directory / "blobs"
        kinds, launcher, environment = self.KINDS, "{ options.spare-runners = 1 }", {}
        if cluster is None:
            kinds, launcher = self.INLINE_KINDS, "{ backend = torture }"
            environment = dict(plugin_environment(directory))
        config = {"database": self.database.url, "blobs": self.blobs, "launcher": launcher}
        self.servers = [
            Server(directory, f"s{number}", kind, config, environment, lease)
            for number, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Fleet:
        self.receiver.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.database.start()  # for the next fleet, if this one has left it stopped
        for server in self.servers:
            server.kill()
        for process in self.context_processes():
            process.signal(signal.SIGCONT)
        end_processes_in(self.directory)
        self.receiver.__exit__(*error)

    def tend(self) -> None:
        for server in self.servers:
            server.tend()

    def named(self, server_id: str) -> Server | None:
        """Return the server with an id in the database."""
        return next((server for server in self.servers if server.id == server_id), None)

    def context_processes(self) -> list[ContextProcess]:
        """Return all processes of contexts of the fleet."""
        return list(self._context_processes())

    def _context_processes(self) -> Iterator[ContextProcess]:
        for pid in processes_in(self.directory):
            marked = marker(pid)
            if marked is not None and processes.start_time(pid) is not None:
                yield ContextProcess(pid, _role(command(pid)), marked.partition(":")[0])


def _role(line: bytes) -> str:
    if line.partition(b"\0")[0].endswith(b"java"):
        return "JVM"
    if b"jobserver_pyspark.host" in line:
        return "host"
    return "worker" if b"pyspark.daemon" in line else "runner"
