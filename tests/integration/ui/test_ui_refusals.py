"""What the web UI says when a name does not exist, and when the server refuses what was asked."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ui_site import Open, Site, section

from conditions import wait_until
from jobserver_http.credential_files import hash_token


def test_a_context_that_is_gone_is_not_stopped_and_the_dialog_says_why(site: Site, opened: Open) -> None:
    site.client.post("/contexts/warm")
    record = site.client.get("/contexts/warm").json()
    page = opened("about:blank")
    page.route(re.compile("/contexts/warm$"), lambda route: answer(route, record))
    page.goto(site.page("contexts/warm"))
    page.get_by_role("button", name="Stop").click()
    site.client.delete("/contexts/warm")
    wait_until(lambda: site.client.get("/contexts").json() == [], "the context has ended")
    page.get_by_role("button", name="Stop the context").click()
    page.get_by_role("dialog").get_by_text(re.compile("^Context warm was not stopped: .*warm")).wait_for()


def answer(route: Any, record: Any) -> None:
    """Answer reads with the record of a context that lives, and pass on the rest."""
    if route.request.method == "GET":
        route.fulfill(json=record)
    else:
        route.continue_()


def test_a_page_that_is_refused_names_what_it_is_about(start: Any, opened: Open, tmp_path: Any) -> None:
    tokens = tmp_path / "tokens"
    held = {"admin": "*", "uploader": "binaries:read,binaries:upload"}
    tokens.write_text("".join(f"{name}:{hash_token(name)}:{allowed}\n" for name, allowed in held.items()))
    tokens.chmod(0o600)
    site = start({"auth": {"backend": "file", "token-file": str(tokens)}}, token="admin")
    page = opened(site.page("contexts/warm"))
    page.get_by_label("or token").fill("uploader")
    page.get_by_role("button", name="Sign in").click()
    refused = page.get_by_role("alert").get_by_text("Context warm cannot be shown:")
    refused.get_by_text("missing permission contexts:read").wait_for()


@pytest.mark.parametrize(
    ("query", "hint", "found"),
    [
        ("context=warn", "There is no context with the name warn. Did you mean warm?", "context=warm"),
        ("context=WA", "There is no context with the name WA. Did you mean warm?", "context=warm"),
        ("context=archive", "There is no context with the name archive.", None),
        (
            "status=ERROR&classPath=w.Ecko",
            "None of the newest 1000 jobs has the class w.Ecko. Did you mean w.Echo?",
            "status=ERROR&classPath=w.Echo",
        ),
        (
            "classPath=echo",
            "None of the newest 1000 jobs has the class echo. Did you mean w.Echo?",
            "classPath=w.Echo",
        ),
    ],
)
def test_an_empty_list_of_jobs_says_which_name_does_not_exist(
    site: Site, opened: Open, query: str, hint: str, found: str | None
) -> None:
    site.submit("w.Echo", sync=True)
    page = opened(site.page(f"jobs?{query}"))
    matching = section(page, "Matching jobs, newest first")
    matching.get_by_text("No job matches the filter.").wait_for()
    matching.get_by_text(hint, exact=True).wait_for()
    links = matching.get_by_role("link")
    assert links.count() == (found is not None)
    if found is not None:
        links.click()
        wait_until(lambda: page.url.endswith(f"?{found}"), lambda: page.url)


def test_a_filter_with_known_names_has_no_hint(site: Site, opened: Open) -> None:
    site.submit("w.Echo", sync=True)
    page = opened(site.page("jobs?context=warm&classPath=w.Echo&status=ERROR"))
    with page.expect_response(re.compile(r"/jobs\?limit=1000")):
        page.get_by_text("No job matches the filter.").wait_for()
    assert page.get_by_text("Did you mean").count() == 0


@pytest.mark.parametrize(("kind", "name"), [("contexts", "warm"), ("binaries", "words"), ("jobs", "")])
def test_a_page_about_nothing_suggests_a_similar_name(site: Site, opened: Open, kind: str, name: str) -> None:
    name = site.submit("w.Echo", sync=True) if kind == "jobs" else name
    site.client.post("/contexts/warm")
    given = name[:8] if kind == "jobs" else f"{name}s"
    page = opened(site.page(f"{kind}/{given}"))
    suggested = page.get_by_text("Did you mean").get_by_role("link", name=name, exact=True)
    suggested.click()
    wait_until(lambda: page.url.endswith(f"/{kind}/{name}"), lambda: page.url)
