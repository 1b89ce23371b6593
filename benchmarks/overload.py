"""Ten thousand submits at once against a context whose slots are taken, over HTTP, from several users.

Checks that each submit was either accepted and finished, or refused in words, and that users who submit few
jobs are not shut out by one who floods. Prints the counts, the time, and the growth of the server's memory.

    python benchmarks/overload.py [SUBMITS]
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from jobserver_core import BinaryType, JobServer, JobState, Settings
from jobserver_core.memory import InlineJob, InlineLauncher
from jobserver_core.models.jobs import JobQuery
from jobserver_http import running
from jobserver_http.credential_files import hash_token

CONNECTIONS = 400
USERS = {"flood": 0.8, "ann": 0.1, "bob": 0.1}
"""The users, and their shares of the submits."""


def main(submits: int) -> None:
    """Run the benchmark in a temporary directory."""
    gate = threading.Event()

    def gated(job: InlineJob) -> str:
        while not gate.wait(0.01):
            job.check()
        return "done"

    with tempfile.TemporaryDirectory() as directory:
        tokens = Path(directory, "tokens")
        tokens.write_text("".join(f"{user}:{hash_token(f'{user}-secret-token')}:*\n" for user in USERS))
        tokens.chmod(0o600)
        settings = Settings.from_mapping(
            {
                "jobserver": {
                    "http": {"port": 0, "drain-timeout": "0 s"},
                    "auth": {"backend": "file", "token-file": str(tokens)},
                    "jobs": {"max-queued-jobs": 1000},
                }
            }
        )
        server = JobServer.in_memory(settings=settings, launcher=InlineLauncher({"w.Gated": gated}))
        with running(server) as url:
            server.upload("words", BinaryType.EGG, _archive())
            server.create_context("shared").result(10)
            before = _memory()
            began = time.monotonic()
            responses = asyncio.run(_submit_all(url, submits))
            seconds = time.monotonic() - began
            gate.set()
            _report(server, responses, seconds, before)


def _archive() -> bytes:
    import io  # noqa: PLC0415 - only here
    import zipfile  # noqa: PLC0415 - only here

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("words.py", "x = 1")
    return buffer.getvalue()


def _memory() -> float:
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _submit_all(url: str, submits: int) -> list[tuple[str, int, dict[str, str]]]:
    """Submit from many connections at once; return the user, the status and the body of each response."""
    users = [user for user, share in USERS.items() for _ in range(round(submits * share / 10))]
    pending = [user for _ in range(10) for user in users]
    responses: list[tuple[str, int, dict[str, str]]] = []

    async def client() -> None:
        host = urlsplit(url)
        reader, writer = await asyncio.open_connection(host.hostname, host.port)
        while pending:
            user = pending.pop()
            credentials = f"Bearer {user}-secret-token"
            writer.write(
                b"POST /jobs?appName=words&classPath=w.Gated&context=shared HTTP/1.1\r\nHost: localhost\r\n"
                + f"Authorization: {credentials}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            responses.append((user, int(head.split()[1]), body))
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return responses


def _report(
    server: JobServer, responses: list[tuple[str, int, dict[str, str]]], seconds: float, before: float
) -> None:
    accepted = [(user, body["jobId"]) for user, status, body in responses if status == 202]
    refused = Counter((status, body["status"]) for _, status, body in responses if status != 202)
    deadline = time.monotonic() + 300
    while any(not server.job(job_id).state.final for _, job_id in accepted):
        assert time.monotonic() < deadline, "jobs did not finish"
        time.sleep(0.1)
    states = Counter(server.job(job_id).state for _, job_id in accepted)
    known = len(server.jobs(JobQuery(limit=10_000)).jobs)
    print(f"{len(responses)} submits in {seconds:.1f} s ({len(responses) / seconds:.0f}/s)")
    print(f"accepted by user: {dict(Counter(user for user, _ in accepted))}, states {dict(states)}")
    print(f"refused: {dict(refused)}")
    print(f"memory: {before:.0f} MiB before, {_memory():.0f} MiB at most (this client included)")
    assert set(states) == {JobState.FINISHED}, states
    assert known == len(accepted), (known, len(accepted))
    assert set(refused) == {(503, "NO SLOTS AVAILABLE")}, refused


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
