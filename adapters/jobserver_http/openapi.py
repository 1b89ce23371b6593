"""The OpenAPI document, generated from the table of routes and the schemas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING

from jobserver_http.parameters import Parameter
from jobserver_http.schemas import SCHEMAS, Schema, reference

if TYPE_CHECKING:
    from jobserver_http.routing import Route, RouteResponse

_SEGMENT = re.compile(r"\{(\w+)(?::jobserver_path)?\}")
_REFUSED = {
    401: "Credentials are missing or wrong",
    403: "The permission is missing",
    429: "Too many failed logins",
}
_ALWAYS = {400: "The request is malformed", 408: "The body stalled"}
# Segments "." and ".." never arrive, because clients remove them from the path.
_NAME = {"type": "string", "minLength": 1, "pattern": r"^(?!\.{1,2}$)[^/\x00-\x1f\x7f]+$"}


def document(routes: Iterable[Route], *, guarded: bool = False) -> Schema:
    """Return the OpenAPI 3.1 document of the routes.

    With ``guarded``, it states which calls need credentials. The address of the server is relative to that of
    the document: the path that users see may have a prefix that only a reverse proxy knows.
    """
    paths: dict[str, Schema] = {}
    for route in routes:
        path = _SEGMENT.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, guarded)
    components: Schema = {"schemas": SCHEMAS}
    if guarded:
        components["securitySchemes"] = {
            "basic": {"type": "http", "scheme": "basic"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Job server",
            "version": version("jobserver-core"),
            "description": "Spark as a service: upload code, keep contexts warm, run jobs in them.",
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, guarded: bool) -> Schema:
    operation: Schema = {
        "operationId": route.name,
        "tags": [route.group],
        "summary": route.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": _NAME}
                for name in _SEGMENT.findall(route.path)
            ),
            *(_parameter(parameter, "query") for parameter in route.parameters),
            *(_parameter(parameter, "header") for parameter in route.headers),
        ],
        "responses": _responses(route, guarded),
    }
    if route.extension:
        operation["x-extension"] = True
    if route.body is not None:
        content = {media_type: {"schema": _body_schema(media_type)} for media_type in route.body.media_types}
        operation["requestBody"] = {
            "description": route.body.doc,
            "required": route.body.required,
            "content": content,
        }
    if route.permission is not None:
        if route.permission:
            operation["x-permission"] = route.permission
        if guarded:
            operation["security"] = [{"basic": []}, {"bearer": []}]
    return operation


def _body_schema(media_type: str) -> Schema:
    if media_type == "application/json":
        return {"type": "object"}
    if media_type in ("text/plain", "application/x-www-form-urlencoded"):
        return {"type": "string"}
    return {"type": "string", "format": "binary"}


def _parameter(parameter: Parameter, place: str) -> Schema:
    return {
        "name": parameter.name,
        "in": place,
        "required": parameter.required,
        "description": parameter.doc,
        "schema": parameter.kind.schema(),
    }


def _responses(route: Route, guarded: bool) -> Schema:
    made: Schema = {}
    for response in route.responses:
        entry = made.setdefault(str(response.status), {"description": response.doc})
        content = _content(response)
        if content:
            entry.setdefault("content", {}).update(content)
    more = {**_ALWAYS, **(_REFUSED if guarded and route.permission is not None else {})}
    for status, doc in more.items():
        made.setdefault(
            str(status),
            {"description": doc, "content": {"application/json": {"schema": reference("Failure")}}},
        )
    return dict(sorted(made.items()))


def _content(response: RouteResponse) -> Schema:
    if response.schema is not None:
        return {response.media_type: {"schema": reference(response.schema)}}
    if response.media_type != "application/json":
        return {response.media_type: {"schema": {"type": "string"}}}
    return {}
