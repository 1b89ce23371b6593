"""The jobs that wait for a slot of one context, and whose turn it is.

Theory
======

The problem: a context's queue is shared. A user who submits a thousand jobs at once must not delay the one
job of another by all of them, nor leave no place in the queue for it. And some jobs are more urgent.

The idea: jobs of the highest priority come first. Among jobs of one priority, users take turns: each user has
a *lane* with its jobs in the order in which they came, and it is the turn of the user whose last one was
longest ago, with any priority. A user may occupy as many places of the queue as are still free. So one user
alone can take half of them, two users a third each, and there is always a place for the next user.

The invariants: the jobs of one user and priority start in the order in which they came. Without
authentication there is one user, so the whole queue is first in, first out, and there is no limit but its
length. Priority and user are stored with a job, so the order holds after a restart; only whose turn it is
next is forgotten.

Deliberately not handled: starvation by priority. As long as jobs of a higher priority wait, others do not
start, which is what was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jobserver_core.running.live_job import LiveJob

__all__ = ["REMEMBERED", "WaitingJobs"]

REMEMBERED = 1000
"""The number of users whose last turn is remembered; the one whose turn was longest ago is forgotten."""


class WaitingJobs:
    """Jobs in the order of their turns. Not thread-safe: the context's lock guards it."""

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

        A job that comes from a context that died may have been submitted before some of those that wait here.
        """
        users = self._lanes.setdefault(live.job.priority, {})
        lane = users.setdefault(live.job.submitted_by, {})
        overtaken = bool(lane) and next(reversed(lane)).job.submitted_at > live.job.submitted_at
        lane[live] = None
        if overtaken:
            users[live.job.submitted_by] = dict.fromkeys(sorted(lane, key=lambda one: one.job.submitted_at))
        self._by_user[live.job.submitted_by] += 1

    def next(self) -> LiveJob:
        """Return the job whose turn it is. Raises ValueError if none waits."""
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
        """Remove a job whose turn it was, so that other users have theirs."""
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
