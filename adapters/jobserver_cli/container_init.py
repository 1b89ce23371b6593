"""Being process 1 of a container: reaping what it adopts, and passing signals on to the server.

The problem: every process whose parent has gone becomes a child of process 1, and stays as a zombie until
process 1 waits for it. Contexts leave such processes behind, since a context host that is killed cannot wait
for its JVM. A server that waited for any child at all would take the exit statuses that other parts of the
process wait for, those of its own hosts first of all.

The idea: process 1 forks before it does anything else. The child becomes the server. The parent only waits:
it reaps whatever ends, passes on the signals that it gets, and ends as the server ended. When process 1 ends,
the kernel kills what is left in the container. This is what ``docker run --init`` does with a program of its
own.

The invariant: the fork comes before the first thread, and with all signals blocked, so that none is lost in
between. Signals from a terminal go to the whole process group, so that the server has them already; they are
not passed on, or one Ctrl-C would count as two.

Not handled: programs that embed a job server and are process 1 themselves; they need ``--init``.
"""

from __future__ import annotations

import os
import signal

__all__ = ["become_init", "fork_and_reap"]

_FROM_KERNEL = 128
"""``SI_KERNEL``: a terminal, or the kernel itself, sent the signal."""
_LEFT_ALONE = {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""What cannot be waited for, and what says that process 1 itself has failed."""
_JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


def become_init() -> None:
    """When this is process 1, go on in a child of it; process 1 itself never returns from here."""
    if os.getpid() == 1:
        fork_and_reap()


def fork_and_reap() -> None:
    """Return in a child process; the parent reaps and passes signals on until that child has ended."""
    handled: set[int] = {int(number) for number in signal.valid_signals() - _LEFT_ALONE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_attend(child, handled))


def _attend(child: int, handled: set[int]) -> int:
    """Reap and pass on until the child has ended; return the exit status that stands for its end."""
    while True:
        info = signal.sigwaitinfo(handled)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        elif info.si_signo not in _JOB_CONTROL and info.si_code != _FROM_KERNEL:
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Wait for everything that has ended; return the child's exit status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code
