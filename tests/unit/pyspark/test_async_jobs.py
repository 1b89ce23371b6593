"""The results of asynchronous job methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobserver_core.results import await_value, opened


async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


async def numbers(closed: list[str]) -> AsyncIterator[int]:
    try:
        for number in range(1000):
            yield await doubled(number)
    finally:
        closed.append("closed")


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError("no such row")


def test_a_coroutine_is_run_and_other_values_are_returned_unchanged() -> None:
    assert await_value(doubled(4)) == 8
    value = object()
    assert await_value(value) is value


def test_an_exception_from_a_coroutine_fails_the_job() -> None:
    with pytest.raises(LookupError, match="no such row"):
        await_value(failing())


def test_closing_the_iterator_closes_the_asynchronous_generator() -> None:
    closed: list[str] = []
    elements = await_value(numbers(closed))
    assert [next(elements), next(elements)] == [0, 2]
    elements.close()
    assert closed == ["closed"]
    assert list(await_value(numbers(closed)))[-1] == 1998


def test_a_coroutine_may_return_an_asynchronous_generator_of_bytes() -> None:
    async def stream() -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return pieces()

    streamed, pieces = opened(await_value(stream()))
    assert (streamed, list(pieces)) == (True, [b"a", b"b"])
