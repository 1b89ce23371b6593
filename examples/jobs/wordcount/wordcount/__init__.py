"""Jobs that count words: in a SparkContext or a session, on RDDs and in SQL."""

from sparkjobserver.api import SparkJob, build_problems

__all__ = ["WordCount", "WordCountSql"]


class WordCount(SparkJob):
    """Counts the words of ``input.string`` with an RDD."""

    def validate(self, context, runtime, config):
        text = config.get("input.string", None)
        if not isinstance(text, str) or not text.strip():
            return build_problems(["input.string must be a text with at least one word"])
        return text.split()

    def run_job(self, context, runtime, data):
        spark = getattr(context, "sparkContext", context)  # a session has one, a SparkContext is one
        return dict(spark.parallelize(data).countByValue())


class WordCountSql(WordCount):
    """Counts them with a DataFrame, which it leaves to other jobs under the name ``words``."""

    def run_job(self, context, runtime, data):
        frame = context.createDataFrame([(word,) for word in data], "word string")
        counts = runtime.namedObjects.update("words", frame.groupBy("word").count())
        return {row["word"]: row["count"] for row in counts.collect()}
