"""Torture real servers with Spark over one PostgreSQL database, and check every job.

Three servers with contexts on ``local[2]`` and on a standalone cluster run random histories, in which
servers, hosts, JVMs, runners, workers and PostgreSQL are killed, paused and restarted; the module
``torture_spark`` of the tests has the theory. Each history has a seed, which is printed. A history ends with
its first fault, and the next one begins. At the end it prints what was done and checked, and exits with
status 1 if there were faults. It needs PostgreSQL's programs, Java, two cores and 8 GiB of memory.

    python benchmarks/torture_spark.py --minutes 30
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration" / "pyspark"))

from standalone_cluster import StandaloneCluster, started
from torture_fleet import Fleet
from torture_spark import SparkTorture

from jobserver_pyspark import PySparkLauncher
from jobserver_sql.testing import PostgresqlServer

REATTACHMENT = 2.0
"""Seconds that a server should need, once it listens, to have its contexts back."""
FAILOVER = 5.0
"""Seconds that another server should need to take over after the end of a lease."""


class Report:
    """Adds up what the histories did."""

    def __init__(self) -> None:
        self.faulty: list[int] = []
        """The seeds of the histories with faults."""
        self._histories = 0
        self._most_jvms = 0
        self._counts: Counter[str] = Counter()
        self._times: dict[str, list[float]] = {}

    def add(self, history: SparkTorture) -> None:
        """Add what one history did."""
        self._histories += 1
        self._counts += history.counts
        self._most_jvms = max(self._most_jvms, history.most_jvms)
        re_attachment = f"re-attachment after the start, at most {REATTACHMENT:g} s"
        failover = f"failover after the end of the lease, at most {FAILOVER:g} s"
        for what, times in ((re_attachment, history.reattachments), (failover, history.failovers)):
            self._times.setdefault(what, []).extend(times)

    def print(self) -> None:
        """Print everything, one line each."""
        print(f"{self._histories} histories, with faults: {self.faulty or 'none'}")
        for what, count in sorted(self._counts.items()):
            print(f"{count:8}  {what}")
        print(f"{self._most_jvms:8}  JVMs of contexts at once, at most")
        for what, times in self._times.items():
            if times:
                print(f"{what}: median {statistics.median(times):.2f} s, longest {max(times):.2f} s")


def run(
    seed: int,
    directory: Path,
    postgresql: PostgresqlServer,
    cluster: StandaloneCluster | None,
    options: argparse.Namespace,
    report: Report,
) -> None:
    """Run one history and report it; if it has faults, keep the files of its servers and contexts."""
    made = directory / str(seed)
    made.mkdir()
    with Fleet(made, postgresql, cluster, f"torture{seed}") as fleet:
        history = SparkTorture(seed, fleet)
        try:
            history.start()
            for number in range(options.rounds):
                history.round(options.storm)
                print(f"seed {seed}: round {number + 1} is over, all is well", flush=True)
            history.end()
        except Exception:  # noqa: BLE001 - whatever a check raises is a fault as well
            traceback.print_exc()
            report.faulty.append(seed)
            if options.logs is not None:
                shutil.copytree(
                    made, options.logs / str(seed), ignore=_special, ignore_dangling_symlinks=True
                )
            history.repair()
        report.add(history)


def _special(directory: str, names: list[str]) -> list[str]:
    """Return the names of sockets and the like, which cannot be copied."""
    paths = [Path(directory, name) for name in names]
    return [path.name for path in paths if not path.is_file() and not path.is_dir()]


def main() -> None:
    """Run histories until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to run")
    parser.add_argument("--storm", type=float, default=45.0, help="seconds of each storm")
    parser.add_argument("--rounds", type=int, default=3, help="storms in each history")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first history")
    parser.add_argument(
        "--logs", type=Path, help="where to keep the files of a history with faults, logs among them"
    )
    parser.add_argument(
        "--inline", action="store_true", help="run jobs as threads of the servers, without Spark"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("XDG_CACHE_HOME", str(Path(__file__).resolve().parents[1] / ".cache"))
    report, deadline, seed = Report(), time.monotonic() + 60 * options.minutes, options.seed
    try:
        with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            for made in ("cluster", "histories"):
                (directory / made).mkdir()
            with ExitStack() as parts:
                postgresql = parts.enter_context(PostgresqlServer(durable=True))
                cluster = None
                if not options.inline:
                    with closing(PySparkLauncher(directory / "prepare")) as launcher:
                        launcher.prepare()
                    cluster = parts.enter_context(started(directory / "cluster"))
                while time.monotonic() < deadline:
                    print(f"seed {seed}", flush=True)
                    run(seed, directory / "histories", postgresql, cluster, options, report)
                    seed += 1
    finally:
        report.print()
    sys.exit(1 if report.faulty else 0)


if __name__ == "__main__":
    main()
