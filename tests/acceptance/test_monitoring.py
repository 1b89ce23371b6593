"""The alert rules, the dashboard and the guide name metrics, labels and values that a server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobserver_core import BinaryType, Settings
from jobserver_core.memory import InlineLauncher
from jobserver_core.models.contexts import SparePool
from jobserver_http import running
from jobserver_http.routes import ROUTES
from serving import WAIT, a_server, archive, count

promql_parser = pytest.importorskip("promql_parser", reason="needs the extra test")

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
GUIDE = ROOT / "docs" / "howto" / "monitor.md"
OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that Prometheus or its format adds."""
Labels = dict[str, set[str]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return loaded


def queries() -> dict[str, str]:
    """Return every expression by what it belongs to, as Prometheus gets it."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def selectors(expression: Any) -> Iterator[Any]:
    """Yield the selectors of metrics in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from selectors(inner)
    for argument in getattr(expression, "args", None) or ():
        yield from selectors(argument)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Labels]:
    """The metrics of a server that has run a job and has a pool: their labels, and the values of each."""

    class Launcher(InlineLauncher):
        def spare_pools(self) -> list[SparePool]:
            return [SparePool(name="small", size=1, ready=1, starting=0)]

    settings = Settings.from_mapping({"jobserver.http.port": 0})
    server = a_server(launcher=Launcher({"words.Count": count}), settings=settings)
    with running(server) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        server.upload("words", BinaryType.WHEEL, archive())
        job = client.post("/jobs?appName=words&classPath=words.Count&sync=true", content="input.string = a")
        assert job.status_code == 200, job.text
        text = client.get("/metrics").text
    found: dict[str, Labels] = {"up": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return found


def wrong(expression: str, metrics: dict[str, Labels]) -> list[str]:
    """Return what an expression asks for that no server has."""
    problems = []
    for selector in selectors(promql_parser.parse(expression)):
        labels = metrics.get(selector.name)
        if labels is None:
            problems.append(f"no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name in OF_PROMETHEUS:
                continue
            if matcher.name not in labels:
                problems.append(f"{selector.name} has no label {matcher.name}")
                continue
            known = labels[matcher.name]
            if matcher.name == "route":
                known = {route.name for route in ROUTES}
            elif matcher.name == "status":
                known = {"5.."}
            problems += [
                f"{selector.name} has no {matcher.name} {value!r}"
                for value in matcher.value.split("|")
                if value not in known
            ]
    return problems


@pytest.mark.parametrize("name", queries())
def test_a_query_asks_for_metrics_labels_and_values_that_a_server_has(
    name: str, metrics: dict[str, Labels]
) -> None:
    expression = queries()[name]
    assert list(selectors(promql_parser.parse(expression)))
    assert wrong(expression, metrics) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(jobserver_job_total[5m])", "no metric jobserver_job_total"),
        ('sum(jobserver_jobs_total{state="FAILED"})', "jobserver_jobs_total has no state 'FAILED'"),
        ('1 - jobserver_contexts{status="x"} > 2', "jobserver_contexts has no label status"),
        (
            'max(jobserver_http_requests_total{route="get_jbo"})',
            "jobserver_http_requests_total has no route 'get_jbo'",
        ),
    ],
)
def test_a_mistake_in_a_query_is_found(expression: str, problem: str, metrics: dict[str, Labels]) -> None:
    assert problem in wrong(expression, metrics)


def test_groupings_name_labels_that_exist(metrics: dict[str, Labels]) -> None:
    labels = {label for one in metrics.values() for label in one} | OF_PROMETHEUS
    used = {
        label
        for query in queries().values()
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
        for label in re.split(r",\s*", group)
    }
    assert used
    assert used <= labels


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


UNITS = {"short", "none", "bytes", "s", "ops", "reqps", "percentunit"}
"""The units of Grafana that the dashboard uses."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_every_panel_has_a_title_a_unit_an_explanation_and_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("stat", "table", "timeseries"), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == SOURCE, panel["title"]
        assert all(target["datasource"] == SOURCE for target in panel["targets"]), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_the_dashboard_can_be_imported_into_any_grafana() -> None:
    board = dashboard()
    assert "id" not in board, "an id of another Grafana would overwrite a dashboard there"
    assert board["uid"] == "jobserver"
    assert board["schemaVersion"] >= 36, "older ones name data sources in another way"
    source, instance = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (instance["name"], instance["datasource"]) == ("instance", SOURCE)
    assert all({"text", "value"} <= set(one["current"]) for one in (source, instance)), "its schema has both"
    names = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval", "__all"}
    assert used <= names


def test_every_query_of_the_dashboard_is_about_the_chosen_servers() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            found = list(selectors(promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))))
            for selector in found:
                matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
                assert matchers.get("instance") == "$instance", target["expr"]


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_different_ids() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_the_guide_lists_every_metric_and_every_alert(metrics: dict[str, Labels]) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    ours = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in metrics
        if name.startswith("jobserver_") and not name.endswith("_created")
    }
    assert set(re.findall(r"^\| `(jobserver_\w+)`", text, re.MULTILINE)) == ours
    assert set(re.findall(r"^\| `(Jobserver\w+)`", text, re.MULTILINE)) == {rule["alert"] for rule in rules()}


def test_promtool_accepts_the_rules_and_each_fires_when_it_should() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True)
    subprocess.run(["promtool", "test", "rules", Path(__file__).with_name("alerts_fire.yml")], check=True)
