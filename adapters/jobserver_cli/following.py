"""Watching the start of a context, and a job: its state and progress as events, and its output."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from jobserver_cli.client import CommandClient, translated
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.records import FINAL, JobFields, progress_shown, state_shown
from jobserver_cli.terminal import REFUSAL_DELAY, Terminal

if TYPE_CHECKING:
    from jobserver_client.synchronous import StreamedResponse
    from jobserver_core.models.jobs import Job

T = TypeVar("T")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two lists of ``--watch``: the shorter one when jobs change all the time."""
TAKEOVER_TIMEOUT = 60.0
"""For how many seconds a command that follows tries again while another server takes over what it follows."""
START_PAUSE = REFUSAL_DELAY
"""Seconds between two checks of a context that is being started, and before the first one."""
LOG_TIMEOUT = 10.0
"""How many seconds to wait for the rest of the log after a job has ended."""


@contextmanager
def showing_start(client: CommandClient, terminal: Terminal, name: str, remark: str = "") -> Iterator[None]:
    """Show that a context is being started while the block runs, and if that takes long, what is prepared.

    A ``remark`` is printed once the server has begun the start: it may refuse it.
    """
    over, first = threading.Event(), f"starting {name} (this can take a minute)"
    remarks = [remark] if remark else []

    def begun() -> None:
        while remarks:
            terminal.note(remarks.pop())

    def watch(show: Callable[[str], None]) -> None:
        while not over.wait(START_PAUSE):
            doing = None
            with suppress(CommandFailed):  # such as no permission to read it
                record = client.context(name)
                if record.get("endTime") == "Empty":
                    begun()
                    doing = record.get("preparing")
            if not over.is_set():
                show(f"{first}: {doing}" if doing else first)

    with terminal.status(first if terminal.err.is_terminal else "") as show:
        watching = threading.Thread(target=watch, args=(show,), name="start", daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join(START_PAUSE)
    begun()


def wait_for_end(
    client: CommandClient, job_id: str, terminal: Terminal, *, timeout: float | None = None
) -> JobFields:
    """Wait until a job has ended, and return its last record.

    After Ctrl-C or a timeout, the message lists the commands to continue with.

    Raises:
        CommandFailed: The job has not ended within ``timeout`` seconds (TIMED_OUT).
    """
    terminal.interrupt_note = interrupt_note(job_id)
    with naming_job_in_errors(job_id), terminal.status(f"waiting for job {job_id}"):
        while_taken_over(lambda: _await_end(client, job_id, timeout))
        record = client.job(job_id)
    terminal.interrupt_note = None
    return record


def _await_end(client: CommandClient, job_id: str, timeout: float | None = None) -> None:
    from jobserver_core.errors import ResultTimeout  # noqa: PLC0415 - --help does not need it

    with translated(client.url):
        handle = client.remote.job_handle(job_id)
        try:
            handle.finished.result(timeout)
        except ResultTimeout as error:
            if timeout is None:
                raise
            message = f"job {job_id} is still running after {timeout:g} s"
            raise CommandFailed(message, ExitCode.TIMED_OUT, _next_commands(job_id)) from error


def interrupt_note(job_id: str) -> str:
    """Return the message to print when Ctrl-C ends the wait for a job."""
    return f"interrupted; job {job_id} continues\n{_next_commands(job_id)}"


def _next_commands(job_id: str) -> str:
    return (
        f"  wait for its result:  jobserver result {job_id} --wait\n"
        f"  watch it:             jobserver job {job_id} --follow\n"
        f"  kill it:              jobserver kill {job_id}"
    )


@contextmanager
def naming_job_in_errors(job_id: str) -> Iterator[None]:
    """Add the command that shows the job to errors about a lost connection."""
    try:
        yield
    except CommandFailed as error:
        timed_out = error.code is ExitCode.TIMED_OUT and error.advice is None
        if not timed_out and error.code is not ExitCode.UNREACHABLE:
            raise
        advice = f"Once the server is reachable again: jobserver job {job_id}"
        raise CommandFailed(error.message, error.code, advice, reason=error.reason) from None


def while_taken_over(call: Callable[[], T]) -> T:
    """Return what a call returns; call again while the server is not available yet, for up to a minute.

    This happens for some seconds after a server dies, until another one has taken over its contexts.

    Raises:
        CommandFailed: The last call failed, or one for another reason.
    """
    deadline = time.monotonic() + TAKEOVER_TIMEOUT
    while True:
        try:
            return call()
        except CommandFailed as error:
            if error.reason != "unavailable" or time.monotonic() >= deadline:
                raise
        time.sleep(SHORTEST_PAUSE)


@contextmanager
def followed_log(
    client: CommandClient, *, job_id: str | None = None, context: str | None = None
) -> Iterator[StreamedResponse]:
    """Open the log of a job or context, which ends when the job or context has ended.

    Raises:
        CommandFailed: The log cannot be read. If the server was lost, the message says how to continue.
    """
    opened = None
    try:
        with ExitStack() as stack:
            log = partial(client.followed_log, job_id=job_id, context=context)
            opened = while_taken_over(lambda: stack.enter_context(log()))
            yield opened
    except CommandFailed as error:
        if opened is None or error.code is not ExitCode.UNREACHABLE:
            raise
        what = f"job {job_id}" if job_id else f"context {context}"
        log_of = job_id if job_id else f"--context {shlex.quote(context or '')}"
        advice = (
            f"{what} may have ended. Once the server is reachable again: jobserver logs {log_of} --follow"
        )
        raise CommandFailed(error.message, error.code, advice) from None


def _print_log(client: CommandClient, job_id: str, terminal: Terminal) -> None:
    """Print a job's output on stderr until it has ended, while another thread watches its state."""
    try:
        with followed_log(client, job_id=job_id) as log:
            for line in log.iter_lines():
                terminal.note(f"│ {line}")
    except CommandFailed as error:
        from jobserver_client import ClientClosed  # noqa: PLC0415 - --help does not need it

        if isinstance(error.__cause__, ClientClosed):  # the command fails with the reason
            return
        terminal.note(f"cannot show the log: {error.message}", style="yellow")


def follow_job(client: CommandClient, job_id: str, terminal: Terminal) -> JobFields:
    """Show a job's state, progress and output on stderr until it has ended. Return its last record."""
    from jobserver_core.events import Event, JobChanged, JobProgressed  # noqa: PLC0415 - not for --help

    log = threading.Thread(target=_print_log, args=(client, job_id, terminal), name="job-log", daemon=True)
    terminal.interrupt_note = interrupt_note(job_id)
    with naming_job_in_errors(job_id), terminal.status("submitted") as show:

        def receive(event: Event) -> None:
            if isinstance(event, JobChanged | JobProgressed) and event.job.id == job_id:
                show(_shown(_record_of(event.job), terminal))

        with translated(client.url):
            subscription = client.remote.subscribe(receive)
        with subscription:
            show(_shown(client.job(job_id), terminal))
            log.start()
            while_taken_over(lambda: _await_end(client, job_id))
            record = client.job(job_id)
            show(_shown(record, terminal))
            log.join(LOG_TIMEOUT)
    terminal.interrupt_note = None
    return record


def show_repeatedly(client: CommandClient, terminal: Terminal, show: Callable[[], None]) -> None:
    """Call ``show`` now and after each change on the server, forever. A terminal is cleared first.

    Raises:
        CommandFailed: The server cannot be reached.
    """
    changed = threading.Event()
    with translated(client.url):
        subscription = client.remote.subscribe(lambda _event: changed.set())
    with subscription:
        while True:
            changed.clear()
            terminal.clear()
            show()
            changed.wait(LONGEST_PAUSE)
            time.sleep(SHORTEST_PAUSE)


def _record_of(job: Job) -> JobFields:
    """Return the part of a job's record that is shown while it is followed."""
    progress = job.progress
    return JobFields(
        status=job.state.value,
        waiting=job.waiting,
        killRequested=job.kill_requested,
        progress={
            "stagesDone": progress.stages_done,
            "stagesTotal": progress.stages_total,
            "tasksDone": progress.tasks_done,
            "tasksTotal": progress.tasks_total,
        }
        if progress
        else None,
    )


def _shown(record: JobFields, terminal: Terminal) -> str:
    """Format the state and the progress; without a terminal, only the progress that is worth a line.

    There, numbers of tasks would fill the output, and totals would be wrong soon: Spark learns of stages as
    it runs.
    """
    progress = progress_shown(record) if record.get("status") not in FINAL else None
    if progress and not terminal.err.is_terminal:
        done = (record.get("progress") or {}).get("stagesDone")
        progress = f"stages done: {done}" if done else None
    return f"{state_shown(record)} ({progress})" if progress else state_shown(record)
