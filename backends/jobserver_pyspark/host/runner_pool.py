"""Runners without a job: *spare* ones have served none yet, *idle* ones wait for one of their class path.

A job takes, in this order, an idle runner of its class path, a spare one, or a new one. Spares are replaced
on a thread of their own, which leaves the cores to jobs that have just begun. A runner that has ended without
a job is noticed when the next one is taken.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from jobserver_pyspark.host.driver import Driver
from jobserver_pyspark.host.logs import OutputPump
from jobserver_pyspark.host.runners import RunnerLost, RunnerProcess, ZygoteProcess
from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.failures import describe
from jobserver_pyspark.protocol.frames import ChannelClosed
from jobserver_pyspark.protocol.messages import HostSpec

EXIT_TIMEOUT = 10.0
"""Seconds to wait for the end of a runner that was killed."""
_LULL_TIMEOUT = 0.5
"""Seconds that a missing spare waits for a moment without running jobs, while another spare is left."""
_MAX_IDLE = 16
"""The maximum number of idle runners; each costs some 30 MB."""


class RunnerPool:
    """Keeps runners ready for jobs. Thread-safe.

    ``spares`` is how many spare ones it keeps. ``busy`` returns whether any job runs. ``warn`` is called with
    problems that fail no job.
    """

    def __init__(
        self,
        spec: HostSpec,
        *,
        spares: int,
        driver: Driver,
        zygote: ZygoteProcess,
        pump: OutputPump,
        busy: Callable[[], bool],
        warn: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._wanted_spares = spares
        self._driver = driver
        self._zygote = zygote
        self._pump = pump
        self._busy = busy
        self._warn = warn
        self._lock = threading.Lock()
        self._spares: list[RunnerProcess] = []
        self._idle: list[RunnerProcess] = []
        self._need = threading.Semaphore(0)
        self._warmed = threading.Event()
        self._closing = False
        self.session_ready = threading.Event()
        """Set when the session of the context exists, which spares prepare for."""

    def start(self) -> None:
        """Create the first spare runner, warm up the first Python worker, and keep spares ready from then."""
        first = self._fork_attached()
        with self._lock:
            self._spares.append(first)
        threading.Thread(target=self._keep_spares, args=(first,), name="spare runners", daemon=True).start()

    def adopt(self, spec: HostSpec, log: Callable[[bytes], None]) -> None:
        """Serve the jobs of a context; idle runners write to its log."""
        self._spec = spec
        with self._lock:
            runners = list(self._spares)
            self._wanted_spares = spec.spare_runners
        for runner in runners:
            runner.output.write = runner.idle_write = log
            with contextlib.suppress(ChannelClosed):  # a dead one is discarded when it is taken
                runner.rename_application(spec.conf["spark.app.name"])
        self._need.release()

    def warm_up(self) -> None:
        """Prepare everything that the first job would wait for."""
        self._warmed.wait()
        for runner in list(self._spares):
            runner.warm_up(self._spec.context_type)
            runner.prepare(self._spec.context_type)

    def take(self, class_path_key: tuple[str, ...], *, fresh: bool) -> RunnerProcess:
        """Return a runner for a job; ``fresh`` says that it must not have served another one."""
        with self._lock:
            dead = [runner for runner in (*self._spares, *self._idle) if runner.exited.is_set()]
            self._spares = [spare for spare in self._spares if spare not in dead]
            self._idle = [runner for runner in self._idle if runner not in dead]
            fit = (
                [] if fresh else [runner for runner in self._idle if runner.class_path_key == class_path_key]
            )
            if fit:
                self._idle.remove(fit[-1])  # the one whose memory is still in the processor's caches
            spare = self._spares.pop(0) if self._spares and not fit else None
        if not fit:
            self._need.release()
        for runner in dead:
            self.discard(runner)
        return fit[-1] if fit else spare or self._fork_attached()

    def keep(self, runner: RunnerProcess) -> None:
        """Keep a runner whose job has ended for another job; discard those that are too many."""
        with self._lock:
            if not self._closing:
                self._idle.append(runner)
            surplus = self._idle[:-_MAX_IDLE]
            self._idle = self._idle[-_MAX_IDLE:]
        for one in surplus:
            self.discard(one)

    def discard(self, runner: RunnerProcess) -> None:
        """End a runner that has no job, and release its resources."""
        runner.kill()
        runner.exited.wait(EXIT_TIMEOUT)
        runner.close(self._pump)
        with contextlib.suppress(Exception):  # the JVM may have ended
            runner.detach()

    def close(self) -> None:
        """Kill every runner that has no job, and make no more spares."""
        self._closing = True
        self._need.release()
        with self._lock:
            runners = [*self._spares, *self._idle]
        for runner in runners:
            runner.kill()

    # -- spare runners -----------------------------------------------------------------------------

    def _fork_attached(self) -> RunnerProcess:
        runner = self._zygote.fork()
        with self._discarded_on_error(runner):
            runner.attach(self._driver)
        return runner

    @contextlib.contextmanager
    def _discarded_on_error(self, runner: RunnerProcess) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard(runner)
            raise

    def _keep_spares(self, first: RunnerProcess) -> None:
        self._warm_up_worker(first)
        self.session_ready.wait()
        self._warmed.set()
        while not self._closing:
            while len(self._spares) < self._wanted_spares:
                try:
                    runner = self._fork_attached()
                    if not self._busy():  # it takes longer than the attachment, and jobs need the cores now
                        with self._discarded_on_error(runner):
                            runner.prepare(self._spec.context_type)
                except Exception as error:  # noqa: BLE001 - jobs then start their own runner, and report its error
                    self._warn(f"a spare runner could not be started: {describe(error)}")
                    break
                with self._lock:
                    self._spares.append(runner)
            self._need.acquire()
            # While a spare is left, the cores are for jobs that have just begun.
            deadline = time.monotonic() + _LULL_TIMEOUT
            while self._spares and self._busy() and time.monotonic() < deadline:
                time.sleep(0.01)

    def _warm_up_worker(self, first: RunnerProcess) -> None:
        """Start the first Python worker from a spare, unless a job has taken it already."""
        with self._lock:
            if first not in self._spares:
                return
            self._spares.remove(first)
        try:
            with self._discarded_on_error(first):
                first.warm_up()
        except (ChannelClosed, RunnerLost, ProtocolError) as error:
            self._warn(f"the first Python worker did not start: {describe(error)}")
            return
        with self._lock:
            self._spares.append(first)
