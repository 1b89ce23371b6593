"""Handlers and routes of the web UI: a page and its files, which call the same API as every other client.

The page is at ``/`` and needs no credentials: it contains no data, and asks for credentials itself. It refers
to its files and to the API by relative URLs, so that it works below any path. Its policy forbids inline
scripts, evaluation, and turning strings into markup, so that names, results and logs cannot script it.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.responses import Response

from jobserver_http.calls import Call
from jobserver_http.errors import Rejected
from jobserver_http.routing import RouteResponse, Routes, failures

_HTML, _CSS = "text/html; charset=utf-8", "text/css; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"
_KINDS = {".css": _CSS, ".js": _SCRIPT, ".svg": "image/svg+xml"}
DIRECTORY = files("jobserver_http").joinpath("assets").joinpath("ui")
FILES = {
    file.name: _KINDS[suffix]
    for file in DIRECTORY.iterdir()
    if (suffix := "." + file.name.rpartition(".")[2]) in _KINDS
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

ROUTES = Routes()


@ROUTES.add_extension(
    "GET /",
    permission=None,
    group="ui",
    summary="Show the web UI",
    responses=(RouteResponse(200, "An HTML page", media_type=_HTML),),
)
async def get_index(call: Call) -> Response:
    return _file(call, "index.html", _HTML)


@ROUTES.add_extension(
    "GET /ui/{file}",
    permission=None,
    group="ui",
    summary="Get a file of the web UI",
    responses=(
        *(RouteResponse(200, "The file", media_type=kind) for kind in _KINDS.values()),
        *failures(s404="The file does not exist"),
    ),
)
async def get_ui_file(call: Call) -> Response:
    name = call.path["file"]
    if name not in FILES:
        raise Rejected(404, "file not found")
    return _file(call, name, FILES[name])


def _file(call: Call, name: str, media_type: str) -> Response:
    content, tag = _content(name)
    headers = {**HEADERS, "ETag": tag}
    if call.header("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Return a file and its entity tag."""
    content = DIRECTORY.joinpath(name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:32]}"'
