"""A job server in memory behind a real socket, and a client for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from http_site import WHEEL, Site, Start

from jobserver_core import Settings
from jobserver_http import Authenticator, running
from serving import WAIT, a_server, archive


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are gone after the test."""
    with ExitStack() as stack:

        def begin(
            settings: Mapping[str, Any] | None = None,
            *,
            authenticator: Authenticator | None = None,
            credentials: tuple[str, str] | None = None,
            functions: Mapping[str, Any] | None = None,
            spark: Mapping[str, Any] | None = None,
            **rest: Any,
        ) -> Site:
            given = dict(settings or {})
            # No test waits for jobs that it left running.
            http = {"port": 0, "drain-timeout": "0 s", **given.pop("http", {})}
            mapping = {"jobserver": {**given, "http": http}, "spark": dict(spark or {})}
            server = a_server(settings=Settings.from_mapping(mapping), **rest)
            for name, function in (functions or {}).items():
                server._services.launcher.register(name, function)
            url = stack.enter_context(running(server, authenticator=authenticator))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=WAIT, auth=credentials))
            site = Site(server, url, client)
            if credentials is None or "words" not in credentials:
                response = client.post("/binaries/words", content=archive(), headers=WHEEL)
                assert response.status_code == 201, response.text
            return site

        yield begin


@pytest.fixture
def site(start: Start) -> Site:
    """A server with default settings, and the binary ``words``."""
    return start()
