from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_http.errors import Rejected
from jobserver_http.parameters import (
    Choice,
    Flag,
    Integer,
    Kind,
    Parameter,
    Text,
    Timestamp,
    parse_query,
    parsed,
)


def read(kind: Kind, text: str) -> object:
    return Parameter(name="p", kind=kind, doc="d").read({"p": text})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Text(), "a b", "a b"),
        (Text(), "", None),
        (Flag(), "TRUE", True),
        (Flag(), "false", False),
        (Integer(), "10", 10),
        (Integer(), "+7", 7),
        (Choice(("RUNNING",), any_case=True), "running", "RUNNING"),
        (
            Timestamp(),
            "2016-06-19T16:27:12.196+05:30",
            datetime(2016, 6, 19, 10, 57, 12, 196000, timezone.utc),
        ),
        (
            Timestamp(),
            "2016-06-19T16:27:12.196 05:30",
            datetime(2016, 6, 19, 10, 57, 12, 196000, timezone.utc),
        ),
        (Timestamp(), "2016-06-19T16:27:12Z", datetime(2016, 6, 19, 16, 27, 12, tzinfo=timezone.utc)),
        (Timestamp(), "2016-06-19", datetime(2016, 6, 19, tzinfo=timezone.utc)),
    ],
)
def test_a_parameter_is_read(kind: Kind, text: str, value: object) -> None:
    assert read(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Text(max_length=3), "abcd"),
        (Text(), "a\nb"),
        (Text(), "\x00"),
        (Flag(), "1"),
        (Flag(), "yes"),
        (Integer(), "-1"),
        (Integer(), "ten"),
        (Integer(), "1.5"),
        (Integer(), "9" * 400),
        (Integer(), "٣"),
        (Integer(0, 10), "11"),
        (Choice(("reboot",)), "Reboot"),
        (Timestamp(), "yesterday"),
        (Timestamp(), "0001-01-01T00:00:00+23:59"),
    ],
)
def test_a_wrong_value_is_refused_with_the_expected_one(kind: Kind, text: str) -> None:
    with pytest.raises(Rejected, match=r"^parameter p ") as caught:
        read(kind, text)
    assert caught.value.status == 400


def test_a_wrong_word_is_refused_with_the_words_that_are_possible() -> None:
    with pytest.raises(Rejected, match=r"^parameter p must be reboot, got 'Reboot'$"):
        read(Choice(("reboot",)), "Reboot")
    with pytest.raises(Rejected, match=r"^parameter p must be one of a, b, got 'c'$"):
        read(Choice(("a", "b")), "c")


def test_a_required_parameter_that_is_missing_is_refused() -> None:
    with pytest.raises(Rejected, match="parameter reset is missing: must be reboot"):
        parsed([Parameter(name="reset", doc="must be reboot", required=True)], {})


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (b"a=1&a=2", "'a' is repeated"),
        (b"a=%ff", "not percent-encoded UTF-8"),
        (b"a=\xff", "not percent-encoded UTF-8"),
        (b"&".join(b"a%d=1" % n for n in range(501)), "more than 500"),
    ],
)
def test_a_query_that_is_ambiguous_is_refused(query: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        parse_query(query)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_parameters_or_a_refusal(query: bytes) -> None:
    status, found = 0, {}
    try:
        found = parse_query(query)
    except Rejected as error:
        status = error.status
    assert status == 400 or all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize("kind", [Text(), Flag(), Integer(), Choice(("a",)), Timestamp()], ids=repr)
@given(text=st.text(max_size=50))
def test_any_string_is_either_a_value_or_refused(kind: Kind, text: str) -> None:
    status = 200
    try:
        read(kind, text)
    except Rejected as error:
        status = error.status
    assert status in (200, 400)
