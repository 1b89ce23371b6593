from __future__ import annotations

import asyncio
import threading

import pytest

from jobserver_core.errors import ResultTimeout
from jobserver_core.running.waiting import Promise, Waiter, all_done


def test_the_value_of_a_promise_can_be_read_any_number_of_times() -> None:
    promise: Promise[int] = Promise("a number")
    promise.keep(1)
    promise.keep(2)
    promise.fail(ValueError("too late"))
    assert promise.waiter.result() == 1
    assert promise.waiter.result(0) == 1
    assert promise.waiter.done()


def test_a_wait_that_times_out_names_its_target_and_can_be_repeated() -> None:
    promise: Promise[int] = Promise("job 7")
    with pytest.raises(ResultTimeout, match=r"job 7 not done after 0\.01 s"):
        promise.waiter.result(0.01)
    promise.keep(1)
    assert promise.waiter.result(0.01) == 1


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 10**300])
def test_a_wait_may_have_any_timeout(timeout: float) -> None:
    promise: Promise[int] = Promise("x")
    timer = threading.Timer(0.01, promise.keep, [1])
    timer.start()
    assert promise.waiter.result(timeout) == 1
    timer.join()


def test_a_broken_promise_raises_its_own_error_even_a_timeout() -> None:
    promise: Promise[int] = Promise("x")
    promise.fail(TimeoutError("of the thing itself"))
    with pytest.raises(TimeoutError, match="of the thing itself"):
        promise.waiter.result(1)


def test_callbacks_get_the_waiter_now_or_later() -> None:
    promise: Promise[int] = Promise("x")
    seen: list[int] = []
    promise.waiter.add_done_callback(lambda waiter: seen.append(waiter.result()))
    assert seen == []
    promise.keep(3)
    promise.waiter.add_done_callback(lambda waiter: seen.append(waiter.result() + 1))
    assert seen == [3, 4]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_exception_of_a_callback_is_logged_with_what_it_waited_for(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_waiter: object) -> None:
        raise error

    promise: Promise[int] = Promise("job 8af2")
    seen: list[int] = []
    promise.waiter.add_done_callback(fail)
    promise.waiter.add_done_callback(lambda waiter: seen.append(waiter.result()))
    promise.keep(3)
    assert seen == [3]
    (record,) = caplog.records
    assert record.name == "jobserver_core.running.waiting"
    assert record.getMessage() == f"a done callback of job 8af2 raised {error.__name__}"
    assert record.levelname == "ERROR"
    assert "in fail" in caplog.text


def test_an_event_loop_waits_without_a_thread_for_each_waiter() -> None:
    promise: Promise[int] = Promise("x")
    before = threading.active_count()

    async def wait(waiter: Waiter[int]) -> int:
        return await waiter

    async def main() -> tuple[list[int], int]:
        tasks = [asyncio.create_task(wait(promise.waiter)) for _ in range(200)]
        await asyncio.sleep(0)
        threads = threading.active_count()
        promise.keep(5)
        return await asyncio.gather(*tasks), threads

    results, threads = asyncio.run(main())
    assert results == [5] * 200
    assert threads == before


def test_a_waiter_that_times_out_does_not_disturb_the_others() -> None:
    promise: Promise[int] = Promise("x")

    async def wait() -> int:
        return await promise.waiter

    async def main() -> int:
        impatient, patient = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.sleep(0)
        promise.keep(9)
        with pytest.raises(asyncio.CancelledError):
            await impatient
        return await patient

    assert asyncio.run(main()) == 9


def test_all_done_waits_for_the_last_and_ignores_how_they_ended() -> None:
    promises: list[Promise[int]] = [Promise("x") for _ in range(3)]
    waiter = all_done(promise.waiter for promise in promises)
    promises[0].keep(1)
    promises[1].fail(ValueError("no"))
    assert not waiter.done()
    promises[2].keep(1)
    assert waiter.done()
    assert all_done([]).done()
