from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import Context, Start

pytestmark = pytest.mark.spark

ALLOWED = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"}
ALLOWED |= {"LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "SPARK_CONF_DIR"}
OURS = {"JOBSERVER_CONTEXT", "JOBSERVER_FALLBACK_PATH", "JOBSERVER_JOB_ID", "PYTHONPATH", "PYSPARK_PYTHON"}
OURS |= {"PYSPARK_DRIVER_PYTHON", "JAVA_HOME", "TMPDIR"}
SPARKS = {"SPARK_AUTH_SOCKET_TIMEOUT", "SPARK_BUFFER_SIZE"}


@pytest.fixture(scope="module")
def secretive(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A context of a server with secrets in its environment and a file that is open and inheritable."""
    with (
        pytest.MonkeyPatch.context() as patch,
        (tmp_path_factory.mktemp("open") / "secret").open("w") as file,
    ):
        os.set_inheritable(file.fileno(), True)
        patch.setenv("DATABASE_PASSWORD", "hunter2")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        context = start_shared().wait_ready()
        yield context
        context.handle.kill()
        context.wait_end()


def test_secrets_of_the_server_do_not_reach_jobs(secretive: Context) -> None:
    seen = secretive.run("work.Environment").value
    assert set(seen["job"]) <= ALLOWED | OURS | SPARKS
    for environment in (seen["job"], seen["executor"]):
        assert "hunter2" not in environment.values()
        assert not [name for name in environment if "GATEWAY" in name]


def test_files_of_the_server_do_not_reach_jobs(secretive: Context) -> None:
    opened = secretive.run("work.Environment").value["files"]
    assert not [target for target in opened.values() if target.endswith("/secret")]
    kinds = [
        target for target in opened.values() if not target.startswith(("pipe:", "socket:", "anon_inode:"))
    ]
    assert set(kinds) <= {"/dev/null"} | {t for t in kinds if t.startswith(("/proc/", "/usr/", "/lib"))}


def test_no_secret_is_on_a_command_line_or_in_an_environment(secretive: Context) -> None:
    said = b""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if secretive.spec.id.encode() in (entry / "environ").read_bytes():
                said += (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
    assert b"jobserver_pyspark.host" in said
    assert b"hunter2" not in said
    assert b"GATEWAY" not in said
    assert not re.search(rb"[0-9a-f]{64}", said)  # neither the host's secret nor py4j's


def test_everything_listens_on_loopback_only(secretive: Context) -> None:
    listening = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if secretive.spec.id.encode() in (entry / "environ").read_bytes():
                listening |= _listening(entry)
        except OSError:
            continue
    assert listening
    assert all(address in ("0100007F", "0000000000000000FFFF00000100007F") for address in listening)


def _listening(entry: Path) -> set[str]:
    """The addresses, in the kernel's hexadecimal, that a process listens on."""
    inodes = set()
    for fd in (entry / "fd").iterdir():
        try:
            target = fd.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (entry / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    return found
