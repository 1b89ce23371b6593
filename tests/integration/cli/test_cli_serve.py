"""``jobserver serve``: from the first line of output to the exit code."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_line import wheel
from conditions import WAIT, wait_until
from jobserver_cli.exits import ExitCode


def uploaded(url: str, directory: Path) -> str:
    response = httpx.post(
        f"{url}/binaries/words",
        content=wheel(directory).read_bytes(),
        headers={"Content-Type": "application/python-wheel"},
    )
    assert response.status_code == 201
    return url


def submitted(url: str, name: str, **params: str) -> str:
    query = {"cp": "words", "mainClass": f"words.{name}", "context": "warm", **params}
    return str(httpx.post(f"{url}/jobs", params=query, content="input.string = a b a").json()["jobId"])


def wait_for_state(url: str, job_id: str, state: str) -> None:
    wait_until(lambda: httpx.get(f"{url}/jobs/{job_id}").json()["status"] == state, state)


def following(url: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A command that submits a job which sleeps, and follows it."""
    command = [
        sys.executable,
        "-m",
        "jobserver_cli",
        "submit",
        "words.Sleep",
        "--cp",
        "words",
        "-c",
        "warm",
        "-f",
    ]
    return subprocess.Popen(
        [*command, "-c", "warm", "-f", "--server", url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_serve_prints_its_address_alone_on_stdout_and_answers_there(serve: Callable[..., Any]) -> None:
    server = serve()
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "SUCCESS"}
    assert httpx.get(f"{server.url}/contexts").json() == ["warm"]
    server.signal(signal.SIGTERM)
    assert server.wait() is ExitCode.OK
    assert server.process.stdout.read() == ""
    assert f"jobserver listens at {server.url}" in server.errors
    assert server.errors.rstrip().endswith("stopped")


def test_serve_with_json_prints_its_address_as_json(serve: Callable[..., Any]) -> None:
    server = serve("--json")
    assert json.loads(server.url)["url"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_exits_with_0_on_a_signal(serve: Callable[..., Any], number: signal.Signals) -> None:
    server = serve()
    server.signal(number)
    assert server.wait() is ExitCode.OK
    assert "Traceback" not in server.errors


def test_a_signal_lets_running_jobs_end_refuses_new_ones_and_then_stops(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve()
    url = uploaded(server.url, tmp_path)
    sleeping = submitted(url, "Sleep")
    wait_for_state(url, sleeping, "RUNNING")
    server.signal(signal.SIGTERM)
    server.wait_for("stopping: waiting for running jobs")
    refused = httpx.post(f"{url}/jobs", params={"cp": "words", "mainClass": "words.Count", "context": "warm"})
    assert refused.status_code == 503
    assert httpx.get(f"{url}/jobs/{sleeping}").json()["status"] == "RUNNING"
    assert httpx.delete(f"{url}/jobs/{sleeping}").json() == {"status": "KILLED"}
    assert server.wait() is ExitCode.OK


def test_a_server_that_leaves_its_contexts_to_the_next_one_says_so(serve: Callable[..., Any]) -> None:
    contexts = "contexts { reattach-timeout = 1 minute, on-shutdown = detach }"
    server = serve(config=f"jobserver {{ launcher.backend = leaving, {contexts} }}")
    server.signal(signal.SIGTERM)
    assert server.wait() is ExitCode.OK
    assert "stopping: contexts and their jobs go on, and the next server takes them over" in server.errors
    assert "waiting for running jobs" not in server.errors


def test_a_second_signal_hurries(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve(config="jobserver.http.drain-timeout = 1 hour")
    url = uploaded(server.url, tmp_path)
    wait_for_state(url, submitted(url, "Sleep"), "RUNNING")
    server.signal(signal.SIGTERM)
    server.wait_for("send a second signal to stop at once")
    server.signal(signal.SIGTERM)
    assert server.wait() is ExitCode.OK


def test_the_commands_work_against_the_server_of_another_process(
    serve: Callable[..., Any], jobserver: Callable[..., Any], tmp_path: Path
) -> None:
    url = serve().url
    assert jobserver("upload", "words", wheel(tmp_path), "--server", url).returncode == 0
    done = jobserver(
        "submit",
        "words.Count",
        "--cp",
        "words",
        "-c",
        "warm",
        "-d",
        "input.string = a b a",
        "--follow",
        "--server",
        url,
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": 2, "b": 1})
    assert jobserver("submit", "words.Fail", "--cp", "words", "--sync", "--server", url).returncode == 1


def test_ctrl_c_while_following_leaves_the_job_running_and_exits_with_130(
    serve: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    url = uploaded(serve().url, tmp_path)
    with following(url, environment) as process:
        assert process.stderr is not None
        shown = []
        for line in process.stderr:
            shown.append(line)
            if "sleeping" in line:
                break
        process.send_signal(signal.SIGINT)
        shown += process.stderr.readlines()
        assert process.wait(WAIT) == ExitCode.INTERRUPTED
    text = "".join(shown)
    [job] = httpx.get(f"{url}/jobs").json()
    assert job["status"] == "RUNNING"
    assert f"jobserver kill {job['jobId']}" in text
    assert "Traceback" not in text


def test_losing_the_server_while_following_a_job_is_reported(
    serve: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    server = serve()
    url = uploaded(server.url, tmp_path)
    with following(url, environment) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "sleeping" in line)
        server.process.kill()
        assert process.wait(WAIT) == ExitCode.UNREACHABLE
        assert "Traceback" not in process.stderr.read()


def test_the_host_of_the_command_line_wins_over_the_configuration(serve: Callable[..., Any]) -> None:
    server = serve("--host", "localhost", config='jobserver.http.host = "203.0.113.1"')
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_port_in_use_exits_with_7_and_starts_nothing(serve: Callable[..., Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--port", str(taken.getsockname()[1]))
        assert server.wait() is ExitCode.NOT_READY
    assert "cannot listen on 127.0.0.1" in server.errors
    assert "Traceback" not in server.errors


def test_an_address_that_others_reach_needs_authentication(serve: Callable[..., Any]) -> None:
    server = serve("--host", "0.0.0.0")
    assert server.wait() is ExitCode.USAGE
    assert "configure jobserver.auth" in server.errors


def test_a_data_directory_in_use_by_another_server_exits_with_7_and_names_it(
    serve: Callable[..., Any],
) -> None:
    first = serve()
    second = serve()
    assert second.wait() is ExitCode.NOT_READY
    assert str(first.process.pid) in second.errors
    assert "choose another data directory with --data-dir (jobserver.data-dir)" in second.errors


def test_the_log_goes_to_stderr_at_the_level_that_was_asked_for(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    talkative, quiet = serve(), serve("--log-level", "error", data_dir=tmp_path / "other")
    httpx.get(f"{talkative.url}/healthz")
    talkative.wait_for("GET /healthz 200")
    httpx.get(f"{quiet.url}/healthz")
    assert "GET /healthz" not in quiet.errors


def test_jobs_that_wait_when_the_server_ends_run_when_it_starts_again(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    config = """
    jobserver { metadata.backend = sql, blobs.backend = fsspec, http.drain-timeout = 1 s }
    jobserver.jobs.max-jobs-per-context = 1
    """
    server = serve(config=config)
    url = uploaded(server.url, tmp_path)
    httpx.post(f"{url}/contexts/mine")
    running = submitted(url, "Sleep", context="mine")
    wait_for_state(url, running, "RUNNING")
    waiting = [submitted(url, "Count", context="mine") for _ in range(3)]
    responses: list[httpx.Response] = []

    def call() -> None:
        query = {
            "cp": "words",
            "mainClass": "words.Count",
            "context": "mine",
            "sync": "true",
            "timeout": "600",
        }
        body = "input.string = late"
        responses.append(httpx.post(f"{url}/jobs", params=query, content=body, timeout=WAIT))

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: len(httpx.get(f"{url}/jobs").json()) >= 5)
    server.signal(signal.SIGTERM)
    assert server.wait() is ExitCode.OK
    caller.join(WAIT)
    [response] = responses
    assert (response.status_code, response.json()["code"]) == (503, "job_postponed")
    assert response.json()["jobId"] in response.json()["result"]

    url = serve(config=config).url
    for job in [*waiting, response.json()["jobId"]]:
        wait_for_state(url, job, "FINISHED")
    assert httpx.get(f"{url}/jobs/{running}").json()["status"] == "ERROR"


def test_a_thread_that_never_ends_does_not_keep_the_process_alive(serve: Callable[..., Any]) -> None:
    server = serve(
        config="jobserver { launcher.backend = stuck, stop-timeout = 2 s, http.drain-timeout = 1 s }"
    )
    server.signal(signal.SIGTERM)
    assert server.wait() is ExitCode.OK
    assert server.errors.rstrip().endswith("stopped"), "everything was closed before"


def test_the_server_raises_its_open_file_limit_to_the_hard_limit(serve: Callable[..., Any]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        server = serve()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
    assert f"limit of open file descriptors is {before[1]}" in server.errors
