"""How much processor time hostile configurations of one mebibyte take to parse.

Run: ``python benchmarks/hocon_hostile.py [--limit 2.0] [name …]``. Prints the slowest documents, and ends
with 1 if one takes longer than the limit. Seconds are of processor time; on a busy machine they are
longer than on an idle one, so a fixed loop is timed as well for comparison.

Each document tries to make one mechanism expensive: nesting, substitutions, concatenations, long keys,
re-opened blocks, escapes, numbers, ``+=``, references to oneself, circles, comments, and settings of Spark.
Those of the tests, which were expensive once, are among them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

from test_hocon_limits import HOSTILE_MEBIBYTES

from jobserver_core.config.hocon import parse_untrusted
from jobserver_core.errors import InvalidConfig

SIZE = 1024 * 1024
FEWER = SIZE // 6
"""A size at which most documents have no more values than allowed: their substitutions are resolved."""


def fill(unit: str, share: float = 1, *, size: int) -> str:
    """Repeat a text up to a share of a size in bytes, with room for a few more."""
    return unit * (int(size * share - 200) // len(unit.encode()))


def lines(line: Callable[[int], str], share: float = 1, end: str = "\n", *, size: int) -> str:
    """Return numbered lines up to a share of a size."""
    found: list[str] = []
    total = 200
    while (total := total + len((text := line(len(found))).encode()) + 1) < size * share:
        found.append(text)
    return end.join(found)


def grid(count: int, line: Callable[[int], str]) -> str:
    """Return numbered lines that refer to each other, and newlines, which allow for more steps."""
    return "\n".join(map(line, range(count))) + "\n" * (SIZE // 2)


def block(numbered: Callable[..., str], line: Callable[[int], str], share: float = 1) -> str:
    """Return numbered members of one object up to a share of a size."""
    return "{" + numbered(line, share, ",") + "}"


def near(number: int, factor: int, path: str = "") -> str:
    """Return a reference to another of 60 numbered keys."""
    return f"${{?b{(number * factor + 3) % 60}{path}}}"


COLLIDING = ["".join("Aa" if n >> bit & 1 else "BB" for bit in range(14)) for n in range(2**14)]
"""Keys with one Java hash code."""
ITEMS = "x = [" + "1," * 40_000 + "]\n"

HALF = 0.5


def documents(size: int) -> dict[str, str]:
    """Return documents of about a size, some of them always the same."""
    filled, numbered = functools.partial(fill, size=size), functools.partial(lines, size=size)
    return {
        "many errors far down": "x=["
        + "${k}," * 30_000
        + "]\n"
        + "\n" * 880_000
        + "k=1\n"
        + "k=${k.z}\n" * 4,
        "appends": filled("a+=1\n"),
        "appends of oneself": filled("a+=${?a}\n"),
        "300 appends each": numbered(lambda n: f"a{n // 300}+=1"),
        "appends below a block": "y{}\na=${y}\n" + numbered(lambda n: f"a{{c+={n}}}"),
        "appends in turn": filled("a+=${?b}\nb+=${?a}\n"),
        "appends of the next": numbered(lambda n: f"a{n}+=${{?a{n + 1}}}"),
        "re-opened block": numbered(lambda n: f"a{{k{n}=1}}"),
        "re-opened over a reference": "x=1,y{}\na=${y}\n" + numbered(lambda n: f"a.k{n}=${{x}}"),
        "re-opened deep down": "x=1\n" + numbered(lambda n: "a." * 60 + f"k{n}=${{x}}"),
        "colliding keys": "a{" + ",".join(f"{key}=${{?x}}" for key in COLLIDING) + "}",
        "chain down": numbered(lambda n: f"b{n}=${{b{n + 1}}}"),
        "chain up": "b0=1\n" + numbered(lambda n: f"b{n + 1}=${{b{n}}}"),
        "chain of growing objects": "a0{k=1}\n" + numbered(lambda n: f"a{n + 1}=${{a{n}}}{{k{n}=1}}"),
        "chain of growing lists": "a0=[1]\n" + numbered(lambda n: f"a{n + 1}=${{a{n}}}[1]"),
        "chain of fallbacks": numbered(lambda n: f"a{n}=${{?a{n + 1}}},a{n}=${{?a{n + 2}}}"),
        "oneself as text": "a=x\n" + filled("a=${a}y\n"),
        "oneself as a list": "a=[1]\n" + filled("a=${a}[2]\n"),
        "oneself as an object": "a{k=1}\n" + numbered(lambda n: f"a=${{a}}{{k{n}=2}}"),
        "layers and look-ups": "x{k=1}\n"
        + filled("a=${x}\n", HALF)
        + numbered(lambda n: f"b{n}=${{a.k}}", HALF),
        "layers to fold": filled("a=${?y}\na{k=${?y}}\n"),
        "merges in layers": "y{}\na=${y}\n" + numbered(lambda n: f"a{{k{n}=1,k{n}=${{?a.k{n}}}}}"),
        "merges in a list": "x=[" + filled("{a=1,a=${?q}2},") + "]",
        "doubling text": "b0=ha\n" + "\n".join(f"b{n}=${{b{n - 1}}}${{b{n - 1}}}" for n in range(1, 60)),
        "doubling objects": "b0{x=1}\n"
        + "\n".join(f"b{n}{{l=${{b{n - 1}}},r=${{b{n - 1}}}}}" for n in range(1, 60)),
        "circles": grid(60, lambda n: f"b{n}={near(n, 7)}{near(n, 11)}{near(n, 13)}"),
        "circles of objects": grid(
            60, lambda n: f"b{n}{{x={near(n, 7, '.y')},y={near(n, 11, '.x')},z+={near(n, 5)}}}"
        ),
        "circles of merges": grid(60, lambda n: f"b{n}={near(n, 7)},b{n}{{z+={near(n, 5)}}}"),
        "circles through one block": grid(3000, lambda n: f"a{n}=${{?r}}{{x=1}}\nr{{k{n}+=${{?a{n}}}}}"),
        "an object under two keys": "z=${?q}\nq"
        + block(numbered, lambda n: f"k{n}+=${{?z.k{n + 1}}}", HALF)
        + "\n"
        + numbered(lambda n: f"b{n}=${{?z.k{n}}}", HALF),
        "partly resolved": numbered(
            lambda n: f"a{n}{{x=${{?a{n + 1}.y}},y=${{?a{n + 1}.x}},z=${{?a{n + 1}}}}}"
        ),
        "look-ups deep down": "z=1,a.b.c.d.e.f{g=1,h=${z}}\n"
        + numbered(lambda n: f"b{n}=${{a.b.c.d.e.f.g}}"),
        "long paths looked up": numbered(lambda n: f"b{n}=${{?{'.'.join('a' * 90)}}}"),
        "long text put in often": f"k={'x' * 400_000}\n" + numbered(lambda n: f"b{n}=${{k}}x", HALF),
        "long list put in often": ITEMS + numbered(lambda n: f"b{n}=[1]${{x}}", HALF),
        "wide object put in often": "x"
        + block(numbered, lambda n: f"k{n}=1", HALF)
        + "\n"
        + numbered(lambda n: f"b{n}=${{x}}{{z=1}}", HALF),
        "object as a list": "x{" + "".join(f'"{n}"=1,' for n in range(30_000)) + "}\ny=" + "[1]${x}" * 100,
        "objects side by side": "x=1\na=" + numbered(lambda n: f"{{k{n}=${{x}}}}", end=""),
        "lists side by side": "a=" + filled("[]"),
        "words": "a=" + filled("x "),
        "slashes": "a=" + filled("/ "),
        "quotes": "a=" + filled('""'),
        "one word": "a=" + filled("abcdefgh"),
        "list of words": "a=[" + filled("x y,") + "]",
        "list of objects": "a=[" + filled("{},") + "]",
        "openings": filled("a{"),
        "lists that open": "a=" + filled("["),
        "nested to the limit": numbered(lambda n: f"a{n}=" + "{b=" * 40 + "1" + "}" * 40),
        "dotted key": "a" + filled(".b") + "=1",
        "key of words": filled("a b ") + "=1",
        "key of quotes": filled('a"b"') + "=1",
        "paths": numbered(lambda n: f"a{n}.{'.'.join('abcdefghij')}=1"),
        "wide": numbered(lambda n: f"a{n}=1"),
        "comments": filled("#\n"),
        "comments after items": "a=[" + filled("1#x\n") + "]",
        "newlines": filled("\n"),
        "blanks": "a=" + filled(" "),
        "blanks of Unicode": "a=" + filled("\u3000"),
        "letters beyond ASCII": "a=" + filled("\U0001f600"),
        "escapes": 'a="' + filled("\\u00e9") + '"',
        "bad escapes": 'a="' + filled("\\q"),
        "triple quotes": 'a="""' + filled('"'),
        "open references": "a=" + filled("${"),
        "a long number": '{"a":' + filled("1") + "}",
        "long numbers": "a=[" + ("9" * 999 + ",") * 1000 + "]",
        "exponents": "a=[" + filled("1e-99999999,") + "]",
        "includes": filled('include "x"\n'),
        "JSON with a repeated key": '{"a":1,"a":1,"b":[' + filled("1,") + "1]}",
        "JSON with NaN": '{"n":NaN,"b":[' + filled('{"a":1},') + "1]}",
        "deep JSON": filled('{"a":'),
        "settings below settings": "x=1\nspark.context-settings"
        + block(numbered, lambda n: f"a{n}=${{x}}x,a{n}.b=${{x}}"),
        "settings of long text": f"k={'x' * 500_000}\nspark.context-settings"
        + block(numbered, lambda n: f"a{n}=${{k}},a{n}.b=1", 1 / 3),
    }


