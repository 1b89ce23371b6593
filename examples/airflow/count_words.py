"""A DAG with one task, which counts words on a job server."""

from datetime import datetime

from airflow import DAG
from jobserver_operator import JobServerOperator

with DAG("count_words", schedule=None, start_date=datetime(2026, 1, 1)):
    JobServerOperator(
        task_id="count",
        class_name="wordcount.WordCount",
        class_path="wordcount",
        config={"input": {"string": "a b a {{ ds }}"}},
    )
