"""What a large upload and a large result cost the HTTP front-end: peak memory, and megabytes a second.

    python benchmarks/http_uploads.py [--size MB]

The server runs in its own process, with blobs in a temporary directory and an inline launcher.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterator

import httpx

SERVER = textwrap.dedent(
    """
    import sys, zipfile
    from pathlib import Path
    from jobserver_core import JobServer, Settings
    from jobserver_core.memory import InlineLauncher
    from jobserver_fsspec import FsspecBlobStore
    from jobserver_http import serve

    def numbers(job):
        piece = b"0," * 500_000
        return (piece for _ in range(job.config["megabytes"]))

    directory = Path(sys.argv[1])
    settings = Settings.from_mapping({"jobserver": {"http": {"port": 0}}})
    server = JobServer.in_memory(
        settings=settings,
        blobs=FsspecBlobStore.from_settings(settings, directory),
        launcher=InlineLauncher({"b.Numbers": numbers}),
    )
    serve(server, on_listening=lambda host, port: print(f"http://{host}:{port}", flush=True))
    """
)
MB = 1_000_000


def peak(pid: int) -> float:
    """Return the peak resident memory of a process in MB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))


def reset_peak(pid: int) -> None:
    """Reset the peak to the current resident size."""
    with open(f"/proc/{pid}/clear_refs", "w") as refs:
        refs.write("5")


def zip_of(megabytes: int) -> Iterator[bytes]:
    """Yield a ZIP archive with one stored member of random bytes, without making it whole."""

    class Growing(io.RawIOBase):
        taken = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            piece = bytes(memoryview(data))  # type: ignore[arg-type]
            self.taken += piece
            return len(piece)

    out = Growing()
    block = os.urandom(MB)
    with zipfile.ZipFile(out, "w") as archive, archive.open("data.bin", "w", force_zip64=True) as member:
        for _ in range(megabytes):
            member.write(block)
            yield out.taken
            out.taken = b""
    yield out.taken


def measured(name: str, megabytes: int, pid: int, begun: float, before: float) -> None:
    """Print one line of the result."""
    seconds = time.perf_counter() - begun
    print(
        f"{name:<10} {megabytes:>6} MB  {megabytes / seconds:>7.0f} MB/s  peak +{peak(pid) - before:.0f} MB"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=2000, help="megabytes")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, directory],
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
        )
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            with httpx.Client(base_url=url, timeout=600) as client:
                run(client, server.pid, size)
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


def run(client: httpx.Client, pid: int, size: int) -> None:
    """Upload a binary and a data file, and fetch a streamed result."""
    client.get("/healthz")
    headers = {"Content-Type": "application/python-wheel"}
    reset_peak(pid)
    before, begun = peak(pid), time.perf_counter()
    response = client.post("/binaries/large", content=zip_of(size), headers=headers)
    assert response.status_code == 201, response.text
    measured("binary", size, pid, begun, before)
    reset_peak(pid)
    before, begun = peak(pid), time.perf_counter()
    block = os.urandom(MB)
    response = client.post("/data/large", content=(block for _ in range(size)))
    assert response.status_code == 200, response.text
    measured("data file", size, pid, begun, before)
    client.put("/data?reset=reboot")
    query = "/jobs?appName=large&classPath=b.Numbers&sync=true&timeout=600"
    reset_peak(pid)
    before, begun = peak(pid), time.perf_counter()
    with client.stream("POST", query, content=f"megabytes = {size}") as result:
        received = sum(len(piece) for piece in result.iter_raw())
    assert received >= size * MB, received
    measured("result", size, pid, begun, before)


if __name__ == "__main__":
    main()
