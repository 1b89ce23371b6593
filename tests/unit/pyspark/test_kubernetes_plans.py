"""The plans of contexts on Kubernetes, and the removal of what a killed driver leaves."""

from __future__ import annotations

import gc
import json
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from conditions import WAIT, wait_until
from jobserver_core import load_settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import Context
from jobserver_core.ports import ContextSpec
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.installation.java import Java
from jobserver_pyspark.installation.spark import Installation
from jobserver_pyspark.launcher.context_settings import read_settings
from jobserver_pyspark.launcher.host_plan import HostPlan, make_plan
from jobserver_pyspark.launcher.kubernetes import ClusterObjects
from jobserver_pyspark.launcher.leftovers import LeftoverRecord, Leftovers
from jobserver_pyspark.launcher.options import LauncherOptions
from jobserver_pyspark.launcher.spare_hosts import fingerprint

if TYPE_CHECKING:
    import trustme

MASTER = "k8s://https://kubernetes.default.svc"


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "POD_NAME", "POD_NAMESPACE", "POD_IP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "no-spark-conf"))


def conf_of(tmp_path: Path, settings: dict[str, Any] | None = None, master: str = MASTER) -> dict[str, str]:
    return dict(plan_of(tmp_path, settings, master).spec.conf)


def plan_of(tmp_path: Path, settings: dict[str, Any] | None = None, master: str = MASTER) -> HostPlan:
    package = tmp_path / "pyspark"
    (package / "jars").mkdir(parents=True, exist_ok=True)
    return make_plan(
        ContextSpec(
            id="id-1", name="name", log_path=tmp_path / "log", work_dir=tmp_path / "work", data_dir=tmp_path
        ),
        read_settings(settings or {}, default_master=master),
        Installation(python="python3", package=package, version="4.3.0"),
        Java(program=Path("/jdk/bin/java"), version=17, identity="17"),
        LauncherOptions(cache_dir=tmp_path / "cache"),
        tmp_dir=tmp_path / "tmp",
        log_limit=1,
        result_limit=2,
        class_data=[],
    )


def test_executor_pods_carry_the_ids_of_their_context_and_their_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAME", "jobserver-0")
    conf = conf_of(tmp_path)
    assert conf["spark.app.id"] == "spark-id-1"
    assert conf["spark.kubernetes.executor.label.jobserver-context"] == "id-1"
    assert conf["spark.kubernetes.executor.label.jobserver-server"] == "jobserver-0"


def test_the_name_of_a_machine_becomes_a_valid_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "-größe " + "x" * 100)
    label = conf_of(tmp_path)["spark.kubernetes.executor.label.jobserver-server"]
    assert len(label) <= 63
    assert label.isascii()
    assert label.startswith("gr")


def test_a_pod_gives_its_contexts_its_name_namespace_and_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"NAME": "jobserver-0", "NAMESPACE": "jobs", "IP": "10.1.2.3"}.items():
        monkeypatch.setenv(f"POD_{key}", value)
    conf = conf_of(tmp_path)
    assert conf["spark.kubernetes.driver.pod.name"] == "jobserver-0"
    assert conf["spark.kubernetes.namespace"] == "jobs"
    assert conf["spark.driver.host"] == "10.1.2.3"
    own = {"spark": {"driver": {"host": "driver.example.com"}, "kubernetes": {"namespace": "other"}}}
    chosen = conf_of(tmp_path, own)
    assert chosen["spark.driver.host"] == "driver.example.com"
    assert chosen["spark.kubernetes.namespace"] == "other"
    monkeypatch.setenv("POD_IP", "fd00::1")
    assert conf_of(tmp_path)["spark.driver.host"] == "[fd00::1]"


@pytest.mark.parametrize("master", ["local[2]", "spark://127.0.0.1:7077", "yarn"])
def test_other_masters_ignore_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: str) -> None:
    monkeypatch.setenv("POD_NAME", "jobserver-0")
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    conf = conf_of(tmp_path, master=master)
    assert not [key for key in conf if "kubernetes" in key]
    assert conf.get("spark.driver.host") != "10.1.2.3"
    assert "spark.app.id" not in conf
    assert ClusterObjects.of(conf) is None


