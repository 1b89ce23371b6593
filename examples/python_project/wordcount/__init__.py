"""Jobs that count words, on RDDs and in SQL, and one that streams the rows of a query."""

from sparkjobserver.api import SparkJob, build_problems

__all__ = ["Export", "WordCount", "WordCountSql"]


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


class Export(SparkJob):
    """Streams the result of ``query`` as CSV, so that it never is in memory as a whole."""

    def validate(self, context, runtime, config):
        query = config.get("query", None)
        if not query:
            return build_problems(["query is missing"])
        return query

    def run_job(self, context, runtime, data):
        frame = context.sql(data)
        yield (",".join(frame.columns) + "\n").encode()
        for row in frame.toLocalIterator():
            yield (",".join("" if value is None else str(value) for value in row) + "\n").encode()
