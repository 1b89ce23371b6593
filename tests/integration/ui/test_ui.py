"""The web UI, as its users see it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from ui_site import Open, Site, forward_below_a_prefix, section

from conditions import wait_until
from jobserver_core.models.jobs import JobProgress
from jobserver_http.credential_files import hash_password, hash_token
from serving import packaged

MARKUP = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
BIDI = "\u202egnp.exe"
"""Without precautions, this is shown as exe.png."""
ESCAPED = r"\u202egnp.exe"
FOCUSED = "document.activeElement.textContent"
# Text on its background, by the formula of WCAG 2; 4.5 is the least contrast of its level AA.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (channel) => (channel /= 255) <= .04045 ? channel / 12.92 : ((channel + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const background = (node) => {
    const [r, g, b, a] = rgb(getComputedStyle(node).backgroundColor);
    return a === 0 && node.parentElement ? background(node.parentElement) : [r, g, b];
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility()
    && !node.disabled && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return Math.min(...texts.map((node) => {
    const pair = [rgb(getComputedStyle(node).color), background(node)].map(luminance);
    return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
  }));
}"""
DROPPED = """() => {
  const data = new DataTransfer();
  data.items.add(new File(["no archive"], "x.jar"));
  return data;
}"""
ATTACK = """async ([url, options]) => {
  try { return (await fetch(url, options)).type; } catch { return "refused"; }
}"""
INJECTIONS = {
    "innerHTML": "document.body.innerHTML = '<b>x</b>'",
    "script": "document.createElement('script').textContent = 'window.hacked = 1'",
    "handler": "document.body.setAttribute('onclick', 'window.hacked = 1')",
}
BROKEN_STATES = """() => [...document.querySelectorAll(".state")]
  .filter((node) => node.offsetHeight > 2.5 * parseFloat(getComputedStyle(node).fontSize))
  .map((node) => node.outerHTML)"""
CUT_OFF = """() => [...document.querySelectorAll(".scroller")]
  .filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.innerText)"""
UNNAMED = """() => [...document.querySelectorAll("input, select")]
  .filter((node) => !node.labels.length && !node.ariaLabel).map((node) => node.outerHTML)"""


def hacked(page: Any) -> bool:
    return bool(
        page.evaluate("'hacked' in window || document.querySelector('main img, main script') !== null")
    )


def test_the_overview_follows_contexts_and_jobs_live(site: Site, opened: Open) -> None:
    page = opened(site.page())
    page.get_by_text("No context is running.").wait_for()
    page.get_by_text("Live", exact=True).wait_for()
    job_id = site.submit("w.Sleep")
    running = section(page, "Running jobs").get_by_role("row", name="w.Sleep")
    running.get_by_text("RUNNING").wait_for()
    contexts = section(page, "Contexts").get_by_role("row", name="warm")
    contexts.get_by_text("1 of 8").wait_for()
    link = running.get_by_role("link", name=job_id[:8])
    link.focus()
    failed = site.submit("w.Fail", 'message = "no disk"')
    section(page, "Failed jobs").get_by_role("row", name="no disk").get_by_text(failed[:8]).wait_for()
    assert page.evaluate(FOCUSED) == job_id[:8]  # live updates do not move the focus
    link.press("Enter")
    page.get_by_role("heading", name=f"Job {job_id}").wait_for()
    wait_until(lambda: page.evaluate(FOCUSED) == f"Job {job_id}", "the focus follows to the new page")


def test_a_job_is_followed_to_its_result(start: Any, opened: Open) -> None:
    step, gate = threading.Event(), threading.Event()

    def wait_for(event: threading.Event, job: Any) -> None:
        while not event.wait(0.01):
            job.check()

    def work(job: Any) -> Any:
        job.print("\x1b[32mreading\x1b[0m\x1b]0;title\x07")
        job.report(JobProgress(tasks_done=1, tasks_total=4))
        wait_for(step, job)
        job.report(JobProgress(tasks_done=2, tasks_total=4))
        wait_for(gate, job)
        job.print("done")
        return [{"word": "a", "count": 12345678901234567890}, {"word": "b", "share": 0.5}]

    site = start(functions={"w.Work": work})
    job_id = site.submit("w.Work", "input { text = a }", callbackUrl="http://receiver.example/done")
    page = opened(site.page(f"jobs/{job_id}"))
    log = page.get_by_role("log")
    log.get_by_text("reading").wait_for()
    assert log.inner_text() == "reading\n"
    page.get_by_text("1 of 4 tasks").wait_for()
    section(page, "Configuration").get_by_text("input").wait_for()
    section(page, "Class path").get_by_role("link", name="words").wait_for()
    page.get_by_role("button", name="Kill").focus()
    step.set()
    page.get_by_text("2 of 4 tasks").wait_for()
    assert page.evaluate(FOCUSED) == "Kill"  # an update does not move the focus
    gate.set()
    section(page, "Summary").get_by_text("FINISHED").wait_for()
    section(page, "Callback").get_by_role("row", name="DELIVERED").wait_for()
    result = section(page, "Result")
    result.get_by_role("row", name="0.5").wait_for()
    assert result.get_by_role("row").all_inner_texts() == [
        "word\tcount\tshare",
        "a\t12345678901234567890\t",
        "b\t\t0.5",
    ]
    result.get_by_role("button", name="JSON").click()
    assert json.loads(result.get_by_label("Result as JSON").inner_text())[1] == {"word": "b", "share": 0.5}
    with page.expect_download() as download:
        result.get_by_role("button", name="Download").click()
    assert b"12345678901234567890" in Path(download.value.path()).read_bytes()
    wait_until(lambda: log.inner_text() == "reading\ndone\n", log.inner_text)