@pytest.mark.parametrize("address", ["https://10.0.0.1:6443", "10.0.0.1:6443"])
def test_a_context_on_kubernetes_knows_its_objects(tmp_path: Path, address: str) -> None:
    settings = {"spark": {"kubernetes": {"namespace": "jobs"}}}
    assert ClusterObjects.of(conf_of(tmp_path, settings, f"k8s://{address}")) == ClusterObjects(
        url="https://10.0.0.1:6443", namespace="jobs", application_id="spark-id-1"
    )


def test_a_context_brings_the_template_of_its_executor_pods_as_a_string(tmp_path: Path) -> None:
    pod = "spec: {nodeSelector: {node.kubernetes.io/instance-type: m5.large}}"
    plan = plan_of(tmp_path, {"pod-template": pod})
    assert plan.pod_template == pod
    path = Path(plan.spec.conf["spark.kubernetes.executor.podTemplateFile"])
    assert path.parent == plan.spec.tmp_dir
    elsewhere = plan_of(tmp_path, {"pod-template": pod}, "local[2]")
    assert elsewhere.pod_template is None
    assert "spark.kubernetes.executor.podTemplateFile" not in elsewhere.spec.conf
    with pytest.raises(InvalidSetting, match="takes a pod as a string of YAML or JSON") as raised:
        plan_of(tmp_path, {"pod-template": {"spec": {"nodeSelector": {"disk": "ssd"}}}})
    assert raised.value.key == "pod-template"


def test_a_spare_serves_only_contexts_with_its_own_template_of_pods(tmp_path: Path) -> None:
    plans = [plan_of(tmp_path, settings) for settings in ({}, {"pod-template": "a"}, {"pod-template": "b"})]
    assert len({fingerprint(plan, tmp_path / "work") for plan in plans}) == 3


def test_a_context_may_name_only_the_files_that_the_configuration_names(tmp_path: Path) -> None:
    template, token = "podTemplateFile", "authenticate.oauthTokenFile"
    ours = f"""
    spark.master = "{MASTER}"
    spark.context-settings.spark.kubernetes.executor.{template} = /etc/jobserver/pod.yaml
    spark.contexts.gpu.spark.kubernetes.executor.{template} = /etc/jobserver/gpu.yaml
    jobserver.contexts.pools.spot {{ size = 0, launcher.spark.kubernetes.{token} = /etc/jobserver/token }}
    """
    (tmp_path / "server.conf").write_text(ours)
    launcher = PySparkLauncher.from_settings(load_settings(tmp_path / "server.conf", env={}), tmp_path)
    for accepted in (
        {},
        {"spark": {"kubernetes": {"executor": {template: "/etc/jobserver/pod.yaml"}}}},
        {"passthrough": {"spark": {"kubernetes": {"executor": {template: "/etc/jobserver/gpu.yaml"}}}}},
        {f"spark.kubernetes.{token}": "/etc/jobserver/token"},
        {f"spark.kubernetes.executor.{template}": "/etc/passwd", "spark.master": "local[2]"},
    ):
        launcher.validate(accepted)
    for key, path in (
        (f"executor.{template}", "/etc/passwd"),
        (f"executor.{template}", "/etc/jobserver/../jobserver/pod.yaml"),
        (f"executor.{template}", "http://169.254.169.254/latest/meta-data"),
        (f"executor.{template}", "/etc/jobserver/token"),
        (token, "/var/lib/jobserver/metadata.db"),
        (token, "/etc/jobserver/pod.yaml"),
        ("authenticate.clientKeyFile", "/etc/ssl/private/key.pem"),
    ):
        for prefix in ("", "passthrough.", "launcher."):
            with pytest.raises(InvalidSetting, match="must be a file that the server's conf") as raised:
                launcher.validate({f"{prefix}spark.kubernetes.{key}": path})
            assert raised.value.key == f"spark.kubernetes.{key}"
            assert path not in str(raised.value)
    launcher.close()


