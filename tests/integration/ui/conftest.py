"""The web UI in a real browser, with a job server in memory behind a real socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from ui_site import Open, Site

from jobserver_core import Settings
from jobserver_core.memory import MemoryTransport
from jobserver_http import running
from serving import WAIT, a_server, archive

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
UNREMARKABLE = "Failed to load resource"
"""The console notes each error response, such as that of a log that does not exist yet."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of one file, if one is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs Chromium: none of {', '.join(PROGRAMS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Open pages in contexts of their own; what they complain about fails the test."""
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(UNREMARKABLE):
            complaints.append(message.text)

    with ExitStack() as stack:

        def open_(url: str, **options: Any) -> Any:
            context = browser.new_context(**options)
            stack.callback(context.close)
            context.set_default_timeout(WAIT * 1000)
            page = context.new_page()
            page.on("console", heard)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
            page.goto(url)
            return page

        yield open_
    assert complaints == []


@pytest.fixture
def start() -> Iterator[Any]:
    """Start servers with the binary ``words``, which are gone after the test."""
    with ExitStack() as stack:

        def begin(
            settings: Mapping[str, Any] | None = None,
            *,
            credentials: tuple[str, str] | None = None,
            token: str | None = None,
            functions: Mapping[str, Any] | None = None,
        ) -> Site:
            mapping = {"jobserver": {**(settings or {}), "http": {"port": 0, "drain-timeout": "0 s"}}}
            server = a_server(settings=Settings.from_mapping(mapping), transports=[MemoryTransport()])
            for name, function in (functions or {}).items():
                server._services.launcher.register(name, function)
            url = stack.enter_context(running(server))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=WAIT, auth=credentials))
            if token is not None:
                client.headers["Authorization"] = f"Bearer {token}"
            headers = {"Content-Type": "application/python-wheel"}
            assert client.post("/binaries/words", content=archive(), headers=headers).status_code == 201
            return Site(url, client)

        yield begin


@pytest.fixture
def site(start: Any) -> Site:
    """A server with default settings."""
    started: Site = start()
    return started
