"""The process of Python jobs: forked from the zygote, attached to the JVM ahead, used by one job at a time.

A runner serves jobs of one class path, one after the other. Between two of them it puts its state back (see
:mod:`jobserver_pyspark.runner.process_state`) and reports whether it is fit for another one. Where the
context or the job asks for fresh processes, it serves one job only.
"""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import json
import logging
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from jobserver_pyspark import processes
from jobserver_pyspark.protocol.failures import Failure, describe
from jobserver_pyspark.protocol.frames import CHUNK_SIZE, Channel, ChannelClosed
from jobserver_pyspark.runner import config_trees, results
from jobserver_pyspark.runner.async_jobs import awaited
from jobserver_pyspark.runner.attachment import Attachment
from jobserver_pyspark.runner.environment import Runtime
from jobserver_pyspark.runner.job_class import load_job
from jobserver_pyspark.runner.process_state import ProcessState

__all__ = ["main"]


def main(parent: int, control: int, output: int) -> NoReturn:
    """Become a runner: serve the host over the socket ``control``, and never return."""
    os.setpgid(0, 0)
    processes.die_with_parent(parent)
    processes.adopt_orphans()
    _open_standard_streams(output)
    runner = Runner(Channel(socket.socket(fileno=control)))
    try:
        runner.serve()
    except ChannelClosed:
        pass  # the host is gone, and this process with it
    except BaseException:  # noqa: BLE001 - this process ends, but not without a word
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


class _NeedsFreshProcess(Exception):
    """The job's class says ``fresh_process = True``, and this process has served a job already."""