def seconds(text: str) -> float:
    """Return the processor time that a document takes, whether it is accepted or refused."""
    begun = time.process_time()
    with contextlib.suppress(InvalidConfig):
        parse_untrusted(text)
    return time.process_time() - begun


def loop() -> float:
    """Return the processor time of a fixed loop."""
    begun = time.process_time()
    total = 0
    for number in range(3_000_000):
        total += number * number % 7
    return time.process_time() - begun


def main() -> int:
    options = argparse.ArgumentParser(description="Time hostile configurations.")
    options.add_argument("names", nargs="*", help="documents to time, all unless given")
    options.add_argument("--limit", type=float, default=2.0, help="seconds that each may take")
    given = options.parse_args()
    print(f"a fixed loop takes {loop():.2f} s")
    texts = {
        **HOSTILE_MEBIBYTES,
        **documents(SIZE),
        **{f"{name}, fewer values": text for name, text in documents(FEWER).items()},
    }
    times = {name: seconds(texts[name]) for name in given.names or texts}
    for name, taken in sorted(times.items(), key=lambda pair: -pair[1])[:12]:
        print(f"{taken:6.2f} s  {name} ({len(texts[name].encode()) // 1024} KiB)")
    return 1 if max(times.values()) > given.limit else 0


if __name__ == "__main__":
    sys.exit(main())
