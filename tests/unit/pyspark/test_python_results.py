from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import io
import json
import math
import pathlib
import pickle
import tempfile
import uuid
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.results import MAX_DEPTH, UnusableResult, encode, opened
from jobserver_pyspark.runner.config_trees import laid_over, read


def as_json(value: Any) -> Any:
    return json.loads(b"".join(encode(value)), parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=40,
)


@given(plain)
def test_json_values_stay_unchanged(value: Any) -> None:
    assert as_json(value) == value


@given(st.lists(plain, max_size=5), st.integers(0, 5000))
def test_long_lists_are_encoded_like_short_ones(values: list[Any], filler: int) -> None:
    value = [*values, list(range(filler)), {"deep": [*values, list(range(filler))]}]
    assert as_json(value) == value


@dataclasses.dataclass
class Data:
    a: int
    b: Any


@attrs.frozen
class Attrs:
    a: int
    b: Any


Named = collections.namedtuple("Named", "a b")


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Data(1, [2.5]), {"a": 1, "b": [2.5]}),
        (Attrs(1, None), {"a": 1, "b": None}),
        (Named(1, (2, 3)), {"a": 1, "b": [2, 3]}),
        ((1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset("a"), ["a"]),
        (range(3), [0, 1, 2]),
        ((n for n in range(3)), [0, 1, 2]),
        (collections.deque([1]), [1]),
        ({1: 2}.values(), [2]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(z=1, a=2), {"z": 1, "a": 2}),
        (Colour.RED, "red"),
        (Number.TWO, 2),
        (decimal.Decimal("1.50"), 1.5),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), "2026-01-02T00:00:00+00:00"),
        (datetime.timedelta(hours=1), "1:00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("/a"), "/a"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", "/w=="),
        (float("nan"), "NaN"),
        ([float("inf"), -float("inf")], ["Infinity", "-Infinity"]),
        ({1: "a", 2.5: "b", None: "c", True and "x": "d"}, {"1": "a", "2.5": "b", "null": "c", "x": "d"}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({float("nan"): 1}, {"NaN": 1}),
        (2**100, 2**100),
        ("\ud800", "\ud800"),
        (ValueError("text"), "ValueError: text"),
        (KeyError(), "KeyError"),
        (int, "<class 'int'>"),
    ],
)
def test_a_value_becomes_json_as_the_table_says(value: Any, expected: Any) -> None:
    assert as_json(value) == expected
    assert as_json([value, {"in": expected}]) == [expected, {"in": expected}] or isinstance(
        value, collections.abc.Iterator
    )


def test_numpy_values_become_numbers_and_arrays() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    value = {
        "scalar": numpy.int64(1),
        "nan": numpy.float32("nan"),
        "flag": numpy.bool_(True),
        "matrix": numpy.arange(4).reshape(2, 2),
        "long": numpy.arange(10_000),
        "when": numpy.datetime64("2026-01-02T03:04:05.123456789"),
        "whens": numpy.array(["2026-01-02"], dtype="datetime64[ns]"),
        "record": numpy.array([(1, "a")], dtype=[("n", int), ("s", "U1")]),
        numpy.int64(7): "key",
    }
    assert as_json(value) == {
        "scalar": 1,
        "nan": "NaN",
        "flag": True,
        "matrix": [[0, 1], [2, 3]],
        "long": list(range(10_000)),
        "when": "2026-01-02T03:04:05.123456789",
        "whens": ["2026-01-02T00:00:00.000000000"],
        "record": [{"n": 1, "s": "a"}],
        "7": "key",
    }


def test_tables_become_records() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    frame = pandas.DataFrame(
        {"n": [1, 2], "t": [pandas.Timestamp("2026-01-02"), pandas.NaT], "f": [0.5, math.nan]}
    )
    records = [{"n": 1, "t": "2026-01-02T00:00:00", "f": 0.5}, {"n": 2, "t": None, "f": "NaN"}]
    assert as_json(frame) == records
    assert as_json({"series": frame["n"], "index": frame.index, "missing": pandas.NA}) == {
        "series": [1, 2],
        "index": [0, 1],
        "missing": None,
    }
    table = arrow.table({"a": list(range(5000)), "b": ["x"] * 5000})
    assert as_json(table) == [{"a": n, "b": "x"} for n in range(5000)]
    assert as_json(arrow.array([1, None])) == [1, None]
    with pytest.raises(UnusableResult, match="two columns"):
        as_json(pandas.DataFrame([[1, 2]], columns=["a", "a"]))


