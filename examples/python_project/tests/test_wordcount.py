import pytest
from wordcount import Export, WordCount, WordCountSql

from jobserver_core import JobFailed


@pytest.mark.parametrize("job_class", [WordCount, WordCountSql])
def test_words_are_counted(run_job, job_class):
    assert run_job(job_class, 'input.string = "a b a"') == {"a": 2, "b": 1}


def test_a_text_is_required(run_job):
    with pytest.raises(JobFailed, match="at least one word"):
        run_job(WordCount, 'input.string = " "')


def test_the_counts_are_left_to_other_jobs(run_job):
    run_job(WordCountSql, 'input.string = "a b a"')
    assert run_job.named_objects.get("words").count() == 2


def test_rows_are_streamed_as_csv(run_job):
    query = "SELECT id, id * 2 AS twice FROM range(3)"
    assert run_job(Export, {"query": query}) == b"id,twice\n0,0\n1,2\n2,4\n"


def test_the_jobs_run_on_a_server(spark_job_server):
    assert spark_job_server.run(WordCount, 'input.string = "a b a"') == {"a": 2, "b": 1}
