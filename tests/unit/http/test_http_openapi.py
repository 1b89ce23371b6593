from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import (
    Binary,
    Context,
    Delivery,
    Job,
    JobProgress,
    ServerStatus,
    SparePool,
    StorageUsage,
)
from jobserver_core.errors import InvalidRequest
from jobserver_http.openapi import document
from jobserver_http.operations import ASSETS
from jobserver_http.reference import http_reference
from jobserver_http.routes import GROUPS, ROUTES, chosen
from jobserver_http.schemas import SCHEMAS


def references(value: Any) -> set[str]:
    return set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(value)))


def test_every_route_is_in_the_document_with_its_parameters_and_responses() -> None:
    described = document(ROUTES)
    operations = {
        operation["operationId"]: operation
        for methods in described["paths"].values()
        for operation in methods.values()
    }
    assert set(operations) == {route.name for route in ROUTES}
    for route in ROUTES:
        operation = operations[route.name]
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {parameter.name for parameter in (*route.parameters, *route.headers)} <= names
        assert {str(response.status) for response in route.responses} <= set(operation["responses"])
        assert operation.get("x-permission", "") == (route.permission or "")


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    assert references(document(ROUTES)) == set(SCHEMAS)


@pytest.mark.parametrize(
    "record", [Binary, Context, Delivery, Job, JobProgress, ServerStatus, SparePool, StorageUsage]
)
def test_schemas_of_records_have_the_names_of_the_classes(record: type[object]) -> None:
    assert record.__name__ in SCHEMAS


def test_route_names_and_paths_are_unique() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_the_openapi_document_describes_its_server_and_authentication() -> None:
    guarded = document(ROUTES, guarded=True)
    assert guarded["servers"] == [{"url": "."}]
    assert guarded["paths"]["/jobs"]["post"]["security"] == [{"basic": []}, {"bearer": []}]
    assert {"401", "403", "429"} <= set(guarded["paths"]["/jobs"]["post"]["responses"])
    assert "security" not in guarded["paths"]["/healthz"]["get"]
    assert "401" not in document(ROUTES)["paths"]["/jobs"]["post"]["responses"]


def test_routes_can_be_picked_by_group_and_by_name() -> None:
    picked = chosen(["binaries", "get_health"])
    assert {route.group for route in picked} == {"binaries", "operations"}
    assert [route.name for route in picked if route.group == "operations"] == ["get_health"]
    assert chosen(None) is ROUTES
    assert set(GROUPS) == {"binaries", "contexts", "jobs", "data", "storage", "operations", "ui"}


def test_a_group_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidRequest, match="binarys"):
        chosen(["binarys"])


def test_the_documentation_page_is_packaged_and_loads_nothing_from_elsewhere() -> None:
    for name in ASSETS:
        text = files("jobserver_http").joinpath("assets").joinpath(name).read_text()
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE), f"{name} points elsewhere"
        assert "innerHTML" not in text


def test_the_reference_page_is_that_of_the_table() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "http-api.md"
    assert page.read_text() == http_reference(), "run python -m jobserver_http.reference again"