def test_rows_become_objects_by_their_names() -> None:
    from pyspark.sql import Row

    assert as_json([Row(a=1, b=Row(c=[2]))]) == [{"a": 1, "b": {"c": [2]}}]
    assert as_json(Row(1, 2)) == [1, 2]


def test_configurations_come_back_without_quotes_around_keys() -> None:
    values = {"a.b": 1, "c": {"d.e": [{"f.g": None}]}}
    assert as_json(read(json.dumps(values))) == values


def test_configurations_are_what_pyhocon_would_make_of_them() -> None:
    import pyhocon

    text = '{"a": {"b": 1, "c.d": [{"x": 1}, {}]}, "e": []}'
    made, parsed = read(text), pyhocon.ConfigFactory.parse_string(text)
    assert made == parsed
    assert made["a.b"] == 1
    assert vars(made["a"]) == vars(pyhocon.ConfigTree())
    other = pyhocon.ConfigFactory.parse_string("a.f = 2")
    assert made.with_fallback(other) == parsed.with_fallback(other)
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == parsed


def test_a_configuration_over_another_wins_where_both_have_a_value() -> None:
    upper = read('{"a": {"b": 1, "c.d": {"x": 1}}, "e": {"y": 1}, "f": {"z": 1}, "new.key": 1}')
    lower = read('{"f": 2, "a": {"c.d": {"w": 2, "x": 2}, "k": {"l": 2}}, "e": 2, "g.h": [2]}')
    merged = laid_over(upper, lower)
    assert as_json(merged) == {
        "f": {"z": 1},
        "a": {"c.d": {"w": 2, "x": 1}, "k": {"l": 2}, "b": 1},
        "e": {"y": 1},
        "g.h": [2],
        "new.key": 1,
    }
    assert list(merged) == ["f", "a", "e", '"g.h"', '"new.key"']
    assert merged['a."c.d".w'] == 2
    assert lower["a.k.l"] == 2
    assert "b" not in lower["a"]


@pytest.mark.parametrize("shape", [lambda x: [x], lambda x: {"k": x}, lambda x: (x,)])
def test_too_deep_nesting_is_refused_with_a_clear_message(shape: Any) -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH + 2):
        deep = shape(deep)
    with pytest.raises(UnusableResult, match="nested more than"):
        as_json(deep)
    loop: list[Any] = []
    loop.append(shape(loop))
    with pytest.raises(UnusableResult, match="nested more than"):
        as_json(loop)


def test_the_error_of_a_result_that_contains_itself_has_one_traceback() -> None:
    loop: list[Any] = list(range(500))
    loop.append(loop)
    with pytest.raises(UnusableResult, match="nested more than") as caught:
        as_json(loop)
    assert caught.value.__context__ is None


def test_mappings_that_would_lose_members_are_refused() -> None:
    for value in ({1: "a", "1": "b"}, {"big": list(range(9000)), 1: 0, "1": 1}):
        with pytest.raises(UnusableResult, match="both '1' in JSON"):
            as_json(value)


def test_chunks_are_bounded_for_every_shape() -> None:
    for value in (["x" * 100] * 50_000, {str(n): "x" * 100 for n in range(50_000)}, "ü" * 5_000_000):
        pieces = list(encode(value))
        assert max(map(len, pieces)) < 1 << 20
        assert json.loads(b"".join(pieces)) == value


def test_iterators_of_bytes_are_streams_and_others_are_lists() -> None:
    stream, pieces = opened(iter([b"ab", bytearray(b"c"), memoryview(b"d")]))
    assert stream
    assert b"".join(pieces) == b"abcd"
    stream, pieces = opened(iter([1, 2]))
    assert not stream
    assert b"".join(pieces) == b"[1,2]"
    stream, pieces = opened(iter([]))
    assert not stream
    assert b"".join(pieces) == b"[]"
    stream, pieces = opened([b"ab"])
    assert not stream
    assert b"".join(pieces) == b'["ab"]'


def test_a_stream_that_yields_other_types_is_refused() -> None:
    _, pieces = opened(iter([b"ab", "c"]))
    with pytest.raises(UnusableResult, match="chunk 1 is of type str"):
        list(pieces)


def as_text(value: Any) -> str:
    return b"".join(encode(value)).decode()


