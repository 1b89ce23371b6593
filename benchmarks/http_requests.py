"""How many requests the HTTP front-end answers a second, how long they take, and what waiting clients cost.

    python benchmarks/http_requests.py [--clients N] [--requests N] [--waiting N]

Server and clients share the machine; the jobs are inline callables, so this is the price of the
front-end and of the core, without Spark.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from typing import Any

import httpx

from jobserver_core import BinaryType, JobServer, Settings
from jobserver_core.memory import InlineLauncher
from jobserver_http import running

ZIP = (
    b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0x"
    b"PK\x01\x02\x14\x03\x14\0\0\0\0\0\0\0!\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0x"
    b"PK\x05\x06\0\0\0\0\x01\0\x01\0/\0\0\0\x1f\0\0\0\0\0"
)
gate = threading.Event()


def gated(_job: Any) -> str:
    """Wait until the benchmark opens the gate."""
    gate.wait(120)
    return "open"


async def load(url: str, clients: int, requests: int, method: str, path: str, body: str = "") -> str:
    """Send requests over as many connections as there are clients, and return a line of figures."""
    taken: list[float] = []
    left = iter(range(requests))

    async def one(client: httpx.AsyncClient) -> None:
        for _ in left:
            begun = time.perf_counter()
            response = await client.request(method, path, content=body)
            assert response.status_code < 300, response.text
            taken.append(time.perf_counter() - begun)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        seconds = time.perf_counter() - begun
    p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
    return f"{requests / seconds:>7.0f}/s  median {1000 * p50:>6.1f} ms  p99 {1000 * p99:>6.1f} ms"


async def wait(url: str, clients: int) -> str:
    """Let clients wait synchronously for jobs that do not end, and return what that costs."""
    query = "/jobs?appName=x&classPath=b.Gated&context=slots&sync=true&timeout=100"
    before = threading.active_count()
    limits = httpx.Limits(max_connections=clients + 10)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        waiting = [asyncio.ensure_future(client.post(query)) for _ in range(clients)]
        while len((await client.get("/jobs?limit=10000&context=slots")).json()) < clients:
            await asyncio.sleep(0.2)
        threads = threading.active_count() - before
        begun = time.perf_counter()
        await client.get("/healthz")
        beside = time.perf_counter() - begun
        gate.set()
        responses = await asyncio.gather(*waiting)
    assert all(response.json()["result"] == "open" for response in responses)
    return f"{clients} clients waited on {threads} threads more; one request beside: {1000 * beside:.1f} ms"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--waiting", type=int, default=500)
    options = parser.parse_args()
    settings = Settings.from_mapping(
        {
            "jobserver": {
                "http": {"port": 0, "drain-timeout": "0 s"},
                "jobs": {"max-jobs-per-context": 4, "max-queued-jobs": 5000},
            }
        }
    )
    launcher = InlineLauncher({"b.Nothing": lambda _job: None, "b.Gated": gated})
    server = JobServer.in_memory(settings=settings, launcher=launcher)
    with running(server) as url:
        server.upload("x", BinaryType.WHEEL, ZIP)
        for name in ("warm", "slots"):
            server.create_context(name).result(10)
        job = "/jobs?appName=x&classPath=b.Nothing&context=warm&sync=true"
        clients, requests = options.clients, options.requests
        print("GET /healthz     ", asyncio.run(load(url, clients, requests, "GET", "/healthz")))
        print("GET /binaries    ", asyncio.run(load(url, clients, requests, "GET", "/binaries")))
        print("POST /jobs (sync)", asyncio.run(load(url, clients, requests, "POST", job, "a = 1")))
        print("one at a time    ", asyncio.run(load(url, 1, requests // 4, "POST", job, "a = 1")))
        print(asyncio.run(wait(url, options.waiting)))


if __name__ == "__main__":
    main()
