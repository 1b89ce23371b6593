"""A real Prometheus, configured as the guide says, scrapes a real server and evaluates rules and panels."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import yaml
from test_monitoring import ALERTS, GUIDE, dashboard, queries, rules

from conditions import wait_until
from jobserver_core import JobServer, Settings, errors
from jobserver_core.memory import MemoryMetadataStore, MemoryTransport
from jobserver_core.models.binaries import Binary
from jobserver_http import running
from jobserver_http.credential_files import entry_line, hash_token, new_token
from serving import WAIT, a_request, a_server, archive, upload

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="needs prometheus (apt-get install prometheus)"
    ),
]

NOBODY = "127.0.0.1:1"
"""A server that is down."""
LISTENS = re.compile(r"[Ll]istening on.*address=127\.0\.0\.1:(\d+)")


@attrs.frozen
class Prometheus:
    """A Prometheus that runs."""

    client: httpx.Client

    def get(self, path: str, **parameters: str) -> Any:
        response = self.client.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def values(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def active(self) -> set[str]:
        """Return the alerts whose expression holds: they are pending, or fire already."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"]}


def configuration(directory: Path, target: str) -> Path:
    """Write the configuration of the guide, with the paths and the target of this test, and faster."""
    [block] = re.findall(r"```yaml\n(# prometheus\.yml.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    given = yaml.safe_load(
        block.replace("/etc/prometheus/jobserver-alerts.yml", str(ALERTS))
        .replace("/etc/prometheus/jobserver-token", str(directory / "token"))
        .replace("127.0.0.1:8090", target)
    )
    given["scrape_configs"][0]["static_configs"].append({"targets": [NOBODY]})
    given["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    return file


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Start Prometheus on a port of its choice, and stop it."""
    command = ["prometheus", f"--config.file={configuration(directory, target)}"]
    command += [f"--storage.tsdb.path={directory / 'tsdb'}", "--web.listen-address=127.0.0.1:0"]
    log = directory / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: LISTENS.search(log.read_text()) or process.poll() is not None, log.read_text)
        listens = LISTENS.search(log.read_text())
        assert listens, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{listens[1]}", timeout=WAIT) as client:
            yield Prometheus(client)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


class BreakableStore(MemoryMetadataStore):
    """A store that refuses binaries, and says so when asked, while it is broken."""

    broken = False

    def check(self) -> None:
        super().check()
        self._refuse()

    def add_binary(self, binary: Binary) -> None:
        self._refuse()
        super().add_binary(binary)

    def _refuse(self) -> None:
        if self.broken:
            raise errors.StorageError(message="disk full")


@attrs.frozen
class World:
    """A server with users and small limits, and a Prometheus that has seen it before anything happened."""

    prometheus: Prometheus
    server: JobServer
    url: str
    admin: str
    store: BreakableStore
    transport: MemoryTransport


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("prometheus")
    token, admin = new_token(), new_token()
    (directory / "token").write_text(token)
    lines = [
        entry_line("prometheus", hash_token(token), "jobs:read"),
        entry_line("admin", hash_token(admin), "*"),
    ]
    (directory / "tokens").write_text("\n".join(lines))
    (directory / "tokens").chmod(0o600)
    settings = Settings.from_mapping(
        {
            "jobserver": {
                "http": {"port": 0, "drain-timeout": "0 s"},
                "auth": {"backend": "file", "token-file": str(directory / "tokens")},
                "contexts": {"max-contexts": 4},
                "jobs": {"max-jobs-per-context": 1, "max-queued-jobs": 1},
                "callbacks": {"max-attempts": 1},
            }
        }
    )
    store, transport = BreakableStore(), MemoryTransport()
    server = a_server(settings=settings, metadata=store, transports=[transport])
    with running(server) as url:
        upload(server)
        with prometheus(directory, url.removeprefix("http://")) as found:
            wait_until(lambda: found.values('up{job="jobserver"} == 1'), "the server is scraped")
            yield World(found, server, url, admin, store, transport)


def loaded(found: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in found.get("rules")["groups"] for rule in group["rules"]]


def test_each_rule_is_loaded_and_evaluated_without_an_error(world: World) -> None:
    def unknown() -> list[str]:
        return [rule["name"] for rule in loaded(world.prometheus) if rule["health"] == "unknown"]

    wait_until(lambda: not unknown(), unknown)
    found = loaded(world.prometheus)
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in rules()}
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_the_token_of_the_guide_lets_prometheus_in(world: World) -> None:
    targets = {
        target["labels"]["instance"]: target for target in world.prometheus.get("targets")["activeTargets"]
    }
    assert targets.keys() == {world.url.removeprefix("http://"), NOBODY}
    server = targets[world.url.removeprefix("http://")]
    assert (server["health"], server["lastError"], server["labels"]["job"]) == ("up", "", "jobserver")
    assert httpx.get(f"{world.url}/metrics").status_code == 401


def cause_trouble(world: World) -> None:
    """Let happen what alerts are about, as far as it takes no longer than seconds."""
    server = world.server
    url = "http://receiver.example/"
    world.transport.always_answer(url, 500)
    server.create_context("shared").result(WAIT)
    for _ in range(20):
        failing = server.submit(a_request("w.Fail", context="shared"))
        with pytest.raises(errors.JobFailed):
            failing.result(WAIT)
    server.submit(a_request("w.Count", "input.string = a", context="shared", callback_url=url)).result(WAIT)
    server.submit(a_request("w.Sleep", context="shared"))
    server.submit(a_request("w.Sleep", context="shared"))
    with pytest.raises(errors.NoSlots):
        server.submit(a_request("w.Sleep", context="shared"))
    for number in range(3):
        with pytest.raises(errors.ContextFailed):
            server.create_context(f"bad-{number}", {"inline": {"fail": "no room"}}).result(WAIT)
    for number in range(3):
        server.create_context(f"more-{number}").result(WAIT)
    world.store.broken = True
    with httpx.Client(base_url=world.url, headers={"Authorization": f"Bearer {world.admin}"}) as client:
        client.headers["Content-Type"] = "application/python-wheel"
        for _ in range(100):
            assert client.post("/binaries/other", content=archive()).status_code == 500


TROUBLE = {
    "JobserverDown",
    "JobserverStorageFails",
    "JobserverRefusesJobs",
    "JobserverJobsFail",
    "JobserverContextsFail",
    "JobserverLittleRoom",
    "JobserverCallbacksGivenUp",
    "JobserverErrors",
}
"""What is wrong at the end. The other alerts take longer: promtool tests them with made-up series."""


def test_alerts_and_panels_show_what_happens_to_a_real_server(world: World) -> None:
    assert world.prometheus.active() <= {"JobserverDown"}, "the second target is down from the beginning"
    cause_trouble(world)
    wait_until(lambda: world.prometheus.active() == TROUBLE, lambda: str(world.prometheus.active()))
    for alert in world.prometheus.get("alerts")["alerts"]:
        assert "{{" not in str(alert["annotations"])
        assert "<no value>" not in str(alert["annotations"])

    def empty() -> list[str]:
        return [name for name, query in queries().items() if not world.prometheus.values(query)]

    panels = {panel["title"] for panel in dashboard()["panels"]}
    no_data = {name for name in empty() if name.rpartition(" ")[0] in panels}
    assert no_data == {"Starts of contexts C"}, "a server without pools has no spares; all else has data"
