"""What a user's HOCON may not do: read files and variables, or exhaust the server."""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_hocon import parsed_or_error

from jobserver_core.config.hocon import parse_untrusted
from jobserver_core.config.trees import all_settings
from jobserver_core.errors import InvalidConfig

# -- out of reach for users ----------------------------------------------------------------------------

INCLUDES = [
    'include "secret.conf"',
    'include   "secret.conf"',
    'include file("secret.conf")',
    'include url("file:secret.conf")',
    'include url("http://127.0.0.1:9/x")',
    'include classpath("secret.conf")',
    'include package("jobserver_core:secret.conf")',
    'include required("secret.conf")',
    'include required(file("secret.conf"))',
    '{ include "secret.conf" }',
    'a { include "secret.conf" }',
    'a = 1, include "secret.conf"',
    'a = [{ include "secret.conf" }]',
    'a = ${?x} { b { include "secret.conf" } }',
    'include"secret.conf"',
    "include secret.conf",
    "include = 1",
    'include # comment\n"secret.conf"',
]


@pytest.mark.parametrize("text", INCLUDES)
def test_no_include_of_any_kind_is_followed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.conf").write_text("stolen = 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match="'include' is"):
        parse_untrusted(text)


@pytest.mark.parametrize(
    "text", ['INCLUDE "secret.conf" = 1', 'a = include file("secret.conf")', 'a = [include "x"]']
)
def test_text_that_only_resembles_an_include_is_a_string(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.conf").write_text("stolen = 1")
    monkeypatch.chdir(tmp_path)
    assert "stolen" not in json.dumps(parse_untrusted(text))


@pytest.mark.parametrize("text", ["a = ${SECRET_OF_THE_SERVER}", "a = x${SECRET_OF_THE_SERVER}"])
def test_the_environment_does_not_answer_a_reference(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "s3cret")
    with pytest.raises(InvalidConfig, match="is not defined in this configuration"):
        parse_untrusted(text)


def test_the_environment_does_not_answer_an_optional_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "s3cret")
    text = "SECRET_OF_THE_SERVER = ${?SECRET_OF_THE_SERVER}\na = [${?SECRET_OF_THE_SERVER}]\nb = ${?HOME}"
    assert parse_untrusted(text) == {"a": []}


# -- limits --------------------------------------------------------------------------------------------


def test_text_over_the_limit_is_refused_and_text_at_the_limit_is_not() -> None:
    assert parse_untrusted("a = xyz", max_bytes=7) == {"a": "xyz"}
    for text in ("a = xyzw", b"a = xyzw", "a = é12", "a = é12".encode()):
        with pytest.raises(InvalidConfig, match="larger than the limit of 7 bytes"):
            parse_untrusted(text, max_bytes=7)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": {"c": 1}}}',
        '{"a": {"b": [1]}}',
        "a { b { c = 1 } }",
        "a.b.c = 1",
        "a { b = [1] }",
        "a = ${b}\nb { c { d = 1 } }\nb = {}",
    ],
)
def test_nesting_to_the_limit_is_fine_and_deeper_is_not(text: str) -> None:
    assert parse_untrusted(text, max_depth=3)
    with pytest.raises(InvalidConfig, match="nest deeper than the limit of 2"):
        parse_untrusted(text, max_depth=2)


def test_wide_json_does_not_count_as_deep() -> None:
    wide: dict[str, Any] = {"a": [{} for _ in range(500)]}
    assert parse_untrusted(json.dumps(wide), max_depth=3) == wide


def test_references_cannot_nest_deeper_than_the_limit() -> None:
    doubled = "\n".join(f"a{i} {{ x {{ y = ${{a{i + 1}}} }} }}" for i in range(40)) + "\na40 = 1"
    with pytest.raises(InvalidConfig, match="nest deeper than the limit of 50, once substitutions"):
        parse_untrusted(doubled, max_depth=50)


@pytest.mark.parametrize("opening", ['{"a":', "[", "a {", "a = [", "a.", '{"a":['])
def test_bottomless_nesting_is_an_error_and_never_a_recursion_error(opening: str) -> None:
    with pytest.raises(InvalidConfig):
        parse_untrusted(opening * 50_000)


def test_the_deepest_limit_that_can_be_configured_works() -> None:
    nested = "a {" * 149 + "b = 1" + "}" * 149
    assert parse_untrusted(nested, max_depth=150)
    assert parse_untrusted('{"a":' * 150 + "1" + "}" * 150, max_depth=150)


