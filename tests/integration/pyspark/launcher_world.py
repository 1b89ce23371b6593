"""Starts contexts and runs jobs for the tests of the launcher."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs

from conditions import wait_until
from jobserver_core.models.binaries import BinaryType
from jobserver_core.models.jobs import JobProgress
from jobserver_core.ports import ContextHandle, ContextSpec, JobCode, JobOutcome, JobSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.demo import build_wheel
from jobserver_pyspark.launcher.options import LauncherOptions

JOBS = Path(__file__).parent / "jobs" / "launcher_jobs"


def code_of(path: Path, kind: BinaryType = BinaryType.WHEEL) -> JobCode:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return JobCode(path=path, type=kind, digest=digest, source=path.name)


def jobs_wheel(directory: Path, version: str) -> JobCode:
    """The test jobs as a wheel; the version is in the code, so that each has its own."""
    package = directory / f"source-{version}" / JOBS.name
    shutil.copytree(JOBS, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "__init__.py").open("a") as file:
        file.write(f"\nVERSION = {version!r}\n")
    (package / "data.txt").write_text(f"data of version {version}\n")
    return code_of(build_wheel(package, directory, version=version))


@attrs.frozen
class Result:
    """The outcome of a job, its log and its result."""

    id: str
    outcome: JobOutcome
    data: bytes
    log: str

    @property
    def value(self) -> Any:
        assert self.outcome.error is None, self.outcome.error
        return json.loads(self.data)


@attrs.frozen
class Context:
    """A context, and short ways to run jobs in it."""

    launcher: PySparkLauncher
    spec: ContextSpec
    listener: RecordingListener
    handle: ContextHandle
    code: JobCode

    def submit(
        self,
        name: str,
        config: Any = None,
        *,
        code: JobCode | None = None,
        before: JobCode | None = None,
        packages: Sequence[JobCode] = (),
    ) -> JobSpec:
        class_path = (*([before] if before else []), code or self.code, *packages)
        return self._submit(f"launcher_jobs.{name}", class_path, config)

    def submit_jvm(self, jar: JobCode, name: str, config: Any = None) -> JobSpec:
        return self._submit(f"launcherjobs.{name}", (jar,), config)

    def _submit(self, class_name: str, class_path: tuple[JobCode, ...], config: Any) -> JobSpec:
        job_id = str(uuid4())
        job = JobSpec(
            id=job_id,
            class_name=class_name,
            class_path=class_path,
            config=json.dumps(config or {}),
            log_path=self.spec.log_path.with_name(f"job-{job_id}.log"),
        )
        self.handle.submit(job)
        return job

    def end_of(self, job: JobSpec, timeout: float = 60.0) -> Result:
        outcome = self.listener.outcome(job.id, timeout=timeout)
        _, data = self.listener.results.get(job.id, (False, bytearray()))
        log = job.log_path.read_text() if job.log_path.exists() else ""
        return Result(job.id, outcome, bytes(data), log)

    def run(self, name: str, config: Any = None, *, code: JobCode | None = None) -> Result:
        return self.end_of(self.submit(name, config, code=code))

    def progress_of_stages(self, gate: Path) -> list[JobProgress]:
        """Hold a job of two stages in its second one until that was reported; return the job's progress."""
        job = self.submit("gated.Shuffles", {"gate": str(gate)})
        wait_until(
            lambda: any(each.stages_done == 1 for each in self.listener.progress.get(job.id, ())),
            "the second stage is reported",
            timeout=120.0,
        )
        gate.touch()
        assert self.end_of(job).value == 4
        return self.listener.progress[job.id]

    def running(self, name: str, config: Any = None) -> JobSpec:
        job = self.submit(name, config)
        self.listener.wait_for("job_running", job.id, timeout=60.0)
        return job

    def wait_ready(self, timeout: float = 120.0) -> Context:
        self.listener.wait_for("context_ready", timeout=timeout)
        return self

    @property
    def application_id(self) -> str:
        """The id of the application; the context must be ready."""
        found: str = self.listener.wait_for("context_ready", timeout=1.0)[1]
        return found

    def wait_end(self, timeout: float = 60.0) -> tuple[Any, ...]:
        return self.listener.wait_for("context_ended", timeout=timeout)[1:]


Start = Callable[..., Context]


def make_launcher(directory: Path, **settings: Any) -> PySparkLauncher:
    options = LauncherOptions(**settings.pop("options", {}))
    fields = {"master": "local[2]", "log_limit": 256 * 1024, **settings}
    return PySparkLauncher(directory / "pyspark", options=options, **fields)


def starter(launcher: PySparkLauncher, directory: Path, code: JobCode) -> Start:
    def start(settings: dict[str, Any] | None = None, **more: Any) -> Context:
        context_id = str(uuid4())
        data_dir = directory / "data"
        data_dir.mkdir(exist_ok=True)
        more_listener = more.pop("listener", None)
        spec = ContextSpec(
            id=context_id,
            name=more.pop("name", f"test-{context_id[:8]}"),
            settings=settings or {},
            log_path=directory / f"context-{context_id}.log",
            work_dir=directory / "work" / context_id,
            data_dir=data_dir,
            **more,
        )
        listener = more_listener or RecordingListener()
        return Context(launcher, spec, listener, launcher.start_context(spec, listener), code)

    return start
