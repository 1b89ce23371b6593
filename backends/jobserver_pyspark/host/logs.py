"""Logs of bounded size, and the thread that fills them from the pipes of processes."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections.abc import Callable
from pathlib import Path

_READ = 64 * 1024
"""Bytes to read at a time: the capacity of a pipe on Linux."""
_PIPE_READS = 16
"""Reads that empty any pipe of up to a megabyte; an escaped process could keep writing forever."""


class BoundedLog:
    """An append-only log file that never exceeds ``limit`` bytes.

    When it is full, its older half is dropped, and its first line says how many bytes are missing. It remains
    the same file, so it can be read and followed at any time. It is created by the first write, because many
    jobs print nothing, and creating a file is a good part of the work of a short one. If the disk fails,
    output is dropped: that must end neither a job nor its context.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = max(limit, 1024)
        self._lock = threading.Lock()
        self._dropped = 0
        self._file = -1
        self._closed = False

    def write(self, data: bytes) -> None:
        """Append bytes; they are dropped after :meth:`close`."""
        with self._lock:
            if self._closed:
                return
            try:
                self._open(os.O_CREAT)
                if os.fstat(self._file).st_size + len(data) > self._limit:
                    data = self._make_room(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError:
                self._dropped += len(data)

    def _open(self, flags: int) -> None:
        if self._file < 0:
            if flags & os.O_CREAT:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)

    def _make_room(self, data: bytes) -> bytes:
        """Truncate the file, and return the bytes to append to it."""
        keep = self._limit // 2
        size = os.fstat(self._file).st_size
        kept = os.pread(self._file, max(0, keep - len(data)), max(0, size - max(0, keep - len(data))))
        tail = (kept + data)[-keep:]
        tail = tail[tail.find(b"\n") + 1 :] or tail
        self._dropped += size + len(data) - len(tail)
        os.ftruncate(self._file, 0)
        first_line = (
            f"[{self._dropped} bytes of earlier output were dropped: a log keeps up to {self._limit} bytes]\n"
        )
        return first_line.encode() + tail

    def tail(self, size: int = 4096) -> str:
        """Return the last ``size`` bytes as text, from the beginning of a line; empty after :meth:`close`."""
        with self._lock:
            if self._closed:
                return ""
            try:
                self._open(0)
            except OSError:
                return ""
            end = os.fstat(self._file).st_size
            data = os.pread(self._file, size, max(0, end - size))
        if end > size:
            data = data[data.find(b"\n") + 1 :]
        return data.decode(errors="replace").strip()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class Output:
    """The reading end of a process's output pipe, and the log for its bytes.

    ``reading`` is held while ``fd`` is read or closed, and ``done`` is set once it is closed. The number may
    belong to another file then, such as the connection of another runner, of which nothing may be read.
    """

    def __init__(self, fd: int, write: Callable[[bytes], None]) -> None:
        self.fd = fd
        self.write = write
        self.closing = False
        self.done = threading.Event()
        self.reading = threading.Lock()


class OutputPump:
    """One thread that copies the output of many processes to their logs."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        self._lock = threading.Lock()
        self._changed: list[Output] = []
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="output pump", daemon=True)
        self._thread.start()

    def add(self, fd: int, write: Callable[[bytes], None]) -> Output:
        """Start to copy from ``fd``, which the pump owns from now on."""
        os.set_blocking(fd, False)
        output = Output(fd, write)
        self._change(output)
        return output

    def drain(self, output: Output) -> None:
        """Copy the current content of the pipe on this thread; the pipe stays open."""
        for _ in range(_PIPE_READS):
            if not self._copy(output, again=False):
                return

    def finish(self, output: Output, timeout: float = 2.0) -> None:
        """Copy the rest of the pipe and close it, even if a process holds its other end."""
        output.closing = True
        self._change(output)
        output.done.wait(timeout)

    def close(self) -> None:
        """End the thread; output that was not copied is dropped."""
        self._closed = True
        os.write(self._wake_writer, b"x")
        self._thread.join()
        os.close(self._wake_writer)

    def _change(self, output: Output) -> None:
        with self._lock:
            self._changed.append(output)
        os.write(self._wake_writer, b"x")

    def _run(self) -> None:
        while not self._closed:
            for key, _events in self._selector.select():
                if key.data is None:
                    self._take_changes()
                elif not self._copy(key.data):
                    self._close(key.data)
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()

    def _take_changes(self) -> None:
        os.read(self._wake_reader, _READ)
        with self._lock:
            changed, self._changed = self._changed, []
        for output in changed:
            if output.closing and not output.done.is_set():
                self.drain(output)
                self._close(output)
            elif not output.closing:
                self._selector.register(output.fd, selectors.EVENT_READ, output)

    @staticmethod
    def _copy(output: Output, *, again: bool = True) -> bool:
        """Copy one chunk; return whether there may be more."""
        with output.reading:  # keeps the order of the bytes if two threads read
            if output.done.is_set():
                return False
            try:
                data = os.read(output.fd, _READ)
            except BlockingIOError:
                return again
            except OSError:
                return False
            if data:
                output.write(data)
            return bool(data)

    def _close(self, output: Output) -> None:
        with output.reading:
            if output.done.is_set():
                return
            with contextlib.suppress(KeyError):  # it was finished before it was registered
                self._selector.unregister(output.fd)
            os.close(output.fd)
            output.done.set()
