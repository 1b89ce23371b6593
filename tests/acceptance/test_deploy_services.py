"""The systemd unit and the Kubernetes manifests fit the server, the image and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from jobserver_cli.exits import ExitCode
from jobserver_core import Settings, load_settings

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra test")

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
UNIT = DEPLOY / "systemd" / "jobserver.service"
VERSIONS = ["1.29", "1.37"]
"""The oldest release of Kubernetes that the manifests are written for, and a new one."""
FILES = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
OBJECTS = [document for file in FILES for document in yaml.safe_load_all((BASE / file).read_text())]


def settings_of_the_pod() -> Settings:
    """Return the settings of the image with the file that the pod puts beside them."""
    image = dict(re.findall(r"\b(JOBSERVER_\w+)=(\S+)", (DEPLOY / "container" / "Dockerfile").read_text()))
    with TemporaryDirectory() as directory:
        file = Path(shutil.copy(DEPLOY / "production.conf", directory))
        shutil.copy(BASE / "site.conf", directory)
        return load_settings(file, env=image)


SETTINGS = settings_of_the_pod()


def name_of(thing: dict[str, Any]) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def only(kind: str) -> dict[str, Any]:
    [found] = [thing for thing in OBJECTS if thing["kind"] == kind]
    return found


POD = only("StatefulSet")["spec"]["template"]
[SERVER] = POD["spec"]["containers"]
EXECUTOR = yaml.safe_load((BASE / "executor-pod.yaml").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("thing", [*OBJECTS], ids=name_of)
def test_a_manifest_follows_the_published_schema(thing: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(thing, version, strict=True)


def test_a_mistake_in_a_manifest_is_found() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(only("StatefulSet")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_template_of_executors_is_a_pod_that_lacks_only_what_spark_adds() -> None:
    complete = yaml.safe_load(yaml.safe_dump(EXECUTOR))
    complete["metadata"] = {"name": "executor"}
    complete["spec"]["containers"][0]["image"] = "any"
    kubernetes_validate.validate(complete, VERSIONS[0], strict=True)


def test_every_manifest_is_part_of_the_base() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    [generated] = kustomization["configMapGenerator"]
    listed = {"kustomization.yaml", *kustomization["resources"], *generated["files"]}
    assert listed == {path.name for path in BASE.iterdir()}
    assert kustomization["images"][0]["name"] == SERVER["image"]


def test_kustomize_renders_the_base() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", BASE], capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    for thing in rendered:
        kubernetes_validate.validate(thing, VERSIONS[0], strict=True)
    names = {name_of(thing) for thing in rendered}
    assert {name_of(thing) for thing in OBJECTS} <= names
    assert {thing["metadata"]["namespace"] for thing in rendered} == {"jobserver"}
    [binding] = [thing for thing in rendered if thing["kind"] == "RoleBinding"]
    assert binding["subjects"][0]["namespace"] == "jobserver", "which the API server requires"
    [settings] = [thing for thing in rendered if thing["kind"] == "ConfigMap"]
    [stateful] = [thing for thing in rendered if thing["kind"] == "StatefulSet"]
    volumes = {volume["name"]: volume for volume in stateful["spec"]["template"]["spec"]["volumes"]}
    assert volumes["configuration"]["configMap"]["name"] == settings["metadata"]["name"]
    assert set(settings["data"]) == {"site.conf", "executor-pod.yaml"}


def test_every_selector_selects_the_server() -> None:
    labels = POD["metadata"]["labels"]
    selectors = [
        only("StatefulSet")["spec"]["selector"]["matchLabels"],
        only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        *[thing["spec"]["selector"] for thing in OBJECTS if thing["kind"] == "Service"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    headless = [thing for thing in OBJECTS if thing["kind"] == "Service" and thing["spec"].get("clusterIP")]
    assert [only("StatefulSet")["spec"]["serviceName"]] == [thing["metadata"]["name"] for thing in headless]


def test_the_server_gets_the_permissions_of_its_role_and_no_other() -> None:
    account, role, binding = only("ServiceAccount"), only("Role"), only("RoleBinding")
    assert POD["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"secrets", "pods/exec", "roles"} & {*rule["resources"]}
    assert not [thing for thing in OBJECTS if thing["kind"].startswith("Cluster")]


def test_the_settings_match_the_pod() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in SERVER["volumeMounts"] if "subPath" not in mount}
    files = {mount["subPath"]: mount["mountPath"] for mount in SERVER["volumeMounts"] if "subPath" in mount}
    assert str(SETTINGS.data_dir) == mounts["data"]
    assert SETTINGS.auth.token_file is not None
    assert str(SETTINGS.auth.token_file.parent) == mounts["credentials"]
    assert files == {name: f"/etc/jobserver/{name}" for name in ("site.conf", "executor-pod.yaml")}
    assert SERVER["ports"] == [{"name": "http", "containerPort": SETTINGS.http.port}]
    template = SETTINGS.spark.context_settings["spark"]["kubernetes"]["executor"]["podTemplateFile"]
    assert template == files["executor-pod.yaml"]
    volumes = {volume["name"] for volume in POD["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in only("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in SERVER["volumeMounts"]} == volumes | claims


@pytest.mark.parametrize("pod", [POD, EXECUTOR], ids=["server", "executor"])
def test_pods_run_with_the_least_privileges_and_the_user_of_the_image(pod: dict[str, Any]) -> None:
    dockerfile = (DEPLOY / "container" / "Dockerfile").read_text()
    [uid] = set(re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE))
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"]
    assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {int(uid)}
    [container] = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_grace_periods_are_longer_than_a_shutdown() -> None:
    shutdown = SETTINGS.http.drain_timeout + SETTINGS.stop_timeout
    assert POD["spec"]["terminationGracePeriodSeconds"] > shutdown
    assert int(unit()["TimeoutStopSec"]) > shutdown


def unit() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))


def test_the_unit_lets_the_server_end_its_contexts_and_the_jvm_compile() -> None:
    assert unit()["KillMode"] == "mixed"
    assert "MemoryDenyWriteExecute" not in unit()
    assert "AF_UNIX" in unit()["RestrictAddressFamilies"], "servers, hosts and runners talk over Unix sockets"


def test_the_unit_takes_the_data_directory_from_the_configuration_so_that_site_conf_can_change_it() -> None:
    command = "/opt/jobserver/bin/jobserver serve --config /etc/jobserver/jobserver.conf"
    assert unit()["ExecStart"] == command
    production = load_settings(DEPLOY / "production.conf", env={})
    assert production.data_dir == Path("/var/lib") / unit()["StateDirectory"]


def test_systemd_gives_up_what_does_not_become_right_by_itself() -> None:
    permanent = {ExitCode.USAGE, ExitCode.NOT_READY}
    guide = (DEPLOY.parent / "docs" / "howto" / "go-to-production.md").read_text(encoding="utf-8")
    [of_a_user] = re.findall(r"^RestartPreventExitStatus=(.*)$", guide, re.MULTILINE)
    for codes in (unit()["RestartPreventExitStatus"], of_a_user):
        assert {int(code) for code in codes.split()} == permanent


def test_doctor_runs_in_the_guide_with_the_directories_of_the_unit() -> None:
    guide = (DEPLOY.parent / "docs" / "howto" / "go-to-production.md").read_text(encoding="utf-8")
    [function] = re.findall(r"^as_the_service\(\) \{\n(.*?)^\}", guide, re.MULTILINE | re.DOTALL)
    given = dict(re.findall(r"-p (\w+)=(\S+)", function))
    names = (
        "User",
        "EnvironmentFile",
        *(f"{kind}Directory{mode}" for kind in ("State", "Cache") for mode in ("", "Mode")),
    )
    assert given == {name: unit()[name] for name in names}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit, with a program of this machine as the server."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, of systemd")
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace("/opt/jobserver/bin/jobserver", sys.executable))
    return there


@pytest.mark.real
def test_systemd_accepts_the_unit(installed: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.real
def test_systemd_calls_the_sandbox_of_the_unit_tight(installed: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", installed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr or "Unknown" in done.stderr:
        pytest.skip("needs systemd 250 or newer")
    assert done.returncode == 0, done.stdout[-200:]
