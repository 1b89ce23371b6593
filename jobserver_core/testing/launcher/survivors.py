"""The launcher contract's part about contexts that outlive their server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobserver_core.ports import ContextEnd, ContextHandle, Launcher
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
            assert spec == context.spec, "survivors has to return the specs that start_context was given"
            listener = self.listener()
            arriving = self.spec_of(context, "echo", '{"value": "it never arrived"}')
            jobs = [ended, streamed, running, arriving]
            handle = returned("reattach", following.reattach(spec, jobs, listener), ContextHandle)
            again = RunningContext(spec, listener, handle)
            following.sweep()
            found = listener.wait_for("context_ready", timeout=self.timeout)
            assert found == ready, f"context_ready has to be repeated as it was, {ready}, not as {found}"
            whole = "a job that has ended is reported again, with its whole result"
            assert self.value(again, ended) == "again", whole
            self.expect_success(again, streamed)
            assert listener.results[streamed.id] == (True, bytearray(b"abc")), whole
            late = "a job that the earlier launcher never got is run now"
            assert self.value(again, arriving) == "it never arrived", late
            for job in (ended, streamed, arriving):
                self.expect_reports(listener, job, "job_running", "open_result", "job_ended")
            again.handle.kill_job(running.id)
            outcome = listener.outcome(running.id, timeout=self.timeout)
            assert outcome.killed, f"a job that kill_job ended has to be reported as killed, not {outcome}"
            self.wait_until_free(unwanted)
            for job in (acknowledged, unwanted):
                assert listener.of_job(job.id) == [], "an acknowledged or unwanted job was reported"
            again.handle.stop(30.0)
            self.expect_end(again, ContextEnd.STOPPED, "that was stopped")
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
            found = [spec.id for spec in returned("survivors", following.survivors(), Sequence)]
            assert found == [context.spec.id], "survivors has to return the contexts that were detached"
            following.sweep()
            self.wait_until_free(job)
            work_dir = context.spec.work_dir
            wait_until(lambda: not work_dir.exists(), f"{work_dir} is removed", self.timeout)
            assert list(following.survivors()) == [], "what sweep has ended is no survivor"
        finally:
            self.close(following)
