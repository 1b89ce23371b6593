"""Every claim of the page about failures is proved by a test that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "failures.md"
TESTS = ROOT / "tests" / "integration" / "pyspark"
MASTERS = ("local", "standalone", "YARN", "Kubernetes")
SUITES = {
    "local": "test_launcher_local.py::TestLocal",
    "standalone": "test_launcher_cluster.py::TestStandalone",
    "YARN": "yarn/test_launcher_yarn.py::TestYarn",
    "Kubernetes": "kubernetes/test_launcher_kubernetes.py::TestKubernetes",
}
MODULES = {master: suite.partition("::")[0] for master, suite in SUITES.items()}

NOTHING = "\N{EN DASH}"
"""There is no such thing with this master."""

Proofs = Mapping[str, tuple[str, ...]]
"""The tests that prove the claims of a row, by master."""


def suite(*names: str) -> Proofs:
    """Tests of the suite that runs with every master."""
    return {master: tuple(f"{found}::{name}" for name in names) for master, found in SUITES.items()}


def clusters(*names: str) -> Proofs:
    """Tests that the module of each cluster has."""
    return {master: tuple(f"{MODULES[master]}::{name}" for name in names) for master in MASTERS[1:]}


DEATHS = clusters("test_nothing_is_left_on_the_cluster_after_deaths")
LOST: dict[str, Proofs] = {
    "the process of a Python job": suite("test_a_job_whose_process_is_killed_fails_alone")
    | {
        "local": (
            "test_launcher_local.py::TestLocal::test_a_job_whose_process_is_killed_fails_alone",
            "test_launcher_kills.py::test_the_error_of_a_crash_includes_the_last_output_of_the_process",
        )
    },
    "an executor": clusters("test_a_job_survives_the_loss_of_its_executor"),
    "a worker, or a node": {
        "standalone": (
            "test_launcher_cluster.py::test_a_job_survives_the_loss_of_a_worker",
            "test_launcher_cluster.py::test_a_job_whose_only_worker_is_lost_waits_for_another",
        ),
        "YARN": ("yarn/test_launcher_yarn.py::test_a_job_survives_the_loss_of_a_node",),
        "Kubernetes": (
            "kubernetes/test_launcher_kubernetes.py::test_a_job_survives_the_deletion_of_its_executor_pods",
        ),
    },
    "YARN's application master": {
        "YARN": ("yarn/test_launcher_yarn.py::test_a_job_survives_the_death_of_the_application_master",),
    },
    "the application, ended through the cluster manager": {
        "standalone": (
            "test_launcher_cluster.py::test_an_application_that_its_master_kills_was_killed_from_outside",
        ),
        "YARN": (
            "yarn/test_launcher_yarn.py"
            "::test_an_application_killed_through_yarn_ends_its_context_with_the_reason",
        ),
    },
    "the JVM of the driver, or the context's host": {
        **DEATHS,
        "local": ("test_launcher_deaths.py::test_the_death_of_one_process_ends_the_whole_context",),
    },
    "the server (`kill -9`) ": {
        **DEATHS,
        "local": ("test_launcher_deaths.py::test_killing_the_server_with_sigkill_ends_its_contexts",),
        "Kubernetes": (
            *DEATHS["Kubernetes"],
            "kubernetes/test_launcher_kubernetes.py"
            "::test_another_server_removes_what_contexts_of_a_dead_one_left",
        ),
    },
    "the server (`kill -9`), with": {
        **clusters("test_a_context_outlives_its_server"),
        "local": ("test_launcher_reattachment.py::test_everything_goes_on_after_the_server_was_killed",),
    },
    "one of several masters is down": {
        "standalone": (
            "test_launcher_cluster.py::test_an_application_of_the_cluster_is_reported_with_its_address",
        ),
    },
}
RELIED_ON: dict[str, Proofs] = {
    "A kill of a Python or JVM job": suite("test_a_kill_ends_running_tasks"),
    "Two versions of a Python package": suite("test_two_versions_of_a_package_run_side_by_side"),
    "Further `packages`": suite("test_further_packages_of_a_job_reach_all_kinds_of_tasks"),
    "A packed environment": {
        "local": ("test_launcher_dependencies.py::test_jobs_and_tasks_run_in_a_packed_environment",),
        "standalone": (
            "test_launcher_dependencies.py::test_executors_of_a_cluster_run_in_a_packed_environment",
        ),
        "YARN": ("yarn/test_launcher_yarn.py::test_executors_run_in_a_packed_environment",),
        "Kubernetes": ("kubernetes/test_launcher_kubernetes.py::test_executors_run_in_a_packed_environment",),
    },
    "Two versions of a JVM class": suite("test_two_versions_of_a_jvm_class_run_side_by_side"),
    "A Python job that calls a jar": suite("test_a_python_job_calls_a_jar_in_its_class_path"),
    "A package of 50 MB": {
        **clusters("test_a_large_package_is_shipped_once_for_all_jobs_of_a_context"),
        "standalone": (
            "test_launcher_dependencies.py::test_a_large_package_is_shipped_once_for_all_jobs_of_a_context",
        ),
    },
    "Named objects": suite("test_named_objects_are_shared"),
    "A result of 100 MB": suite("test_a_result_of_100_megabytes_arrives_whole"),
    "A failing task": suite(
        "test_a_failing_task_is_reported_with_its_traceback",
        "test_output_of_jobs_is_in_their_logs_and_their_progress_is_reported",
    ),
    "Idle executors": clusters("test_idle_executors_are_given_back_and_come_again"),
    "A kill of a context": {
        "local": (
            "test_launcher_contexts.py::test_a_context_that_is_killed_with_running_tasks_leaves_nothing",
        ),
        "standalone": ("test_launcher_cluster.py::test_executors_end_with_their_context",),
        "YARN": (
            "yarn/test_launcher_yarn.py"
            "::test_a_context_of_another_user_has_its_files_on_hdfs_and_leaves_nothing_when_it_dies",
        ),
        "Kubernetes": (
            "kubernetes/test_launcher_kubernetes.py::test_a_killed_context_leaves_nothing_on_kubernetes",
        ),
    },
    "Another user": {
        "local": ("test_launcher_contexts.py::test_spark_and_hadoop_act_as_the_proxy_user",),
        "standalone": ("test_launcher_cluster.py::test_a_context_runs_as_another_user",),
        "YARN": (
            "yarn/test_launcher_yarn.py"
            "::test_a_context_of_another_user_has_its_files_on_hdfs_and_leaves_nothing_when_it_dies",
        ),
        "Kubernetes": ("kubernetes/test_launcher_kubernetes.py::test_a_context_runs_as_another_user",),
    },
}
TABLES = {"What is lost": LOST, "What jobs can rely on": RELIED_ON}


def rows(heading: str) -> dict[str, dict[str, str]]:
    """Return the table below a heading: cells by master, by the first cells of the rows."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    assert head[1:] == [*MASTERS]
    return {row[0]: dict(zip(MASTERS, row[1:], strict=True)) for row in body}


