"""The page of the API at ``/docs``, as its users see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ui_site import Open, Site, forward_below_a_prefix

from jobserver_http.credential_files import hash_password


def send(page: Any, operation: str) -> Any:
    """Send a call without parameters, and return what the page shows of the response."""
    call = page.locator(f"#{operation}")
    call.locator("summary").click()
    call.get_by_role("button", name="Send").click()
    return call.locator("pre")


def test_below_a_prefix_calls_and_credentials_go_to_the_job_server_alone(
    start: Any, opened: Open, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"ann:{hash_password('correct horse')}:*\n")
    passwords.chmod(0o600)
    auth = {"backend": "file", "password-file": str(passwords)}
    site = start({"auth": auth}, credentials=("ann", "correct horse"))
    page = opened("about:blank")
    asked = forward_below_a_prefix(page)
    page.goto(f"{site.url}/spark/")
    page.get_by_label("User").fill("ann")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_label("Password").press("Enter")
    page.get_by_role("heading", name="Overview").wait_for()
    page.get_by_role("link", name="API").click()
    page.get_by_text("Credentials: those of the web UI, user ann").wait_for()
    send(page, "list_binaries").get_by_text("words").wait_for()
    page.get_by_text("Credentials: those").click()
    page.locator("#user").fill("bob")
    page.locator("#password").fill("wrong")
    send(page, "get_user").get_by_text("401").wait_for()
    page.get_by_role("link", name="Web UI").click()
    page.get_by_role("heading", name="Overview").wait_for()
    assert all("/spark/" in request.url for request in asked)


def test_without_credentials_the_page_asks_for_none(site: Site, opened: Open) -> None:
    page = opened(f"{site.url}/docs")
    send(page, "get_user").get_by_text("jobs:delete").wait_for()
    assert not page.get_by_text("Credentials").is_visible()
