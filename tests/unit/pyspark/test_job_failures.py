"""Failures of Python jobs, as their authors read them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from jobserver_pyspark.host.jvm_jobs import nearest_class
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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("examples.TopRow", "examples.TopRows"),
        ("TopRows", "examples.TopRows"),
        ("examples.toprows", "examples.TopRows"),
        ("other.TopRow", None),
        ("examples.Nothing", None),
    ],
)
def test_a_misspelled_class_gets_the_nearest_class_of_its_jars(
    tmp_path: Path, name: str, nearest: str | None
) -> None:
    jar = tmp_path / "rows.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        for entry in ("examples/TopRows.class", "examples/TopRows$1.class", "examples/notes.txt"):
            archive.writestr(entry, "")
    (tmp_path / "no.jar").write_text("no jar")
    assert nearest_class(name, [tmp_path / "no.jar", tmp_path / "gone.jar", jar]) == nearest
