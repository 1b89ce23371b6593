"""Too few file descriptors: the errors, and what keeps working. A separate process has the limits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jobserver_core.disk_cache import DiskCache
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.ports import ContextSpec, JobSpec
from jobserver_core.testing.launcher import RecordingListener
from jobserver_pyspark import PySparkLauncher
from jobserver_pyspark.launcher.descriptors import out_of_descriptors, with_descriptor_limit
from jobserver_pyspark.launcher.hosted_jobs import HostedJobs
from jobserver_pyspark.launcher.packages import PackageLease
from jobserver_pyspark.protocol.messages import ErrorDetails, JobEnded

TESTS = Path(__file__).parents[2]


def run(program: str, *, hard: int) -> str:
    """Run a program with a hard limit of file descriptors; return its output."""
    head = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.real
def test_a_context_that_cannot_have_enough_descriptors_fails_at_once_and_says_which_limit() -> None:
    program = """
        import tempfile
        from pathlib import Path
        from jobserver_core.ports import ContextSpec
        from jobserver_core.testing.launcher import RecordingListener
        from jobserver_pyspark import PySparkLauncher

        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            launcher = PySparkLauncher(root / "pyspark")
            spec = ContextSpec(id="c", name="c", log_path=root / "log", work_dir=root / "work", data_dir=root)
            listener = RecordingListener()
            launcher.start_context(spec, listener)
            print(listener.wait_for("context_ended", timeout=30)[2].message)
            launcher.close()
    """
    told = run(program, hard=200)
    assert "needs at least 512 file descriptors" in told
    assert "RLIMIT_NOFILE" in told
    assert "is 200: raise it" in told
    assert "LimitNOFILE=" in told


@pytest.mark.real
def test_a_context_whose_directory_cannot_be_made_fails_with_the_reason_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    work_dir = tmp_path / "file" / "work"
    launcher = PySparkLauncher(tmp_path / "pyspark")
    spec = ContextSpec(id="c", name="c", log_path=tmp_path / "log", work_dir=work_dir, data_dir=tmp_path)
    listener = RecordingListener()
    launcher.start_context(spec, listener)
    error = listener.wait_for("context_ended", timeout=30)[2]
    launcher.close()
    assert error.error_class == "jobserver_core.errors.LaunchError"
    assert error.message == f"cannot start the context: [Errno 20] Not a directory: '{work_dir}'"


@pytest.mark.real
def test_a_launcher_without_enough_descriptors_is_not_ready_and_says_so_before_anything_else() -> None:
    program = """
        import tempfile
        from pathlib import Path
        from jobserver_core.errors import LaunchError
        from jobserver_pyspark import PySparkLauncher

        with tempfile.TemporaryDirectory() as folder:
            launcher = PySparkLauncher(Path(folder) / "pyspark")
            try:
                launcher.check()
            except LaunchError as error:
                print(error)
            launcher.close()
    """
    assert "needs at least 512 file descriptors" in run(program, hard=200)


@pytest.mark.real
def test_doctor_reports_a_limit_that_is_too_low_for_contexts() -> None:
    program = """
        from jobserver_cli.diagnosis import examine
        from jobserver_core import load_settings
        for finding in examine(load_settings(overrides={"jobserver.http.port": 0})):
            if finding.name == "File descriptors":
                print(finding.verdict.value, finding.text)
    """
    assert run(program, hard=200).startswith("bad a context needs at least 512 file descriptors")
    assert run(program, hard=1000) == "good a process may open 1000 files\n"


@pytest.mark.real
def test_contexts_can_connect_again_once_descriptors_are_free() -> None:
    program = """
        import logging, os, socket, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        from jobserver_pyspark.launcher.connections import HostConnections
        from jobserver_pyspark.protocol.frames import Channel
        from jobserver_pyspark.protocol.messages import PROTOCOL_VERSION, Hello, ServerToHost

        connections = HostConnections()
        token, arrivals = connections.expect()
        # The thread that accepts may hold a descriptor for one connection already, which the first one uses.
        first, client = socket.socket(), socket.socket()
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        first.connect(connections.address)
        client.connect(connections.address)
        Channel(client, ServerToHost).send(Hello(protocol=PROTOCOL_VERSION, token=token))
        try:
            arrivals.get(timeout=1)
        except Exception as error:
            print(type(error).__name__)
        for number in taken:
            os.close(number)
        print(arrivals.get(timeout=20) is not None)
        connections.close()
    """
    lines = run(program, hard=64).splitlines()
    assert [line for line in lines if "cannot connect" in line] == [
        "a context cannot connect, trying again: [Errno 24] Too many open files"
    ], "one line for many attempts"
    assert lines[-2:] == ["Empty", "True"]


def test_errors_about_exhausted_descriptors_are_explained() -> None:
    assert "RLIMIT_NOFILE" in str(out_of_descriptors(OSError(errno.EMFILE, "Too many open files")))
    assert "fs.file-max" in str(out_of_descriptors(OSError(errno.ENFILE, "Too many open files in system")))
    assert out_of_descriptors(OSError(errno.ENOENT, "No such file")) is None


OF_A_TASK = "java.io.IOException: Too many open files"


@pytest.mark.real
def test_the_error_of_a_context_that_ran_out_of_descriptors_says_how_to_raise_the_limit() -> None:
    program = f"""
        from jobserver_core.models.failures import ErrorInfo
        from jobserver_pyspark.launcher.descriptors import with_descriptor_limit
        print(with_descriptor_limit(ErrorInfo(message="Job aborted", stack="{OF_A_TASK}")).message)
    """
    assert run(program, hard=1000).startswith(
        "Job aborted (a process ran out of file descriptors: on the server's machine, each process of a "
        "context may have 1000 open, RLIMIT_NOFILE; raise it to 65536 or so with `ulimit -Hn`, "
    )


def test_other_errors_of_contexts_are_not_changed() -> None:
    other = ErrorInfo(message="Job aborted")
    assert with_descriptor_limit(other) is other


def test_an_error_of_a_machine_without_descriptors_names_the_limit_of_the_machine() -> None:
    told = with_descriptor_limit(ErrorInfo(message="[Errno 23] Too many open files in system: 'x'")).message
    assert "RLIMIT_NOFILE" not in told
    assert told.endswith("raise the sysctl fs.file-max)")


@pytest.mark.parametrize(
    "error",
    [
        ErrorDetails(
            message="[Errno 24] Too many open files: 'x'", error_class="OSError", stack="in run_job"
        ),
        ErrorDetails(
            message="Job aborted", error_class="java.lang.Exception", stack=f"Caused by: {OF_A_TASK}"
        ),
    ],
)
def test_the_error_of_a_job_that_ran_out_of_descriptors_names_the_limit(
    tmp_path: Path, error: ErrorDetails
) -> None:
    spec = ContextSpec(id="c", name="c", log_path=tmp_path / "log", work_dir=tmp_path, data_dir=tmp_path)
    listener, lease = RecordingListener(), PackageLease(DiskCache(tmp_path / "packages", limit=0))
    jobs = HostedJobs(spec, listener, lease, send=lambda _message: None, listener_lock=threading.Lock())
    jobs.submit(JobSpec(id="j", class_name="w.Job", class_path=(), config="{}", log_path=tmp_path / "log"))
    jobs.handle(JobEnded(job_id="j", failure="raised", error=error))
    outcome = listener.wait_for("job_ended", "j", timeout=10)[2]
    assert outcome.failure is FailureKind.RAISED
    assert outcome.error.message.startswith(f"{error.message} (a process ran out of file descriptors: ")
    assert (outcome.error.error_class, outcome.error.stack) == (error.error_class, error.stack)


@pytest.mark.real
def test_a_context_host_has_a_moderate_soft_limit_and_keeps_the_hard_one() -> None:
    program = """
        import resource
        from jobserver_pyspark import processes
        processes.limit_descriptors(most=300)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
        processes.limit_descriptors()
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    assert run(program, hard=1000) == "(300, 1000)\n(1000, 1000)\n"
