"""How far jobs are, from Spark's own status."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["ProgressBoard"]

_FIELDS = ("stages_done", "stages_total", "tasks_done", "tasks_total")


class ProgressBoard:
    """Counts the stages and tasks of runners' Spark jobs; one call to the JVM tells of all of them.

    Spark forgets ended Spark jobs after a while, so that what was seen of each is kept here.
    """

    def __init__(self, jvm: Any, context: Any) -> None:
        self._store = context.statusStore()
        self._mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
        scala_module = getattr(jvm.com.fasterxml.jackson.module.scala, "DefaultScalaModule$")
        self._mapper.registerModule(getattr(scala_module, "MODULE$"))
        self._seen: dict[str, dict[int, tuple[int, ...]]] = {}
        self._running: dict[str, set[int]] = {}

    def read(self) -> None:
        """Ask Spark for what it knows now."""
        self._running = {}
        for job in json.loads(self._mapper.writeValueAsString(self._store.jobsList(None))):
            for tag in {job.get("jobGroup"), *(job.get("jobTags") or [])}:
                if tag is not None and tag.startswith("jobserver-runner-"):
                    self._seen.setdefault(tag, {})[job["jobId"]] = _counts(job)
                    if job["status"] == "RUNNING":
                        self._running.setdefault(tag, set()).update(job["stageIds"])

    def of(self, tag: str) -> dict[str, int]:
        """Return the sums over a runner's Spark jobs, as fields of a JobProgress."""
        rows = self._seen.get(tag, {}).values()
        return {name: sum(row[i] for row in rows) for i, name in enumerate(_FIELDS)}

    def running_stages(self, tag: str) -> set[int]:
        """Return the stages of those Spark jobs of a runner that ran when Spark was last asked."""
        return self._running.get(tag, set())

    def busy(self, stages: set[int]) -> bool:
        """Ask Spark whether tasks of any of these stages still run, be their Spark job cancelled or not."""
        return any(self._active_tasks(stage) > 0 for stage in stages)

    def _active_tasks(self, stage: int) -> int:
        from py4j.protocol import Py4JJavaError  # noqa: PLC0415 - loaded after the JVM is on its way

        try:
            return int(self._store.lastStageAttempt(stage).numActiveTasks())
        except Py4JJavaError:
            return 0  # a stage that Spark does not know was never begun, or is long over

    def forget(self, tag: str) -> None:
        """Drop what is known of a runner that has ended."""
        self._seen.pop(tag, None)


def _counts(job: dict[str, Any]) -> tuple[int, ...]:
    skipped_stages, skipped_tasks = job["numSkippedStages"], job["numSkippedTasks"]
    return (
        job["numCompletedStages"] + skipped_stages,
        max(len(job["stageIds"]), job["numCompletedStages"] + skipped_stages),
        job["numCompletedTasks"] + skipped_tasks,
        job["numTasks"],
    )
