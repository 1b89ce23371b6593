"""The process of Python jobs: forked from the zygote, attached to the JVM early, used by one job at a time.

A runner serves jobs of one class path, one after the other. Between two of them it restores its state (see
:mod:`jobserver_pyspark.runner.process_state`) and sends ``Restored``, which says whether it is fit for
another one. If the context or the job requests fresh processes, it serves only one job.
"""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import traceback
from functools import cached_property
from typing import NoReturn

from jobserver_core import results
from jobserver_core.results import UnusableResult
from jobserver_pyspark import processes
from jobserver_pyspark.gateway_calls import mute_lost_connections
from jobserver_pyspark.protocol import messages
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.failures import JobFailure, details_of
from jobserver_pyspark.protocol.frames import CHUNK_SIZE, Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import HostToRunner, RunnerToHost
from jobserver_pyspark.runner import config_trees
from jobserver_pyspark.runner.attachment import Attachment, mute_query_errors
from jobserver_pyspark.runner.interpreter_state import seed_random_numbers
from jobserver_pyspark.runner.job_class import JobObject, Runtime, load_job, raised, validate
from jobserver_pyspark.runner.process_state import ProcessState


def main(parent: int, control: int, output: int) -> NoReturn:
    """Become a runner: serve the host over the socket ``control``, and never return."""
    os.setpgid(0, 0)
    processes.die_with_parent(parent)
    processes.adopt_orphans()
    _open_standard_streams(output)
    seed_random_numbers()  # numpy, if the zygote has imported it, does not do that after a fork
    try:
        _serve(Channel(socket.socket(fileno=control), HostToRunner))
    except ChannelClosed:
        pass  # the host is gone, and this process with it
    except BaseException:  # noqa: BLE001 - this process ends, and its log says why
        traceback.print_exc()  # into the context's log
    finally:
        os._exit(0)


