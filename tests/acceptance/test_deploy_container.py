"""The image of the server, as far as it can be tested without a container runtime."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import attrs
import httpx
import pytest

from conditions import WAIT
from jobserver_core import load_settings
from jobserver_http.credential_files import entry_line, hash_token, new_token

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = ROOT / "deploy" / "container"
PRODUCTION = ROOT / "deploy" / "production.conf"


@attrs.frozen
class Step:
    """One instruction of the Dockerfile, and the stage that it belongs to."""

    stage: str
    name: str
    text: str


def read_steps() -> list[Step]:
    text = re.sub(r"^#.*\n", "", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE)
    steps, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stage = rest.rpartition(" AS ")[2]
        if name:
            steps.append(Step(stage, name, rest.strip()))
    return steps


STEPS = read_steps()


def texts(name: str, stage: str | None = None) -> list[str]:
    return [step.text for step in STEPS if step.name == name and stage in (None, step.stage)]


def command(name: str, stage: str = "server") -> list[str]:
    """Return the last command of an instruction, which has to be in the exec form."""
    parts: list[str] = json.loads(
        texts(name, stage)[-1].partition("[")[1] + texts(name, stage)[-1].partition("[")[2]
    )
    return parts


def sources() -> list[str]:
    """Return what the Dockerfile copies from the repository."""
    copied = (shlex.split(text) for text in texts("COPY") if "--from=" not in text)
    return [word for words in copied for word in words[:-1] if not word.startswith("--")]


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    lines = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert set(sources()) == sent
    assert [source for source in sources() if not (ROOT / source).exists()] == []
    assert "*" in lines, "everything else stays here"


def test_the_wheel_needs_nothing_that_the_image_does_not_copy() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    packaged = re.findall(
        r'"([\w/]+)"', project.partition("[tool.hatch.build.targets.wheel]")[2].partition("]")[0]
    )
    assert packaged
    needed = [*packaged, *re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', project, re.MULTILINE)]
    assert [name for name in needed if not any(fnmatch(name, f"{source}*") for source in sources())] == []


def test_the_extras_of_the_image_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    known = re.findall(r"^(\w+) = \[", project.partition("\n[")[0], re.MULTILINE)
    [extras] = [text.partition("=")[2] for text in texts("ARG") if text.startswith("EXTRAS=")]
    assert {*extras.split(","), "jdk"} <= set(known)
    assert set(extras.split(",")) >= {"pyspark", "sql", "fsspec", "http", "httpx", "cli"}


def test_the_steps_of_the_image_are_valid_shell() -> None:
    for text in texts("RUN"):
        done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), text


@pytest.mark.parametrize(("java", "extras"), [("packaged", "a,b,jdk"), ("system", "a,b")])
def test_the_packaged_java_is_installed_unless_the_system_has_one(
    tmp_path: Path, java: str, extras: str
) -> None:
    [build] = texts("RUN", "build")
    choice = build[build.index("case ") : build.index("esac") + 4]
    environment = {"JAVA": java, "EXTRAS": "a,b", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sh", "-c", f'{choice} && echo "$extras"'],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{extras}\n"
    environment["JAVA"] = "11"
    refused = subprocess.run(
        ["sh", "-c", choice], env=environment, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr) == (1, "JAVA must be packaged or system, got 11\n")


def test_the_guide_runs_the_image_as_it_is() -> None:
    guide = (ROOT / "docs" / "howto" / "deploy.md").read_text()
    assert re.findall(r"--tmpfs (\S+)", guide) == ["/tmp:exec"], "the JVM maps native libraries from there"
    arguments = {name.partition("=")[0] for name in texts("ARG")}
    assert arguments == set(re.findall(r"^\| `([A-Z_]+)` \|", guide, re.MULTILINE))


@pytest.mark.parametrize("stage", ["server", "executor"])
def test_no_process_of_the_image_runs_as_root(stage: str) -> None:
    assert texts("USER", stage) == ["10001:10001"]
    assert STEPS[-1].stage == "server", "the server is built by default"


def variables() -> dict[str, str]:
    """Return the environment that the image gives to the server."""
    [words] = [shlex.split(text) for text in texts("ENV", "server")]
    return dict(word.split("=", 1) for word in words)


def test_the_configuration_of_the_image_is_valid() -> None:
    settings = load_settings(PRODUCTION, env=variables())
    assert settings.http.host == "0.0.0.0"
    assert [str(settings.data_dir)] == texts("VOLUME", "server")
    assert [str(settings.http.port)] == texts("EXPOSE", "server")
    assert f":{settings.http.port}/healthz" in command("HEALTHCHECK")[-1]
    [source] = [text.split() for text in texts("COPY", "server") if "jobserver.conf" in text]
    assert command("CMD") == ["--config", source[-1]]


@pytest.fixture(scope="module")
def read_only() -> list[str]:
    """The command that runs its arguments, after a directory to write to, with all other files read-only."""
    if shutil.which("unshare") is None:
        pytest.skip("needs the program unshare, of util-linux")
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        unshare.insert(1, "--map-root-user")
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro / && cd "$1" && shift && exec "$@"'
    found = [*unshare, "sh", "-c", script, "sh"]
    probe = subprocess.run([*found, "/tmp", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"needs mount namespaces: {probe.stderr.strip()}")
    return found


@attrs.frozen
class Server:
    """The server of the image, run by its own entry point."""

    url: str
    token: str
    process: subprocess.Popen[str]


@pytest.fixture
def server(read_only: list[str], tmp_path: Path) -> Iterator[Server]:
    token = new_token()
    (tmp_path / "tokens").write_text(entry_line("admin", hash_token(token), "*"))
    (tmp_path / "tokens").chmod(0o600)
    config = PRODUCTION.read_text().replace("/var/lib", str(tmp_path))
    (tmp_path / "jobserver.conf").write_text(config)
    given = {
        name: value.replace("/run/secrets/jobserver", str(tmp_path)) for name, value in variables().items()
    }
    (tmp_path / "site.conf").write_text("jobserver { launcher.backend = memory, http.port = 0 }")
    program, *arguments = command("ENTRYPOINT")
    assert program == "jobserver"
    process = subprocess.Popen(
        [*read_only, tmp_path, sys.executable, "-m", "jobserver_cli", *arguments]
        + [word.replace("/etc/jobserver", str(tmp_path)) for word in command("CMD")],
        env={**given, "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    try:
        assert url.startswith("http://0.0.0.0:"), "see the captured stderr"
        yield Server(url.replace("0.0.0.0", "127.0.0.1"), token, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def health(url: str) -> int:
    """Run the image's health check, and return its exit code."""
    check = [word.replace("http://127.0.0.1:8090", url) for word in command("HEALTHCHECK")]
    return subprocess.run([sys.executable, *check[1:]], capture_output=True, check=False).returncode


@pytest.mark.real
def test_the_server_of_the_image_runs_on_a_read_only_file_system(server: Server, tmp_path: Path) -> None:
    assert health(server.url) == 0
    with httpx.Client(base_url=server.url, timeout=WAIT) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/jobs").status_code == 401
        assert client.get("/jobs", headers={"Authorization": f"Bearer {server.token}"}).json() == []
    assert (tmp_path / "jobserver" / "metadata.db").exists()

    [init] = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    os.kill(int(init), signal.SIGTERM)
    assert server.process.wait(WAIT) == 0
    assert health(server.url) == 1, "nobody listens any more"
