"""The word count of the job server's first example."""

from __future__ import annotations

from typing import Any

from sparkjobserver.api import JobEnvironment, SparkJob, ValidationProblem, build_problems

__all__ = ["WordCountExample"]


class WordCountExample(SparkJob):
    """Counts the words of ``input.string``."""

    def validate(
        self, context: Any, runtime: JobEnvironment, config: Any
    ) -> list[str] | list[ValidationProblem]:
        """Accept a configuration that has ``input.string``; the job's data are its words."""
        text = config.get("input.string", None)
        if not isinstance(text, str):
            return build_problems(["No input.string config param"])
        return text.split()

    def run_job(self, context: Any, runtime: JobEnvironment, data: list[str]) -> dict[str, int]:
        """Count the words, on Spark."""
        spark = getattr(context, "sparkContext", context)
        return dict(spark.parallelize(data).countByValue())