def _open_standard_streams(output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # they are ours, and text files
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _serve(channel: Channel[RunnerToHost, HostToRunner]) -> None:
    """Serve the host until this process is unfit for another job, or its preparation failed."""
    runner: Runner | None = None
    while True:
        request = channel.receive()
        if runner is not None and isinstance(request, messages.RunJob):
            if not runner.run(request):
                signal.pause()  # the host ends this process and its descendants
            continue
        try:
            if isinstance(request, messages.Attach):
                runner = Runner(channel, request)
            elif runner is not None:
                runner.prepare(request)
            else:
                raise ProtocolError(f"the host sent {type(request).__name__} before Attach")
        except (ChannelClosed, ProtocolError):
            raise
        except Exception as error:  # noqa: BLE001 - the host interprets the error
            channel.send(messages.NotReady(message=details_of(error).message))
            return


class _NeedsFreshProcess(Exception):
    """The job's class has ``fresh_process = True``, and this process has already served a job."""


class Runner:
    """A process that is attached to the JVM, and runs jobs."""

    def __init__(self, channel: Channel[RunnerToHost, HostToRunner], request: messages.Attach) -> None:
        self._channel = channel
        self._attachment = attachment = Attachment(
            request, lambda query_id: channel.send(messages.QueryStarted(query_id=query_id))
        )
        self._served = 0
        given = bool(request.conf)  # a first runner reports the configuration, later ones get it
        channel.send(
            messages.Attached(
                conf={} if given else attachment.conf,
                names=attachment.commands.new_names(),
                script=tuple(attachment.script) if given else (),
            )
        )

    @cached_property
    def _state(self) -> ProcessState:
        """The state that each job finds; captured when it is first asked for, before the first job."""
        return ProcessState()

    def prepare(self, request: HostToRunner) -> None:
        """Carry out a request of the host that is not a job."""
        match request:
            case messages.WarmUp():
                self._attachment.warm_up(request.context_type)
                self._channel.send(messages.WarmedUp())
            case messages.Prepare():
                with contextlib.suppress(Exception):  # if it still fails then, the job reports it
                    self._attachment.prepare(request.context_type)
                _ = self._state  # captured now, not while a job waits
                self._channel.send(messages.Prepared(names=self._attachment.commands.new_names()))
            case messages.RenameApplication():
                self._attachment.rename_application(request.name)

    def run(self, request: messages.RunJob) -> bool:
        """Run a job and send its outcome; return whether this process is fit for another one."""
        _ = self._state  # captured before the job
        before = self._attachment.commands.count
        try:
            # In a context of its own, so that no context variable of one job is seen by the next.
            contextvars.Context().run(self._perform, request)
        except ChannelClosed:
            raise
        except _NeedsFreshProcess:
            self._channel.send(messages.FreshProcessNeeded())
            return False
        except BaseException as error:  # noqa: BLE001 - a job may raise anything, also SystemExit
            self._end(request, error if isinstance(error, JobFailure) else JobFailure.of("raised", error))
            return False
        used = self._attachment.commands.count != before
        self._end(request, used=used)
        return request.reuse and self._make_fit(request, used=used)

    def _make_fit(self, request: messages.RunJob, *, used: bool) -> bool:
        """Restore the state after a job, and send ``Restored``; return whether it is fit for another one."""
        self._served += 1
        try:
            unfit = self._attachment.restore(used=used) or self._state.restore(request.sys_path)
        except Exception as error:  # noqa: BLE001 - after any error, a fresh process serves the next job
            unfit = details_of(error).message
        self._channel.send(messages.Restored(unfit=unfit))
        return unfit is None

    def _perform(self, request: messages.RunJob) -> None:
        self._channel.send(messages.JobAccepted())
        _prepare_process(request)
        self._attachment.use_class_path(request.includes, request.worker_pool)
        job = self._load(request)
        context = self._attachment.job_context(request.context_type, job)
        settings, own_settings = config_trees.read(request.settings), config_trees.read(request.settings)
        runtime = Runtime(request.job_id, self._attachment, own_settings, request.data_dir)
        config = config_trees.laid_over(config_trees.read(bytes(request.configuration)), settings)
        data = validate(job, context, runtime, config)
        self._channel.send(messages.JobValidated())
        try:
            result = results.await_value(job.run_job(context, runtime, data))
        except BaseException as error:
            raise raised(error, config) from error
        self._send_result(job, result)

    def _load(self, request: messages.RunJob) -> JobObject:
        """Return a new object of the job's class, which imports its own versions of libraries."""
        if (name := self._state.give_way(request.sys_path)) is not None:
            message = (
                f"the class path has its own {name!r}, but python.preload of the context has imported that "
                "of its environment, and a process can load compiled extensions only once; run this job in a "
                f"context whose python.preload neither lists {name!r} nor a module that imports it"
            )
            raise JobFailure("loading", message)
        job = load_job(request.class_name, request.sys_path)
        if self._served and getattr(type(job), "fresh_process", False):
            raise _NeedsFreshProcess
        return job

    def _send_result(self, job: object, result: object) -> None:
        """Send the result in chunks; a small one only once it is complete."""
        buffered = bytearray()
        try:
            stream, chunks = results.opened(result)
            del result
            for chunk in chunks:
                buffered += chunk
                if len(buffered) >= CHUNK_SIZE:
                    self._send_chunks(stream, buffered)
                    buffered = bytearray()
        except ChannelClosed:
            raise
        except UnusableResult as error:
            raise JobFailure.of_result(job, error) from error
        except BaseException as error:
            raise JobFailure.of("raised", error) from error
        self._send_chunks(stream, buffered)

    def _send_chunks(self, stream: bool, data: bytearray) -> None:
        """Send bytes in parts that are not too large; even an empty result has one part."""
        for start in range(0, len(data) or 1, CHUNK_SIZE):
            self._channel.send(
                messages.RunnerResultChunk(stream=stream, data=memoryview(data)[start : start + CHUNK_SIZE])
            )

    def _end(self, request: messages.RunJob, failure: JobFailure | None = None, *, used: bool = True) -> None:
        """Run the job's own exit handlers, flush its output, then send its outcome to the host."""
        try:
            self._state.end_job(request.sys_path, last=failure is not None or not request.reuse)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:  # noqa: BLE001 - the job has ended, even if a handler fails
            with contextlib.suppress(OSError):  # the job may have closed its output
                line = f"an exit handler raised {type(error).__name__}: {error}\n"
                os.write(2, line.encode(errors="replace"))
        if failure is None:
            self._channel.send(messages.RunFinished(used_spark=used, clean=self._state.nothing_left()))
        else:
            self._channel.send(messages.RunFailed(failure=failure.kind, error=failure.error))


def _prepare_process(request: messages.RunJob) -> None:
    sys.path[:0] = request.sys_path
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
    logging.getLogger("py4j").setLevel(logging.WARNING)
    mute_query_errors()
    mute_lost_connections()
    os.environ["JOBSERVER_JOB_ID"] = request.job_id
