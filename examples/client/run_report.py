"""A plain script: upload code if it is new, run a job on a server, and write its result to a file.

    python run_report.py URL WHEEL CLASS RESULT [CONFIGURATION]

README.md has an example. The server's credentials come from the environment: JOBSERVER_TOKEN, or
JOBSERVER_USER and JOBSERVER_PASSWORD.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from jobserver_client import Client
from jobserver_core import (
    BinaryNotFound,
    BinaryType,
    JobRequest,
    JobUnsuccessful,
    LogNotFound,
    ResultTimeout,
)


def uploaded(client: Client, wheel: Path) -> str:
    """Upload the wheel unless the server has it as the newest version; return the binary's name."""
    name = wheel.name.split("-")[0]
    data = wheel.read_bytes()
    try:
        if client.binary(name).digest == hashlib.sha256(data).hexdigest():
            return name
    except BinaryNotFound:
        pass
    client.upload(name, BinaryType.WHEEL, data)
    return name


def run(client: Client, wheel: Path, class_name: str, target: Path, config: str) -> None:
    """Run the job, show what it prints, and save its result in chunks, however large it is."""
    binary = uploaded(client, wheel)
    handle = client.submit(JobRequest(class_name=class_name, class_path=binary, config=config))
    print(f"job {handle.id}", file=sys.stderr)
    handle.finished.result(timeout=600)
    try:
        for line in client.logs(handle.id):
            print(line, file=sys.stderr)
    except LogNotFound:
        pass  # the job has printed nothing
    handle.result()  # raises the error of a job that failed
    result = client.open_result(handle.id)
    assert result is not None
    with result, target.open("wb") as file:
        for chunk in result:
            file.write(chunk)


def main(url: str, wheel: str, class_name: str, target: str, config: str = "") -> int:
    environment = os.environ
    with Client(
        url,
        token=environment.get("JOBSERVER_TOKEN"),
        user=environment.get("JOBSERVER_USER"),
        password=environment.get("JOBSERVER_PASSWORD"),
    ) as client:
        try:
            run(client, Path(wheel), class_name, Path(target), config)
        except (JobUnsuccessful, ResultTimeout) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