def test_text_too_deep_for_the_stack_of_the_caller_is_also_an_error() -> None:
    def deep(left: int) -> dict[str, Any]:
        return deep(left - 1) if left else parse_untrusted("a {" * 90 + "b = 1" + "}" * 90)

    assert deep(1)
    with pytest.raises(InvalidConfig, match="nest deeper"):
        deep(sys.getrecursionlimit() - len(inspect.stack()) - 200)


def test_lists_cannot_nest_deeper_than_the_limit_through_references() -> None:
    text = "\n".join(f"a{i} = [[${{a{i + 1}}}]]" for i in range(40)) + "\na40 = 1"
    with pytest.raises(InvalidConfig, match="nest deeper than the limit of 50, once substitutions"):
        parse_untrusted(text, max_depth=50)


LAUGHS = {
    "text": ("b0 = ha\n", "b{n} = ${{b{m}}}${{b{m}}}"),
    "lists": ("b0 = [ha]\n", "b{n} = ${{b{m}}}${{b{m}}}"),
    "lists in lists": ("b0 = [ha]\n", "b{n} = [${{b{m}}}, ${{b{m}}}]"),
    "objects": ("b0 {{ x = ha }}\n".format(), "b{n} {{ l = ${{b{m}}}, r = ${{b{m}}} }}"),
    "itself": ("a = [ha]\nb0 = 1\n", "a = ${{a}}${{a}}\nb{n} = 1"),
    "backwards": ("b41 = ha\n", "b{m} = ${{b{n}}}${{b{n}}}"),
}


@pytest.mark.parametrize(("first", "line"), LAUGHS.values(), ids=LAUGHS)
def test_references_cannot_blow_up_the_result(first: str, line: str) -> None:
    text = first + "\n".join(line.format(n=n, m=n - 1) for n in range(1, 42))
    with pytest.raises(InvalidConfig, match=r"larger than the limit of|too many steps"):
        parse_untrusted(text, max_bytes=64 * 1024)


def test_every_reference_to_a_long_string_counts() -> None:
    text = f"a = {'x' * 20_000}\nb = ${{a}}\nc = ${{a}}\n"
    assert len(parse_untrusted(text, max_bytes=64 * 1024)) == 3
    with pytest.raises(InvalidConfig, match="larger than the limit of 65536 bytes"):
        parse_untrusted(text + "d = [${a}]", max_bytes=64 * 1024)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_order_of_keys_does_not_change_the_meaning_of_a_cycle(order: tuple[int, ...]) -> None:
    def written(*lines: str) -> str:
        return "\n".join(lines[index] for index in order)

    assert parse_untrusted(written("a = 1", "a = ${b}", "b = ${a}")) == {"a": 1, "b": 1}
    assert parse_untrusted(written("a = 1", "a = ${?b}", "b = ${?a}")) == {"a": 1, "b": 1}
    joined = parse_untrusted(written("a = [1]", "a = ${b} [3]", "b = ${a} [2]"))
    assert joined == {"a": [1, 2, 3], "b": [1, 2]}


def test_merging_the_same_object_repeatedly_is_cheap() -> None:
    text = "b0 { x = 1 }\n" + "\n".join(f"b{n} = ${{b{n - 1}}}${{b{n - 1}}}" for n in range(1, 60))
    assert parse_untrusted(text)["b59"] == {"x": 1}


def test_a_reference_that_is_used_often_is_worked_out_once() -> None:
    text = "b0 = ${?x}\n" + "\n".join(f"b{n} = ${{?b{n - 1}}}${{?b{n - 1}}}" for n in range(1, 45))
    assert parse_untrusted(text) == {}


def test_a_long_chain_of_references_is_an_error() -> None:
    text = "\n".join(f"b{n} = ${{b{n + 1}}}" for n in range(500)) + "\nb500 = 1"
    with pytest.raises(InvalidConfig, match="refer to each other more than 100 deep"):
        parse_untrusted(text)


@pytest.mark.parametrize("first", ["a = [1]", "a = x"])
def test_a_long_chain_of_references_to_earlier_definitions_is_an_error(first: str) -> None:
    again = "\n" + first.replace("=", "= ${a}")
    assert parse_untrusted(first + again * 20)
    with pytest.raises(InvalidConfig, match=r"substitutions refer to each other.* deep"):
        parse_untrusted(first + again * 500)


def test_many_references_are_not_a_chain() -> None:
    count = 3000
    text = "b0 = 1\n" + "\n".join(f"b{n} = ${{b{n - 1}}}" for n in range(1, count))
    assert set(parse_untrusted(text).values()) == {1}


