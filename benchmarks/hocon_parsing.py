"""How long configurations take to parse: this library's parser against pyhocon, in one run.

Run: ``python benchmarks/hocon_parsing.py``. Prints the median of each and the ratio.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from pyhocon import ConfigFactory

from jobserver_core.config.hocon import parse_untrusted


def seconds(call: Callable[[], object], runs: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    line = "input.string = a b c a b see"
    lines = "\n".join(f"key{i} {{ a = {i}, b = text number {i}, c = [1, 2, 3] }}" for i in range(400))
    tree = {f"key{i}": {"a": i, "b": f"text number {i}", "c": [1, 2, 3]} for i in range(400)}
    cases = [
        ("one line of HOCON", line, 50),
        ("18 kB of HOCON", lines, 3),
        ("20 kB of JSON", json.dumps(tree), 3),
    ]
    print(f"{'case':<20} {'pyhocon':>12} {'jobserver':>12} {'ratio':>8}")
    for name, text, runs in cases:
        theirs = seconds(lambda text=text: ConfigFactory.parse_string(text), runs)
        ours = seconds(lambda text=text: parse_untrusted(text), runs)
        print(f"{name:<20} {theirs * 1e3:>9.2f} ms {ours * 1e3:>9.2f} ms {theirs / ours:>7.0f}x")


if __name__ == "__main__":
    main()