def test_a_job_is_killed_and_a_context_stopped_by_keyboard_after_a_confirmation(
    site: Site, opened: Open
) -> None:
    job_id = site.submit("w.Sleep")
    site.until(job_id, "RUNNING")
    page = opened(site.page(f"jobs/{job_id}"))
    page.get_by_role("button", name="Kill", exact=True).press("Enter")
    assert page.evaluate(FOCUSED) == "Cancel"
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    page.get_by_role("button", name="Kill", exact=True).press("Enter")
    page.get_by_role("button", name="Kill the job").press("Enter")
    section(page, "Summary").get_by_text("KILLED").wait_for()
    section(page, "Error").get_by_text(f"Job {job_id} killed").first.wait_for()
    page.get_by_role("link", name="warm").press("Enter")
    section(page, "Settings").get_by_role("row", name="spark.master").wait_for()
    page.get_by_role("button", name="Stop").press("Enter")
    page.get_by_role("button", name="Stop the context").press("Enter")
    section(page, "Summary").get_by_text("FINISHED").wait_for()
    assert site.client.get("/contexts").json() == []


def test_binaries_are_uploaded_dropped_and_deleted(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Sleep")
    page = opened(site.page("binaries"))
    wheel = {"name": "etl_jobs-1.2.0-py3-none-any.whl", "mimeType": "", "buffer": packaged()}
    page.get_by_label("Drop jars").set_input_files(wheel)
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("row", name="etl_jobs").get_by_role("cell", name="words 1.2.0").wait_for()
    page.dispatch_event(".drop", "drop", {"dataTransfer": page.evaluate_handle(DROPPED)})
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("alert").get_by_text("Binary is not of the right format").wait_for()
    assert {name: found["binary-type"] for name, found in site.client.get("/binaries").json().items()} == {
        "words": "Wheel",
        "etl_jobs": "Wheel",
    }
    page.get_by_role("link", name="words").click()
    page.get_by_role("link", name=job_id[:8]).wait_for()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the binary").click()
    page.get_by_role("dialog").get_by_text("in use by job(s)").wait_for()
    site.client.delete(f"/jobs/{job_id}")
    page.get_by_role("button", name="Delete the binary").click()
    page.get_by_role("heading", name="Binaries").wait_for()
    assert set(site.client.get("/binaries").json()) == {"etl_jobs"}
    page.get_by_role("link", name="etl_jobs").click()
    section(page, "Versions").get_by_role("cell", name="words 1.2.0").wait_for()


def test_hostile_results_logs_and_errors_stay_text(start: Any, opened: Open) -> None:
    def work(job: Any) -> Any:
        job.print(MARKUP)
        return {MARKUP: [{MARKUP: MARKUP, "__proto__": {"polluted": 1}}], "constructor": BIDI}

    site = start(functions={"w.Work": work})
    page = opened(site.page(f"jobs/{site.submit('w.Work', json.dumps({'a': MARKUP}))}"))
    result = section(page, "Result")
    result.locator("details:not([open]) > summary").click()
    result.get_by_text("polluted").first.wait_for()
    page.get_by_role("log").get_by_text("<script>").wait_for()
    section(page, "Configuration").get_by_text(MARKUP).wait_for()
    assert not hacked(page)
    failed = site.submit("w.Fail", json.dumps({"message": MARKUP}))
    page.goto(site.page(f"jobs/{failed}"))
    section(page, "Error").get_by_text(MARKUP).first.wait_for()
    assert not hacked(page)


def test_text_that_would_be_shown_reversed_is_shown_with_escapes(start: Any, opened: Open) -> None:
    def work(job: Any) -> Any:
        job.print(f"log {BIDI}")
        raise ValueError(f"error {BIDI}")

    site = start(functions={"w.Work": work})
    page = opened(site.page(f"jobs/{site.submit('w.Work', json.dumps({'a': BIDI}))}"))
    section(page, "Error").get_by_role("paragraph").get_by_text(f"error {ESCAPED}").wait_for()
    page.get_by_role("log").get_by_text(f"log {ESCAPED}").wait_for()
    section(page, "Configuration").get_by_text(ESCAPED).wait_for()
    assert "\u202e" not in page.locator("body").inner_text()


def test_hostile_names_stay_text_and_links_lead_to_web_pages_only(site: Site, opened: Open) -> None:
    """The server refuses such names; the UI does not rely on it."""
    record = {"jobId": MARKUP, "startTime": "2026-01-02T03:04:05.000Z", "classPath": MARKUP + BIDI}
    record |= {"context": "../jobs", "contextId": "c", "duration": "1 secs", "status": MARKUP}
    context = {"id": "c", "name": MARKUP, "startTime": "2026-01-02T03:04:05.000Z", "endTime": "Empty"}
    context |= {"state": "RUNNING", "url": "javascript:window.hacked=1", "settings": {MARKUP: MARKUP}}
    context |= {"restarts": 1, "lastRestart": {"id": MARKUP, "error": {"message": f"signal 9 {MARKUP}"}}}
    page = opened("about:blank")
    page.route("**/jobs?*", lambda route: route.fulfill(json=[record]))
    page.route("**/contexts?*", lambda route: route.fulfill(json=[context]))
    page.route("**/contexts/*", lambda route: route.fulfill(json=context))
    page.goto(site.page())
    section(page, "Recent jobs").get_by_text(MARKUP + ESCAPED).wait_for()
    link = section(page, "Contexts").get_by_role("link", name=MARKUP)
    assert not hacked(page)
    link.click()
    section(page, "Settings").get_by_text(MARKUP).first.wait_for()
    section(page, "Summary").get_by_text(f"signal 9 {MARKUP}").wait_for()
    page.get_by_text("javascript:window.hacked=1").click()
    assert page.locator("a[href^=javascript]").count() == 0
    assert not hacked(page)


def test_a_fault_of_the_ui_could_not_turn_strings_into_markup(site: Site, opened: Open) -> None:
    page = opened("about:blank").context.new_page()  # its console says what was refused
    page.goto(site.page())
    for name, code in INJECTIONS.items():
        refused = f"() => {{ try {{ {code}; return 'done'; }} catch (error) {{ return error.name; }} }}"
        assert page.evaluate(refused) == "TypeError", name


def test_the_user_signs_in_with_a_password_or_a_token(start: Any, opened: Open, tmp_path: Path) -> None:
    passwords, tokens = tmp_path / "passwords", tmp_path / "tokens"
    passwords.write_text(f"admin:{hash_password('correct horse')}:*\n")
    tokens.write_text(f"pipeline:{hash_token('t0ken')}:jobs:read\n")
    for path in (passwords, tokens):
        path.chmod(0o600)
    auth = {"backend": "file", "password-file": str(passwords), "token-file": str(tokens)}
    site = start({"auth": auth}, credentials=("admin", "correct horse"))
    job_id = site.submit("w.Echo", "value = 1", sync=True)
    page = opened(site.page(f"jobs/{job_id}"))
    page.get_by_label("User").fill("admin")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    page.get_by_role("alert").get_by_text("Wrong user or password.").wait_for()
    page.get_by_label("Password").fill("correct horse")
    page.get_by_label("Password").press("Enter")
    section(page, "Summary").get_by_text("FINISHED").wait_for()
    page.reload()
    section(page, "Summary").get_by_text("FINISHED").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("or token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("This token is not valid.").wait_for()
    page.get_by_label("or token").fill("t0ken")
    page.get_by_role("button", name="Sign in").click()
    section(page, "Recent jobs").get_by_role("link", name=job_id[:8]).wait_for()
    section(page, "Contexts").get_by_text("missing permission contexts:read").wait_for()


def test_a_server_that_asks_for_credentials_of_live_updates_shows_the_form(site: Site, opened: Open) -> None:
    page = opened("about:blank")
    page.route("**/events", lambda route: route.fulfill(status=401, json={"result": "no credentials"}))
    page.goto(site.page())
    page.get_by_role("heading", name="Sign in").wait_for()


def test_a_page_survives_failed_refreshes_and_an_interrupted_log_continues(start: Any, opened: Open) -> None:
    def work(job: Any) -> Any:
        job.print("reading")
        while True:
            job.report(JobProgress(tasks_done=1, tasks_total=4))
            job.sleep(0.1)

    site = start(functions={"w.Work": work})
    job_id = site.submit("w.Work")
    page = opened("about:blank")
    page.route("**/logs?*", lambda route: route.abort())
    page.goto(site.page(f"jobs/{job_id}"))
    page.get_by_text("Interrupted.").wait_for()
    refresh = f"**/jobs/{job_id}?*"
    page.route(refresh, lambda route: route.fulfill(status=503, json={"result": "the disk is full"}))
    failure = page.get_by_role("alert").get_by_text("the disk is full")
    failure.wait_for()
    section(page, "Summary").get_by_text("RUNNING").wait_for()
    page.unroute(refresh)
    failure.wait_for(state="detached")
    page.unroute("**/logs?*")
    # An event stream that ends is opened again after a second.
    page.route("**/events", lambda route: route.fulfill(content_type="text/event-stream", body=": on\n\n"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("log").get_by_text("reading").wait_for()
    assert page.get_by_text("Interrupted.").count() == 0


def test_a_result_of_unknown_size_is_only_downloaded(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Echo", "value = 1", sync=True)
    page = opened("about:blank")

    def no_length(route: Any) -> None:
        assert route.request.method == "HEAD"
        route.fulfill(content_type="application/json")

    page.route("**/result", no_length)
    page.goto(site.page(f"jobs/{job_id}"))
    section(page, "Result").get_by_text("A result of unknown size").wait_for()


def test_pages_of_other_sites_can_change_nothing(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Sleep")
    page = opened("about:blank").context.new_page()  # its console says what was refused
    page.goto(site.url.replace("127.0.0.1", "localhost") + "/healthz")
    for path, options in [
        (f"/jobs/{job_id}", {"method": "DELETE"}),
        (f"/jobs/{job_id}?_method=DELETE", {"method": "POST", "mode": "no-cors"}),
        ("/contexts/warm?_method=DELETE", {"method": "POST", "mode": "no-cors"}),
        ("/binaries/words?_method=DELETE", {"method": "POST", "mode": "no-cors"}),
    ]:
        assert page.evaluate(ATTACK, [site.url + path, options]) in ("refused", "opaque")
    assert site.client.get(f"/jobs/{job_id}").json()["status"] in ("STARTED", "RUNNING")
    assert site.client.get("/contexts").json() == ["warm"]


def test_the_ui_works_below_a_prefix(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Echo", "value = 1", sync=True)
    page = opened("about:blank")
    asked = forward_below_a_prefix(page)
    page.goto(f"{site.url}/spark/#/jobs/{job_id}")
    section(page, "Result").get_by_text("1", exact=True).wait_for()
    page.get_by_role("link", name="Overview").click()
    section(page, "Recent jobs").get_by_role("link", name=job_id[:8]).wait_for()
    assert all("/spark/" in request.url for request in asked)


def test_the_list_of_jobs_is_filtered_and_paged(site: Site, opened: Open) -> None:
    jobs = [site.submit("w.Echo", f"value = {number}", sync=True) for number in range(52)]
    page = opened(site.page("jobs"))
    rows = page.locator("tbody tr")
    page.get_by_role("link", name=jobs[-1][:8]).wait_for()
    assert rows.count() == 50
    page.get_by_role("button", name="Older").dblclick()  # only one turn: the next page is not here yet
    page.get_by_role("link", name=jobs[0][:8]).wait_for()
    page.get_by_text("Page 2", exact=True).wait_for()
    assert rows.count() == 2
    page.get_by_role("button", name="Newest").click()
    page.get_by_role("link", name=jobs[-1][:8]).wait_for()
    failed = site.submit("w.Fail")
    page.get_by_label("State").select_option("ERROR")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name=failed[:8]).wait_for()
    assert rows.count() == 1


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1200)])
def test_pages_are_readable_and_named_in_each_scheme_and_on_a_phone(
    start: Any, opened: Open, scheme: str, width: int
) -> None:
    site = start()
    context = "a" + 20 * "-long"
    ids = [
        site.submit(name, f"value = {'x' * 300}", context=context, callbackUrl="http://a/b", maxRunTime=3600)
        for name in ("w.Sleep", "w.Echo", "w.Fail")
    ]
    for job_id, state in zip(ids, ("RUNNING", "FINISHED", "ERROR"), strict=True):
        site.until(job_id, state)
    page = opened("about:blank", color_scheme=scheme, viewport={"width": width, "height": 800})
    titles = {
        "": "Overview",
        "jobs": "Jobs",
        "binaries": "Binaries",
        "binaries/words": "Binary words",
        f"contexts/{context}": f"Context {context}",
        **{f"jobs/{job_id}": f"Job {job_id}" for job_id in ids},
    }
    for path, title in titles.items():
        page.goto(site.page(path))
        page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
        page.locator("main table tbody tr").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(BROKEN_STATES) == [], path
        assert page.evaluate(CUT_OFF) == [], path
        assert page.evaluate(CONTRAST) >= 4.5, path
        assert page.evaluate(UNNAMED) == [], path
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.locator("header").bounding_box()["height"] < 100  # two lines, on a phone
