"""PySpark's daemon of Python workers, whose workers end quietly when Spark closes their connection.

Spark does that to every idle worker when an application stops, and to those of a cancelled job. PySpark's
own worker then prints the traceback of a broken pipe into the context's log, where it looks like a fault.
Errors of tasks never come this way: a worker sends them to Spark.
"""

from __future__ import annotations

from typing import Any

from pyspark import daemon


def _worker(sock: Any, authenticated: bool) -> Any:
    try:
        return _serve(sock, authenticated)
    except (BrokenPipeError, ConnectionResetError) as error:
        if error.__context__ is not None:  # what the worker wanted to write followed another error
            raise
        return 1  # the daemon then ends this process


_serve = daemon.worker
daemon.worker = _worker

if __name__ == "__main__":
    daemon.manager()
