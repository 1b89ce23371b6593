"""The figures that rows have found, how they are printed, and how calls are timed."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

FIGURES: dict[str, dict[str, str]] = {}


class RowError(Exception):
    """A row cannot be measured; the others can."""


def show(name: str, figure: str, goal: str = "", *, baseline: str = "", ratio: str = "") -> None:
    load = f"{os.getloadavg()[0]:.1f}"
    FIGURES[name] = {"figure": figure, "goal": goal, "baseline": baseline, "ratio": ratio, "load": load}
    print_row(name)


def print_row(name: str) -> None:
    print(f"| {name} | {' | '.join(FIGURES[name].values())} |", flush=True)


def print_head() -> None:
    print("| what | figure | goal | baseline | ratio | load |\n| --- | --- | --- | --- | --- | --- |")


def print_all() -> None:
    print_head()
    for name in FIGURES:
        print_row(name)


def merge(file: Path) -> None:
    """Write the figures to a file, beside those of other rows that it has."""
    before = json.loads(file.read_text()) if file.exists() else {}
    FIGURES.update({**before, **FIGURES})
    file.write_text(json.dumps(FIGURES, indent=1) + "\n")


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def back_to_back(call: Callable[[], object], count: int) -> list[float]:
    for _ in range(max(20, count // 10)):
        call()
    return [timed(call) for _ in range(count)]


def milliseconds(times: list[float]) -> str:
    p99 = statistics.quantiles(times, n=100)[98] if len(times) >= 100 else max(times)
    return f"{1000 * statistics.median(times):.1f} ms, p99 {1000 * p99:.1f} ms"


def seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s"


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f} x"
