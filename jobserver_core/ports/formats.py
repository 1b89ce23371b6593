"""The formats of records, cursors and URIs, which all backends share with the built-in ones.

- :func:`dumps` and :func:`loads` turn any model into JSON text and back, without loss.
- :func:`encode_cursor` and :func:`decode_cursor` write and read the ``next`` cursor of a page of jobs.
- :class:`Uri` parses the URIs that fetchers receive, and :func:`redacted` removes secrets from any URL.

This module imports cattrs, which :mod:`jobserver_core.ports` does not.
"""

from jobserver_core.models.jobs import decode_cursor, encode_cursor
from jobserver_core.models.serialization import dumps, loads
from jobserver_core.uris import Uri, redacted

__all__ = ["Uri", "decode_cursor", "dumps", "encode_cursor", "loads", "redacted"]