def test_many_lookups_through_many_layers_resolve_each_layer_once() -> None:
    layers = "x { k = 1 }\n" + "a = ${x}\n" * 2000
    lookups = "\n".join(f"b{n} = ${{a.k}}" for n in range(2000))
    assert parse_untrusted(layers + lookups)["b1999"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a = [" + "1," * 100_001 + "]"])
def test_more_values_than_hocon_can_read_quickly_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"too many values: more than 100000, .* send them as JSON"):
        parse_untrusted(text)


def test_json_may_have_any_number_of_values() -> None:
    assert len(parse_untrusted('{"a": [' + "1," * 100_001 + "1]}")["a"]) == 100_002


HOSTILE = {
    "words": "a = " + "x " * 32_000,
    "quotes": "a = " + '""' * 32_000,
    "appends": "a += 1\n" * 9_000,
    "dots": "." * 64_000,
    "blanks": "a =" + " " * 64_000,
    "newlines": "\n" * 64_000,
    "slashes": "a = " + "/ " * 32_000,
    "backslashes": 'a = "' + '\\"' * 32_000,
    "triple quotes": 'a = """' + '"' * 64_000,
    "openings": "a = ${" * 10_000,
    "a long number": '{"a": ' + "1" * 64_000 + "}",
    "a long real number": '{"a": 1.' + "1" * 64_000 + "}",
    "blank keys": "a b" * 20_000,
    "empty lists": "a = " + "[]" * 32_000,
    "stars": "a = " + "*" * 64_000,
}


CIRCLES = "\n".join(
    f"b{n} = ${{?b{(n * 7 + 3) % 60}}}${{?b{(n * 11 + 3) % 60}}}${{?b{(n * 13 + 3) % 60}}}${{?x}}"
    for n in range(60)
)
"""Substitutions whose results are forgotten and worked out again and again; ``x`` is to be expensive."""
MERGES = ",".join(f"a{n} = 1, a{n} = ${{?q}} 2" for n in range(12_000))

HOSTILE_MEBIBYTES = {
    "many errors far down": "x=[" + "${k}," * 30_000 + "]\n" + "\n" * 880_000 + "k=1\n" + "k=${k.z}\n" * 4,
    "the same, optional": "x=[" + "${?k}," * 30_000 + "]\n" + "\n" * 860_000 + "k=1\n" + "k=${?k.z}\n" * 4,
    "circles": "\n".join(f"b{n}=${{?b{(n * 7 + 1) % 60}}}${{?b{(n * 11 + 3) % 60}}}" for n in range(60)),
    "re-opened often": "y {}\na = ${y}\n" + "".join(f"a.k{n} = 1\n" for n in range(70_000)),
    "many appends": "z = 1\n" + "".join(f"a{n} = []\na{n} += ${{z}}\n" for n in range(20_000)),
    "appends deep down": "a {" * 90 + "z += 1\n" * 30_000 + "}" * 90,
    "layers deep down": "a {" * 90 + "z = ${?x} {}\n" * 20_000 + "}" * 90,
    "references deep down": "a {" * 90 + "z = ${?x}\n" * 49_000 + "}" * 90,
    "circles deep down": "a {" * 80
    + "\n".join(
        f"b{n} = ${{?{'a.' * 80}b{(n * 7 + 1) % 60}}}${{?{'a.' * 80}b{(n * 11 + 3) % 60}}}"
        for n in range(2_500)
    )
    + "}" * 80,
    "circles through one block": "".join(
        f"a{n} = ${{?r}} {{ x = 1 }}\nr {{ k{n} += ${{?a{n}}} }}\n" for n in range(3_000)
    ),
    "merges in a long list": "x = [" + "1," * 30_000 + "{" + MERGES + "}]",
    "merges in a list": "x = [" + "{ a = 1, a = ${?q} 2 }," * 14_000 + "]",
    "merges in a long concatenation": "x = " + "${?q}" * 20_000 + "{" + MERGES + "}",
    "an object as a list": "x { 0 = 1, "
    + ", ".join(f"k{n} = 1" for n in range(30_000))
    + "}\ny = [1]"
    + "${x}" * 20_000,
    "circles through a list": "x = [[" + "1," * 20_000 + "${?b0}]]\n" + CIRCLES,
    "circles through a concatenation": 'e = ""\nx = ' + "${?e}" * 15_000 + "${?b0}\n" + CIRCLES,
    "circles through a long key": f"x {{ w {{ {'k' * 500_000} = ${{?b0}}, z = ${{?q}} }} }}\n" + CIRCLES,
    "circles through a re-opened block": "x { w { z = ${?b0} } }\n"
    + CIRCLES
    + "\n"
    + "x.w { p = 1 }\n" * 20_000,
    "doubling definitions": '"" = ${?b29.k}\nb0 = [${?q}]\n'
    + "\n".join(f"b{n} = ${{?b{n - 1}}}\nb{n} = ${{?b{n - 1}}}" for n in range(1, 30)),
    "many layers": '"" {'
    + ",".join(f"r{n} = ${{?c{n}.z}}" for n in range(4_000))
    + "}\n"
    + "\n".join(f"c{n} = ${{?y}}\nc{n} {{ k = ${{?q}} }}" for n in range(4_000))
    + "\ny { z = ${?q} 1 }\n"
    + "y.k = [${?q}]\n" * 10_000,
    "a wide object over scalars": "w {"
    + ",".join(f"k{n} = 1" for n in range(30_000))
    + "}\n"
    + "\n".join(f"a{n} = 1, a{n} = ${{w}}" for n in range(12_000)),
    "long keys in many objects": '"" {'
    + ",".join(f"r{n} = ${{?c{n}.z}}" for n in range(3_000))
    + "}\n"
    + "\n".join(f"c{n} = ${{?y}}\nc{n} {{ z {{ w = ${{?q}} }} }}" for n in range(3_000))
    + f"\ny {{ z {{ {'k' * 380_000} = ${{?q}}, x{'k' * 380_000} = ${{?q}} }} }}\n",
    "a chain of empty lists": "\n".join(
        f"{chr(0x3400 + n)} = ${{?{chr(0x3400 + n - 1)}}} []" for n in range(17_999, 0, -1)
    )
    + f"\n{chr(0x3400)} = []",
    "many sections of settings": 'q = "\\u0041"\nspark.contexts {'
    + ",".join(f"c{n} {{ a = 1, a.b = 1 }}" for n in range(19_900))
    + "}",
    "settings deep down": "spark.context-settings {"
    + "a {" * 94
    + ",".join(f"k{n} = 1" for n in range(90_000))
    + "}" * 95,
    "settings below a long key": f"spark.context-settings.{'x' * 300_000} {{"
    + ",".join(f"a{n} = 1, a{n}.b = 1" for n in range(24_000))
    + "}",
    "settings below settings": "x = 1\n"
    + "".join(f"spark.context-settings {{ a{n} = ${{x}} x, a{n}.b = ${{x}} }}\n" for n in range(15_000)),
}
"""Documents that once took more than two seconds on an idle machine, or could, or gigabytes of memory."""


