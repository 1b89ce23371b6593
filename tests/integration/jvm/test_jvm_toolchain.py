"""The JVM side is compiled once, by the first process that needs it, and errors explain why it cannot be."""

from __future__ import annotations

import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from jobserver_core.errors import LaunchError
from jobserver_pyspark.jvm import (
    CompilationFailed,
    JvmToolchain,
    LibrariesUnavailable,
    LibrarySource,
    SparkInstall,
)
from jobserver_pyspark.jvm.jobs import refers_to_api

pytestmark = pytest.mark.spark


def test_processes_that_compile_at_once_agree_and_leave_nothing_half_done(
    toolchain: JvmToolchain, tmp_path: Path
) -> None:
    fresh = attrs.evolve(toolchain, cache_dir=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fresh.runner_jar(), range(2))
    assert first == second
    assert "org/apache/spark/sql/jobserver/JobRunner.class" in zipfile.ZipFile(first).namelist()
    assert [path.name for path in first.parent.parent.iterdir()] == [first.parent.name]
    before = first.stat()
    assert fresh.runner_jar() == first
    assert first.stat() == before


def test_a_java_that_is_not_there_is_named(toolchain: JvmToolchain, tmp_path: Path) -> None:
    without = attrs.evolve(toolchain, java=str(tmp_path / "no-java"), cache_dir=tmp_path / "cache")
    with pytest.raises(CompilationFailed, match="no-java"):
        without.runner_jar()