@cache
def definitions(file: Path) -> Mapping[str, ast.FunctionDef | ast.ClassDef]:
    """Return the functions and classes of a module."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return {each.name: each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)}


def exists(test: str) -> bool:
    """Whether there is such a test: a function, or a method of a class or of the suite it inherits."""
    name, *path = test.split("::")
    file = TESTS / name
    if not file.is_file():
        return False
    found = definitions(file).get(path[0])
    if not isinstance(found, ast.ClassDef):
        return isinstance(found, ast.FunctionDef) and len(path) == 1
    known = {**definitions(TESTS / "master_suite.py"), **definitions(file)}
    classes = [found, *(known.get(base.id) for base in found.bases if isinstance(base, ast.Name))]
    members = [each for one in classes if isinstance(one, ast.ClassDef) for each in one.body]
    return path[1] in {each.name for each in members if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("heading", TABLES)
def test_every_cell_has_the_tests_that_prove_it(heading: str) -> None:
    table, known = rows(heading), TABLES[heading]
    named: dict[str, Proofs] = {}
    for first in table:
        [named[first]] = [proofs for start, proofs in known.items() if f"{first} ".startswith(start)]
    assert len(table) == len(known)
    claims = {(row, master) for row, cells in table.items() for master in MASTERS if cells[master] != NOTHING}
    assert {(row, master) for row, proofs in named.items() for master in proofs} == claims


def test_no_cell_is_untested() -> None:
    assert not re.search(r"not tested", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("heading", TABLES)
def test_every_test_that_proves_a_cell_exists(heading: str) -> None:
    tests = [test for proofs in TABLES[heading].values() for found in proofs.values() for test in found]
    assert [test for test in tests if not exists(test)] == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    assert exists("test_launcher_local.py::TestLocal::test_words_are_counted")
    for test in (
        "no_such_module.py::test_words_are_counted",
        "test_launcher_local.py::test_words_are_counted",
        "test_launcher_local.py::TestLocal::test_no_such_thing",
        "test_launcher_kills.py::test_no_such_thing",
    ):
        assert not exists(test)
