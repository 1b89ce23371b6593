"""The class and class path that a submit selects."""

from __future__ import annotations

from typing import Any

import pytest

from jobserver_core.errors import InvalidRequest
from jobserver_http.submissions import requested_code

NOTHING = {"appName": None, "classPath": None, "cp": None, "mainClass": None}


def code(config: dict[str, Any] | None = None, **params: str) -> tuple[str, list[str]]:
    class_name, class_path = requested_code({**NOTHING, **params}, config or {})
    return class_name, [str(entry) for entry in class_path]


def test_the_older_pair_takes_precedence_over_cp_and_main_class() -> None:
    assert code(appName="a", classPath="b.C", cp="x,y", mainClass="m.M") == ("b.C", ["a"])


def test_the_query_takes_precedence_over_the_body() -> None:
    body = {"cp": ["u", "v"], "mainClass": "n.N"}
    assert code(body, cp="x,y", mainClass="m.M") == ("m.M", ["x", "y"])
    assert code(body, cp="x,y") == ("n.N", ["x", "y"])
    assert code(body, mainClass="m.M") == ("m.M", ["u", "v"])
    assert code({"cp": "u, v", "mainClass": "n.N"}) == ("n.N", ["u", "v"])


def test_dependencies_of_the_body_go_before_the_application_and_belong_to_it_alone() -> None:
    body = {"dependent-jar-uris": "http://h/d.jar"}
    assert code(body, appName="a", classPath="b.C") == ("b.C", ["http://h/d.jar", "a"])
    assert code(body, cp="x", mainClass="m.M") == ("m.M", ["x"])


NO_CODE = "To start the job appName or cp parameters should be configured!"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, NO_CODE),
        ({"classPath": "a.B"}, NO_CODE),
        ({"mainClass": "a.B"}, NO_CODE),
        ({"cp": "x"}, "mainClass parameter is missing!"),
        ({"cp": "x", "classPath": "a.B"}, "mainClass parameter is missing!"),
        ({"appName": "x"}, "classPath parameter is missing!"),
        ({"appName": "x", "mainClass": "a.B"}, "classPath parameter is missing!"),
        ({"cp": " , ", "mainClass": "a.B"}, NO_CODE),
    ],
)
def test_a_request_without_code_is_refused_in_the_wording_of_the_old_server(
    params: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        code(**params)
    assert str(caught.value) == message