class ApiServer(ThreadingHTTPServer):
    """Stores objects by their paths; lists them by one label, and deletes them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.status: int | None = None
        self.scheme = "http"
        self.tokens: list[str | None] = []
        """The ``Authorization`` header of each request."""
        self.watched: list[Path] = []
        self.seen: list[Path] = []
        """Those of the watched directories that existed during a request."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def use_tls(self, authority: trustme.CA) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    def add(self, kind: str, name: str, application_id: str) -> None:
        labels = {"spark-app-selector": application_id}
        path = f"/api/v1/namespaces/jobs/{kind}/{name}"
        self.objects[path] = {"metadata": {"name": name, "namespace": "jobs", "labels": labels}}


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        [selector] = parse_qs(url.query)["labelSelector"]
        found = [
            thing
            for path, thing in self.server.objects.items()
            if path.rpartition("/")[0] == url.path
            and selector == "spark-app-selector=" + thing["metadata"]["labels"]["spark-app-selector"]
        ]
        self._respond(self.server.status or 200, {"metadata": {}, "items": found})

    def do_DELETE(self) -> None:
        found = self.server.objects.pop(urlsplit(self.path).path, None)
        self._respond(404 if found is None else 200, {"status": "Success"})

    def _respond(self, status: int, body: dict[str, Any]) -> None:
        self.server.tokens.append(self.headers["Authorization"])
        self.server.seen += [directory for directory in self.server.watched if directory.exists()]
        data = json.dumps({"message": "as the test says", **body}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    pytest.importorskip("lightkube", reason="needs the extra kubernetes")
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sweep(leftovers: Leftovers) -> None:
    leftovers.sweep()
    leftovers.join(time.monotonic() + WAIT)


def record_of(api: ApiServer, directory: Path) -> tuple[Leftovers, Path]:
    """Store the record of a server that was killed, and return it with its file."""
    leftovers = Leftovers(directory)
    cluster = ClusterObjects(url=api.url, namespace="jobs", application_id="spark-1")
    leftovers.record("1", LeftoverRecord(marker="1:none", directories=(), cluster=cluster))
    return leftovers, directory / "1.json"


@pytest.mark.real
def test_the_next_start_removes_what_a_dead_server_left_and_nothing_else(
    api: ApiServer, tmp_path: Path
) -> None:
    for kind in ("pods", "configmaps", "services", "persistentvolumeclaims"):
        api.add(kind, "left", "spark-1")
        api.add(kind, "alive", "spark-2")
    api.add("secrets", "left", "spark-1")
    leftovers, file = record_of(api, tmp_path)
    sweep(leftovers)
    names = [path.rpartition("/")[2] for path in api.objects]
    assert names == ["alive", "alive", "alive", "alive", "left"], "contexts have no secrets"
    assert not file.exists()
    gc.collect()  # reports a connection that was not closed


def test_a_site_whose_defaults_cannot_be_read_fails_starts_and_neither_the_sweep_nor_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "spark-defaults.conf").write_bytes(b"spark.app.name caf\xe9\n")
    launcher = PySparkLauncher(tmp_path, master="local[2]")
    launcher.sweep_lost([])
    assert "cannot remove what contexts of dead servers left" in caplog.text
    assert "spark-defaults.conf': is not UTF-8" in caplog.text
    assert launcher.resources({}).cores == 2
    with pytest.raises(InvalidSetting, match="is not UTF-8"):
        plan_of(tmp_path)
    launcher.close()


