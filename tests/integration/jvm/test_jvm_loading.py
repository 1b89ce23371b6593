"""Which jar a class comes from: the context's, the job's, or a copy in the job's jar.

With either serializer and either isolation, on a local master and on a cluster.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_jvm_cluster import master  # noqa: F401 - a fixture

from jobserver_pyspark.jvm import context_settings

pytestmark = pytest.mark.spark

CLUSTER = {"spark.executor.memory": "512m", "spark.executor.cores": "1", "spark.cores.max": "2"}
KRYO = {
    "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
    "spark.kryo.registrator": "loading.base.Registrator",
}


@pytest.fixture(
    scope="module",
    params=[
        "local session java",
        "local session kryo",
        "local shared kryo",
        pytest.param("cluster session java", marks=pytest.mark.cluster),
        pytest.param("cluster session kryo", marks=pytest.mark.cluster),
        pytest.param("cluster shared kryo", marks=pytest.mark.cluster),
    ],
)
def variant(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def isolation(variant: str) -> str:
    return variant.split()[1]


@pytest.fixture(scope="module")
def context_jars(base_jar: Path) -> list[Path]:
    return [base_jar]


@pytest.fixture(scope="module")
def spark_settings(request: pytest.FixtureRequest, variant: str, base_jar: Path) -> dict[str, str]:
    cluster = variant.startswith("cluster")
    settings = {
        "spark.master": request.getfixturevalue("master") if cluster else "local[2]",
        **context_settings("spark"),
    }
    if cluster:
        settings |= {"spark.jars": base_jar.as_uri(), **CLUSTER}
    return settings | (KRYO if "kryo" in variant else {})


@pytest.fixture(scope="session")
def new_jar(thin_jar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same jar, uploaded again: its content differs, its classes do not."""
    jar = tmp_path_factory.mktemp("new") / "new.jar"
    shutil.copyfile(thin_jar, jar)
    with zipfile.ZipFile(jar, "a") as archive:
        archive.writestr("META-INF/built.txt", "again\n")
    return jar


PARCELS = {
    "first": "Bern",
    "collect": ["Bern", "Łódź", "Oslo"],
    "given": 3.0,
    "shuffled": 6.0,
    "broadcast": ["Łódź", "Oslo"],
    "cached": [3, 3],
    "accumulated": ["Bern", "Oslo", "Łódź"],
    "udf": [1, 2, 3],
    "dataset": [0, 2, 4],
    "kryo dataset": ["Bern", "Łódź", "Oslo"],
}


def test_the_first_job_of_a_context_may_bring_the_job_api_in_its_jar(bench: Any, fat_jar: Path) -> None:
    assert bench.value("loading.Merged", fat_jar) == "hey?"
    assert bench.value("loading.InBody", fat_jar) == "SparkJobInvalid(not so)"


def test_a_jar_of_the_context_may_contain_a_base_class_of_jobs(
    bench: Any, thin_jar: Path, fat_jar: Path
) -> None:
    for jar in (thin_jar, fat_jar):
        assert bench.value("loading.Shout", jar, config={"word": "hey"}) == "hey!"


def test_a_jobs_own_class_travels_on_every_way(
    bench: Any, thin_jar: Path, fat_jar: Path, new_jar: Path
) -> None:
    for jar in (thin_jar, fat_jar, new_jar, thin_jar):
        assert bench.value("loading.Parcels", jar, kind="session") == PARCELS


def test_a_job_finds_its_code_and_files_through_its_threads_loader(bench: Any, thin_jar: Path) -> None:
    assert bench.value("loading.Lookup", thin_jar) == [["Parcel", "of the jar", "hello"]] * 2


def test_a_jar_of_the_context_may_contain_a_database_driver(bench: Any, thin_jar: Path) -> None:
    assert bench.value("loading.Drivers", thin_jar) == 7


def test_a_jar_of_the_context_may_contain_a_kryo_registrator(
    bench: Any, thin_jar: Path, variant: str
) -> None:
    if "kryo" in variant:
        assert bench.value("loading.Stamps", thin_jar) == ["a", "b"]
    else:  # which Java's serializer has no use for
        outcome = bench.run("loading.Stamps", thin_jar)
        assert "not serializable result: loading.base.Stamp" in outcome.error.message


def test_several_jars_with_duplicate_classes_are_one_class_path(
    bench: Any, old_jar: Path, thin_jar: Path, fat_jar: Path
) -> None:
    words = {"input": {"string": "a b a"}}
    for jars in ((old_jar, fat_jar), (fat_jar, old_jar), (old_jar, thin_jar)):
        counted = bench.value("spark.jobserver.WordCountExample", *jars, config=words)
        assert counted == {"a": 2, "b": 1}
