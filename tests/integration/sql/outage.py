"""A job server on a real database, under load while the database is unavailable."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from conditions import WAIT, wait_until
from jobserver_core import JobHandle, JobProgress, JobServer, JobState, Settings
from jobserver_core.errors import NoSlots, StorageError
from jobserver_core.memory import InlineJob, InlineLauncher, MemoryFetcher, MemoryTransport
from jobserver_core.models.jobs import JobQuery
from jobserver_core.models.lifecycle import JOBS
from jobserver_fsspec import FsspecBlobStore
from jobserver_sql import SqlMetadataStore
from serving import a_request, upload

CONTEXTS = ("one", "two")


def count(job: InlineJob) -> dict[str, Any]:
    """Take a moment, report progress, and return the argument."""
    for step in range(3):
        job.report(JobProgress(tasks_done=step, tasks_total=3))
        job.sleep(0.02)
    return {"n": job.config["n"], "padding": "x" * job.config["padding"]}


class BusyServer:
    """Two contexts that get jobs from two threads each. Records which jobs were accepted and refused."""

    def __init__(self, url: str, directory: Path, **options: Any) -> None:
        self.transport = MemoryTransport()
        self.server = JobServer(
            metadata=SqlMetadataStore(url, **options),
            blobs=FsspecBlobStore(directory / "blobs"),
            fetcher=MemoryFetcher(),
            launcher=InlineLauncher({"w.Any": count}),
            transports=[self.transport],
            settings=Settings.from_mapping(
                {"jobserver": {"callbacks": {"retry-delay": "0.1 s", "concurrency": 4, "per-receiver": 4}}}
            ),
            data_dir=directory,
        ).start()
        upload(self.server)
        for name in CONTEXTS:
            self.server.create_context(name).result(2 * WAIT)
        self.accepted: dict[int, JobHandle] = {}
        self.refused: list[StorageError] = []
        self._numbers = iter(range(1_000_000))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._submit, args=(name,)) for name in CONTEXTS * 2]

    def begin(self) -> None:
        """Begin to submit jobs, and wait until some have run."""
        for thread in self._threads:
            thread.start()
        self.await_progress()

    def await_progress(self) -> None:
        """Wait until five jobs have ended that were not accepted before this call."""
        with self._lock:
            known = set(self.accepted)

        def enough() -> bool:
            with self._lock:
                new = [handle for number, handle in self.accepted.items() if number not in known]
            return len([handle for handle in new if handle.done()]) >= 5

        wait_until(enough, "no jobs run any more")

    def await_refusals(self, count: int) -> None:
        """Wait until this many more submits were refused."""
        wanted = len(self.refused) + count
        wait_until(lambda: len(self.refused) >= wanted, f"no submit meets the fault: {self._failures}")

    def _submit(self, context: str) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    number = next(self._numbers)
                self._submit_one(context, number)
                self._stop.wait(0.02)
        except BaseException as error:
            self._failures.append(error)

    def _submit_one(self, context: str, number: int) -> None:
        padding = 100_000 if number % 5 == 0 else 10
        request = a_request(
            "w.Any",
            {"n": number, "padding": padding},
            context=context,
            callback_url=f"memory://receiver/{number}",
        )
        try:
            handle = self.server.submit(request)
        except StorageError as error:
            self.refused.append(error)
        except NoSlots:
            self._stop.wait(0.2)  # jobs come faster than they run
        else:
            with self._lock:
                self.accepted[number] = handle

    def settle(self) -> None:
        """Stop submitting, and assert that all that was accepted came to its end and nothing else is left."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * WAIT)
        assert self._failures == []
        for number, handle in self.accepted.items():
            result = handle.result(2 * WAIT)
            assert result["n"] == number
            assert self.server.job(handle.id).state is JobState.FINISHED
        wait_until(lambda: not self._live_jobs(), "a job is left that nobody runs")
        assert {context.name for context in self.server.contexts()} == set(CONTEXTS)
        wanted = {f"memory://receiver/{number}" for number in self.accepted}
        wait_until(lambda: {m.url for m in self.transport.messages} >= wanted, "a callback is missing")
        assert {m.url for m in self.transport.messages} == wanted
        for handle in self.accepted.values():
            assert len(self.server.deliveries(handle.id)) == 1

    def _live_jobs(self) -> list[str]:
        return [job.id for job in self.server.jobs(JobQuery(states=JOBS.live_states)).jobs]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(2 * WAIT)
        self.server.close(5)
