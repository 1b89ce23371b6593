"""``python -m jobserver_pyspark.host``: run one context. Standard input has the address of the server."""

from __future__ import annotations

import sys

from jobserver_pyspark.runner import config_trees

config_trees.add_fallback()  # what follows imports the core, which other interpreters find only there

from jobserver_pyspark import processes  # noqa: E402
from jobserver_pyspark.host.host import run  # noqa: E402
from jobserver_pyspark.protocol.converter import decode  # noqa: E402
from jobserver_pyspark.protocol.messages import Connect, ServerToHost  # noqa: E402

if __name__ == "__main__":
    # Unbuffered, to read only the first line: the end of this input means that the server has ended.
    with open(0, "rb", buffering=0, closefd=False) as standard_input:
        line = standard_input.readline()
    if not line.endswith(b"\n"):
        sys.exit("a context host is started by a job server, which writes its address to the host's input")
    connect = decode(ServerToHost, line)
    if not isinstance(connect, Connect):
        sys.exit(f"expected Connect on the standard input, got {type(connect).__name__}")
    processes.adopt_orphans()
    processes.limit_descriptors()
    run(connect)