@pytest.mark.real
def test_another_server_removes_what_contexts_of_a_dead_one_left(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for application_id in ("spark-1", "spark-spare", "spark-3", "spark-alive"):
        api.add("pods", f"of-{application_id}", application_id)
    settings = {"spark": {"master": f"k8s://{api.url}", "kubernetes": {"namespace": "jobs"}}}
    since = datetime.now(timezone.utc)
    dead = {"owner": "dead", "owned_since": since, "started_at": since}
    lost = [
        Context(id="1", name="not-ready", settings=settings, **dead),
        Context(id="2", name="of-a-pool", settings=settings, application_id="spark-spare", **dead),
        Context(id="3", name="local", **dead),
    ]
    launcher = PySparkLauncher(tmp_path, master="local[2]")
    api.status = 503
    launcher.sweep_lost(lost)
    assert "as the test says; the next start tries again" in caplog.text
    api.status = None
    launcher.sweep_lost(lost[:1])
    assert [path.rpartition("/")[2] for path in api.objects] == [
        "of-spark-spare",
        "of-spark-3",
        "of-spark-alive",
    ]
    launcher.sweep()
    assert [path.rpartition("/")[2] for path in api.objects] == ["of-spark-3", "of-spark-alive"]
    wait_until(lambda: not list(Leftovers(tmp_path / "contexts").all()))
    launcher.close()


@pytest.mark.real
def test_what_cannot_be_removed_is_removed_by_a_later_start(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.add("pods", "left", "spark-1")
    api.status = 403
    leftovers, file = record_of(api, tmp_path)
    sweep(leftovers)
    assert file.exists()
    assert "as the test says; the next start tries again" in caplog.text
    api.status = None
    sweep(leftovers)
    assert (api.objects, file.exists()) == ({}, False)


@pytest.mark.real
def test_an_api_server_that_is_gone_does_not_stop_the_start(api: ApiServer, tmp_path: Path) -> None:
    leftovers, file = record_of(api, tmp_path)
    api.server_close()
    sweep(leftovers)
    assert file.exists()


@pytest.mark.real
def test_a_cluster_that_fails_is_asked_once_by_a_start_after_everything_else_was_ended(
    api: ApiServer, tmp_path: Path
) -> None:
    api.status = 503
    leftovers = Leftovers(tmp_path / "contexts")
    for number in range(3):
        directory = tmp_path / f"work-{number}"
        directory.mkdir()
        api.watched.append(directory)
        cluster = ClusterObjects(url=api.url, namespace="jobs", application_id=f"spark-{number}")
        record = LeftoverRecord(marker=f"{number}:none", directories=(directory,), cluster=cluster)
        leftovers.record(str(number), record)
    sweep(leftovers)
    assert (len(api.tokens), api.seen) == (1, [])
    assert len(list(leftovers.all())) == 3
    api.status = None
    sweep(leftovers)
    assert list(leftovers.all()) == []


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, path: Path, server: str, authority: trustme.CA) -> None:
    """Store a kubeconfig file with a token for this server."""
    authority.cert_pem.write_to_path(path.with_suffix(".pem"))
    cluster = {"server": server, "certificate-authority": str(path.with_suffix(".pem"))}
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.mark.real
def test_credentials_reach_only_the_server_that_they_are_for(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import trustme

    authority = trustme.CA()
    api.use_tls(authority)
    api.add("pods", "left", "spark-1")
    leftovers, file = record_of(api, tmp_path / "contexts")
    others = ("https://10.0.0.1:6443", f"https://127.0.0.1:{api.server_port - 1}", "https://10.0.0.1")
    for other in others:
        use_kubeconfig(monkeypatch, tmp_path / "kubeconfig", other, authority)
        sweep(leftovers)
        assert f"there are credentials for {other} only" in caplog.text
    assert (api.tokens, file.exists()) == ([], True)
    use_kubeconfig(monkeypatch, tmp_path / "kubeconfig", api.url, authority)
    sweep(leftovers)
    assert set(api.tokens) == {"Bearer secret"}
    assert (api.objects, file.exists()) == ({}, False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://kubernetes.default.svc", True),
        ("https://kubernetes.default.svc.cluster.local:443", True),
        ("https://KUBERNETES.default", True),
        ("https://10.96.0.1:443", True),
        ("https://kubernetes.default.svc:6443", False),
        ("https://kubernetes.default.svc.example.com", False),
        ("https://10.96.0.2", False),
    ],
)
def test_a_service_account_is_for_the_names_of_the_api_server_in_a_pod(url: str, expected: bool) -> None:
    pytest.importorskip("lightkube", reason="needs the extra kubernetes")
    from lightkube import KubeConfig
    from lightkube.config.models import Cluster, User

    from jobserver_pyspark.launcher.kubernetes_api import _for_server

    cluster = Cluster(server="https://10.96.0.1:443")
    in_pod = KubeConfig.from_one(cluster=cluster, user=User(token="t")).get()
    in_file = KubeConfig.from_one(cluster=cluster, user=User(token="t"), fname="/kubeconfig").get()
    assert in_pod is not None
    assert in_file is not None
    assert _for_server(in_pod, url) is expected
    assert _for_server(in_file, url) is (expected and "10.96.0.1" in url)
