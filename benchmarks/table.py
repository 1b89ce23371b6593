"""The table of docs/explanation/performance.md: how fast jobs are through a real server, with baselines.

    python benchmarks/table.py [--only ROW ...] [--jobs 300] [--into FILE]
    python benchmarks/table.py --only --into FILE        # print what the file has

How long each row took is printed with it; all should take below 25 minutes on an idle machine. With
``--into``, figures are merged into a JSON file as soon as their row is done, so that rows can be measured one
by one and a row that fails loses nothing; the whole table is printed at the end.

A separate process runs a server with SQLite on disk and Spark on ``local[2]``; this one has the clients. A
baseline is measured in the same run, in turns where that is possible, and the goal is printed beside each
figure. The machine should be otherwise idle: its load is printed before and after. CPU is counted for each
process of the server's tree. Rows about the front-end alone use a server without Spark, which is
``inline_server.py``.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rows import front_end, jobs, starts
from rows.bench import Bench
from rows.figures import merge, print_all, print_head

ROWS: dict[str, Callable[[Bench], None]] = {
    row.__name__.replace("_", "-"): row
    for row in (
        front_end.core,
        starts.healthy,
        front_end.waiters,
        front_end.transfers,
        front_end.stored_jobs,
        jobs.no_op,
        jobs.embedded,
        jobs.fresh,
        jobs.preload,
        jobs.words,
        jobs.configuration,
        jobs.class_paths,
        starts.starts,
        starts.first_start,
        starts.ad_hoc,
        starts.idle,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--into", type=Path, help="a JSON file to merge the figures into")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}\n")
    print_head()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # servers end with their blocks
    failed = measure(options.only, options.jobs, options.into)
    if options.into:
        print(f"\n{options.into}:\n")
        print_all()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measure(names: list[str], job_count: int, into: Path | None) -> list[str]:
    """Measure rows one after the other; return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), job_count)
        for name in names:
            begun = time.monotonic()
            try:
                ROWS[name](bench)
            except Exception:  # noqa: BLE001 - one row must not cost the others
                traceback.print_exc()
                failed.append(name)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            if into:
                merge(into)
        if into and not names:
            merge(into)
    return failed


if __name__ == "__main__":
    main()
