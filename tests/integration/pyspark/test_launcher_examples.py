from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest
from launcher_world import Context, code_of

from jobserver_core.ports import JobCode, JobSpec
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel, build_wheel
from jobserver_pytest import JobRunner

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[3]


def _run(context: Context, code: JobCode, name: str, config: str) -> tuple[bytes, str]:
    job_id = str(uuid4())
    job = JobSpec(
        id=job_id,
        class_name=name,
        class_path=(code,),
        config=config,
        log_path=context.spec.log_path.with_name(f"job-{job_id}.log"),
    )
    context.handle.submit(attrs.evolve(job))
    result = context.end_of(job)
    assert result.outcome.error is None, result.outcome.error
    return result.data, result.log


def test_the_example_of_the_demo_counts_words(context: Context, tmp_path: Path) -> None:
    code = code_of(build_example_wheel(tmp_path))
    data, _ = _run(context, code, CLASS_NAME, '{"input": {"string": "a b c a b see"}}')
    assert data == b'{"a":2,"b":2,"c":1,"see":1}'


def test_the_jobs_of_the_page_about_python_jobs_run(
    context: Context, tmp_path: Path, run_job: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "howto" / "python-jobs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    source = "\n".join(blocks)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text(source, encoding="utf-8")
    code = code_of(build_wheel(tmp_path / "reports", tmp_path, version="1.0"))

    def result(name: str, **config: Any) -> str:
        return _run(context, code, f"reports.{name}", json.dumps(config))[0].decode()

    assert result("TopWords", text="a b a c a b", limit=2) == '{"a":3,"b":2}'
    assert result("Export", query="select 1 as a, 'x' as b") == "a,b\n1,x\n"
    assert result("Popular", **{"at-least": 90}) == result("Popular", **{"at-least": 90}) == "10"
    assert result("Special") == '"done"'
    context.run("results.Forget", {"name": "sales"})

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "reports", reports := importlib.import_module("reports"))
    reports.test_top_words(run_job)
    reports.test_a_text_is_required(run_job)
