"""A Flask service that runs jobs through the library.

Flask is synchronous, so a request holds its worker while it waits: wait briefly, and hand back the
job's id when that was not enough. README.md says how to run it.
"""

from __future__ import annotations

import atexit
from typing import Any

from flask import Flask, jsonify, request

from jobserver_core import JobRequest, JobServer, Settings, errors


def build(server: JobServer, *, timeout: float = 2.0) -> Flask:
    """Return the service over a job server that somebody else starts and closes."""
    service = Flask(__name__)

    @service.post("/words")
    def count() -> Any:
        job = server.submit(
            JobRequest(
                class_name="wordcount.WordCount",
                class_path="wordcount",
                context="warm",
                config={"input": {"string": request.get_data(as_text=True)}},
            )
        )
        try:
            return jsonify(job.result(timeout=timeout))
        except errors.ResultTimeout:
            return jsonify(job=job.id), 202

    @service.get("/words/<job_id>")
    def result(job_id: str) -> Any:
        job = server.job_handle(job_id)
        if not job.done():
            return jsonify(status=server.job(job_id).state.value), 202
        return jsonify(job.result())

    @service.errorhandler(errors.NotFound)
    def not_found(error: errors.NotFound) -> Any:
        return jsonify(error=str(error)), 404

    @service.errorhandler(errors.JobUnsuccessful)
    def failed(error: errors.JobUnsuccessful) -> Any:
        return jsonify(error=error.error.message), 502

    return service


def main() -> Flask:
    """Return the service; the context of its jobs starts with it."""
    settings = Settings.from_mapping({"spark": {"contexts": {"warm": {}}}})
    server = JobServer.from_settings(settings).start()
    atexit.register(server.close)
    return build(server)
