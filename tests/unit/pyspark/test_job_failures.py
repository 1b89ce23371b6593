"""Failures of Python jobs, as their authors read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobserver_pyspark.protocol.failures import JobFailure
from jobserver_pyspark.runner.job_class import Runtime


def test_a_traceback_has_no_frames_of_the_runner(tmp_path: Path) -> None:
    runtime = Runtime("job", None, {}, tmp_path)

    def reads() -> None:
        runtime.data_file("/no/such.csv")

    with pytest.raises(FileNotFoundError) as caught:
        reads()
    stack = JobFailure.of("raised", caught.value).error.stack
    assert "in reads" in stack
    assert "in data_file" not in stack
