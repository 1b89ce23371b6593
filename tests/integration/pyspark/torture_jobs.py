"""The jobs of the torture: a table of what each kind does, and of its result, which is known in advance.

The servers get this module as a wheel; the clients and the launcher without Spark import it as well.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkjobserver.api import SparkJob

_PARTS = 20


class Engine(ABC):
    """What computes for a job and lets it sleep: Spark, or a thread of the server."""

    @abstractmethod
    def count(self, number: int) -> int:
        """Count so many rows."""

    @abstractmethod
    def sum_slowly(self, values: range) -> int:
        """Add values up in as many tasks, each of which takes some time."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Sleep, unless the job is killed."""


@dataclass(frozen=True)
class Kind:
    """What the jobs of a kind do with their number and their configuration, and their result for a number.

    The result is a JSON value, or the bytes of a stream; None if the job fails.
    """

    work: Callable[[Engine, int, Mapping[str, Any]], object]
    result: Callable[[int], object]


def _same(number: int) -> int:
    return number


def _large(number: int) -> str:
    return f"{number} " * 40_000


def _part(number: int) -> bytes:
    return f"{number} ".encode() * 10_000


def _sleep(engine: Engine, number: int, config: Mapping[str, Any]) -> int:
    engine.sleep(config["seconds"])
    return number


def _stream(engine: Engine, number: int, config: Mapping[str, Any]) -> Iterator[bytes]:
    for _ in range(_PARTS):
        yield _part(number)
        time.sleep(0.05)


def _fail(engine: Engine, number: int, config: Mapping[str, Any]) -> None:
    raise ValueError(f"number {number}")


def _gated(engine: Engine, number: int, config: Mapping[str, Any]) -> int:
    while not os.path.exists(config["gate"]):
        engine.sleep(0.05)
    return number


KINDS = {
    "rows": Kind(lambda engine, number, config: engine.count(number), _same),
    "tasks": Kind(
        lambda engine, number, config: engine.sum_slowly(range(number, number + 4)),
        lambda number: 4 * number + 6,
    ),
    "sleep": Kind(_sleep, _same),
    "large": Kind(lambda engine, number, config: _large(number), _large),
    "stream": Kind(_stream, lambda number: _part(number) * _PARTS),
    "fail": Kind(_fail, lambda number: None),
    "gated": Kind(_gated, _same),
}


def work(engine: Engine, job_id: str, config: Mapping[str, Any]) -> object:
    """Leave a line for this run, then do what ``kind`` of the configuration says."""
    record = os.open(Path(config["runs"]) / job_id, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(record, f"{os.getpid()}\n".encode())
    os.close(record)
    return KINDS[config["kind"]].work(engine, config["number"], config)


class SparkEngine(Engine):
    """Computes with Spark."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def count(self, number: int) -> int:
        return int(self._session.range(number, numPartitions=2).count())

    def sum_slowly(self, values: range) -> int:
        def slowly(value: int) -> int:
            time.sleep(0.3)
            return value

        return int(self._session.sparkContext.parallelize(values, len(values)).map(slowly).sum())

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Work(SparkJob):
    """The job with Spark."""

    def validate(self, context: Any, runtime: Any, config: Any) -> Any:
        return config

    def run_job(self, context: Any, runtime: Any, data: Any) -> Any:
        return work(SparkEngine(context), runtime.jobId, data)