def test_the_error_names_a_directory_without_spark(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no spark-core jar in .*is this a Spark installation\?"):
        SparkInstall.of(tmp_path)


def test_without_a_repository_libraries_come_from_a_directory(
    toolchain: JvmToolchain, tmp_path: Path
) -> None:
    _, config, scalactic = toolchain.api_jars()
    for jar in (config, scalactic):
        (tmp_path / jar.name).symlink_to(jar)
    local = attrs.evolve(toolchain, libraries=LibrarySource(directory=tmp_path))
    assert [jar.parent for jar in local.api_jars()[1:]] == [tmp_path, tmp_path]


def with_another_entry(jar: Path, directory: Path) -> Path:
    """Return a copy of a jar that works as well, but has one more entry."""
    directory.mkdir(exist_ok=True)
    copy = Path(shutil.copy(jar, directory / jar.name))
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(zipfile.ZipInfo("patched"), "")
    return copy


def a_repository(directory: Path, *jars: Path) -> LibrarySource:
    """Return a source that resolves from a directory, with an Ivy cache of its own."""
    directory.mkdir()
    for jar in jars:
        shutil.copy(jar, directory)
    settings, pattern = directory / "ivysettings.xml", f"{directory}/[artifact]-[revision].[ext]"
    settings.write_text(
        '<ivysettings><settings defaultResolver="here"/><resolvers><filesystem name="here">'
        f'<artifact pattern="{pattern}"/></filesystem></resolvers></ivysettings>'
    )
    return LibrarySource(ivy_settings=str(settings), ivy=str(directory / "ivy"))


def test_a_repository_with_other_libraries_fills_the_cache_of_no_context(
    toolchain: JvmToolchain, tmp_path: Path
) -> None:
    _, config, scalactic = toolchain.api_jars()
    wrong = a_repository(tmp_path / "wrong", with_another_entry(config, tmp_path / "patched"), scalactic)
    right = a_repository(tmp_path / "right", config, scalactic)
    misled = attrs.evolve(toolchain, libraries=wrong, cache_dir=tmp_path / "cache")
    with pytest.raises(
        LibrariesUnavailable, match=r"is not com\.typesafe:config:1\.4\.3 as published"
    ) as raised:
        misled.api_jars()
    assert "spark.jars.repositories" in str(raised.value)
    assert str(tmp_path / "wrong" / "ivy") in str(raised.value)
    assert misled.ready_api_jars() is None
    assert list((tmp_path / "cache").rglob("config*")) == []
    jars = attrs.evolve(misled, libraries=right).api_jars()
    assert [jar.read_bytes() for jar in jars[1:]] == [config.read_bytes(), scalactic.read_bytes()]
    # From now on no context asks a repository, not even a wrong one. A damaged copy is replaced.
    assert misled.ready_api_jars() == misled.api_jars() == jars
    jars[2].write_bytes(b"damaged")
    assert misled.ready_api_jars() is None
    assert attrs.evolve(misled, libraries=right).api_jars() == jars
    assert jars[2].read_bytes() == scalactic.read_bytes()


def test_libraries_that_a_site_has_patched_get_an_api_of_their_own(
    toolchain: JvmToolchain, tmp_path: Path
) -> None:
    published = toolchain.api_jars()
    for jar in published[1:]:
        with_another_entry(jar, tmp_path)
    local = attrs.evolve(toolchain, libraries=LibrarySource(directory=tmp_path))
    patched = local.api_jars()
    assert [jar.name for jar in patched] == [jar.name for jar in published]
    assert patched[0] != published[0]
    assert patched[1:] == (tmp_path / published[1].name, tmp_path / published[2].name)
    assert (toolchain.ready_api_jars(), local.ready_api_jars()) == (published, patched)


def test_another_spark_of_the_same_version_shares_nothing_that_was_compiled(
    toolchain: JvmToolchain, tmp_path: Path
) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    for jar in toolchain.spark.jars.glob("*.jar"):
        (jars / jar.name).symlink_to(jar)
    other = attrs.evolve(toolchain, spark=SparkInstall.of(jars))
    assert other.runner_jar() == toolchain.runner_jar()
    shutil.copy(toolchain.runner_jar(), jars / "driver-of-the-site-1.0.jar")
    assert other.runner_jar() == toolchain.runner_jar()
    [core] = jars.glob("spark-core_*.jar")
    core.unlink()
    with_another_entry(toolchain.spark.jars / core.name, jars)
    assert other.runner_jar() != toolchain.runner_jar()
    assert other.runner_jar().name == toolchain.runner_jar().name


def test_an_unreachable_repository_is_reported_with_advice(toolchain: JvmToolchain, tmp_path: Path) -> None:
    settings = tmp_path / "ivysettings.xml"
    settings.write_text(
        '<ivysettings><settings defaultResolver="nowhere"/><resolvers>'
        f'<filesystem name="nowhere"><artifact pattern="{tmp_path}/[artifact].[ext]"/></filesystem>'
        "</resolvers></ivysettings>"
    )
    source = LibrarySource(ivy_settings=str(settings), ivy=str(tmp_path / "ivy"))
    cut_off = attrs.evolve(toolchain, libraries=source, cache_dir=tmp_path / "cache")
    with pytest.raises(LibrariesUnavailable) as raised:
        cut_off.api_jars()
    assert "set the launcher option jvm-libraries to a directory that has the two jars" in str(raised.value)
    assert "unresolved dependency: com.typesafe#config;1.4.3: not found" in str(raised.value)


def test_the_api_is_ready_once_it_was_built(toolchain: JvmToolchain, tmp_path: Path) -> None:
    built = toolchain.api_jars()
    assert toolchain.ready_api_jars() == built
    elsewhere = attrs.evolve(toolchain, cache_dir=tmp_path)
    assert elsewhere.ready_api_jars() is None
    empty = attrs.evolve(toolchain, libraries=LibrarySource(directory=tmp_path))
    assert empty.ready_api_jars() is None


def test_jobs_add_nothing_to_a_prepared_cache(
    bench: Any, toolchain: JvmToolchain, shapes_jar: Path, tmp_path: Path
) -> None:
    """It may be read-only, as in the container image."""
    repository = a_repository(tmp_path / "repository", *toolchain.api_jars()[1:])
    cache = tmp_path / "cache"
    attrs.evolve(toolchain, cache_dir=cache, libraries=repository).prepare()
    prepared = attrs.evolve(toolchain, cache_dir=cache)
    before = _stamps(cache)
    fresh = attrs.evolve(bench, jobs=attrs.evolve(bench.jobs, toolchain=prepared))
    assert fresh.value("shapes.WordCount", shapes_jar, config={"words": "a b a"}) == {"a": 2, "b": 1}
    assert _stamps(cache) == before


def _stamps(directory: Path) -> dict[Path, int]:
    """Return when each file and directory was changed last. Even a temporary file changes its directory."""
    return {path: path.lstat().st_mtime_ns for path in (directory, *directory.rglob("*"))}


def test_jars_are_unpacked_once_per_content(toolchain: JvmToolchain, tmp_path: Path) -> None:
    def jar(name: str, **classes: str) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path, content in classes.items():
                archive.writestr(f"{path}.class", content)
        return tmp_path / name

    fresh = attrs.evolve(toolchain, cache_dir=tmp_path / "cache")
    one, two = jar("one.jar", A="a"), jar("two.jar", B="b")
    both = fresh.unpack([one, two])
    assert {path.name: path.read_text() for path in both.iterdir()} == {"A.class": "a", "B.class": "b"}
    assert fresh.unpack([one, two]) == both
    assert fresh.unpack([one, jar("two.jar", B="another")]) != both
    assert {path.name for path in both.parent.iterdir() if path.name.startswith(".")} == set()


def test_a_jar_that_names_the_api_or_a_library_of_it_needs_it(old_jar: Path, shapes_jar: Path) -> None:
    assert refers_to_api(old_jar)
    assert not refers_to_api(shapes_jar)
    assert not refers_to_api(Path(__file__))
