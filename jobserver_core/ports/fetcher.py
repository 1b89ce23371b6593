"""The fetcher port: a URI becomes a file on this machine."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from jobserver_core.models.validation import non_negative, sha256
from jobserver_core.ports.backend import Backend

__all__ = ["Cancellation", "Fetched", "Fetcher", "ProgressCallback"]

ProgressCallback = Callable[[int, "int | None"], None]
"""Called with the bytes so far and the total, None while that is unknown."""


class Cancellation:
    """Tells a fetch, from another thread, that nobody waits for it any more.

    It is cancelled once; later reasons are ignored. Who has to react at once subscribes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._subscribers: dict[int, Callable[[str], None]] = {}

    @property
    def reason(self) -> str | None:
        """Why it was cancelled; None while it is not."""
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
        """Call ``call`` when it is cancelled, at once if it is already; return what ends that.

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


@attrs.frozen(kw_only=True)
class Fetched:
    """A fetched file: where it is, the sha256 of its content, and its size in bytes."""

    path: Path
    digest: str = attrs.field(validator=sha256)
    size: int = attrs.field(validator=non_negative)


class Fetcher(Backend):
    """Fetches URIs within limits of size and time, and only what its policy allows.

    ``scheme:/path`` and ``scheme:///path`` mean the same file. What was fetched before is used
    again when the source says that it did not change (ETag, Last-Modified, or size and time).
    """

    kind = "fetcher"

    @abstractmethod
    def check(self, uri: str) -> None:
        """Raise MalformedUrl when this URI is not one, or its scheme, host or folder is not allowed.

        Touches neither network nor files.
        """

    @abstractmethod
    def fetch(
        self,
        uri: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: Cancellation | None = None,
    ) -> AbstractContextManager[Fetched]:
        """Fetch a URI; the file is valid, and is not changed, inside the ``with`` block.

        The block may be left on another thread than it was entered on. A failed fetch leaves nothing
        behind. Credentials in the URI are used, and never appear in an error.

        ``progress`` is called as bytes arrive. When ``cancellation`` is cancelled, the fetch ends with a
        FetchError that has its reason, also while it waits for a peer that sends nothing. Inside the block
        a cancellation has no effect.

        Raises:
            MalformedUrl: As :meth:`check` does, or an address of the host is not allowed.
            TooLarge: The content is over the limit of size.
            FetchError: Anything else went wrong; ``reason`` says what.
        """

    def close(self) -> None:
        """Let go of connections; repeating this is allowed."""
        return
