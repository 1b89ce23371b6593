"""The contexts of the web UI before they run, and after they have ended."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ui_site import Open, Site, section

from conditions import wait_until

LINES = "(node) => node.getClientRects().length"


@pytest.mark.parametrize(
    ("change", "name", "age"),
    [
        ({"state": "STARTED"}, "STARTING", "starting for"),
        ({"state": "STARTED", "waiting": True}, "WAITING", "waiting for"),
        ({"state": "RESTARTING"}, "RESTARTING", "starting for"),
    ],
)
def test_a_context_that_is_not_ready_is_not_called_up(
    site: Site, opened: Open, change: dict[str, object], name: str, age: str
) -> None:
    site.client.post("/contexts/warm")
    record = site.client.get("/contexts/warm").json() | change | {"preparing": "unpacking env.tar.gz"}
    page = opened("about:blank")
    page.route("**/contexts/warm", lambda route: route.fulfill(json=record))
    page.route("**/contexts?details=true", lambda route: route.fulfill(json=[record]))
    page.goto(site.page())
    row = section(page, "Contexts").get_by_role("row", name="warm")
    row.get_by_text(age).wait_for()
    row.get_by_text(name, exact=True).wait_for()
    row.get_by_role("link", name="warm").click()
    summary = section(page, "Summary")
    summary.get_by_text(age.capitalize(), exact=True).wait_for()
    summary.get_by_text(name, exact=True).wait_for()
    summary.get_by_text("unpacking env.tar.gz").wait_for()
    assert summary.get_by_text("Start requested").count() == 1
    assert summary.get_by_text("Up for").count() == summary.get_by_text("Started", exact=True).count() == 0


def test_contexts_that_have_ended_are_reached_from_the_overview(site: Site, opened: Open) -> None:
    site.client.post("/contexts/warm")
    ended = site.client.get("/contexts/warm").json()["id"]
    site.client.delete("/contexts/warm")
    wait_until(lambda: site.client.get("/contexts").json() == [], "the context has ended")
    site.client.post("/contexts/warm")  # the name belongs to another one now
    page = opened(site.page())
    section(page, "Contexts").get_by_role("link", name="Ended contexts").click()
    page.get_by_role("heading", name="Ended contexts", exact=True).wait_for()
    row = page.get_by_role("row", name="warm")
    row.get_by_text("stopped on request").wait_for()
    row.get_by_role("link", name="warm").click()
    page.get_by_role("heading", name="Context warm", exact=True).wait_for()
    section(page, "Summary").get_by_text("FINISHED").wait_for()
    assert section(page, "Summary").get_by_text(ended, exact=True).count() == 1
    page.get_by_role("link", name="All jobs of this context").click()
    wait_until(lambda: page.url.endswith("context=warm"), lambda: page.url)


def test_the_time_of_a_job_stands_on_one_line_at_1280_pixels(start: Any, opened: Open) -> None:
    def work(job: Any) -> Any:
        raise ValueError("there is no table of this name, nor a view of it, in any of the catalogs")

    name = "com.example.company.reporting.daily.SalesByRegionAndProduct"
    site = start(functions={name: work})
    site.submit(name, context="reports-of-the-day")
    page = opened("about:blank", viewport={"width": 1280, "height": 800})
    page.clock.install(time=datetime.now(timezone.utc) + timedelta(days=1))  # times of yesterday are longer
    page.goto(site.page("jobs"))
    time = page.locator("tbody time")
    page.clock.run_for(3000)
    time.wait_for()
    assert time.evaluate(LINES) == 1
