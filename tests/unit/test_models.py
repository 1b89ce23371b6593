from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from jobserver_core.errors import InvalidName, InvalidRequest, MalformedUrl, UnsupportedMediaType
from jobserver_core.models.binaries import Binary, BinaryType, ClassPathEntry, ResolvedEntry, parse_class_path
from jobserver_core.models.callbacks import Answer
from jobserver_core.models.jobs import JobQuery, JobRequest, JobResult, ResultKind
from jobserver_core.models.validation import (
    check_binary_name,
    check_class_name,
    check_context_name,
    data_file_name,
)
from jobserver_core.testing.builders import a_context, a_delivery, a_job

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("application/java-archive", BinaryType.JAR),
        ("application/python-egg", BinaryType.EGG),
        ("application/python-wheel", BinaryType.WHEEL),
        ("application/python-archive", BinaryType.EGG),
        ("python-archive", BinaryType.EGG),
        ("Application/Java-Archive; charset=UTF-8", BinaryType.JAR),
    ],
)
def test_a_media_type_names_a_binary_type(media_type: str, kind: BinaryType) -> None:
    assert BinaryType.from_media_type(media_type) is kind


@pytest.mark.parametrize("media_type", [None, "", "text/plain", "application/zip", "java-archive"])
def test_another_media_type_is_refused_with_those_that_are_supported(media_type: str | None) -> None:
    fault = f"content type '{media_type}' is not supported" if media_type else "no content type is given"
    with pytest.raises(UnsupportedMediaType, match=f"^{fault}; expected one of .*application/python-wheel"):
        BinaryType.from_media_type(media_type)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("http://h/a.jar?x=1#y", BinaryType.JAR),
        ("/p/a-1.0-py3.egg", BinaryType.EGG),
        ("a.WHL", BinaryType.WHEEL),
        ("http://h/download", None),
    ],
)
def test_the_type_follows_from_the_file_extension(name: str, kind: BinaryType | None) -> None:
    assert BinaryType.from_file_name(name) is kind


@pytest.mark.parametrize("name", ["test", "my app-1.0_2", "a+b", "0day", "user@site"])
def test_valid_binary_names_are_accepted(name: str) -> None:
    assert check_binary_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "a,b", "http:x", "a\nb", "a\0", ".hidden", "x" * 256, "ä", "a ", "a  ", " "]
)
def test_invalid_binary_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_binary_name(name)


@pytest.mark.parametrize("name", ["submitted_by", "context_owner"])
def test_a_user_that_is_not_a_string_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} must be a string"):
        JobRequest(class_name="a.B", class_path="a", **{name: 3})


@pytest.mark.parametrize("name", ["submitted_by", "context_owner", "idempotency_key", "callback_url"])
def test_what_a_request_need_not_have_may_be_none(name: str) -> None:
    given = JobRequest(class_name="a.B", class_path="a", **{name: None})
    assert given == JobRequest(class_name="a.B", class_path="a")


def test_settings_of_a_context_are_refused_where_the_context_exists() -> None:
    with pytest.raises(InvalidRequest, match="context_settings are for a job without context, which gets a "):
        JobRequest(class_name="a.B", class_path="a", context="warm", context_settings={"num-cpu-cores": 2})
    JobRequest(class_name="a.B", class_path="a", context="warm", context_settings={})


@pytest.mark.parametrize("name", ["sql-context-1", "A", "ctx.of_us", "user~ctx"])
def test_valid_context_names_are_accepted(name: str) -> None:
    assert check_context_name(name) == name


@pytest.mark.parametrize("name", ["", "1ctx", "-a", "a/b", "a b", "ä1", "x" * 256])
def test_invalid_context_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_context_name(name)


@pytest.mark.parametrize(
    "name", ["a.B", "B", "spark.jobserver.WordCountExample", "a.B$C", "a.Obj$", "übung.Job"]
)
def test_valid_class_names_are_accepted(name: str) -> None:
    assert check_class_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "a..b", "a.", "a b", "os;import", "a/b", "1a", "a\n"])
def test_invalid_class_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_class_name(name)


@pytest.mark.parametrize("prefix", ["", "../x", "a/b", ".x", "a\0"])
def test_invalid_data_file_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidName):
        data_file_name(prefix)


@pytest.mark.parametrize("name", [("a" * 217,), ("a" * 210, ".parquet.gz"), (f"{'a' * 217}.csv",)])
def test_the_longest_data_file_names_fit_into_a_directory(name: tuple[str, ...]) -> None:
    prefix, ending = data_file_name(*name)
    assert len(f"{prefix}-2026-11-29T04_16_29.140+00_00-999{ending}") == 255
    with pytest.raises(InvalidName, match="it must have at most 221 characters, including its ending"):
        data_file_name("a" + name[0], *name[1:])


@pytest.mark.parametrize("ending", ["csv", "", ".a.b.c", ".1", f".{'a' * 17}", 5])
def test_invalid_endings_of_data_files_are_refused(ending: Any) -> None:
    with pytest.raises(InvalidName, match="ending of a data file name"):
        data_file_name("sales", ending)


def binary(**changes: Any) -> Binary:
    values: dict[str, Any] = {
        "id": "1",
        "name": "app",
        "type": BinaryType.JAR,
        "uploaded_at": NOW,
        "digest": DIGEST,
        "size": 3,
    }
    return Binary(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"uploaded_at": datetime(2026, 1, 2)},
        {"digest": "A" * 64},
        {"digest": "abc"},
        {"size": -1},
        {"name": "a/b"},
    ],
)
def test_a_binary_refuses_values_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, InvalidName)):
        binary(**changes)