class Runner:
    """Answers the host: attach, warm up, and then jobs."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._attachment: Attachment | None = None
        self._state: ProcessState | None = None
        self._served = 0

    def serve(self) -> None:
        """Serve the host until this process is fit for no further job, or could not be made ready for one."""
        while True:
            request, payload = self._channel.receive()
            if request["kind"] == "job":
                if not self._run(request, json.loads(payload)):
                    signal.pause()  # the host ends this process, and whatever it started
                continue
            try:
                self._make_ready(request)
            except ChannelClosed:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the host can tell whether it is news
                self._channel.send("failed", message=describe(error))
                return

    def _make_ready(self, request: dict[str, Any]) -> None:
        if request["kind"] == "attach":
            self._attachment = Attachment(request["port"], request["secret"])
            self._channel.send("attached")
        elif request["kind"] == "warm" and self._attachment is not None:
            self._attachment.warm()
            self._channel.send("warmed")
        elif request["kind"] == "prepare" and self._attachment is not None:
            with contextlib.suppress(Exception):  # the job will be told the same, if it is still so
                self._attachment.prepare(request["flavour"])
            self._state = self._state or ProcessState()

    def _run(self, request: dict[str, Any], configuration: dict[str, Any]) -> bool:
        """Run a job and report how it ended; return whether this process is fit for another one."""
        assert self._attachment is not None
        self._state = self._state or ProcessState()
        before = self._attachment.commands
        try:
            # In a context of its own, so that no context variable of one job is seen by the next.
            contextvars.Context().run(self._perform, request, configuration)
        except ChannelClosed:
            raise
        except _NeedsFreshProcess:
            self._channel.send("needs-fresh-process")
            return False
        except Failure as failure:
            self._end(request, failure, used=True)
            return False
        except BaseException as error:  # noqa: BLE001 - a job may raise anything, also SystemExit
            self._end(request, Failure.of("raised", error), used=True)
            return False
        used = self._attachment.commands != before
        self._end(request, None, used=used)
        return bool(request["reuse"]) and self._make_fit(request["sys_path"], used=used)

    def _make_fit(self, folders: list[str], *, used: bool) -> bool:
        """Put everything back after a job, and report whether that was possible."""
        assert self._attachment is not None
        assert self._state is not None
        self._served += 1
        try:
            self._attachment.restore(used=used)
            unfit = self._state.restore(folders)
        except Exception as error:  # noqa: BLE001 - whatever it is, a fresh process serves the next job
            unfit = describe(error)
        self._channel.send("fit" if unfit is None else "unfit", reason=unfit)
        return unfit is None

    def _perform(self, request: dict[str, Any], configuration: dict[str, Any]) -> None:
        assert self._attachment is not None
        self._channel.send("accepted")
        _prepare_process(request)
        self._attachment.use_class_path(request["includes"], request["pool"])
        self._attachment.report_queries(lambda query_id: self._channel.send("query", id=query_id))
        job = load_job(request["class_name"], request["sys_path"])
        if self._served and getattr(type(job), "fresh_process", False):
            raise _NeedsFreshProcess
        context = self._attachment.job_context(request["flavour"], job)
        settings, config = configuration["context"], configuration["job"]
        runtime = Runtime(
            request["job_id"], self._attachment, config_trees.tree(settings), request["data_dir"]
        )
        merged = config_trees.tree(config_trees.laid_over(config, settings))
        data = _validated(job, context, runtime, merged)
        self._channel.send("running")
        try:
            result = awaited(job.run_job(context, runtime, data))
        except BaseException as error:
            raise Failure.of("raised", error, skip=1) from error
        self._send_result(result)

    def _send_result(self, result: Any) -> None:
        """Send the result in pieces; a small one only once it is known to be whole."""
        buffered, size = [], 0
        try:
            stream, pieces = results.opened(result)
            del result
            for piece in pieces:
                buffered.append(piece)
                size += len(piece)
                if size >= CHUNK_SIZE:
                    self._send_pieces(stream, b"".join(buffered))
                    buffered, size = [], 0
        except ChannelClosed:
            raise
        except results.UnusableResult as error:
            raise Failure.of("result", error) from error
        except BaseException as error:
            raise Failure.of("raised", error, skip=1) from error
        self._send_pieces(stream, b"".join(buffered), last=True)

    def _send_pieces(self, stream: bool, data: bytes, *, last: bool = False) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK_SIZE):
            self._channel.send("result", view[start : start + CHUNK_SIZE], stream=stream)
        if last and not data:
            self._channel.send("result", b"", stream=stream)

    def _end(self, request: dict[str, Any], failure: Failure | None, *, used: bool) -> None:
        """Let the job's own exit handlers run and its output out, then report to the host."""
        assert self._state is not None
        try:
            self._state.end_job(request["sys_path"], last=failure is not None or not request["reuse"])
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises, the job has ended
            with contextlib.suppress(OSError):  # the job may have closed its output
                os.write(
                    2, f"an exit handler raised {type(error).__name__}: {error}\n".encode(errors="replace")
                )
        if failure is None:
            self._channel.send("ended", used=used, clean=self._state.nothing_left())
        else:
            self._channel.send("ended", failure=failure.kind, error=failure.error)


def _prepare_process(request: dict[str, Any]) -> None:
    sys.path[:0] = request["sys_path"]
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
    logging.getLogger("py4j").setLevel(logging.WARNING)
    os.environ["JOBSERVER_JOB_ID"] = request["job_id"]


def _validated(job: Any, context: Any, runtime: Runtime, config: Any) -> Any:
    try:
        data = awaited(job.validate(context, runtime, config))
    except BaseException as error:
        raise Failure.of("raised", error, skip=1) from error
    problems = _problems(data)
    if problems:
        kind = type(data[0])
        raise Failure("validation", "; ".join(problems), error_class=f"{kind.__module__}.{kind.__qualname__}")
    return data


def _problems(data: Any) -> list[str]:
    """The texts of a list of validation problems; nothing for anything else, which is the job's data."""
    if not isinstance(data, (list, tuple)) or not data:
        return []
    if all(type(item).__name__ == "ValidationProblem" and hasattr(item, "problem") for item in data):
        return [str(item.problem) for item in data]
    return []
