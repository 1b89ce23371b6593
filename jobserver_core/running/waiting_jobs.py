"""The jobs that wait for a slot of one context, and whose turn it is.

Theory
======

The problem: users share a context's queue. If one user submits a thousand jobs at once, the single job of
another user must neither wait for all of them nor find the queue full. And some jobs are more urgent.

The idea: jobs of the highest priority come first. Among jobs of the same priority, users take turns. Each
user has a *lane* of jobs in the order of submission. The next turn goes to the user whose last turn, at any
priority, was longest ago. A user may occupy as many places of the queue as are still free. So one user alone
can take half of them, two users a third each, and there is always a place for the next user.

The invariants: jobs of the same user and priority start in the order of submission. Without authentication,
there is only one user, so the whole queue is first in, first out, and its length is the only limit. Priority
and user are stored with the job, so the order survives a restart. Only the memory of past turns is lost.

Deliberately not handled: starvation by priority. While jobs of a higher priority are waiting, others do not
start. That is what priorities are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobserver_core.running.live_job import LiveJob

REMEMBERED = 1000
"""How many users' last turns are remembered. The oldest turn is forgotten first."""


class WaitingJobs:
    """Waiting jobs in the order of their turns. Not thread-safe: guarded by the context's lock."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[str, dict[LiveJob, None]]] = {}
        """The jobs by priority and user."""
        self._turns: dict[str, int] = {}
        """The number of the last turn of each user, in the order of these turns."""
        self._turn = 0
        self._by_user: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._by_user.total()

    def __iter__(self) -> Iterator[LiveJob]:
        for priority in sorted(self._lanes, reverse=True):
            for lane in self._lanes[priority].values():
                yield from lane

    def __contains__(self, live: LiveJob) -> bool:
        return live in self._lanes.get(live.job.priority, {}).get(live.job.submitted_by, {})

    def add(self, live: LiveJob) -> None:
        """Add a job behind those of its user and priority that were submitted before it.

        A job from a context that died may have been submitted before jobs that are already waiting here.
        """
        users = self._lanes.setdefault(live.job.priority, {})
        lane = users.setdefault(live.job.submitted_by, {})
        overtaken = bool(lane) and next(reversed(lane)).job.submitted_at > live.job.submitted_at
        lane[live] = None
        if overtaken:
            users[live.job.submitted_by] = dict.fromkeys(sorted(lane, key=lambda one: one.job.submitted_at))
        self._by_user[live.job.submitted_by] += 1

    def next(self) -> LiveJob:
        """Return the job whose turn it is.

        Raises:
            ValueError: None waits.
        """
        users = self._lanes[max(self._lanes)]
        return next(iter(users[min(users, key=lambda user: self._turns.get(user, 0))]))

    def remove(self, live: LiveJob) -> None:
        """Remove a job that waits."""
        priority, user = live.job.priority, live.job.submitted_by
        users = self._lanes[priority]
        del users[user][live]
        if not users[user]:
            del users[user]
        if not users:
            del self._lanes[priority]
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]

    def take(self, live: LiveJob) -> None:
        """Remove a job whose turn it was; other users' turns come next."""
        self.remove(live)
        user = live.job.submitted_by
        self._turns.pop(user, None)
        self._turn += 1
        self._turns[user] = self._turn
        if len(self._turns) > REMEMBERED:
            del self._turns[next(iter(self._turns))]

    def clear(self) -> None:
        """Remove all jobs."""
        self._lanes.clear()
        self._by_user.clear()

    def count_of(self, user: str) -> int:
        """Return how many jobs of a user wait."""
        return self._by_user[user]