def test_a_class_path_mixes_names_and_uris() -> None:
    assert parse_class_path("app, http://h/x.jar ,,file:/p/y.jar,local:///z.jar") == (
        ClassPathEntry(name="app"),
        ClassPathEntry(uri="http://h/x.jar"),
        ClassPathEntry(uri="file:/p/y.jar"),
        ClassPathEntry(uri="local:///z.jar"),
    )
    assert parse_class_path(["a", "b"]) == (ClassPathEntry(name="a"), ClassPathEntry(name="b"))


def test_a_class_path_entry_is_a_name_or_a_uri_and_not_both() -> None:
    for values in ({}, {"name": "a", "uri": "http://h/x"}):
        with pytest.raises(InvalidRequest):
            ClassPathEntry(**values)


@pytest.mark.parametrize("path", ["./dist/words.whl", "dist/words.whl", "/dist/words.whl", "~/words.whl"])
def test_a_path_in_a_class_path_is_refused_with_what_to_write_instead(path: str) -> None:
    expected = "it looks like a path; upload the file and use the name of the binary, or write file:/"
    with pytest.raises(InvalidName, match=expected):
        ClassPathEntry.parse(path)


def test_an_absolute_path_in_a_class_path_is_refused_with_its_uri() -> None:
    with pytest.raises(InvalidName, match=r"or write file:///opt/my%20jars/x\.jar for a file of"):
        ClassPathEntry.parse("/opt/my jars/x.jar")


def test_an_empty_uri_is_malformed() -> None:
    with pytest.raises(MalformedUrl):
        ClassPathEntry.parse("http://")


def test_a_resolved_entry_has_the_hash_of_its_bytes() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        ResolvedEntry(source="a", type=BinaryType.JAR, digest="x", size=1)


def test_a_class_path_is_a_list_or_a_comma_separated_string() -> None:
    entries = parse_class_path("x,http://h/d.jar")
    for class_path in ("x, http://h/d.jar", ["x", "http://h/d.jar"], entries, [entries[0], "http://h/d.jar"]):
        assert JobRequest(class_name="m.M", class_path=class_path).class_path == entries


@pytest.mark.parametrize("class_path", ["", " , ", [], [""]])
def test_a_request_without_a_class_path_is_refused(class_path: str | list[str]) -> None:
    with pytest.raises(InvalidRequest, match="the class path must not be empty"):
        JobRequest(class_name="a.B", class_path=class_path)


@pytest.mark.parametrize("key", ["", "x" * 256, "ü", " a", "a ", "a\n"])
def test_an_idempotency_key_is_one_that_a_header_carries_unchanged(key: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255 characters of printable ASCII"):
        JobRequest(class_name="a.B", class_path="a", idempotency_key=key)
    with pytest.raises(InvalidRequest, match="1 to 255 characters of printable ASCII"):
        JobRequest(class_name="a.B", class_path="a", idempotency_key=f"jö~{key}", context_owner="jö")


@pytest.mark.parametrize("key", ["a", "x" * 255, "nightly run ~ 7"])
def test_the_idempotency_key_of_a_user_follows_the_name(key: str) -> None:
    request = JobRequest(class_name="a.B", class_path="a", idempotency_key=f"jö~{key}", context_owner="jö")
    assert request.idempotency_key == f"jö~{key}"


@pytest.mark.parametrize(
    "values",
    [
        {"kind": ResultKind.INLINE, "size": 1},
        {"kind": ResultKind.INLINE, "size": 1, "digest": DIGEST},
        {"kind": ResultKind.STORED, "size": 1},
        {"kind": ResultKind.STREAM, "size": 1, "text": "x"},
        {"kind": ResultKind.INLINE, "size": 1, "text": "x", "digest": DIGEST},
        {"kind": ResultKind.INLINE, "size": -1, "text": "x"},
        {"kind": ResultKind.STORED, "size": 1, "digest": "short"},
    ],
)
def test_a_result_is_in_one_place(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"result|size|digest"):
        JobResult(**values)


@pytest.mark.parametrize("values", [{"limit": -1}, {"limit": 10_001}, {"offset": -1}])
def test_a_query_refuses_impossible_pages(values: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        JobQuery(**values)


def test_no_record_shows_a_secret_in_its_repr() -> None:
    url = "https://me:hunter2@h/x"
    request = JobRequest(
        class_name="a.B",
        class_path=parse_class_path("a"),
        config="password = hunter2",
        context_settings={"spark": {"hadoop.fs.s3a.secret.key": "hunter2"}},
        callback_url=url,
    )
    records = [
        request,
        a_job(callback_url=url),
        a_delivery(url=url),
        a_context(settings={"spark.ssl.keyPassword": "hunter2"}),
    ]
    for record in records:
        assert "hunter2" not in repr(record)


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (Answer(status=200), True),
        (Answer(status=399), True),
        (Answer(status=400), False),
        (Answer(status=503), False),
        (Answer(error="connection refused"), False),
        (Answer(status=200, error="body cut"), False),
    ],
)
def test_an_answer_of_400_or_more_or_none_is_a_failure(answer: Answer, *, accepted: bool) -> None:
    assert answer.accepted is accepted
