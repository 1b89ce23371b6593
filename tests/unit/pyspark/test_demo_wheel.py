from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobserver_core.binaries.archives import check_archive, unpack
from jobserver_core.models.binaries import BinaryType
from jobserver_pyspark.demo import CLASS_NAME, build_example_wheel


def test_the_example_is_a_wheel_of_the_same_bytes_each_time(tmp_path: Path) -> None:
    wheels = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        wheels.append(build_example_wheel(tmp_path / name))
    assert wheels[0].name == "wordcount_example-1.0-py3-none-any.whl"
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with wheels[0].open("rb") as file:
        check_archive(file, BinaryType.WHEEL)


@pytest.mark.real
def test_pip_installs_the_example(tmp_path: Path) -> None:
    wheel = build_example_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", tmp_path / "site", wheel], check=True)
    assert (tmp_path / "site" / "wordcount_example" / "__init__.py").is_file()


def test_the_examples_class_is_in_the_wheel(tmp_path: Path) -> None:
    wheel = build_example_wheel(tmp_path)
    directory = unpack(wheel, tmp_path / hashlib.sha256(b"x").hexdigest(), kind=BinaryType.WHEEL)
    module, _, name = CLASS_NAME.rpartition(".")
    assert f"class {name}" in (directory / module / "__init__.py").read_text()
    assert zipfile.is_zipfile(wheel)
