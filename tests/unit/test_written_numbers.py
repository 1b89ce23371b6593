"""Numbers keep their original spelling, from the posted configuration to the launcher."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core import errors
from jobserver_core.config.hocon import parse_file, parse_untrusted
from jobserver_core.config.loading import load_settings
from jobserver_core.memory import InlineJob, InlineLauncher
from jobserver_core.models import serialization
from jobserver_core.models.json_values import WrittenFloat, dumps, loads, number
from jobserver_core.testing.builders import a_context
from serving import WAIT, a_request, a_server, upload

WRITTEN = [
    "1.10",
    "2.50",
    "1E5",
    "1e+5",
    "1e-2",
    "12345678901234567.89",
    "-0",
    "-0.00",
    "100.000",
    "0.5",
    "7",
    "-7",
]
json_numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)


@given(json_numbers)
def test_a_number_keeps_its_value_and_its_original_spelling(written: str) -> None:
    value = number(written)
    assert value == json.loads(written)
    assert dumps({"v": [value, [value]], "w": value}) == f'{{"v":[{written},[{written}]],"w":{written}}}'
    assert dumps(loads(f"[{written}]")) == f"[{written}]"


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("text", ["v = %s", '{"v": %s}', "v = %s # no JSON", "w = %s\nv = ${w}"])
def test_the_stored_bytes_are_the_written_bytes(text: str, written: str, tmp_path: Path) -> None:
    posted = text % written
    assert f'"v":{written}' in dumps(parse_untrusted(posted))
    file = tmp_path / "a.conf"
    file.write_text(posted)
    assert f'"v":{written}' in dumps(parse_file(file))


@pytest.mark.parametrize(("text", "read"), [("007", "007"), ("1.10 m", "1.10 m"), ("1.", "1."), (".5", ".5")])
def test_numbers_outside_json_become_strings(text: str, read: str) -> None:
    assert parse_untrusted(f"v = {text}") == {"v": read}


def test_a_number_is_a_float_for_everyone_else() -> None:
    value = parse_untrusted("v = 1.10")["v"]
    assert (value, value + 1, isinstance(value, float)) == (1.1, 2.1, True)
    assert (str(value), f"{value}", json.dumps(value)) == ("1.10", "1.10", "1.1")
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (copied, str(copied)) == (1.1, "1.10")
    assert type(parse_untrusted("v = 1.5")["v"]) is float


def test_the_settings_of_a_context_keep_the_text_when_they_are_stored() -> None:
    context = a_context(settings={"spark": {"image": {"tag": WrittenFloat("3.10")}}})
    read = serialization.loads(serialization.dumps(context), type(context))
    assert str(read.settings["spark"]["image"]["tag"]) == "3.10"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        ({"a": {}}, '{"a":{}}'),
        ([[], {}], "[[],{}]"),
        ({"a": [1, "ü", None, True, 1.5], "b": (1, [2])}, '{"a":[1,"\\u00fc",null,true,1.5],"b":[1,[2]]}'),
    ],
)
def test_values_become_compact_json(value: Any, text: str) -> None:
    assert dumps(value) == text


def test_values_that_json_cannot_represent_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (float("nan"), [float("inf")], {"a": [{"b": float("-inf")}]}, endless):
        with pytest.raises(ValueError, match=r"JSON compliant|contains itself"):
            dumps(value)
    for value in (object(), {1: "a"}, [{"a": {2: "b"}}]):
        with pytest.raises(TypeError, match=r"serializable|keys must be strings"):
            dumps(value)
    assert dumps([float("nan"), [float("-inf")]], allow_nan=True) == "[NaN,[-Infinity]]"


def test_a_server_stores_shows_and_launches_numbers_as_they_were_posted(tmp_path: Path) -> None:
    file = tmp_path / "server.conf"
    file.write_text("jobserver.jobs.default-config { rate = 0.10, below = 2.50 }")

    def texts(job: InlineJob) -> list[str]:
        return [str(job.config[name]) for name in ("v", "n", "rate", "below")]

    launcher = InlineLauncher({"w.Texts": texts})
    with a_server(settings=load_settings(file), launcher=launcher) as server:
        upload(server)
        job = server.submit(a_request("w.Texts", "v = 1.10, n = 12345678901234567.89, below = 2.500"))
        assert job.result(WAIT) == ["1.10", "12345678901234567.89", "0.10", "2.500"]
        assert server.job_config(job.id) == '{"v":1.10,"n":12345678901234567.89,"below":2.500}'


def test_requests_that_differ_in_the_text_of_a_number_are_different() -> None:
    with a_server() as server:
        upload(server)
        first = server.submit(a_request("w.Echo", "value = 1.10", idempotency_key="k"))
        assert server.submit(a_request("w.Echo", '{"value": 1.10}', idempotency_key="k")).id == first.id
        with pytest.raises(errors.IdempotencyMismatch):
            server.submit(a_request("w.Echo", "value = 1.1", idempotency_key="k"))
