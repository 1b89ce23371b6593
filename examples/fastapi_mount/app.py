"""A FastAPI service with the job server's whole HTTP API below ``/spark``; README.md says how to run it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException

from jobserver_core import JobRequest, JobServer, Settings, errors
from jobserver_http import create_app


def build(server: JobServer) -> FastAPI:
    """Return the service; it starts and closes the job server with itself."""
    jobserver = create_app(server)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        with server:
            yield
            jobserver.close()  # calls that wait end before the server does

    service = FastAPI(title="Reports", lifespan=life)
    service.mount("/spark", jobserver)

    @service.get("/words")
    async def count(text: str) -> Any:
        """Count words with a job, called through the library: no HTTP to oneself."""
        request = JobRequest(
            class_name="wordcount.WordCount",
            class_path="wordcount",
            context="warm",
            config={"input": {"string": text}},
        )
        try:
            return await server.submit(request)
        except errors.JobUnsuccessful as error:
            raise HTTPException(502, str(error)) from error

    return service


def main() -> FastAPI:
    """Return the service; the context of its jobs starts with it."""
    settings = Settings.from_mapping({"spark": {"contexts": {"warm": {}}}})
    return build(JobServer.from_settings(settings))
