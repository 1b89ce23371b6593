"""HOCON means what its specification says, and JSON is a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.config.hocon import parse_file, parse_untrusted, read_untrusted
from jobserver_core.config.trees import all_settings
from jobserver_core.errors import InvalidConfig
from jobserver_core.models.json_values import WrittenObject

pytestmark = pytest.mark.timeout(60)


# -- HOCON semantics -----------------------------------------------------------------------------------

VALUES: list[tuple[str, str, dict[str, Any]]] = [
    ("the seed's curl call", "input.string = a b c a b see", {"input": {"string": "a b c a b see"}}),
    ("nothing", "", {}),
    ("only blanks and comments", " \n\t# one\n// two\n", {}),
    ("an empty object", "{}", {}),
    ("a byte order mark", "\ufeffa = 1", {"a": 1}),
    ("outer braces", "{ a = 1 }\n", {"a": 1}),
    ("colon and equals sign", "a : 1, b = 2", {"a": 1, "b": 2}),
    ("no separator before an object", "a { b = 1 }", {"a": {"b": 1}}),
    ("a brace on the next line", "a\n{ b = 1 }", {"a": {"b": 1}}),
    ("a value on the next line", "a =\n  1", {"a": 1}),
    ("newlines instead of commas", "a = [\n1\n2\n]\nb = 1", {"a": [1, 2], "b": 1}),
    ("trailing commas", "a = [1, 2,]\nb { x = 1, }", {"a": [1, 2], "b": {"x": 1}}),
    ("carriage returns", "a = 1\r\nb = x y\r\n", {"a": 1, "b": "x y"}),
    ("comments after values", "a = 1 # x\nb = y // z\nc = 2// w", {"a": 1, "b": "y", "c": 2}),
    ("a comment inside a list", "a = [ # first\n 1 // one\n, 2 ]", {"a": [1, 2]}),
    # keys
    ("dotted keys", "a.b.c = 1\na.b.d = 2", {"a": {"b": {"c": 1, "d": 2}}}),
    ("a quoted key with dots", '"a.b" = 1', {"a.b": 1}),
    ("a quoted part of a key", 'a."b.c".d = 1', {"a": {"b.c": {"d": 1}}}),
    ("a quoted key that holds a quote", r'"\"" = 1', {'"': 1}),
    ("an empty quoted key", '"" = 1', {"": 1}),
    ("a key of digits", "1.2 = 3", {"1": {"2": 3}}),
    ("a key with blanks", "a b = 1", {"a b": 1}),
    ("blanks around dots", "a . b = 1", {"a": {"b": 1}}),
    ("a key with hyphens", "max-jobs_2 = 1", {"max-jobs_2": 1}),
    ("a key beyond ASCII", "ключ = значение", {"ключ": "значение"}),
    ("a quoted key called include", '"include" = 1', {"include": 1}),
    ("a longer key that begins so", "includes = 1\ninclude.x = 2", {"includes": 1, "include": {"x": 2}}),
    # scalars
    ("integers", "a = 1, b = -5, c = 0", {"a": 1, "b": -5, "c": 0}),
    ("real numbers", "a = 1.5, b = 1e+3, c = -2.5E-1", {"a": 1.5, "b": 1000.0, "c": -0.25}),
    ("what JSON does not take for a number", "a = 007, b = 1., c = .5", {"a": "007", "b": "1.", "c": ".5"}),
    ("a big number", "a = 123456789012345678901234567890", {"a": 123456789012345678901234567890}),
    ("booleans and null", "a = true, b = false, c = null", {"a": True, "b": False, "c": None}),
    ("words that are like booleans", "a = yes, b = TRUE", {"a": "yes", "b": "TRUE"}),
    ("booleans in text", "a = true story\nb = not null", {"a": "true story", "b": "not null"}),
    ("numbers in text", "a = 10 green bottles", {"a": "10 green bottles"}),
    ("single quotes are not quotes", "a = 'a'\nb = it's", {"a": "'a'", "b": "it's"}),
    ("durations stay text", "a = 10 s\nb = [5m, 1 hour]", {"a": "10 s", "b": ["5m", "1 hour"]}),
    ("sizes stay text", "a = 64 MiB\nb = 512m", {"a": "64 MiB", "b": "512m"}),
    ("a path", "a = /tmp/x.jar", {"a": "/tmp/x.jar"}),
    ("a quoted URL", 'a = "http://h:1/p?q#f"', {"a": "http://h:1/p?q#f"}),
    ("include as a word of a value", "a = please include it", {"a": "please include it"}),
    ("an include in a value", 'a = include "x"', {"a": "include x"}),
    ("an include in a quoted string", r'a = "include \"x\""', {"a": 'include "x"'}),
    ("a reference in a quoted string", 'a = "${HOME}"', {"a": "${HOME}"}),
    # quoted strings
    ("escapes", r'a = "\"\\\/\b\f\n\r\t"', {"a": '"\\/\b\f\n\r\t'}),
    ("unicode escapes", r'a = "\u00e9\ud83d\ude00"', {"a": "é😀"}),
    ("an empty text", 'a = ""', {"a": ""}),
    ("quoted and bare text side by side", 'a = x "y z" w', {"a": "x y z w"}),
    ("adjoining texts", 'a = x"y"z', {"a": "xyz"}),
    ("inner blanks are kept, outer ones not", "a =   x   y   ", {"a": "x   y"}),
    ("several lines", 'a = """x\n  "y" \\n"""', {"a": 'x\n  "y" \\n'}),
    ("quotes at the end of several lines", 'a = """x""""', {"a": 'x"'}),
    # lists and objects
    ("nested", "a = [[1], {b = [{}]}]", {"a": [[1], {"b": [{}]}]}),
    ("objects merge", "a { x = 1, y = 1 }\na { y = 2 }", {"a": {"x": 1, "y": 2}}),
    ("a scalar between objects hides", "a { x = 1 }\na = 5\na { y = 2 }", {"a": {"y": 2}}),
    ("the last one wins", "a = 1\na = [2]\na = 3", {"a": 3}),
    ("lists side by side", "a = [1] [2]", {"a": [1, 2]}),
    ("objects side by side", "a = {x = 1} {y = 2}", {"a": {"x": 1, "y": 2}}),
    ("null hides", "a { x = 1 }\na = null", {"a": None}),
    # appending
    ("+= makes a list", "a += 1\na += 2", {"a": [1, 2]}),
    ("+= goes on with a list", "a = [0]\na += x y\na += {b = 1}", {"a": [0, "x y", {"b": 1}]}),
    ("+= appends a list as one item", "a = [0]\na += [1]", {"a": [0, [1]]}),
    ("+= in an object and below a path", "x { a += 1, a += 2 }\nx.a += 3", {"x": {"a": [1, 2, 3]}}),
    ("+= in a re-opened object", "a { c = [1] }\na { c += 2 }", {"a": {"c": [1, 2]}}),
    (
        "+= in an object that is re-opened by a path",
        "a.b.c = [1]\na.b { c += 2 }\na { b.c += 3 }",
        {"a": {"b": {"c": [1, 2, 3]}}},
    ),
    (
        "+= over a list that an object would get by reference, which the reference does not see",
        "x { c = [1] }\na = ${x}\na { c += 2 }",
        {"x": {"c": [1]}, "a": {"c": [2]}},
    ),
    ("+= in an object over a scalar", "a = 1\na { c += ${?z} }\na { c += 2 }", {"a": {"c": [2]}}),
    ("lists side by side in a re-opened object", "a { c = [1] }\na { c = ${a.c} [2] }", {"a": {"c": [1, 2]}}),
    ("+= onto a reference", "b = [1]\na = ${b}\na += 2\na += 3", {"b": [1], "a": [1, 2, 3]}),
    ("+= of a reference", "b = 7\na += ${b}\na += ${?c}", {"b": 7, "a": [7]}),
    # references
    ("a reference", "a = 1\nb = ${a}", {"a": 1, "b": 1}),
    ("a reference ahead", "b = ${a}\na = 1\na = 2", {"b": 2, "a": 2}),
    ("a reference in text", "a = 1.10\nb = v${a}-x", {"a": 1.1, "b": "v1.10-x"}),
    (
        "booleans and null in text",
        "a = true, n = null\nb = ${a} ${n}",
        {"a": True, "n": None, "b": "true null"},
    ),
    ("a reference to a path", 'a."b.c" { d = 1 }\nx = ${a."b.c".d}', {"a": {"b.c": {"d": 1}}, "x": 1}),
    ("blanks in a reference", "a = 1\nb = ${ a }", {"a": 1, "b": 1}),
    ("an extended object", "a {x = 1}\nb = ${a} {y = 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
    ("an extended list", "a = [1]\nb = ${a} [2]", {"a": [1], "b": [1, 2]}),
    ("in a list", "x = 5\na = [${x}, ${?q}, 3]", {"x": 5, "a": [5, 3]}),
    ("an optional one drops its key", "a = ${?nope}\nb = x${?nope}y", {"b": "xy"}),
    ("only optional ones drop the key", "a = ${?x}${?y}", {}),
    ("an optional one keeps what was before", "a = 1\na = ${?nope}", {"a": 1}),
    ("an optional one with an object", "a = ${?nope} {x = 1}", {"a": {"x": 1}}),
    ("to null", "a = null\nb = ${a}", {"a": None, "b": None}),
    ("merged later", "a { x = ${z} }\nz = 1\nb = ${a}\nb.x = 2", {"a": {"x": 1}, "z": 1, "b": {"x": 2}}),
    ("a chain", "a = ${b}\nb = ${c}\nc = 1", {"a": 1, "b": 1, "c": 1}),
    ("what it is in, optionally", "a.b = ${?a}", {"a": {}}),
    ("what it is in, over another", "a { b = 1, b = ${?a} }", {"a": {"b": {"b": 1}}}),
    ("what it is in, below another", "a { b = ${a}, b = { x = 1 } }", {"a": {"b": {"x": 1}}}),
    ("blanks between two that are nothing", "a = ${?x} ${?y}", {"a": " "}),
    (
        "a blank before a list is nothing",
        "b = [1]\na = ${?x} [2], c = ${b} ${b}",
        {"b": [1], "a": [2], "c": [1, 1]},
    ),
    (
        "an object with numbers for keys beside a list",
        'a { "1" = y, "0" = x }\nb = ${a} [z]',
        {"a": {"1": "y", "0": "x"}, "b": ["x", "y", "z"]},
    ),
    ("each other, where the first has a value", "a += ${?c}\nc = ${?a}", {"a": [], "c": []}),
    ("a circle below a value", "b.c += ${?a}\na = ${b}\na = ${a}", {"b": {"c": []}, "a": {"c": []}}),
    (
        "the settled part of an object over a scalar",
        "a = 1\na { c = {}, c = null, b.a += ${?c} [y] }\na.b {}\na.a = ${?a.c}",
        {"a": {"c": None, "b": {"a": [["y"]]}, "a": None}},
    ),
    (
        "a part of an object whose lower part is being put in",
        "x.base { x {}, x = ${?base.in}, x.out += ${?base} }\nbase = ${?x.base}",
        {"x": {"base": {"x": {"out": [{"x": {}}]}}}, "base": {"x": {}}},
    ),
    (
        "an object that stands under two keys, the first of which is replaced",
        "a = { a = ${b.b} } { b { b = ${?b}, b.a = x }, a {} }\nb = ${?a}",
        {
            "a": {"a": {"b": {"a": "x"}}, "b": {"b": {"a": "x"}}},
            "b": {"a": {"b": {"a": "x"}}, "b": {"b": {"a": "x"}}},
        },
    ),
    (
        "an object under two keys, in the order of a copied map",
        "c { c { c = ${?e}, c += ${?c} } }\ne = ${?c}\nc = ${?h.c}\nh = ${?e}",
        {"c": {"c": []}, "e": {"c": []}, "h": {"c": []}},
    ),
    (
        "what is below a definition, met a second time",
        "a += ${?a}\na { a += 2 }\na { a += ${?a} }\na = ${?a}",
        {"a": {"a": [{"a": [2]}]}},
    ),
    # references to oneself, from the specification
    ("itself", "a = [1]\na = ${a} [2]\na = ${a} [3]", {"a": [1, 2, 3]}),
    ("itself as text", 'p = "a:b"\np = ${p}":c"', {"p": "a:b:c"}),
    ("itself with nothing before, optional", "a = ${?a}x", {"a": "x"}),
    ("itself in an object", "a { b = [1], b = ${a.b} [2] }", {"a": {"b": [1, 2]}}),
    ("itself by a dotted key", "a.b = 3\na.b = ${a.b}", {"a": {"b": 3}}),
    (
        "a part of itself",
        "foo : { a : { c : 1 } }\nfoo : ${foo.a}\nfoo : { a : 2 }",
        {"foo": {"a": 2, "c": 1}},
    ),
    ("a neighbour", "bar : { foo : 42, baz : ${bar.foo} }", {"bar": {"foo": 42, "baz": 42}}),
    (
        "a neighbour that changes later",
        "bar : { foo : 42, baz : ${bar.foo} }\nbar : { foo : 43 }",
        {"bar": {"foo": 43, "baz": 43}},
    ),
    (
        "two objects that refer to each other",
        "bar : { a : ${foo.d}, b : 1 }\nbar.b = 3\nfoo : { c : ${bar.b}, d : 2 }\nfoo.d = 4",
        {"bar": {"a": 4, "b": 3}, "foo": {"c": 3, "d": 4}},
    ),
]


@pytest.mark.parametrize(("text", "expected"), [pytest.param(t, e, id=i) for i, t, e in VALUES])
def test_hocon_means_what_its_specification_says(text: str, expected: dict[str, Any]) -> None:
    found = parse_untrusted(text)
    assert found == expected
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("text", [t for _, t, _ in VALUES])
def test_bytes_parse_like_strings(text: str) -> None:
    assert parse_untrusted(text.encode()) == parse_untrusted(text)


def test_keys_keep_the_order_of_the_text() -> None:
    assert list(parse_untrusted("c = 1\na = 2\nb = ${a}\na = 3")) == ["c", "a", "b"]


def test_the_caller_owns_the_returned_object() -> None:
    text = "a = [1]\nb = ${a}"
    first = parse_untrusted(text)
    first["a"].append(2)
    assert first["b"] == [1]
    assert parse_untrusted(text) == {"a": [1], "b": [1]}


# -- settings below settings ---------------------------------------------------------------------------

SPECULATION = {"speculation": True, "speculation.interval": "10s"}


@pytest.mark.parametrize(
    "text",
    [
        "spark.context-settings { spark.speculation = true, spark.speculation.interval = 10s }",
        "spark.context-settings { spark.speculation.interval = 10s, spark.speculation = true }",
        "spark { context-settings { spark { speculation { interval = 10s }, speculation = true } } }",
        "spark { context-settings.spark.speculation = true }\n"
        "spark.context-settings.spark.speculation.interval = 10s",
        "x = true, spark.context-settings { spark.speculation = ${x}, spark.speculation.interval = 10s }",
        "x = true, spark.context-settings { spark.speculation.interval = 10s, spark.speculation = ${x} }",
        "x = 10s, spark.context-settings { spark.speculation = true, spark.speculation.interval = ${x} }",
        '{"spark": {"context-settings": {"spark": {"speculation": true, '
        '"speculation": {"interval": "10s"}}}}}',
    ],
)
def test_a_setting_of_spark_keeps_its_value_beside_settings_below_it(text: str) -> None:
    assert all_settings(parse_untrusted(text))["spark"] == {"context-settings": {"spark": SPECULATION}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spark.speculation = true, spark.speculation.interval = 10s", {"interval": "10s"}),
        ("spark.speculation.interval = 10s, spark.speculation = true", True),
    ],
)
def test_in_parsed_text_the_last_definition_wins(text: str, expected: object) -> None:
    found = parse_untrusted(f"spark.context-settings {{ {text} }}\ncopy = ${{spark.context-settings}}")
    assert found["spark"]["context-settings"] == found["copy"] == {"spark": {"speculation": expected}}


def test_the_same_holds_for_each_configured_context_and_for_every_prefix() -> None:
    text = """spark.contexts { c {
        passthrough.a = 1, passthrough.a.b = 2, passthrough.a = 3, hadoop { x.y.z = 2, x = 1 }
    } }"""
    assert all_settings(parse_untrusted(text))["spark"]["contexts"] == {
        "c": {"passthrough": {"a": 3, "a.b": 2}, "hadoop": {"x": 1, "x.y.z": 2}}
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1, a.b = 2", {"a": {"b": 2}}),
        ("a.b = 2, a = 1", {"a": 1}),
        (
            "spark.context-settings = 1, spark.context-settings.a = 2",
            {"spark": {"context-settings": {"a": 2}}},
        ),
        ("spark.contexts.c = 1, spark.contexts.c.a = 2", {"spark": {"contexts": {"c": {"a": 2}}}}),
        (
            "spark.context-settings.a { b = 1 }, spark.context-settings.a = [1]",
            {"spark": {"context-settings": {"a": [1]}}},
        ),
        (
            "spark.context-settings.a = 1, spark.context-settings { a = null, a.b = 2 }",
            {"spark": {"context-settings": {"a": {"b": 2}}}},
        ),
    ],
)
def test_elsewhere_the_last_definition_hides_the_others(text: str, expected: dict[str, Any]) -> None:
    assert all_settings(parse_untrusted(text)) == expected


def test_a_file_has_settings_below_settings_of_its_includes_too(tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text(
        'spark.context-settings { include "speculation" }\nspark.context-settings.spark.speculation = true'
    )
    (tmp_path / "speculation.conf").write_text("spark.speculation { interval = ${every} }\nevery = 10s")
    found = parse_file(tmp_path / "main.conf")
    assert found["spark"]["context-settings"]["spark"] == SPECULATION


# -- JSON ----------------------------------------------------------------------------------------------


def test_json_that_repeats_a_key_is_merged_as_hocon() -> None:
    assert parse_untrusted('{"a": {"x": 1}, "a": {"y": 2}, "b": 1, "b": 2}') == {
        "a": {"x": 1, "y": 2},
        "b": 2,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a" : 1, "a"\n: 2, "b": "\\":"}', {"a": 2, "b": '":'}),
        ('{"a": 1, "\\u0061": 2, "b": "c:d"}', {"a": 2, "b": "c:d"}),
        ('{"a": [{"x": 1, "y": {"z": 1}}], "a": [], "b": "\\": \\" :"}', {"a": [], "b": '": " :'}),
        ('{"a": {"x": {"y": 1}}, "a": {"x": {"z": "\\":"}}}', {"a": {"x": {"y": 1, "z": '":'}}}),
    ],
)
def test_repeated_keys_are_merged_however_they_are_written(text: str, expected: dict[str, Any]) -> None:
    assert parse_untrusted(text) == expected


def test_colons_and_quotes_in_strings_do_not_look_like_repeated_keys() -> None:
    text = json.dumps({"url": "http://a:80", "quoted": '{"x": 1, "x": 2}', "list": ["a:", '":', {"b": ":"}]})
    found = read_untrusted(text, max_bytes=1000, max_depth=10)
    assert isinstance(found, WrittenObject)
    assert found == json.loads(text)


def test_nan_and_infinity_are_strings_because_json_lacks_them() -> None:
    assert parse_untrusted('{"a": NaN, "b": -Infinity}') == {"a": "NaN", "b": "-Infinity"}


def test_json_keys_with_dots_stay_one_key() -> None:
    assert parse_untrusted('{"spark.executor.memory": "1g"}') == {"spark.executor.memory": "1g"}


def parsed_or_error(text: str | bytes) -> dict[str, Any] | str:
    """Return the parsed text, or the message of the only error that is allowed."""
    try:
        return parse_untrusted(text)
    except InvalidConfig as error:
        return str(error)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
objects = st.dictionaries(
    st.text(),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
        max_leaves=12,
    ),
    max_size=5,
)


@given(objects)
def test_every_json_object_comes_back_equal(value: dict[str, Any]) -> None:
    assert parse_untrusted(json.dumps(value)) == value


@given(objects, st.booleans(), st.sampled_from([None, 2]))
def test_every_json_object_is_the_same_as_hocon(
    value: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_untrusted(f"// a comment makes it HOCON\n{text}") == value


WORDS = """a b . = : += { } [ ] , " \""" ${a} ${?b} ${ $ # // \\ \\u include 1 - 1e5 1e+5 1e999 null true é"""
pieces = st.sampled_from([*WORDS.split(), " ", "\n", "\x00", "\ud800", 'include "x"'])


