"""The demo: a server, a context and a job, from start to clean-up."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jobserver_cli.client import CommandClient, ServerOptions
from jobserver_cli.diagnosis import Verdict, java_finding, pyspark_finding
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.following import follow_job
from jobserver_cli.interruption import interrupt_delayed, run_on_thread, signals_ignored, sigterm_as_interrupt
from jobserver_cli.records import error_text, seconds_shown
from jobserver_cli.server_process import LogLevel, configure_logging, front_end
from jobserver_cli.terminal import Terminal
from jobserver_core.config.loading import load_settings
from jobserver_core.server import JobServer

PORT = 8090
"""The port if it is free: the default of ``jobserver.http.port``, so that the URLs of the docs work."""
APP = "demo"
CONTEXT = "demo"
CONFIG = "input.string = a b c a b see"
DRAIN = "2 s"


class Demonstration:
    """One run of the demo. It cleans up after itself, however it ends."""

    def __init__(self, terminal: Terminal, *, keep: bool) -> None:
        self._terminal = terminal
        self._keep = keep
        self._directory = Path()

    def run(self) -> None:
        """Run the demo.

        Raises:
            CommandFailed: Something is not installed, or the job failed.
        """
        configure_logging(LogLevel.WARNING)
        self._check()
        from jobserver_pyspark.demo import CLASS_NAME  # noqa: PLC0415 - checked just now

        self._class_name = CLASS_NAME
        http = front_end()
        with sigterm_as_interrupt(), ExitStack() as cleaning:
            self._directory = Path(tempfile.mkdtemp(prefix="jobserver-demo-"))
            cleaning.callback(shutil.rmtree, self._directory, ignore_errors=True)
            cleaning.callback(self._terminal.report_done, "stopped, and cleaned up")
            with self._serving(http) as url, CommandClient(ServerOptions(server=url)) as client:
                run_on_thread(lambda: self._show(client))
                if self._keep:
                    self._stay(url)

    def _check(self) -> None:
        for finding in (java_finding(), pyspark_finding()):
            if finding.verdict is Verdict.BAD:
                raise CommandFailed(f"{finding.name}: {finding.text}", ExitCode.NOT_READY, finding.advice)
            self._terminal.report_done(f"{finding.name} {finding.text}")

    @contextmanager
    def _serving(self, http: Any) -> Iterator[str]:
        settings = load_settings(
            overrides={
                "jobserver.data-dir": self._directory / "data",
                "jobserver.http.port": PORT if _is_free(PORT) else 0,
                "jobserver.http.drain-timeout": DRAIN,
                "jobserver.contexts.creation-timeout": "5 minutes",
                "spark.master": "local[2]",
            }
        )
        with ExitStack() as serving:
            with interrupt_delayed(), self._terminal.status("starting a job server"):
                url = serving.enter_context(http.running(JobServer.from_settings(settings)))
            self._terminal.report_done(f"a job server listens at {url}")
            try:
                yield url
            finally:
                self._terminal.stop_display()
                with signals_ignored(), self._terminal.status("stopping the context and the server"):
                    serving.close()

    def _show(self, client: CommandClient) -> None:
        from jobserver_pyspark.demo import build_example_wheel  # noqa: PLC0415 - the extra may be missing

        wheel = build_example_wheel(self._directory)
        headers = {"Content-Type": "application/python-wheel"}
        client.call("POST", f"/binaries/{APP}", content=wheel.read_bytes(), headers=headers)
        self._terminal.report_done(f"built {wheel.name} and uploaded it as {APP}")
        with self._terminal.status("starting a Spark context (takes a minute or two the first time)"):
            started = time.monotonic()
            client.call("POST", f"/contexts/{CONTEXT}", timeout=None)
        took = seconds_shown(time.monotonic() - started)
        self._terminal.report_done(f"the context {CONTEXT} is ready after {took}")
        self._run_and_follow(client)
        self._run_again(client)

    def _params(self) -> dict[str, str]:
        return {"appName": APP, "classPath": self._class_name, "context": CONTEXT}

    def _run_and_follow(self, client: CommandClient) -> None:
        self._terminal.note(f"→ job {self._class_name} with {CONFIG}")
        started = time.monotonic()
        job = client.call("POST", "/jobs", params=self._params(), content=CONFIG.encode())
        record = follow_job(client, job["jobId"], self._terminal)
        if record.get("status") != "FINISHED":
            message = f"the job ended with {record.get('status')}: {error_text(record.get('result'))}"
            raise CommandFailed(message, ExitCode.JOB_FAILED)
        self._terminal.report_done(f"the job finished after {seconds_shown(time.monotonic() - started)}")
        result = client.get(f"/jobs/{job['jobId']}")["result"]
        self._terminal.line(json.dumps(result, sort_keys=True))

    def _run_again(self, client: CommandClient) -> None:
        started = time.monotonic()
        params = {**self._params(), "sync": "true", "timeout": "60"}
        client.call("POST", "/jobs", params=params, content=CONFIG.encode())
        seconds = time.monotonic() - started
        self._terminal.report_done(f"the same job again, in the warm context: {seconds_shown(seconds)}")

    def _stay(self, url: str) -> None:
        query = f"appName={APP}&classPath={self._class_name}&context={CONTEXT}&sync=true"
        self._terminal.line(
            f"""
Try these in another terminal:

  curl -d "{CONFIG}" \\
    "{url}/jobs?{query}"
  curl "{url}/jobs"
  curl "{url}/contexts/{CONTEXT}"
  curl "{url}/binaries"

API documentation: {url}/docs
The server's data is in {self._directory}. Press Ctrl-C to stop the server and delete the data.
"""
        )
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
