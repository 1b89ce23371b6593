"""The blobs that servers share: what nobody uses is removed while all of them run, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from conditions import wait_until
from jobserver_core import BinaryType, Settings
from jobserver_core.ports import ContextEnd
from jobserver_core.running.retention import GRACE
from jobserver_core.testing.clock import ManualClock
from serving import WAIT, a_request, archive, report_result, upload
from several_servers import FailingBlobs, Fleet, Member

ROUNDS = 30
GRACE_SECONDS = GRACE.total_seconds()


class SharedBlobs(Fleet):
    @pytest.fixture
    def old_blobs(self, members: list[Member]) -> FailingBlobs:
        """Blobs that are so old that their age protects none of them."""
        self.blobs = FailingBlobs(clock=ManualClock(start=ManualClock().now() - timedelta(days=1)))
        return self.blobs

    def test_unused_blobs_are_removed_while_several_servers_run(self, old_blobs: FailingBlobs) -> None:
        first, second = self.boot(), self.boot()
        gone = first.server.upload("gone", BinaryType.EGG, archive("gone"))
        kept = first.server.upload("kept", BinaryType.EGG, archive("kept"))
        first.server.delete_binary("gone")
        second.server.prune()
        assert old_blobs.size(gone.digest) is not None  # the first server used it just now
        first.clock.advance(GRACE_SECONDS)
        first.server.prune()
        assert old_blobs.size(gone.digest) is None
        assert old_blobs.size(kept.digest) is not None

    def test_what_the_context_of_another_server_runs_is_not_removed(self, old_blobs: FailingBlobs) -> None:
        owner, other = self.boot(), self.boot()
        library = owner.server.upload("library", BinaryType.EGG, archive("library"))
        owner.server.create_context("shared", {"cp": "library"})
        owner.ready()
        owner.server.delete_binary("library")
        for member in (owner, other):
            member.clock.advance(GRACE_SECONDS)
            member.server.prune()
        assert old_blobs.size(library.digest) is not None
        owner.launcher.listeners[0].context_ended(ContextEnd.STOPPED)
        owner.clock.advance(GRACE_SECONDS)
        owner.server.prune()
        assert old_blobs.size(library.digest) is None

    def test_a_result_that_is_being_stored_is_not_removed(self, old_blobs: FailingBlobs) -> None:
        settings = Settings.from_mapping({"jobserver.jobs.inline-result-limit": 0})
        owner, other = self.boot(settings=settings), self.boot(settings=settings)
        upload(owner.server)
        owner.server.create_context("shared")
        owner.ready()
        job = owner.server.submit(a_request("w.Any", context="shared"))
        committed, stored = threading.Event(), threading.Event()
        metadata, end = owner.server._services.metadata, owner.server._services.metadata.advance_job

        def advance_job(*arguments: object, **named: object) -> None:
            committed.set()
            assert stored.wait(WAIT)
            end(*arguments, **named)  # type: ignore[arg-type]  # the same arguments

        metadata.advance_job = advance_job  # type: ignore[method-assign]  # held up until the sweep is over
        try:
            thread = threading.Thread(
                target=report_result, args=(owner.launcher.listeners[0], job.id, b'"large"')
            )
            thread.start()
            assert committed.wait(WAIT)
            other.server.prune()
        finally:
            metadata.advance_job = end  # type: ignore[method-assign]
            stored.set()
            thread.join(WAIT)
        assert job.result(WAIT) == "large"

    def test_uploads_and_removals_of_the_same_content_lose_nothing(self, old_blobs: FailingBlobs) -> None:
        services = [self.boot().server._services for _ in range(2)]
        content, uploaded = archive("the same"), threading.Event()
        digest = services[0].binaries.upload("first", BinaryType.EGG, content).digest
        services[0].binaries.delete("first")
        problems: list[object] = []
        removed: list[int] = []

        def is_gone_or_used() -> bool:
            return old_blobs.size(digest) is None or not services[0].metadata.unreferenced([digest])

        def upload_again_and_again(number: int) -> None:
            binaries, name = services[number].binaries, f"binary{number}"
            for count in range(ROUNDS):
                binaries.upload(name, BinaryType.EGG, content)
                with old_blobs.open(digest) as file:
                    if file.read() != content:
                        problems.append(f"round {count}")
                binaries.delete(name)
                if count % 3 == 0:  # or else the next upload is always faster than a removal
                    wait_until(is_gone_or_used, "a removal, or the next upload", WAIT)

        def remove_again_and_again(number: int) -> None:
            pins = services[number].pins
            while not uploaded.is_set():
                pins.drop_idle(0)
                removed.append(pins.remove([digest], old_blobs.delete))

        def guarded(run: Callable[[int], None], number: int) -> None:
            try:
                run(number)
            except Exception as error:
                problems.append(error)

        uploads = [threading.Thread(target=guarded, args=(upload_again_and_again, n)) for n in range(2)]
        removals = [threading.Thread(target=guarded, args=(remove_again_and_again, n)) for n in range(2)]
        for thread in (*uploads, *removals):
            thread.start()
        for thread in uploads:
            thread.join(2 * WAIT)
        uploaded.set()
        for thread in removals:
            thread.join(WAIT)
        assert problems == []
        assert not any(thread.is_alive() for thread in (*uploads, *removals))
        assert sum(removed) > 1, "the uploads had no race with removals"
