"""The server against its own OpenAPI document: generated calls, and responses as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from jobserver_core import Settings
from jobserver_http import running
from jobserver_http.binaries import BINARY_TYPES
from jobserver_http.openapi import document
from jobserver_http.routes import ROUTES
from serving import a_server, upload

# What the contract itself answers with 500: a context that cannot be started.
LISTED = {("create_context", "CONTEXT INIT ERROR")}


@schemathesis.serializer(*BINARY_TYPES, "application/x-www-form-urlencoded")
def as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


# An endless response cannot be validated.
schema = schemathesis.openapi.from_dict(document(r for r in ROUTES if r.name != "follow_events"))
schema.config.generation.update(allow_x00=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    mapping = {"jobserver": {"http": {"port": 0, "drain-timeout": "0 s"}, "contexts": {"max-contexts": 50}}}
    server = a_server(settings=Settings.from_mapping(mapping))
    with running(server) as url:
        upload(server)
        yield url


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_call_is_answered_as_the_description_says(case: Any, url: str) -> None:
    response = case.call(base_url=url)
    # Random names do not exist, and HOCON accepts nearly any body, but the responses are still checked.
    case.validate_response(
        response, excluded_checks=[not_a_server_error, negative_data_rejection, positive_data_acceptance]
    )
    if response.status_code >= 500:
        label = response.json()["status"]
        operation = case.operation.definition.raw["operationId"]
        assert response.status_code == 503 or (operation, label) in LISTED, response.text
