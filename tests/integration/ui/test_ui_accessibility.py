"""The web UI as a screen reader and a keyboard use it: the accessibility tree, focus and live regions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ui_site import Open, Site, section

from conditions import wait_until

NAMED = {
    *(
        "button",
        "checkbox",
        "combobox",
        "dialog",
        "group",
        "link",
        "log",
        "meter",
        "navigation",
        "progressbar",
    ),
    *("region", "search", "table", "textbox"),
}
"""Roles that tell nothing without a name; a group only if it can have the focus."""
ON_HEADING = "document.activeElement.tagName === 'H1'"
OBSERVED = """() => {
  window.said = [];
  const watched = { childList: true, characterData: true, subtree: true };
  for (const region of document.querySelectorAll("[role=status], [role=alert], [aria-live]")) {
    new MutationObserver(() => window.said.push(region.textContent)).observe(region, watched);
  }
}"""


def tree(page: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the role, name and properties of each element that a screen reader is shown, in its order."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    found = {node["nodeId"]: node for node in nodes}
    shown: list[tuple[str, str, dict[str, Any]]] = []

    def walk(node: Any) -> None:
        if not node["ignored"]:
            properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            name = node.get("name", {}).get("value", "")
            shown.append((node["role"]["value"], name, properties))
        for child in node["childIds"]:
            if child in found:
                walk(found[child])

    walk(nodes[0])
    return shown


@pytest.mark.parametrize("width", [390, 1200])
def test_each_page_has_names_headings_and_tables_with_headers(start: Any, opened: Open, width: int) -> None:
    rows = [{"day": "2026-12-01", "pair": [1, 2]}] * 3
    site = start(functions={"w.Work": lambda _job: rows})
    ids = [site.submit(name, callbackUrl="http://a/b") for name in ("w.Work", "w.Fail", *["w.Sleep"] * 9)]
    for job_id, state in zip(ids, ("FINISHED", "ERROR", "RUNNING"), strict=False):
        site.until(job_id, state)
    page = opened("about:blank", viewport={"width": width, "height": 800})
    paths = [
        "",
        "jobs",
        "binaries",
        "binaries/words",
        "contexts/warm",
        *(f"jobs/{job_id}" for job_id in ids[:3]),
    ]
    for path in paths:
        page.goto(site.page(path))
        page.locator("main table tbody tr").first.wait_for()
        shown = tree(page)
        unnamed = [
            role
            for role, name, properties in shown
            if role in NAMED and not name and (role != "group" or properties.get("focusable"))
        ]
        assert unnamed == [], path
        assert not [one for one in shown if one[0] == "generic" and one[2].get("focusable")], path
        levels = [properties["level"] for role, _, properties in shown if role == "heading"]
        assert levels[0] == 1, path
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), path
        roles = [role for role, _, _ in shown]
        assert "columnheader" in roles, path
        assert roles.count("rowheader") > 0 or path == f"jobs/{ids[0]}", path
        regions = [name for role, name, _ in shown if role == "region"]
        assert len(regions) == len(set(regions)), path


def test_the_focus_stays_in_a_table_whose_row_is_gone(site: Site, opened: Open) -> None:
    jobs = [site.submit("w.Sleep") for _ in range(2)]
    page = opened(site.page())
    running = section(page, "Running jobs")
    for job_id in jobs:
        link = running.get_by_role("link", name=job_id[:8])
        link.focus()
        site.client.delete(f"/jobs/{job_id}")
        link.wait_for(state="detached")
        where = "Running jobs" if job_id == jobs[0] else None
        focused = page.evaluate("document.activeElement.ariaLabel")
        assert focused == where
    assert page.evaluate(ON_HEADING)  # the table is gone as well


def test_the_focus_returns_from_a_dialog_although_what_opened_it_is_gone(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Sleep")
    site.until(job_id, "RUNNING")
    page = opened(site.page(f"jobs/{job_id}"))
    kill = page.get_by_role("button", name="Kill", exact=True)
    kill.press("Enter")
    dialog = page.get_by_role("dialog", name="Kill this job?")
    assert "ends as KILLED" in (dialog.evaluate("(node) => node.ariaDescribedByElements[0].textContent"))
    for _ in range(6):  # the focus cannot leave it
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog, body').tagName") in ("DIALOG", "BODY")
        assert page.evaluate("document.activeElement.closest('main, header')") is None
    site.client.delete(f"/jobs/{job_id}")
    section(page, "Error").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert page.evaluate(ON_HEADING)


def test_refreshes_say_only_what_has_changed(site: Site, opened: Open) -> None:
    page = opened(site.page("jobs"))
    page.get_by_text("Page 1").wait_for()
    page.get_by_text("Live", exact=True).wait_for()
    page.evaluate(OBSERVED)
    for _ in range(2):
        job_id = site.submit("w.Echo", sync=True)
        page.get_by_role("row", name=job_id[:8]).get_by_text("FINISHED").wait_for()
    assert page.evaluate("said") == []
    ids = [site.submit("w.Sleep") for _ in range(9)]
    page.goto(site.page(f"jobs/{ids[-1]}"))
    page.get_by_role("status").get_by_text("Job is WAITING").wait_for()


def test_an_error_that_stays_is_said_once(site: Site, opened: Open) -> None:
    page = opened(site.page("binaries"))
    page.get_by_role("link", name="words").wait_for()
    refused: list[Any] = []
    page.route("**/jobs?*", lambda route: (refused.append(route), route.fulfill(status=500, body="{}")))
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("alert").get_by_text("status 500").wait_for()
    page.evaluate("document.querySelector('main [role=alert]').same = true")
    asked = len(refused)
    site.submit("w.Echo", sync=True)
    wait_until(lambda: page.evaluate("1") and len(refused) > asked, "another refresh")
    page.get_by_text("Page 1").wait_for()
    assert page.evaluate("document.querySelector('main [role=alert]').same")


def test_what_an_action_did_is_said_on_the_page_that_follows(site: Site, opened: Open) -> None:
    page = opened(site.page("binaries/words"))
    page.get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("button", name="Delete the binary").press("Enter")
    page.get_by_role("status").get_by_text("The binary was deleted").wait_for()
    assert page.evaluate(ON_HEADING)
    file = {"name": "a-1.whl", "mimeType": "", "buffer": b"x"}
    page.get_by_label("Drop jars").set_input_files(file)
    page.get_by_role("button", name="Remove").press("Enter")
    assert page.evaluate("document.activeElement.type") == "file"


def test_the_focus_is_kept_where_a_page_of_jobs_is_the_last(site: Site, opened: Open) -> None:
    for number in range(51):
        site.submit("w.Echo", f"value = {number}", sync=True)
    page = opened(site.page("jobs"))
    page.get_by_role("button", name="Older").press("Enter")
    page.get_by_text("Page 2", exact=True).wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Newest"
