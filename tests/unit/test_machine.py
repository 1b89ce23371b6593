from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobserver_core.config.machine import usable_cores, usable_memory

MANY = len(os.sched_getaffinity(0))


def cores(tmp_path: Path) -> int:
    return usable_cores(groups=tmp_path / "groups", process=tmp_path / "self")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_quota_every_core_of_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert cores(tmp_path) == MANY


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", "100000 0\n", "-1 100000\n"])
def test_a_group_without_a_limit_changes_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path / "groups" / "cpu.max", text)
    assert cores(tmp_path) == MANY


@pytest.mark.parametrize("quota", [1000, 50_000, 100_000])
def test_a_quota_of_up_to_one_core_counts_as_one_core(tmp_path: Path, quota: int) -> None:
    write(tmp_path / "groups" / "cpu.max", f"{quota} 100000\n")
    assert cores(tmp_path) == 1


def test_the_tightest_quota_on_the_way_to_the_own_group_counts(tmp_path: Path) -> None:
    write(tmp_path / "self" / "cgroup", "0::/system.slice/jobserver.service\n")
    write(tmp_path / "groups" / "system.slice" / "cpu.max", "100000 100000\n")
    write(tmp_path / "groups" / "system.slice" / "jobserver.service" / "cpu.max", "max 100000\n")
    assert cores(tmp_path) == 1


def test_a_quota_of_the_first_version_of_control_groups_counts(tmp_path: Path) -> None:
    write(tmp_path / "self" / "cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    write(tmp_path / "groups" / "cpu" / "cpu.cfs_quota_us", "100000\n")
    write(tmp_path / "groups" / "cpu" / "cpu.cfs_period_us", "100000\n")
    assert cores(tmp_path) == 1


def test_a_path_that_leaves_its_root_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "self" / "cgroup", "0::/../../outside\n")
    write(tmp_path / "outside" / "cpu.max", "1000 100000\n")
    assert cores(tmp_path) == MANY


def memory(tmp_path: Path) -> int:
    return usable_memory(groups=tmp_path / "groups", process=tmp_path / "self")


@pytest.mark.parametrize("text", ["max\n", "", "nonsense", "0\n", f"{2**63 - 4096}\n"])
def test_without_a_limit_all_memory_of_the_machine_counts(tmp_path: Path, text: str) -> None:
    write(tmp_path / "groups" / "memory.max", text)
    assert memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_limit_of_the_own_group_is_the_usable_memory(tmp_path: Path) -> None:
    write(tmp_path / "self" / "cgroup", "0::/system.slice/jobserver.service\n")
    write(tmp_path / "groups" / "system.slice" / "jobserver.service" / "memory.max", "1048576\n")
    assert memory(tmp_path) == 2**20


def test_a_limit_of_memory_of_the_first_version_of_control_groups_counts(tmp_path: Path) -> None:
    write(tmp_path / "self" / "cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    write(tmp_path / "groups" / "memory" / "docker" / "abc" / "memory.limit_in_bytes", "1048576\n")
    assert memory(tmp_path) == 2**20
