"""Ctrl-C: at once, at the right place, and not where it does harm."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from jobserver_cli.interruption import (
    apart,
    interrupted_later,
    terminated_like_interrupted,
    uninterrupted,
)


def ctrl_c(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_a_call_apart_returns_what_it_returns_and_raises_what_it_raises() -> None:
    def fail() -> None:
        raise LookupError("no")

    assert apart(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(LookupError, match="no"):
        apart(fail)
    with pytest.raises(SystemExit):
        apart(lambda: exec("raise SystemExit(3)"))


def test_ctrl_c_ends_the_wait_for_a_call_and_never_reaches_the_call() -> None:
    release, ended = threading.Event(), threading.Event()
    reached = []

    def call() -> None:
        try:
            ctrl_c()
            release.wait(10)
        except BaseException as error:  # what must not come is anything at all
            reached.append(error)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        apart(call)
    assert not ended.is_set()
    release.set()
    assert ended.wait(10)
    assert reached == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_kept_comes_when_the_block_is_done(number: signal.Signals) -> None:
    done = []

    def start() -> None:
        with interrupted_later():
            ctrl_c(number)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_what_must_be_done_is_ignored(number: signal.Signals) -> None:
    with uninterrupted():
        ctrl_c(number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_can_do_what_ctrl_c_does_and_is_itself_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with terminated_like_interrupted():
            ctrl_c(signal.SIGTERM)
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGTERM) is before
