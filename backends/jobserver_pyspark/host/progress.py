"""The progress of jobs, from Spark's own status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from jobserver_pyspark.host.reports import JobReports
from jobserver_pyspark.java_objects import JavaObject
from jobserver_pyspark.protocol.messages import ProgressReport

if TYPE_CHECKING:
    from jobserver_core.models.json_values import JsonObject


class Progress(NamedTuple):
    """The numbers of stages and tasks of Spark jobs: completed ones, and all so far."""

    stages_done: int = 0
    stages_total: int = 0
    tasks_done: int = 0
    tasks_total: int = 0


class SparkTag(NamedTuple):
    """Identifies a job's Spark jobs: by their tag, and by submission not before ``since`` (Unix ms).

    A process serves several jobs, one after the other, and all their Spark jobs carry the same tag.
    """

    name: str
    since: int = 0


class ProgressBoard:
    """Reports the progress of jobs: stages and tasks of their Spark jobs, which carry a job's tag or group.

    One call to the JVM returns all of them. Spark forgets ended Spark jobs after a while, so their last
    numbers are kept here while the job runs. Only one thread may call :meth:`report`, any thread the others.
    """

    def __init__(self, jvm: JavaObject, context: JavaObject, reports: JobReports) -> None:
        self._reports = reports
        self._store = context.statusStore()
        self._mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
        scala_module = getattr(jvm.com.fasterxml.jackson.module.scala, "DefaultScalaModule$")
        self._mapper.registerModule(getattr(scala_module, "MODULE$"))
        self._seen: dict[SparkTag, dict[int, Progress]] = {}
        self._reported: dict[str, Progress] = {}

    def report(self, running: dict[str, SparkTag]) -> None:
        """Report to the server what has changed; ``running`` maps each job to the tag of its Spark jobs."""
        self._seen = {tag: self._seen.get(tag, {}) for tag in running.values()}
        spark_jobs = self._jobs() if running else []
        for job in spark_jobs:
            names, submitted = _tags(job), job.get("submissionTime")
            for tag, rows in self._seen.items():
                if tag.name in names and (submitted is None or submitted >= tag.since):
                    rows[job["jobId"]] = _progress(job)
        before = self._reported
        self._reported = {}
        for job_id, tag in running.items():
            now = Progress(*map(sum, zip(*self._seen[tag].values(), strict=True)))
            if now != before.get(job_id) and any(now):
                self._reports.send(ProgressReport(job_id=job_id, **now._asdict()))
            self._reported[job_id] = now

    def running_tags(self) -> set[str]:
        """Return the tags of all Spark jobs that run now."""
        return {tag for job in self._jobs() if job["status"] == "RUNNING" for tag in _tags(job)}

    def _jobs(self) -> list[JsonObject]:
        found: list[JsonObject] = json.loads(self._mapper.writeValueAsString(self._store.jobsList(None)))
        return found


def _tags(job: JsonObject) -> set[str]:
    return {tag for tag in (job.get("jobGroup"), *(job.get("jobTags") or [])) if tag is not None}


def _progress(job: JsonObject) -> Progress:
    stages_done = job["numCompletedStages"] + job["numSkippedStages"]
    return Progress(
        stages_done=stages_done,
        stages_total=max(len(job["stageIds"]), stages_done),
        tasks_done=job["numCompletedTasks"] + job["numSkippedTasks"],
        tasks_total=job["numTasks"],
    )
