from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from launcher_world import Context, code_of

from jobserver_core.ports import JobCode, JobSpec
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel, build_wheel

pytestmark = pytest.mark.spark

EXAMPLES = Path(__file__).parents[3] / "examples" / "jobs"


def _run(context: Context, code: JobCode, name: str, config: str) -> tuple[bytes, str]:
    job = JobSpec(
        id=f"example-{name}",
        class_name=name,
        class_path=(code,),
        config=config,
        log_path=context.spec.log_path.with_name(f"example-{name}.log"),
    )
    context.handle.submit(attrs.evolve(job))
    result = context.end_of(job)
    assert result.outcome.error is None, result.outcome.error
    return result.data, result.log


def test_the_example_of_the_demo_counts_words(context: Context, tmp_path: Path) -> None:
    code = code_of(build_example_wheel(tmp_path))
    data, _ = _run(context, code, CLASS_NAME, '{"input": {"string": "a b c a b see"}}')
    assert data == b'{"a":2,"b":2,"c":1,"see":1}'


def test_the_word_count_example_is_built_and_runs(context: Context, tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "wordcount" / "build.py", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    code = code_of(Path(built))
    config = '{"input": {"string": "a b a"}}'
    for name in ("wordcount.WordCount", "wordcount.WordCountSql"):
        data, _ = _run(context, code, name, config)
        assert sorted(data) == sorted(b'{"a":2,"b":1}')
    assert "words" not in context.run("results.Forget", {"name": "words"}).value


def test_the_streaming_example_yields_rows(context: Context, tmp_path: Path) -> None:
    code = code_of(build_wheel(EXAMPLES / "streamed" / "streamed", tmp_path, version="1.0"))
    data, _ = _run(context, code, "streamed.Export", '{"query": "select id, id * 2 as twice from range(3)"}')
    assert data == b"id,twice\n0,0\n1,2\n2,4\n"
