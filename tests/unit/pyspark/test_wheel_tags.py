from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from jobserver_pyspark.runner.job_class import foreign

HERE = f"cp3{sys.version_info[1]}"
MACHINE = platform.machine()


@pytest.mark.parametrize(
    ("tags", "fits"),
    [
        (["py3-none-any"], True),
        (["py2-none-any", "py3-none-any"], True),
        ([f"{HERE}-{HERE}-manylinux_2_17_{MACHINE}"], True),
        ([f"{HERE}-{HERE}-linux_{MACHINE}"], True),
        ([f"cp38-abi3-manylinux2014_{MACHINE}"], True),
        ([f"cp3-none-manylinux2014_{MACHINE}"], True),
        (["odd"], False),
        (["py2-none-any"], False),
        (["cp399-abi3-any"], False),
        ([f"cp38-cp38-manylinux_2_17_{MACHINE}"], False),
        ([f"{HERE}-{HERE}-manylinux_2_17_sparc"], False),
        ([f"{HERE}-{HERE}-win_amd64"], False),
        ([f"{HERE}-{HERE}-macosx_11_0_{MACHINE}"], False),
    ],
)
def test_a_wheel_is_foreign_when_none_of_its_tags_fits(tmp_path: Path, tags: list[str], fits: bool) -> None:
    info = tmp_path / "a_wheel-1.0.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\n" + "".join(f"Tag: {tag}\n" for tag in tags))
    said = foreign([str(tmp_path)])
    assert (said == "") is fits
    assert fits or f"the wheel a_wheel-1.0 is made for {', '.join(tags)}, and this is {HERE}" in said


def test_packages_without_wheel_tags_are_not_foreign(tmp_path: Path) -> None:
    assert foreign([str(tmp_path), str(tmp_path / "absent")]) == ""
