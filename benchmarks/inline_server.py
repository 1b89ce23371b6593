"""A server without Spark, for benchmarks: jobs are functions of its own process.

    python benchmarks/inline_server.py DIRECTORY

Blobs are in the directory, and so is the SQLite database ``metadata.db`` if it exists; otherwise metadata is
in memory. Logging and garbage collection are as in ``jobserver serve``. Prints the port when it is ready.
``b.Nothing`` does nothing, ``b.Gated`` waits until the file ``gate`` exists in the directory, and
``b.Numbers`` streams ``megabytes`` MB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from jobserver_cli.server_process import (
    LogLevel,
    collect_garbage_rarely,
    configure_logging,
    keep_from_collector,
)
from jobserver_core import JobServer, Settings
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryMetadataStore
from jobserver_core.ports import MetadataStore
from jobserver_fsspec import FsspecBlobStore
from jobserver_http import serve
from jobserver_sql import SqlMetadataStore

SETTINGS = {
    "jobserver": {
        "http": {"port": 0, "drain-timeout": "0 s"},
        # Jobs are never removed: that of many old ones would be measured too.
        "jobs": {
            "max-jobs-per-context": 4,
            "max-queued-jobs": 5000,
            "retention": None,
            "max-kept": None,
        },
        "limits": {"upload-size": "4 GB"},
    }
}


def main() -> None:
    directory = Path(sys.argv[1])
    collect_garbage_rarely()
    configure_logging(LogLevel.INFO)

    def gated(job: InlineJob) -> str:
        while not (directory / "gate").exists():
            job.sleep(0.05)
        return "open"

    def numbers(job: InlineJob) -> Iterator[bytes]:
        chunk = b"0," * 500_000
        return (chunk for _ in range(job.config["megabytes"]))

    database = directory / "metadata.db"
    metadata: MetadataStore = MemoryMetadataStore()
    if database.exists():
        metadata = SqlMetadataStore(f"sqlite:///{database}")
    settings = Settings.from_mapping(SETTINGS)
    server = JobServer.in_memory(
        settings=settings,
        metadata=metadata,
        blobs=FsspecBlobStore.from_settings(settings, directory),
        launcher=InlineLauncher(
            {"b.Nothing": lambda _job: None, "b.Gated": gated, "b.Numbers": numbers}, kill_grace=0.1
        ),
    )
    keep_from_collector()
    serve(server, on_listening=lambda _host, port: print(port, flush=True))


if __name__ == "__main__":
    main()