def test_decimals_are_numbers_with_every_digit_at_any_size() -> None:
    number = decimal.Decimal("12345678901234567.890")
    assert as_text({"a": [number], number: 1}) == ('{"a":[12345678901234567.890],"12345678901234567.890":1}')
    assert as_text([number] * 5000) == f"[{','.join([str(number)] * 5000)}]"
    assert as_text(decimal.Decimal("1E+5")) == "1E+5"
    long = decimal.Decimal("1." + "7" * 3_000_000)
    assert as_text([long]) == f"[{long}]"
    assert as_json([decimal.Decimal("sNaN"), decimal.Decimal("-Infinity")]) == ["NaN", "-Infinity"]


def test_an_integer_that_readers_refuse_is_refused_here() -> None:
    assert as_json(10**4000) == 10**4000
    for value in (10**5000, [10**5000], [{"a": -(10**5000)}] * 3000):
        with pytest.raises(UnusableResult, match="an integer is too long"):
            as_json(value)


def test_open_binary_files_are_streams_even_if_they_are_empty() -> None:
    for content in (b"", b"line\nline\n"):
        stream, pieces = opened(io.BytesIO(content))
        assert (stream, b"".join(pieces)) == (True, content)


@pytest.mark.parametrize("content", [b"caf\xe9\n" * 100_000, b""])
def test_a_temporary_file_is_a_stream_like_the_file_that_it_wraps(content: bytes) -> None:
    for make in (tempfile.NamedTemporaryFile, tempfile.SpooledTemporaryFile):
        with make() as file:
            file.write(content)
            file.seek(0)
            stream, pieces = opened(file)
            assert (stream, b"".join(pieces)) == (True, content)


def test_the_lines_of_a_temporary_text_file_are_a_list() -> None:
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("a\nb")
        file.seek(0)
        stream, pieces = opened(file)
        assert (stream, b"".join(pieces)) == (False, b'["a\\n","b"]')


def test_lone_surrogates_survive_in_keys_and_long_texts() -> None:
    value = {"\ud800": "\udc00" * 3_000_000}
    assert as_json(value) == value


class Magic:
    """Has every attribute, as mocks and columns do, and a text."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args: self

    def __str__(self) -> str:
        return "magic"


def test_an_object_with_every_attribute_becomes_a_string() -> None:
    assert as_json([Magic()]) == ["magic"]


def test_subclasses_of_library_classes_are_what_their_ancestors_are() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")

    class OwnArray(numpy.ndarray):  # type: ignore[misc]
        pass

    class OwnFrame(pandas.DataFrame):  # type: ignore[misc]
        pass

    assert as_json(numpy.arange(2).view(OwnArray)) == [0, 1]
    assert as_json(OwnFrame({"a": [1]})) == [{"a": 1}]


def test_arrays_of_other_libraries_are_arrays() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return numpy.arange(2)

    class Sparse:
        def toarray(self) -> Any:
            return numpy.eye(2)

    assert as_json([Tensor(), Sparse()]) == [[0, 1], [[1, 0], [0, 1]]]


def test_records_of_numpy_keep_times_and_missing_values() -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    times = numpy.array([("2026-01-02", 5)], dtype=[("t", "datetime64[ns]"), ("d", "timedelta64[s]")])
    record = {"t": "2026-01-02T00:00:00.000000000", "d": "5 seconds"}
    assert as_json([times, times[0]]) == [[record], record]
    masked = numpy.ma.array([(1, 2)], mask=[(0, 1)], dtype=[("a", int), ("b", int)])
    assert as_json(masked) == [{"a": 1, "b": None}]
    assert as_json(numpy.array(7)) == 7


def test_tables_with_an_index_keep_it_or_are_refused() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"n": [1, 2]}, index=pandas.Index(["x", "x"], name="k"))
    assert as_json(frame["n"]) == [{"k": "x", "n": 1}, {"k": "x", "n": 2}]
    twice = frame.reset_index().set_index(["k", "n"], drop=False)
    with pytest.raises(UnusableResult, match="two columns of the table have the same name: k, n, k, n"):
        as_json(twice)
    many = pandas.DataFrame({"n": range(5000)}, index=[f"r{n}" for n in range(5000)])
    assert as_json(many)[4999] == {"index": "r4999", "n": 4999}
    assert as_json(many[:0]) == []
