"""What the host ships to executors for the class paths of Python jobs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jobserver_pyspark.host.class_paths import TaskClassPaths
from jobserver_pyspark.protocol.messages import Package


class ArchivingDriver:
    """Records the archives that executors would get, with the files in them."""

    def __init__(self) -> None:
        self.archives: list[tuple[str, list[str]]] = []

    def add_archive(self, path: Path, name: str) -> None:
        with zipfile.ZipFile(path) as archive:
            self.archives.append((name, sorted(archive.namelist())))


def test_each_package_is_shipped_once_and_the_job_api_is_in_its_archive(tmp_path: Path) -> None:
    for name in ("api", "own", "rates"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text("x = 1\n")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "sparkjobserver").symlink_to(tmp_path / "api")
    driver: Any = ArchivingDriver()
    spec: Any = SimpleNamespace(cluster=True, api_path=tmp_path / "view", work_dir=tmp_path)
    class_paths = TaskClassPaths(driver, spec)
    own, rates = (Package(digest=name, directory=str(tmp_path / name)) for name in ("own", "rates"))
    for packages, includes in (([own], ["own"]), ([own, rates], ["own", "rates"]), ([own], ["own"])):
        provided = class_paths.provide(packages)
        assert provided.includes == (*includes, "sparkjobserver-api")
        assert (provided.worker_pool is None) == (packages == [own])
    assert driver.archives == [
        ("own", ["own.py"]),
        ("sparkjobserver-api", ["sparkjobserver/api.py"]),
        ("rates", ["rates.py"]),
    ]
