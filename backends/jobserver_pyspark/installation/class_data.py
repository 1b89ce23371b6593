"""Archives of the driver JVM's classes, which halve the time and CPU of a context's start.

A JVM with the option ``-XX:ArchiveClassesAtExit`` writes the classes it has loaded into a file; later ones
map that file instead of loading and checking some fifteen thousand classes again (Java's "dynamic class-data
sharing"). An archive fits one Java, one Spark and one set of options, so its file's name is a hash of all
these. Directories of configuration come after the jars of Spark (see ``java_class_path``) and contain no
classes, so one archive fits servers with different ones. A JVM that cannot use an archive starts without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobserver_core.errors import JobServerError, LaunchError
from jobserver_pyspark.installation.driver_jvm import JVM_OPTIONS
from jobserver_pyspark.installation.java import Java, utf8_locale
from jobserver_pyspark.installation.spark import Installation, writing_to_cache

_log = logging.getLogger(__name__)
_QUIET = ("-Xlog:cds=off", "-Xlog:cds+dynamic=off")
_DUMP_TIMEOUT = 120.0
"""Seconds for Java to archive its own classes, which takes a few on an idle machine."""
_POLL = 0.1
"""Seconds between two checks whether Java has ended."""
_UNUSED = 30 * 24 * 3600.0
"""Seconds after which an archive that no context has used is removed."""


class ClassData:
    """The archive for one Java and one installation of Spark."""

    def __init__(self, installation: Installation, java: Java, cache: Path) -> None:
        self._java = java
        stamps = [f"{jar}:{jar.stat().st_size}" for jar in installation.jars]
        more_jars = os.environ.get("SPARK_DIST_CLASSPATH", "")
        parts = (java.identity, more_jars, *JVM_OPTIONS, *stamps)
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
        self._directory = cache / "class-data"
        self.path = self._directory / f"{name}.jsa"
        self._base = self._directory / f"{name}.base.jsa"

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def options(self) -> list[str]:
        """Return the options of a JVM to use the archive; empty if it does not exist."""
        if not self.exists:
            return []
        archives = [file for file in (self._base, self.path) if file.is_file()]
        for file in archives:
            with suppress(OSError):  # of another user, as in an image
                os.utime(file)  # see _remove_unused
        return [f"-XX:SharedArchiveFile={':'.join(map(str, archives))}", *_QUIET]

    def make(
        self,
        train: Callable[[list[str]], None],
        *,
        give_up: threading.Event | None = None,
        wait: bool = False,
    ) -> bool:
        """Create the archive, unless another process is creating it; return whether it exists.

        With ``wait``, wait for the other process instead.

        ``train`` runs a context whose JVM has the options in its argument, runs a typical job in it, stops it
        gracefully, or raises an error. Setting ``give_up`` ends the JVM that this method starts itself.

        Raises:
            LaunchError: There is no archive after the training, or this user cannot write to the cache.
            SubprocessError: The archive of Java's own classes could not be created.
        """
        with writing_to_cache(self._directory.parent):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            opened = self.path.with_suffix(".lock").open("w")
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                return self.exists
            for left in self._directory.glob(f"{self.path.stem}.*.part"):  # of a process that was killed
                left.unlink(missing_ok=True)
            if not self.exists:
                self._make(train, give_up or threading.Event())
        return self.exists

    def _make(self, train: Callable[[list[str]], None], give_up: threading.Event) -> None:
        temporary = self.path.with_suffix(f".{os.getpid()}.part")
        options = [f"-XX:ArchiveClassesAtExit={temporary}", *_QUIET]
        if self._ensure_base(give_up):
            options.insert(0, f"-XX:SharedArchiveFile={self._base}")
        try:
            train(options)
            if not temporary.is_file():
                raise LaunchError(message="the JVM has not written it")
            temporary.replace(self.path)
            self._remove_unused()
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_unused(self) -> None:
        """Remove the archives of installations that have started no context for a month, 200 MB each.

        JVMs that have mapped such a file are not disturbed.
        """
        for file in self._directory.glob("*.jsa"):
            with suppress(OSError):  # of another user, or another process removed it
                if time.time() - file.stat().st_mtime > _UNUSED:
                    file.unlink()

    def _ensure_base(self, give_up: threading.Event) -> bool:
        """Create the archive of Java's own classes if the JDK has none; return whether this was needed."""
        if (self._java.home / "lib" / "server" / "classes.jsa").is_file():
            return False
        if not self._base.is_file():
            temporary = self._base.with_suffix(f".{os.getpid()}.part")
            command = [str(self._java.program), "-Xshare:dump", f"-XX:SharedArchiveFile={temporary}"]
            try:
                _run(command, _DUMP_TIMEOUT, give_up)
                temporary.replace(self._base)
            finally:
                temporary.unlink(missing_ok=True)
        return True


def _run(command: list[str], timeout: float, give_up: threading.Event) -> None:
    """Run a command; kill it after ``timeout`` seconds or when ``give_up`` is set.

    Raises:
        SubprocessError: It was killed, or failed.
    """
    deadline = time.monotonic() + timeout
    quiet = subprocess.DEVNULL
    environment = {**os.environ, **utf8_locale()}
    with subprocess.Popen(  # noqa: S603 - the user's own Java
        command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet
    ) as process:
        while process.poll() is None:
            if give_up.wait(_POLL) or time.monotonic() > deadline:
                process.kill()
                process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


class ArchiveMaker:
    """Creates archives in the background, each once, after the first context that had to start without it.

    It waits ``delay`` seconds, so that it does not slow down the first jobs of the server, and stops when
    the launcher closes.
    """

    def __init__(self, delay: float = 30.0) -> None:
        self._delay = delay
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._begun: set[Path] = set()
        self._threads: list[threading.Thread] = []

    def begin(self, data: ClassData, train: Callable[[list[str]], None]) -> None:
        """Start to create an archive, unless it exists or its creation has started."""
        with self._lock:
            if data.exists or data.path in self._begun:
                return
            self._begun.add(data.path)
            thread = threading.Thread(target=self._run, args=(data, train), name="class data", daemon=True)
            self._threads.append(thread)
        thread.start()

    def _run(self, data: ClassData, train: Callable[[list[str]], None]) -> None:
        if self._closed.wait(self._delay):
            return
        try:
            made = data.make(train, give_up=self._closed)
        except (OSError, subprocess.SubprocessError, JobServerError) as error:
            if not self._closed.is_set():
                _log.warning(
                    "no archive of the JVM's classes, so contexts start more slowly, and the server tries "
                    "again after its next start: %s",
                    error,
                )
            return
        if made:
            _log.info("created the archive of classes %s", data.path)
        else:
            _log.debug("another process is creating the archive of classes %s", data.path)

    def stop(self) -> None:
        """Start no more archives, and abort the one in progress."""
        self._closed.set()

    def join(self, deadline: float) -> None:
        """Wait until no archive is in progress, at most until ``deadline`` on the monotonic clock."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
