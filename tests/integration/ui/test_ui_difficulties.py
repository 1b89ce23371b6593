"""The web UI where something is missing: the server, a permission, a name, or a job's success."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ui_site import Open, Site, section

from durations import DURATIONS
from jobserver_http.credential_files import hash_token

UNREACHABLE = re.compile(r"The server has not been reachable since \d.*; trying again")
RECONNECT = "document.dispatchEvent(new Event('visibilitychange'))"
LINES = "(node) => node.getClientRects().length"
DURATIONS_SHOWN = "async (all) => all.map((await import('./ui/format.js')).duration)"
WORKER = "".join(
    f'  File "/opt/venv/lib/python3.11/site-packages/pyspark/worker.py", line {n}, in main\n    process()\n'
    for n in range(30)
)
UNPACKED = f"/data/packages/contents/{'0a' * 32}-wheel/sales/words.py"
TASK_FAILED = f"""
  An exception was thrown from the Python worker:
Traceback (most recent call last):
{WORKER}  File "{UNPACKED}", line 5, in <lambda>
    1 // x
    ~~^^~~
ZeroDivisionError: integer division or modulo by zero
"""
JVM_FAILED = """Job aborted due to stage failure
\tat org.apache.spark.scheduler.DAGScheduler.abort(DAGScheduler.scala:1)
Caused by: java.io.IOException: no space
\tat com.example.Sales.write(Sales.scala:7)
\tat java.base/java.lang.Thread.run(Thread.java:1)"""


@pytest.fixture
def guarded(start: Any, tmp_path: Path) -> Site:
    tokens = tmp_path / "tokens"
    held = {"admin": "*", "reader": "jobs:read,contexts:read", "uploader": "binaries:read,binaries:upload"}
    tokens.write_text("".join(f"{name}:{hash_token(name)}:{allowed}\n" for name, allowed in held.items()))
    tokens.chmod(0o600)
    site: Site = start({"auth": {"backend": "file", "token-file": str(tokens)}}, token="admin")
    return site


def sign_in(page: Any, token: str) -> None:
    page.get_by_label("or token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def test_while_the_server_is_down_the_data_stays_and_one_sentence_says_so(site: Site, opened: Open) -> None:
    job_id = site.submit("w.Echo", sync=True)
    page = opened(site.page())
    recent = section(page, "Recent jobs").get_by_role("link", name=job_id[:8])
    recent.wait_for()
    page.route("http://**/*", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    page.evaluate(RECONNECT)
    page.get_by_role("alert").get_by_text(UNREACHABLE).wait_for()
    assert recent.is_visible()
    assert page.locator("main .alert").count() == 0
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_text("Page 1").wait_for()
    assert page.get_by_role("alert").count() == 1
    assert page.get_by_text("Loading").count() == 0
    page.unroute("http://**/*")
    page.get_by_role("link", name=job_id[:8]).wait_for()  # by itself
    page.get_by_role("alert").wait_for(state="hidden")


def test_an_action_that_a_user_may_not_take_is_not_offered(guarded: Site, opened: Open) -> None:
    job_id = guarded.submit("w.Sleep")
    guarded.until(job_id, "RUNNING")
    page = opened(guarded.page(f"jobs/{job_id}"))
    sign_in(page, "reader")
    summary = section(page, "Summary")
    summary.get_by_text("RUNNING").wait_for()
    assert page.get_by_role("button", name="Kill").count() == 0
    summary.get_by_role("link", name="warm").click()
    section(page, "Settings").wait_for()
    assert page.get_by_role("button", name="Stop").count() == 0
    page.get_by_role("link", name="Binaries").click()
    page.get_by_text("missing permission binaries:read").wait_for()
    assert page.get_by_text("Loading").count() == 0
    assert section(page, "Upload").count() == 0
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "uploader")
    page.get_by_role("link", name="Binaries").click()
    page.get_by_role("link", name="words").click()
    section(page, "Versions").wait_for()
    assert page.get_by_role("button", name="Delete").count() == 0
    page.go_back()
    section(page, "Upload").wait_for()
    page.goto(guarded.page("contexts/warm"))
    page.get_by_text("missing permission contexts:read").wait_for()
    page.get_by_text("Loading").wait_for(state="hidden")
    page.goto(guarded.page("jobs"))
    page.get_by_role("alert").get_by_text("missing permission jobs:read").wait_for()
    assert page.locator("main").inner_text().split("\n")[0] == "Jobs"
    assert page.get_by_role("search").count() == page.get_by_role("main").get_by_role("button").count() == 0
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "admin")
    page.goto(guarded.page(f"jobs/{job_id}"))
    page.get_by_role("button", name="Kill").wait_for()


@pytest.mark.parametrize(
    ("message", "kind", "said", "shown"),
    [
        (
            TASK_FAILED,
            "ZeroDivisionError",
            "integer division or modulo by zero",
            'File "sales/words.py", line 5',
        ),
        (JVM_FAILED, "java.io.IOException", "no space", "at com.example.Sales.write(Sales.scala:7)"),
    ],
)
def test_the_line_that_decides_stands_first_and_library_frames_are_folded(
    start: Any, opened: Open, message: str, kind: str, said: str, shown: str
) -> None:
    def work(job: Any) -> Any:
        raise RuntimeError(message)

    site = start(functions={"w.Work": work})
    job_id = site.submit("w.Work")
    site.until(job_id, "ERROR")
    page = opened(site.page())
    row = section(page, "Failed jobs").get_by_role("row", name=job_id[:8])
    row.get_by_text(f"{kind}: {said}", exact=True).wait_for()
    row.get_by_role("link", name=job_id[:8]).click()
    error = section(page, "Error")
    error.get_by_role("paragraph").get_by_text(said, exact=True).wait_for()
    assert error.get_by_role("paragraph").all_inner_texts() == [said, kind]
    assert not error.get_by_label("Stack").is_visible()
    for folded in ("Message", "Stack", "All frames"):
        error.locator("summary").get_by_text(folded, exact=True).click()
    text = error.get_by_label("Message").inner_text()
    assert shown in text
    assert not re.search(r"worker\.py|Thread\.run|DAGScheduler|packages/contents", text)
    assert "in work" in error.get_by_label("Stack").inner_text()  # the frame of the job's own code
    assert said not in error.get_by_label("Stack").inner_text()
    assert message.strip() in error.get_by_label("All frames").inner_text()


@pytest.mark.parametrize(
    ("error", "paragraphs"),
    [
        (KeyError("no column amount"), ["'no column amount'", "KeyError"]),
        (ValueError("no rows\nof today"), ["no rows", "ValueError"]),
        (AssertionError(), ["AssertionError"]),
    ],
)
def test_the_message_of_an_error_comes_before_its_class(
    start: Any, opened: Open, error: Exception, paragraphs: list[str]
) -> None:
    def work(job: Any) -> Any:
        raise error

    site = start(functions={"w.Work": work})
    job_id = site.submit("w.Work")
    site.until(job_id, "ERROR")
    page = opened(site.page(f"jobs/{job_id}"))
    shown = section(page, "Error")
    shown.get_by_text(paragraphs[0], exact=True).wait_for()
    assert shown.get_by_role("paragraph").all_inner_texts() == paragraphs
    assert (shown.get_by_label("Message").count() == 1) is ("\n" in str(error))


def test_names_that_do_not_exist_are_said_in_words_with_a_way_back(site: Site, opened: Open) -> None:
    page = opened("about:blank")
    for path, text, back in [
        ("jobs/nix", "There is no job with the ID nix", "All jobs"),
        ("contexts/nix", "There is no context with the name nix", "Overview"),
        ("binaries/nix", "There is no binary with the name nix", "All binaries"),
    ]:
        page.goto(site.page(path))
        page.get_by_role("heading", name=text, exact=True).wait_for()
        page.get_by_role("main").get_by_role("link", name=back, exact=True).click()
        page.get_by_role("heading", name=back.removeprefix("All ").capitalize(), exact=True).wait_for()


def test_only_pages_that_update_themselves_are_called_live(site: Site, opened: Open) -> None:
    page = opened(site.page("jobs"))
    page.get_by_text("Live", exact=True).wait_for()
    section(page, "All jobs, newest first").get_by_text("No jobs yet.").wait_for()
    page.get_by_role("link", name="Binaries").click()
    page.get_by_role("link", name="words").wait_for()
    assert not page.get_by_text("Live", exact=True).is_visible()
    page.goto(site.page("jobs?context=nix"))
    section(page, "Matching jobs, newest first").get_by_text("No job matches the filter.").wait_for()
    assert page.get_by_text("Live", exact=True).is_visible()


def test_waiting_jobs_are_called_so_and_can_be_listed(site: Site, opened: Open) -> None:
    ids = [site.submit("w.Sleep") for _ in range(9)]
    page = opened(site.page())
    waiting = section(page, "Waiting jobs")
    waiting.get_by_role("row", name="WAITING").wait_for()
    section(page, "Running jobs").get_by_role("link", name=ids[0][:8]).wait_for()
    waiting.get_by_role("link", name="All waiting jobs").click()
    rows = section(page, "Matching jobs, newest first").get_by_role("row", name="WAITING")
    rows.get_by_role("link", name=ids[-1][:8]).wait_for()
    assert page.locator("tbody tr").count() == 1
    page.get_by_label("State").select_option("STARTED or WAITING")  # the state of the server has both
    page.get_by_role("button", name="Filter").click()
    section(page, "Matching jobs, newest first").get_by_role("row", name="WAITING").wait_for()
    assert page.url.endswith("status=STARTED")


def test_a_file_that_is_no_package_is_told_before_it_is_uploaded(site: Site, opened: Open) -> None:
    page = opened(site.page("binaries"))
    file = {"name": "rates.csv", "mimeType": "text/csv", "buffer": b"a,b\n"}
    page.get_by_label("Drop jars").set_input_files(file)
    page.get_by_role("alert").get_by_text("By its name, this is no jar, egg or wheel").wait_for()
    assert page.get_by_label("Type").input_value() == ""
    page.get_by_role("button", name="Upload").click()
    assert page.evaluate("document.activeElement.validity.valueMissing")  # the browser wants the type
    page.get_by_role("link", name="words").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("The only version of words is deleted.").wait_for()


def test_short_values_of_a_result_are_not_broken(start: Any, opened: Open) -> None:
    row = {"day": "2026-12-01", "pair": [1, 2], "text": "long " * 60}
    site = start(functions={"w.Work": lambda _job: [row]})
    page = opened(site.page(f"jobs/{site.submit('w.Work')}"))
    result = section(page, "Result")
    result.get_by_text("2026-12-01").wait_for()
    assert result.get_by_text("2026-12-01").evaluate(LINES) == 1
    assert result.get_by_text("[2 items]").evaluate(LINES) == 1


def test_a_context_that_is_stopping_can_only_be_killed(site: Site, opened: Open) -> None:
    site.client.post("/contexts/warm")
    record = site.client.get("/contexts/warm").json() | {"state": "STOPPING"}
    record["settings"] |= {"spark.master": "local[2]", "memory-per-node": "1g"}
    page = opened("about:blank")
    page.route("**/contexts/warm", lambda route: route.fulfill(json=record))
    page.goto(site.page("contexts/warm"))
    page.get_by_role("button", name="Kill").click()
    page.get_by_text("is stopping already").wait_for()
    assert page.get_by_role("button", name="Stop").count() == 0
    assert section(page, "Summary").get_by_text("1g", exact=True).count() == 1  # there are no executors


def test_durations_are_shown_by_the_rule_of_the_command_line(site: Site, opened: Open) -> None:
    page = opened(site.page())
    shown = page.evaluate(DURATIONS_SHOWN, list(DURATIONS))
    assert not re.search(r"\d [a-z]", " ".join(shown))  # a line is not broken there
    plain = [text.replace("\u00a0", " ") for text in shown]
    assert dict(zip(DURATIONS, plain, strict=True)) == DURATIONS


def test_the_rules_for_errors_are_those_of_the_command_line() -> None:
    from importlib.resources import files

    from jobserver_cli import records

    code = files("jobserver_http").joinpath("assets/ui/errors.js").read_text(encoding="utf-8")
    listed = {
        name: tuple(json.loads(values)) for name, values in re.findall(r"const ([A-Z_]+) = (\[.+\]);", code)
    }
    assert listed == {"LIBRARIES": records._LIBRARIES, "JVM_LIBRARIES": records._JVM_LIBRARIES}
