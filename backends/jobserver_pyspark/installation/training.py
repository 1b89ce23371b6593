"""The job that a JVM runs to record the classes for its archive: it uses typical features of Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from jobserver_core.models.json_values import JsonObject
    from jobserver_pyspark.runner.job_class import Runtime

CLASS_NAME = "jobserver_pyspark.installation.training.TrainingJob"


class TrainingJob:
    """A job that loads the classes of RDDs, SQL, files and Python functions."""

    def validate(self, context: SparkSession, runtime: Runtime, config: JsonObject) -> None:
        """Accept anything."""

    def run_job(self, context: SparkSession, runtime: Runtime, data: None) -> int:
        """Use each feature once, and return the number of rows."""
        from pyspark.sql import functions  # noqa: PLC0415 - in a job's process

        spark = context.sparkContext
        words = spark.parallelize(["a", "b", "c", "a", "b", "see"], 2)
        counts = words.map(lambda word: (word, 1)).reduceByKey(lambda a, b: a + b).collect()
        words.countByValue()
        table = context.createDataFrame(counts, "word string, number long")
        table.createOrReplaceTempView("words")
        context.sql("select word, sum(number) as n from words group by word order by n").collect()
        directory = str(runtime.data_dir / "training")
        table.write.mode("overwrite").parquet(directory)
        read = context.read.parquet(directory).where(functions.col("number") > 1).cache()
        return int(read.count() + context.range(1000).count())