def cost(text: str) -> float:
    """Return the processor time that a document takes, whether it is accepted or refused."""
    started = time.process_time()
    found = parsed_or_error(text)
    if isinstance(found, dict):
        with suppress(InvalidConfig):
            all_settings(found)
    else:
        assert 10 < len(found) < 300
    return time.process_time() - started


@pytest.fixture(scope="module")
def harmless_cost() -> float:
    """What a plain document of a mebibyte costs here: a fifth of a second on an idle machine."""
    text = "".join(f"key{n} = {n}\n" for n in range(62_000))
    return statistics.median(cost(text) for _ in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_hostile_text_costs_no_more_than_a_long_harmless_one(text: str, harmless_cost: float) -> None:
    assert cost(text) < 3 * harmless_cost


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE_MEBIBYTES.values(), ids=HOSTILE_MEBIBYTES)
def test_any_mebibyte_of_text_is_cheap_to_parse(text: str, harmless_cost: float) -> None:
    assert len(text) <= 1024 * 1024
    assert cost(text) < 10 * harmless_cost


def test_a_path_in_a_substitution_is_no_longer_than_blocks_can_nest() -> None:
    assert parse_untrusted(f"a = ${{?{'.'.join('b' * 100)}}}") == {}
    with pytest.raises(InvalidConfig, match="can have at most 100 parts"):
        parse_untrusted(f"a = ${{?{'.'.join('b' * 101)}}}")


def test_errors_are_short_and_can_be_encoded() -> None:
    for text in (f"a = ${{{'b' * 9_000}}}", r'a = ${"\ud800"}', f"include {'b' * 9_000}({'c' * 9_000}("):
        with pytest.raises(InvalidConfig) as raised:
            parse_untrusted(text)
        assert len(str(raised.value).encode()) < 400


def test_escapes_of_surrogates_are_refused_in_hidden_settings_too() -> None:
    with pytest.raises(InvalidConfig, match="surrogates must come in pairs"):
        parse_untrusted(r'spark.context-settings { a = "\ud800", a.b = 1 }')


def test_thousands_of_appends_are_fine() -> None:
    assert parse_untrusted("a += 1\n" * 9_000) == {"a": [1] * 9_000}
    assert parse_untrusted("a { b { " + "c += 1\n" * 400 + "}}") == {"a": {"b": {"c": [1] * 400}}}
