"""What the old Java client expects, unlike the contract and every other client.

``com.bluebreezecf:spark-job-server-client:1.0.0``, the only Java client of the old server on Maven Central,
reads the ``stack`` of an error object as a list of lines, as early versions of that server sent it. If it is
a string, ``startJob``, ``getJobResult`` and ``getJobs`` throw. It sends bodies in ISO 8859-1, but does not
declare that.

It is recognized by the ``User-Agent`` of the HTTP library that it depends on, Apache HttpClient 4.5.0. Later
releases of the library, such as 4.5.1, have three numbers there.
"""

from __future__ import annotations

import json

from starlette.types import Scope

from jobserver_core.models.json_values import JsonObject

FALLBACK_CHARSET = "iso-8859-1"
"""The charset of its bodies that are not valid UTF-8."""
_USER_AGENT = b"Apache-HttpClient/4.5 ("
_ERROR_OBJECT = {"message", "errorClass", "stack"}


def is_old_java_client(scope: Scope) -> bool:
    """Whether a request comes from the old Java client."""
    return any(name == b"user-agent" and value.startswith(_USER_AGENT) for name, value in scope["headers"])


def with_stack_lines(body: bytes | memoryview) -> object:
    """Decode a JSON body, with the stack of each error object as a list of lines."""
    return json.loads(bytes(body), object_hook=_with_stack_lines)


def _with_stack_lines(value: JsonObject) -> JsonObject:
    stack = value.get("stack")
    if isinstance(stack, str) and value.keys() == _ERROR_OBJECT:
        return {**value, "stack": stack.splitlines()}
    return value
