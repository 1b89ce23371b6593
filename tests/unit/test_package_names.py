"""The name and version of a package: read from its own metadata, and harmless whatever that says."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.binaries import packages
from jobserver_core.binaries.archives import open_archive
from jobserver_core.binaries.packages import MAX_LENGTH, package_of
from jobserver_core.models.binaries import BinaryType

METADATA = "words-1.2.0.dist-info/METADATA"
PKG_INFO = "EGG-INFO/PKG-INFO"
MANIFEST = "META-INF/MANIFEST.MF"
POM = "META-INF/maven/org.example/words/pom.properties"
JAR, EGG, WHEEL = BinaryType.JAR, BinaryType.EGG, BinaryType.WHEEL


def zip_of(*members: tuple[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return buffer.getvalue()


def found(kind: BinaryType, data: bytes) -> str | None:
    with open_archive(io.BytesIO(data), kind) as archive:
        return package_of(archive, kind)


def wheel_with(metadata: str | bytes) -> str | None:
    return found(WHEEL, zip_of(("words.py", ""), (METADATA, metadata)))


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (WHEEL, METADATA, "Metadata-Version: 2.1\nName: words\nVersion: 1.2.0\n\nName: other\n"),
        (WHEEL, METADATA, "name:words\r\nVERSION:  1.2.0  \r\nVersion: 2\r\n"),
        (EGG, PKG_INFO, "Metadata-Version: 1.0\nName: words\nVersion: 1.2.0\nDescription: a\n        b: c\n"),
        (
            JAR,
            MANIFEST,
            "Implementation-Version: 1.2.0\r\nImplementation-Title: wor\r\n ds\r\n\r\nName: a/b\r\n",
        ),
        (JAR, MANIFEST, "Implementation-Title: words\rImplementation-Version: 1.2.0\r"),
        (JAR, POM, "#Created by Apache Maven\nversion=1.2.0\ngroupId=org.example\nartifactId=words\n"),
    ],
)
def test_a_package_says_its_name_and_version(kind: BinaryType, name: str, text: str) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert found(kind, zip_of(("a/b", ""), (name, text), compression=compression)) == "words 1.2.0"
    for other in {JAR, EGG, WHEEL} - {kind}:
        assert found(other, zip_of((name, text))) is None


def test_a_name_with_spaces_and_letters_of_any_script_is_kept() -> None:
    text = "Implementation-Title: Slova и числа\nImplementation-Version: 1:0=rc\n"
    assert found(JAR, zip_of((MANIFEST, text))) == "Slova и числа 1:0=rc"


def test_a_letter_that_the_manifest_cuts_in_two_is_put_together() -> None:
    first, second = "и".encode()
    title = b"Implementation-Title: slov" + bytes([first]) + b"\r\n " + bytes([second])
    assert found(JAR, zip_of((MANIFEST, title + b"\r\nImplementation-Version: 1\r\n"))) == "slovи 1"


def test_a_manifest_without_a_name_and_version_leaves_it_to_maven() -> None:
    pom = (POM, "version=1.2.0\nartifactId=words\n")
    for manifest in (
        "",
        "Manifest-Version: 1.0\n",
        "Implementation-Title: x\n",
        "Implementation-Version: 9\n",
    ):
        assert found(JAR, zip_of((MANIFEST, manifest), pom)) == "words 1.2.0"


def test_a_jar_assembled_from_others_has_not_the_name_of_one_of_them() -> None:
    poms = [(f"META-INF/maven/g/{n}/pom.properties", f"version=1\nartifactId={n}\n") for n in "ab"]
    assert found(JAR, zip_of(*poms)) is None
    assert found(WHEEL, zip_of((METADATA, "Name: a\nVersion: 1\n"), ("b.dist-info/METADATA", ""))) is None


@pytest.mark.parametrize(
    "name",
    ["METADATA", ".dist-info/METADATA", "a/b.dist-info/METADATA", f"{METADATA}/x", f"x{METADATA}.txt"],
)
def test_metadata_anywhere_else_does_not_count(name: str) -> None:
    assert found(WHEEL, zip_of((name, "Name: words\nVersion: 1.2.0\n"))) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "\n\n",
            "Name: words",
            "Version: 1",
            "Name:\nVersion: 1\n",
            "Name: words\nVersion:\n",
            ":\n=\n",
        ),
        *("Name: words\n\nVersion: 1\n", "Name words\nVersion 1\n", "\0\0\0\0"),
    ],
)
def test_without_a_name_and_a_version_there_is_none(text: str) -> None:
    assert wheel_with(text) is None


@pytest.mark.parametrize(
    "character",
    ["\0", "\x07", "\t", "\x1b[31m", "\x85", "\xa0", "\u200b", "\u2028", "\u202e", "\u2066", "\ufeff"],
)
def test_what_a_terminal_could_not_show_safely_counts_as_missing(character: str) -> None:
    assert wheel_with(f"Name: wo{character}rds\nVersion: 1\n") is None
    assert wheel_with(f"Name: words\nVersion: 1{character}2\n") is None


def test_bytes_that_are_not_text_are_replaced() -> None:
    assert wheel_with(b"Name: wo\xffrds\nVersion: 1\n") == "wo\ufffdrds 1"


def test_a_name_and_version_have_at_most_200_characters() -> None:
    assert wheel_with(f"Name: {'a' * (MAX_LENGTH - 2)}\nVersion: 1\n") == "a" * 198 + " 1"
    assert wheel_with(f"Name: {'a' * (MAX_LENGTH - 1)}\nVersion: 1\n") is None


def test_only_the_beginning_of_large_metadata_is_read() -> None:
    text = "Name: words\nVersion: 1.2.0\n"
    assert wheel_with(text + "Classifier: x\n" * 100_000) == "words 1.2.0"
    assert wheel_with("Classifier: x\n" * 100_000 + text) is None
    assert wheel_with("x" * 10_000_000) is None


def test_metadata_that_is_large_even_when_compressed_is_not_read() -> None:
    text = b"Name: words\nVersion: 1.2.0\n\n"
    for size, package in ((packages._MAX_COMPRESSED, "words 1.2.0"), (packages._MAX_COMPRESSED + 1, None)):
        data = zip_of((METADATA, text.ljust(size)), compression=zipfile.ZIP_STORED)
        assert found(WHEEL, data) == package


def test_a_line_that_is_read_in_part_does_not_count() -> None:
    padding = "Name: words\nX: ".ljust(packages._MAX_READ - 12, "x") + "\n"
    assert wheel_with(padding + "Version: 1.2.0\n") is None


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_metadata_whose_compression_may_need_much_memory_is_not_read(compression: int) -> None:
    data = zip_of((METADATA, "Name: words\nVersion: 1.2.0\n"), compression=compression)
    assert found(WHEEL, data) is None


def test_damaged_metadata_counts_as_missing() -> None:
    text = "Name: words\nVersion: 1.2.0\n"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = zip_of((METADATA, text), compression=compression)
        start = 30 + len(METADATA)
        assert found(WHEEL, data[:start] + b"\xff" * 8 + data[start + 8 :]) is None
        for place in range(4, start):
            damaged = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            assert found(WHEEL, damaged) in (None, "words 1.2.0")


def test_a_name_that_differs_in_the_members_own_header_counts_as_missing() -> None:
    name = "wörds-1.dist-info/METADATA"
    data = zip_of((name, "Name: words\nVersion: 1\n"))
    assert found(WHEEL, data) == "words 1"
    at = data.index("ö".encode())
    assert found(WHEEL, data[:at] + b"\xff" + data[at + 1 :]) is None


@given(st.binary(max_size=300))
def test_no_bytes_are_worse_than_none(data: bytes) -> None:
    for kind, name in ((WHEEL, METADATA), (EGG, PKG_INFO), (JAR, MANIFEST), (JAR, POM)):
        package = found(kind, zip_of((name, data)))
        assert package is None or (package.isprintable() and len(package) <= MAX_LENGTH)
