"""A result that never is in memory as a whole: lines of CSV, as the rows come from the executors."""

from sparkjobserver.api import SparkJob, build_problems

__all__ = ["Export"]


class Export(SparkJob):
    """Streams the result of ``query`` as CSV."""

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
