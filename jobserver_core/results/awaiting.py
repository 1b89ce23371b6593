"""What asynchronous methods of jobs return."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

T = TypeVar("T")


def await_value(value: object) -> object:
    """Return the value of a method; for an ``async def``, its result.

    An asynchronous generator becomes an iterator, which makes each element when it is needed.
    """
    if isinstance(value, AsyncIterator):
        return _elements(value)
    if not inspect.isawaitable(value):
        return value
    import asyncio  # noqa: PLC0415 - few jobs need it

    return await_value(asyncio.run(_await(value)))


async def _await(value: Awaitable[T]) -> T:
    return await value


def _elements(values: AsyncIterator[T]) -> Iterator[T]:
    import asyncio  # noqa: PLC0415 - few jobs need it

    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(_await(values.__anext__()))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