@given(st.lists(pieces, max_size=30).map("".join))
def test_any_hocon_like_text_gives_json_or_one_clear_error(text: str) -> None:
    value = parsed_or_error(text)
    assert isinstance(value, str) or parse_untrusted(json.dumps(value, allow_nan=False)) == value


@given(st.text() | st.binary())
def test_any_bytes_give_json_or_one_clear_error(text: str | bytes) -> None:
    assert json.dumps(parsed_or_error(text), allow_nan=False)


# -- errors --------------------------------------------------------------------------------------------

ERRORS = [
    ("a = ", 1, 5, "expected a value, found the end of the text"),
    ("a = 1\nb = }", 2, 5, "expected a value, found '}'"),
    ("a = 1\nb", 2, 2, "expected '=', ':', '+=' or '{' after the key, found the end of the text"),
    ("http {\n  host 127.0.0.1\n}", 2, 17, "after the key, found the end of the line"),
    ("http.host # comment\n\nport = 1", 1, 20, "after the key, found the end of the line"),
    ("= 1", 1, 1, "expected a key, found '='"),
    ("a = 1,, b = 2", 1, 7, "expected a key, found ','"),
    ("a..b = 1", 1, 5, "a key has an empty part"),
    (".a = 1", 1, 3, "a key has an empty part"),
    ("a. = 1", 1, 4, "a key ends with a dot"),
    ("a { b = 1", 1, 3, "this '{' is never closed"),
    ("a = [1, 2", 1, 5, "this '[' is never closed"),
    ("a = [1, 2}", 1, 10, "expected a value, found '}'"),
    ("a = 1 }", 1, 7, "this '}' has no matching '{'"),
    ("{ a = 1 } b", 1, 11, "expected nothing after the closing '}'"),
    ("[1, 2]", 1, 1, "must be an object, not a list"),
    ("q = select a, b from t", 1, 23, "the comma before the key ended a value: put a value with commas in"),
    ('{"a": 1, "b" 2}', 1, 15, "after the key, found '}' (line"),
    ("just words", 1, 11, "after the key, found the end of the text"),
    ('a = "x', 1, 5, "does not end on its line"),
    ('a = "x\ny"', 1, 5, "does not end on its line"),
    ('a = """x', 1, 5, "is never closed"),
    ('a = "\\q"', 1, 6, "Invalid \\escape"),
    ("a = http://x", 1, 9, "':' is not allowed in an unquoted string"),
    ("a = x@y", 1, 6, "'@' is not allowed in an unquoted string"),
    ("a = c:\\x", 1, 6, "':' is not allowed in an unquoted string"),
    ("a = $x", 1, 5, "'$' is allowed in an unquoted string only as ${path}"),
    ("a = ${x", 1, 8, "expected '}' after the path"),
    ("a = ${}", 1, 7, "expected a path in ${…}"),
    ("a = [1] x", 1, 5, "cannot be joined"),
    ("b { x = 1 }\na = ${b} x", 2, 5, "cannot be joined"),
    ("a = 1\na += 2", 2, 1, "'+=' can only append to a list"),
    ("a = 1e400", 1, 5, "is too large"),
    ("a = " + "1" * 1001, 1, 5, "a number can have at most 1000 characters"),
    ('{"a": ' + "1" * 1001 + "}", 1, 7, "a number can have at most 1000 characters"),
    ('{"a": -' + "1" * 1000 + "}", 1, 7, "a number can have at most 1000 characters"),
    ("\n\n  a = ${b.c}", 3, 7, "${b.c} is not defined in this configuration"),
    ("a = ${a}", 1, 5, "${a} refers to itself, and has no earlier definition"),
    ("a = ${b}\nb = ${a}", 2, 5, "${a} refers to itself, and has no earlier definition"),
    ("a = ${b} x\nb = y ${a}", 2, 7, "${a} refers to itself"),
    ("a.b = ${a.b.c}", 1, 7, "${a.b.c} refers to itself"),
    ("a { b = ${a} }", 1, 9, "${a} refers to itself"),
    ("a = [${a}]", 1, 6, "${a} refers to itself"),
    ("a = [1] ${?z} [${a}]", 1, 16, "${a} refers to itself"),
    ("a = ${b}\nb { c = ${a} {d = 1} }", 2, 9, "${a} refers to itself"),
    ("a = ${b} {x = 1}\nb {y = ${a.x}}", 2, 8, "${a.x} refers to itself"),
    ("b = ${c} { pa = [1], pb = ${b.pa} }\nc {}", 1, 27, "${b.pa} refers to itself"),
    ('out = "/tmp"\nout = ${out.base}/x', 2, 7, "${out.base} is not defined in this configuration"),
    ("x = [1], x = ${x} ${x.y}", 1, 19, "${x.y} is not defined in this configuration"),
    ("a = ${undefined}\na = ${b}\nb = 5", 1, 5, "${undefined} is not defined in this configuration"),
    ("x = [{ a += 1 }]", 1, 8, "'+=' is not allowed inside a list"),
    ("a += { b += 1 }", 1, 8, "'+=' is not allowed inside a list"),
    ("b = [1]\na = ${?u} ${b}", 2, 5, "cannot be joined"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), ERRORS)
def test_an_error_gives_the_position_and_the_reason(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_untrusted(text)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize("scalar", ["5", '"text"', "null"])
def test_a_lone_scalar_is_not_a_configuration(scalar: str) -> None:
    with pytest.raises(InvalidConfig, match="after the key"):
        parse_untrusted(scalar)


@pytest.mark.parametrize("text", [b"a = \xff", b'{"a": "\xc3"}', "a = \ud800"])
def test_bytes_that_are_not_utf8_are_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidConfig, match="must be encoded in UTF-8"):
        parse_untrusted(text)


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'a = "\udc00x"', r'"\ud800" = 1'])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="surrogates must come in pairs"):
        parse_untrusted(text)
