"""``python -m jobserver_pyspark.host``: one context. What to do is one line of JSON on its standard input."""

from __future__ import annotations

import json
import os
import sys

from jobserver_pyspark import processes
from jobserver_pyspark.host.host import Host
from jobserver_pyspark.runner import config_trees


def _read_order() -> bytes:
    """Read the first line and not a byte more: the end of this input tells that the server is gone."""
    data = bytearray()
    while not data.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            sys.exit("a context host is started by a job server, which writes what to do to its input")
        data += piece
    return bytes(data)


if __name__ == "__main__":
    order = json.loads(_read_order())
    processes.adopt_orphans()
    processes.limit_descriptors()
    config_trees.add_fallback()
    Host(order).serve()
