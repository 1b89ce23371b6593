"""What the launcher's benchmarks share: a launcher, contexts, and small jobs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from queue import SimpleQueue
from uuid import uuid4

from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import ContextHandle, ContextSpec, JobCode, JobOutcome, JobSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import build_wheel

SOURCE = """
class Nothing:
    def validate(self, context, runtime, config):
        return "a b c a b see".split()

    def run_job(self, context, runtime, data):
        return None


class WordCount(Nothing):
    def run_job(self, context, runtime, data):
        return dict(context.sparkContext.parallelize(data).countByValue())


class Range(Nothing):
    def run_job(self, context, runtime, data):
        return context.range(1000).count()


class Shuffle(Nothing):
    def run_job(self, context, runtime, data):
        pairs = context.sparkContext.parallelize(range(20)).map(lambda number: (number % 3, number))
        return pairs.reduceByKey(max).collect()


class Sums(Nothing):
    def run_job(self, context, runtime, data):
        rows = context.range(100).selectExpr("id % 7 AS k", "id AS v").groupBy("k").sum("v")
        return [list(row) for row in rows.collect()]
"""


class BenchListener(RecordingListener):
    """Wakes the thread that waits for a job, and keeps no events of jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, SimpleQueue[JobOutcome]] = {}

    def job_running(self, job_id: str) -> None:
        """Keep nothing."""

    def job_ended(self, job_id: str, outcome: JobOutcome) -> None:
        """Wake the waiting thread."""
        self.ends[job_id].put(outcome)


class BenchContext:
    """A context that is ready, and runs one job after the other."""

    def __init__(
        self, spec: ContextSpec, listener: BenchListener, handle: ContextHandle, code: JobCode
    ) -> None:
        self._spec = spec
        self._listener = listener
        self._handle = handle
        self._code = code

    def run(self, name: str, code: JobCode | None = None) -> object:
        """Run a class of these jobs, or with ``code`` any other one; return its result."""
        job_id = str(uuid4())
        log = self._spec.log_path.with_name(f"{job_id}.log")
        spec = JobSpec(
            id=job_id,
            class_name=name if code else f"bench_jobs.{name}",
            class_path=(code or self._code,),
            config="{}",
            log_path=log,
        )
        ended = self._listener.ends[job_id] = SimpleQueue()
        self._handle.submit(spec)
        outcome = ended.get(timeout=120.0)
        del self._listener.ends[job_id]
        if outcome.error is not None:
            sys.exit(f"{name}: {outcome.error}")
        return json.loads(bytes(self._listener.results.pop(job_id)[1]))

    def stop(self) -> None:
        self._handle.stop(30.0)
        self._listener.wait_for("context_ended", timeout=60.0)


class Bench:
    """A launcher in its own directory; it ends with the ``with`` block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        package = directory / "bench_jobs"
        package.mkdir()
        (package / "__init__.py").write_text(SOURCE)
        wheel = build_wheel(package, directory, version="1.0")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self._code = JobCode(path=wheel, type=BinaryType.WHEEL, digest=digest, source="bench")
        (directory / "data").mkdir()
        self._launcher = PySparkLauncher(directory / "pyspark", master="local[2]")

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._launcher.close()

    def prepare(self) -> None:
        """Make the archive of the JVM's classes first, as a server does in its first minute."""
        self._launcher.prepare()

    def start(self, settings: JsonMapping | None = None) -> BenchContext:
        context_id = str(uuid4())
        spec = ContextSpec(
            id=context_id,
            name="bench",
            settings=settings or {},
            log_path=self._directory / f"{context_id}.log",
            work_dir=self._directory / "work" / context_id,
            data_dir=self._directory / "data",
        )
        listener = BenchListener()
        handle = self._launcher.start_context(spec, listener)
        listener.wait_for("context_ready", timeout=300.0)
        return BenchContext(spec, listener, handle, self._code)
