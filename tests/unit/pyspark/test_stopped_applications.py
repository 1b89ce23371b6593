from __future__ import annotations

from jobserver_pyspark.host.driver import caller_of_stop

BEGINNING = """Cannot call methods on a stopped SparkContext.
This stopped SparkContext was created at:

org.apache.spark.api.java.JavaSparkContext.<init>(JavaSparkContext.scala:59)
com.example.NotThis.run(NotThis.scala:1)

"""


def test_the_caller_of_a_stop_is_the_first_frame_of_a_jobs_own_code() -> None:
    frames = """And it was stopped at:

org.apache.spark.streaming.StreamingContext.stop(StreamingContext.scala:721)
org.apache.spark.streaming.StreamingContext.stop(StreamingContext.scala:685)
desk.Stream$.runJob(Stream.scala:12)
desk.Stream$.main(Stream.scala:3)

The currently active SparkContext was created at:

com.example.Other.run(Other.scala:9)
"""
    assert caller_of_stop(BEGINNING + frames) == "desk.Stream$.runJob(Stream.scala:12)"


def test_a_stop_from_python_or_from_spark_has_no_caller() -> None:
    frames = """And it was stopped at:

org.apache.spark.SparkContext.stop(SparkContext.scala:2099)
java.base/jdk.internal.reflect.DirectMethodHandleAccessor.invoke(DirectMethodHandleAccessor.java:103)
py4j.reflection.MethodInvoker.invoke(MethodInvoker.java:244)
"""
    assert caller_of_stop(BEGINNING + frames) is None
    assert caller_of_stop(BEGINNING) is None
    assert caller_of_stop("something else") is None
