"""Failures of Python jobs, as their authors read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.runner.job_class import Runtime, load_job


def test_a_misspelled_class_gets_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sales_of_may.py").write_text("class Summary: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobFailure, match=r"class sales_of_may\.Summry not found") as caught:
        load_job("sales_of_may.Summry")
    assert caught.value.error.stack == ("sales_of_may has no attribute 'Summry'; did you mean 'Summary'?")


def test_a_traceback_has_no_frames_of_the_runner(tmp_path: Path) -> None:
    runtime = Runtime("job", None, {}, tmp_path)

    def reads() -> None:
        runtime.data_file("/no/such.csv")

    with pytest.raises(FileNotFoundError, match="upload the file with `jobserver data upload ") as caught:
        reads()
    stack = JobFailure.of("raised", caught.value).error.stack
    assert "in reads" in stack
    assert "in data_file" not in stack
