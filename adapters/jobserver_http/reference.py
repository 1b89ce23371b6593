"""The reference page of the HTTP interface, made from the table of routes.

``python -m jobserver_http.reference > docs/reference/http-api.md`` writes it again; a test fails while the
page and the table differ.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from jobserver_core import errors as core
from jobserver_http.connections import TOO_MANY
from jobserver_http.errors import INTERNAL, REFUSALS
from jobserver_http.operations import NOT_READY, UNHEALTHY
from jobserver_http.parameters import Parameter
from jobserver_http.permissions import PERMISSIONS
from jobserver_http.routes import GROUPS, ROUTES, Reply, Route

__all__ = ["error_codes", "http_reference"]

_INTRODUCTION = """\
# HTTP API

<!-- Made by `python -m jobserver_http.reference`; change the table of routes, not this page. -->

This is the API of spark-jobserver 0.8 to 0.11; its clients work unchanged. Additions are marked
*extension*. Every server also serves this description: as OpenAPI at `/openapi.json`, and as an interactive
page at `/docs`, where you can try calls.

## Conventions

- Bodies are JSON. Times are ISO 8601 with milliseconds and an offset. A `duration` is `"6.341 secs"` or
  `"Job not done yet"`.
- An error is `{"status": "ERROR", "result": "<text>"}`, or, with an exception,
  `{"status": "<LABEL>", "result": {"message", "errorClass", "stack"}}`. In addition to the old API, each
  error has a machine-readable `"code"` (see [Error codes](#error-codes)). If the old API prescribes the
  message, the reason is in `"detail"`.
- Configurations are HOCON, a superset of JSON, whatever the content type: `curl -d 'input.string = a b'`
  works. They cannot include files or read the environment, and are limited in size and depth
  (`jobserver.limits`).
- `POST any/path?_method=DELETE` (or `PUT`) works like that method, for proxies that allow only POST.
- A repeated parameter or an invalid value is refused with 400.
- `HEAD` works like `GET` without the body.
- Uploads and large results are streamed, never held in memory. A waiting synchronous call holds no thread.
  If a client disconnects, its job continues.
"""

_EVENTS = """\
## Event streams

*Extension.* `GET /jobs/<id>/events` and `GET /events` return server-sent events (`text/event-stream`):

| event | data |
| --- | --- |
| `job` | the job's report when it is accepted, dispatched, runs and ends; the first is its current state |
| `progress` | the job's report with `progress` (stages and tasks) |
| `context` | the context's report, on `/events` |
| `callback` | a delivery of the job's callback: its state, attempts and last response |
| `lost` | `{"count": n}`: the client was too slow, and the n oldest events were dropped; get the job again |

While nothing happens, a comment line is sent every 15 seconds. A job's stream ends with the job.

```sh
curl -N localhost:8090/jobs/$ID/events
```
"""

_PAGES = """\
## Pages of jobs

*Extension.* If there are more jobs than `limit`, the response of `GET /jobs` has a `Link` header with
`rel="next"`; use its URL unchanged. Unlike `offset`, the `cursor` in it does not shift when new jobs arrive.
`since` and `until` limit the time of submission.

## Repeat a submit safely

*Extension.* With an `Idempotency-Key` header, a repeated `POST /jobs` returns the job of the first one and
starts none. The same key with a different request is refused with 422.
"""


def http_reference() -> str:
    """Return the page in Markdown."""
    lines = [_INTRODUCTION]
    for group in GROUPS:
        lines += [f"## {group.capitalize()}\n", *_group(group)]
    lines += [_EVENTS, _PAGES, "## Error codes\n", *_codes(), "## Permissions\n", *_permissions()]
    return "\n".join(lines).rstrip() + "\n"


def _group(group: str) -> Iterator[str]:
    for route in ROUTES:
        if route.group == group:
            yield from _route(route)


def _route(route: Route) -> Iterator[str]:
    path = route.path.replace("{", "<").replace("}", ">").replace(":path", "")
    mark = " *(extension)*" if route.extension else ""
    asks = f"Permission `{route.permission}`." if route.permission else "Never asks for credentials."
    yield f"### `{route.method} {path}`{mark}\n"
    yield f"{route.summary}. {asks}\n"
    if route.body is not None:
        yield f"Body: {route.body.doc}.\n"
    parameters = [*route.parameters, *route.headers]
    if parameters:
        yield "| parameter | takes | meaning |\n| --- | --- | --- |"
        yield from (_parameter(parameter, parameter in route.headers) for parameter in parameters)
        if route.open_query:
            yield "| any other | text | a setting of the context, such as `spark.executor.memory` |"
        yield ""
    yield "| answer | meaning |\n| --- | --- |"
    yield from (_reply(reply) for reply in sorted(route.replies, key=lambda reply: reply.status))
    yield ""


def _parameter(parameter: Parameter, header: bool) -> str:
    schema = parameter.kind.schema()
    takes = schema.get("format") or schema["type"]
    if "enum" in schema:
        takes = ", ".join(f"`{word}`" for word in schema["enum"])
    elif "minimum" in schema:
        takes = f"{schema['minimum']} to {schema['maximum']}"
    name = f"`{parameter.name}`" + (" (header)" if header else "") + (" *" if parameter.required else "")
    return f"| {name} | {takes} | {parameter.doc} |"


def _reply(reply: Reply) -> str:
    return f"| {reply.status} | {reply.doc} |"


_CODES = """\
*Extension.* The `code` of an error does not change when its message is reworded. New codes may be added.

| code | meaning |
| --- | --- |"""

_ROLE = re.compile(r":class:`[\w.]*?(\w+)`")
_OTHER_CODES = {
    **dict.fromkeys(REFUSALS.values(), "The request was refused before the job server saw it"),
    "unsupported_charset": "The charset that the body declares is not supported",
    REFUSALS[401]: "Credentials are missing or wrong",
    REFUSALS[403]: "The caller lacks the permission, or a web page of another site sent the request",
    REFUSALS[429]: "Too many failed log-ins; `Retry-After` has the seconds to wait",
    TOO_MANY: "Every connection that the server may have is in use",
    "validation_failed": "The job's own validation refused its configuration",
    "class_not_found": "The class path has no such class",
    "wrong_job_type": "The class is not a job, or one for another type of context",
    "job_loading_failed": "The job's code could not be fetched, unpacked or imported",
    "context_init_failed": "The context that was made for the job could not be started",
    UNHEALTHY: "The server is not healthy",
    NOT_READY: "The server does not take jobs at the moment",
    INTERNAL: "A defect of the server; its log has the details",
}


def error_codes() -> dict[str, str]:
    """Return every code that the ``code`` of a failure can have, with its meaning."""
    known = [getattr(core, name) for name in core.__all__]
    described = {error.code: (error.__doc__ or "").split("\n\n")[0] for error in known}
    return {**_OTHER_CODES, **described, core.JobServerError.code: "Any other error"}


def _codes() -> Iterator[str]:
    yield _CODES
    for code, meaning in sorted(error_codes().items()):
        plain = _ROLE.sub(r"`\1`", " ".join(meaning.split()).rstrip(".")).replace("``", "`")
        yield f"| `{code}` | {plain} |"
    yield ""


def _permissions() -> Iterator[str]:
    yield "`*` is every permission; the name of a group is all of its actions.\n"
    yield "| group | actions |\n| --- | --- |"
    for group, actions in PERMISSIONS.items():
        yield f"| `{group}` | {', '.join(f'`{group}:{action}`' for action in actions)} |"


if __name__ == "__main__":
    sys.stdout.write(http_reference())
