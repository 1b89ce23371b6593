"""Files from the other file systems that fsspec has drivers for: object stores, HDFS, SFTP and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from jobserver_core.errors import FetchError
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.uris import Uri
from jobserver_fsspec.sources import CHUNK, Interrupted, Opened, Source, Stamp, shown
from jobserver_net.deadlines import Deadline

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError)


class DriverSource(Source):
    """Reads files with fsspec's driver for the URI's scheme, with ``options[scheme]`` as its options.

    The option ``driver`` is the scheme whose driver to use instead, such as ``webhdfs`` for ``hdfs``.
    The policy checks only the name of the host or bucket, and the deadline is checked between chunks.
    Versions are identified by the driver's ``ukey``.
    """

    def __init__(self, options: Mapping[str, JsonMapping]) -> None:
        self._options = options

    @contextmanager
    def open(
        self, uri: Uri, *, known: Stamp, partial: Stamp, offset: int, deadline: Deadline
    ) -> Iterator[Opened | None]:
        """Open a file, at ``offset`` if the version has not changed."""
        with _translated(uri):
            filesystem, path = self._filesystem(uri)
            filesystem.invalidate_cache()
            info = filesystem.info(path)
            if info.get("type") != "file":
                raise FetchError(url=str(uri), reason="not a file")
            stamp = {"key": str(filesystem.ukey(path))}
        if known == stamp:
            yield None
            return
        start = offset if partial == stamp else 0
        with _translated(uri):
            file = filesystem.open(path, "rb")
        try:
            yield Opened(chunks=_chunks(uri, file, start), stamp=stamp, total=info.get("size"), start=start)
        finally:
            file.close()

    def _filesystem(self, uri: Uri) -> tuple[AbstractFileSystem, str]:
        # Not fsspec.open, which would interpret "::" in the path as a chain of file systems.
        import fsspec  # noqa: PLC0415 - rarely needed

        given = dict(self._options.get(uri.scheme, {}))
        protocol = str(given.pop("driver", uri.scheme))
        driver = fsspec.get_filesystem_class(protocol)
        user = "" if uri.user is None else f"{quote(uri.user, safe='')}:{quote(uri.password or '', safe='')}@"
        query = f"?{uri.query}" if uri.query else ""
        url = f"{uri.scheme}://{user}{uri.authority}{unquote(uri.path)}{query}"
        options = {**driver._get_kwargs_from_urls(url), **given}
        # Otherwise fsspec keeps the file system, with its login and connections, until the process ends.
        options["skip_instance_cache"] = True
        return fsspec.filesystem(protocol, **options), driver._strip_protocol(url)


def _chunks(uri: Uri, file: Any, start: int) -> Iterator[bytes]:
    with _translated(uri):
        file.seek(start)
        while chunk := file.read(CHUNK):
            yield chunk


@contextmanager
def _translated(uri: Uri) -> Iterator[None]:
    try:
        yield
    except (FetchError, Interrupted):
        raise
    except ImportError as error:
        raise FetchError(url=str(uri), reason=f"the driver is not installed: {error}") from None
    except FileNotFoundError:
        raise FetchError(url=str(uri), reason="not found") from None
    except _FINAL as error:
        raise FetchError(url=str(uri), reason=shown(error, uri, empty=type(error).__name__)) from None
    except Exception as error:  # noqa: BLE001 - drivers raise errors of their own libraries
        raise Interrupted(shown(error, uri, empty=type(error).__name__)) from None
