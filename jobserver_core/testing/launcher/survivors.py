"""The launcher contract's part about contexts that outlive their server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobserver_core.ports import ContextEnd, ContextHandle, JobOutcome, Launcher
from jobserver_core.testing.contract import returned, wait_until
from jobserver_core.testing.launcher.access import LauncherAccess, RunningContext


class SurvivorsContract(LauncherAccess):
    """The next server takes over contexts, or ends them."""

    def test_a_context_continues_under_the_next_launcher(self, launcher: Launcher, tmp_path: Path) -> None:
        self.skip_unless_contexts_outlive(launcher)
        context = self.started(launcher, tmp_path, self.settings())
        ready = context.listener.events[0]
        ended = self.submit(context, "echo", '{"value": "again"}')
        streamed = self.submit(context, "stream", '{"chunks": ["a", "b", "c"]}')
        acknowledged = self.submit(context, "echo", '{"value": 1}')
        for job in (ended, streamed, acknowledged):
            self.outcome(context, job)
        context.handle.acknowledge(acknowledged.id)
        running = self.submit(context, "endless")
        context.listener.wait_for("job_running", running.id, timeout=self.timeout)
        unwanted = self.hold(context)
        launcher.detach()
        before = list(context.listener.events)
        assert not [event for event in before if event[0] == "context_ended"], (
            "detach reported the end of a context that continues"
        )

        following = self.successor(launcher)
        assert following is not None
        try:
            (spec,) = returned("survivors", following.survivors(), Sequence)
            assert spec == context.spec
            listener = self.listener()
            arriving = self.spec_of(context, "echo", '{"value": "it never arrived"}')
            jobs = [ended, streamed, running, arriving]
            handle = returned("reattach", following.reattach(spec, jobs, listener), ContextHandle)
            again = RunningContext(spec, listener, handle)
            following.sweep()
            assert listener.wait_for("context_ready", timeout=self.timeout) == ready
            assert self.value(again, ended) == "again"
            assert listener.outcome(streamed.id, timeout=self.timeout) == JobOutcome()
            assert listener.results[streamed.id] == (True, bytearray(b"abc"))
            assert self.value(again, arriving) == "it never arrived"
            for job in (ended, streamed, arriving):
                assert listener.of_job(job.id) == ["job_running", "open_result", "job_ended"]
            again.handle.kill_job(running.id)
            assert listener.outcome(running.id, timeout=self.timeout) == JobOutcome(killed=True)
            self.wait_until_free(unwanted)
            for job in (acknowledged, unwanted):
                assert listener.of_job(job.id) == [], "an acknowledged or unwanted job was reported"
            again.handle.stop(30.0)
            assert listener.wait_for("context_ended", timeout=self.timeout)[1] is ContextEnd.STOPPED
            assert listener.faults == []
            assert not spec.work_dir.exists(), (
                f"the context was reported as ended, but its work_dir {spec.work_dir} is still there"
            )
            assert context.listener.events == before, "events were reported after the launcher was detached"
        finally:
            self.close(following)

    def test_a_survivor_that_is_not_reattached_is_swept(self, launcher: Launcher, tmp_path: Path) -> None:
        self.skip_unless_contexts_outlive(launcher)
        context = self.started(launcher, tmp_path, self.settings())
        job = self.hold(context)
        launcher.detach()
        following = self.successor(launcher)
        assert following is not None
        try:
            assert [spec.id for spec in returned("survivors", following.survivors(), Sequence)] == [
                context.spec.id
            ]
            following.sweep()
            self.wait_until_free(job)
            work_dir = context.spec.work_dir
            wait_until(lambda: not work_dir.exists(), f"{work_dir} is removed", self.timeout)
            assert list(following.survivors()) == []
        finally:
            self.close(following)
