"""The fetcher port: a URI becomes a file on this machine."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from jobserver_core.models.validation import Attribute, byte_count, sha256
from jobserver_core.plugins import Backend

ProgressCallback = Callable[[int, "int | None"], None]
"""Called with the number of bytes so far and in total. The total is None while it is unknown."""


class Cancellation:
    """Ends a fetch from another thread.

    Only the first :meth:`cancel` counts; later reasons are ignored. To react at once, subscribe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._subscribers: dict[int, Callable[[str], None]] = {}

    @property
    def reason(self) -> str | None:
        """Why it was cancelled, or None if it was not."""
        return self._reason

    def cancel(self, reason: str) -> None:
        """Cancel it, and call every subscriber with the reason."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            subscribers = list(self._subscribers.values())
        for call in subscribers:
            call(reason)

    def subscribe(self, call: Callable[[str], None]) -> Callable[[], None]:
        """Call ``call`` when it is cancelled, or now if it was already; return a function that unsubscribes.

        The call is made on the thread that cancels, so it must be short and must not raise.
        """
        with self._lock:
            reason = self._reason
            self._subscribers[id(call)] = call
        if reason is not None:
            call(reason)
        return lambda: self._unsubscribe(id(call))

    def _unsubscribe(self, key: int) -> None:
        with self._lock:
            self._subscribers.pop(key, None)


def _is_path(_instance: object, _attribute: Attribute, value: object) -> None:
    if not isinstance(value, Path):
        raise ValueError(f"path must be a pathlib.Path, not {type(value).__name__}")


@attrs.frozen(kw_only=True)
class Fetched:
    """A fetched file: where it is, the sha256 of its content, and its size in bytes."""

    path: Path = attrs.field(validator=_is_path)
    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=byte_count)


class Fetcher(Backend):
    """Fetches URIs within limits on size and time, and only as far as its policy allows.

    ``scheme:/path`` and ``scheme:///path`` are the same file. An earlier copy may be reused if the source
    reports that the file has not changed (ETag, Last-Modified, or size and time).
    """

    kind = "fetcher"

    @abstractmethod
    def check(self, uri: str) -> None:
        """Check the text of a URI, without accessing the network or files.

        Raises:
            MalformedUrl: It is not a URI, or its scheme, host or directory is not allowed.
        """

    @abstractmethod
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> AbstractContextManager[Fetched]:
        """Fetch a URI. The file exists, and does not change, inside the ``with`` block.

        The block may end on a different thread than it began on. A failed fetch leaves nothing behind.
        Credentials in the URI are used, and never appear in an error.

        ``progress`` is called as bytes arrive; an exception in it ends the fetch. When ``cancellation`` is
        cancelled, the fetch ends with its reason, even while it waits for a server that sends nothing. Inside
        the block, a cancellation has no effect.

        Raises:
            MalformedUrl: :meth:`check` refuses the URI, or the fetch finds something that is not allowed: an
                address of the host, or the target of a link.
            TooLarge: The content exceeds the size limit.
            FetchError: The fetch was cancelled, or failed for any other reason; see ``reason``.
        """

    def close(self) -> None:
        """Close connections. Idempotent."""
        return
