"""Objects of the wrong type, given to the functions that serve a job server over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobserver_core import JobServer
from jobserver_core.errors import InvalidRequest
from jobserver_http import create_app, running, serve

Made = Callable[..., Any]
made: Made = create_app
served: Made = serve
run: Made = running


@pytest.mark.parametrize("call", [made, served, lambda server: run(server).__enter__()])
def test_what_is_not_a_job_server_is_refused_in_words(call: Made) -> None:
    with pytest.raises(InvalidRequest, match="the server must be a JobServer, not the class JobServer"):
        call(JobServer)


@pytest.mark.parametrize("name", ["authenticator", "browsers"])
def test_what_is_not_an_authenticator_or_a_guard_is_refused_in_words(name: str) -> None:
    with JobServer.in_memory() as server, pytest.raises(InvalidRequest, match=f"{name} must be .* not int"):
        made(server, **{name: 3})
