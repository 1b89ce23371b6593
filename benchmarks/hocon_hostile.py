"""How much processor time hostile configurations of one mebibyte take to parse.

Run: ``python benchmarks/hocon_hostile.py [--limit 2.0] [name …]``. Prints the slowest documents, and ends
with 1 if one takes longer than the limit. Seconds are of processor time; on a busy machine they are
longer than on an idle one, so a fixed loop is timed as well for comparison.

Each document tries to make one mechanism expensive: nesting, substitutions, concatenations, long keys,
re-opened blocks, escapes, numbers, ``+=``, references to oneself, circles, comments, and settings of Spark.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable

from jobserver_core.config.hocon import parse_untrusted
from jobserver_core.errors import InvalidConfig

SIZE = 1024 * 1024


def fill(unit: str, size: int = SIZE) -> str:
    """Repeat a text up to a size in bytes, with room for a few more."""
    return unit * ((size - 200) // len(unit.encode()))


def lines(line: Callable[[int], str], size: int = SIZE, end: str = "\n") -> str:
    """Return numbered lines up to a size."""
    found: list[str] = []
    total = 200
    while (total := total + len((text := line(len(found))).encode()) + 1) < size:
        found.append(text)
    return end.join(found)


def block(line: Callable[[int], str], size: int = SIZE) -> str:
    """Return numbered members of one object up to a size."""
    return "{" + lines(line, size, ",") + "}"


def grid(count: int, line: Callable[[int], str]) -> str:
    """Return numbered lines that refer to each other, and newlines up to the size."""
    return "\n".join(map(line, range(count))) + "\n" * (SIZE // 2)


def near(number: int, factor: int, path: str = "") -> str:
    """Return a reference to another of 60 numbered keys."""
    return f"${{?b{(number * factor + 3) % 60}{path}}}"


COLLIDING = ["".join("Aa" if n >> bit & 1 else "BB" for bit in range(14)) for n in range(2**14)]
"""Keys with one Java hash code."""
ITEMS = "x = [" + "1," * 40_000 + "]\n"

HALF = SIZE // 2

DOCUMENTS: dict[str, str] = {
    "many errors far down": "x=[" + "${k}," * 30_000 + "]\n" + "\n" * 880_000 + "k=1\n" + "k=${k.z}\n" * 4,
    "appends": fill("a+=1\n"),
    "appends of oneself": fill("a+=${?a}\n"),
    "300 appends each": lines(lambda n: f"a{n // 300}+=1"),
    "appends below a block": "y{}\na=${y}\n" + lines(lambda n: f"a{{c+={n}}}"),
    "appends in turn": fill("a+=${?b}\nb+=${?a}\n"),
    "appends of the next": lines(lambda n: f"a{n}+=${{?a{n + 1}}}"),
    "re-opened block": lines(lambda n: f"a{{k{n}=1}}"),
    "re-opened over a reference": "x=1,y{}\na=${y}\n" + lines(lambda n: f"a.k{n}=${{x}}"),
    "re-opened deep down": "x=1\n" + lines(lambda n: "a." * 60 + f"k{n}=${{x}}"),
    "colliding keys": "a{" + ",".join(f"{key}=${{?x}}" for key in COLLIDING) + "}",
    "chain down": lines(lambda n: f"b{n}=${{b{n + 1}}}"),
    "chain up": "b0=1\n" + lines(lambda n: f"b{n + 1}=${{b{n}}}"),
    "chain of growing objects": "a0{k=1}\n" + lines(lambda n: f"a{n + 1}=${{a{n}}}{{k{n}=1}}"),
    "chain of growing lists": "a0=[1]\n" + lines(lambda n: f"a{n + 1}=${{a{n}}}[1]"),
    "chain of fallbacks": lines(lambda n: f"a{n}=${{?a{n + 1}}},a{n}=${{?a{n + 2}}}"),
    "oneself as text": "a=x\n" + fill("a=${a}y\n"),
    "oneself as a list": "a=[1]\n" + fill("a=${a}[2]\n"),
    "oneself as an object": "a{k=1}\n" + lines(lambda n: f"a=${{a}}{{k{n}=2}}"),
    "layers and look-ups": "x{k=1}\n" + fill("a=${x}\n", HALF) + lines(lambda n: f"b{n}=${{a.k}}", HALF),
    "layers to fold": fill("a=${?y}\na{k=${?y}}\n"),
    "merges in layers": "y{}\na=${y}\n" + lines(lambda n: f"a{{k{n}=1,k{n}=${{?a.k{n}}}}}"),
    "merges in a list": "x=[" + fill("{a=1,a=${?q}2},") + "]",
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
    + block(lambda n: f"k{n}+=${{?z.k{n + 1}}}", HALF)
    + "\n"
    + lines(lambda n: f"b{n}=${{?z.k{n}}}", HALF),
    "partly resolved": lines(lambda n: f"a{n}{{x=${{?a{n + 1}.y}},y=${{?a{n + 1}.x}},z=${{?a{n + 1}}}}}"),
    "look-ups deep down": "z=1,a.b.c.d.e.f{g=1,h=${z}}\n" + lines(lambda n: f"b{n}=${{a.b.c.d.e.f.g}}"),
    "long paths looked up": lines(lambda n: f"b{n}=${{?{'.'.join('a' * 90)}}}"),
    "long text put in often": f"k={'x' * 400_000}\n" + lines(lambda n: f"b{n}=${{k}}x", HALF),
    "long list put in often": ITEMS + lines(lambda n: f"b{n}=[1]${{x}}", HALF),
    "wide object put in often": "x"
    + block(lambda n: f"k{n}=1", HALF)
    + "\n"
    + lines(lambda n: f"b{n}=${{x}}{{z=1}}", HALF),
    "object as a list": "x{" + "".join(f'"{n}"=1,' for n in range(30_000)) + "}\ny=" + "[1]${x}" * 100,
    "objects side by side": "x=1\na=" + lines(lambda n: f"{{k{n}=${{x}}}}", end=""),
    "lists side by side": "a=" + fill("[]"),
    "words": "a=" + fill("x "),
    "slashes": "a=" + fill("/ "),
    "quotes": "a=" + fill('""'),
    "one word": "a=" + fill("abcdefgh"),
    "list of words": "a=[" + fill("x y,") + "]",
    "list of objects": "a=[" + fill("{},") + "]",
    "openings": fill("a{"),
    "lists that open": "a=" + fill("["),
    "nested to the limit": lines(lambda n: f"a{n}=" + "{b=" * 40 + "1" + "}" * 40),
    "dotted key": "a" + fill(".b") + "=1",
    "key of words": fill("a b ") + "=1",
    "key of quotes": fill('a"b"') + "=1",
    "paths": lines(lambda n: f"a{n}.{'.'.join('abcdefghij')}=1"),
    "wide": lines(lambda n: f"a{n}=1"),
    "comments": fill("#\n"),
    "comments after items": "a=[" + fill("1#x\n") + "]",
    "newlines": fill("\n"),
    "blanks": "a=" + fill(" "),
    "blanks of Unicode": "a=" + fill("\u3000"),
    "letters beyond ASCII": "a=" + fill("\U0001f600"),
    "escapes": 'a="' + fill("\\u00e9") + '"',
    "bad escapes": 'a="' + fill("\\q"),
    "triple quotes": 'a="""' + fill('"'),
    "open references": "a=" + fill("${"),
    "a long number": '{"a":' + fill("1") + "}",
    "long numbers": "a=[" + ("9" * 999 + ",") * 1000 + "]",
    "exponents": "a=[" + fill("1e-99999999,") + "]",
    "includes": fill('include "x"\n'),
    "JSON with a repeated key": '{"a":1,"a":1,"b":[' + fill("1,") + "1]}",
    "JSON with NaN": '{"n":NaN,"b":[' + fill('{"a":1},') + "1]}",
    "deep JSON": fill('{"a":'),
    "settings below settings": "x=1\nspark.context-settings" + block(lambda n: f"a{n}=${{x}}x,a{n}.b=${{x}}"),
    "settings of long text": f"k={'x' * 500_000}\nspark.context-settings"
    + block(lambda n: f"a{n}=${{k}},a{n}.b=1", SIZE // 3),
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
    times = {name: seconds(DOCUMENTS[name]) for name in given.names or DOCUMENTS}
    for name, taken in sorted(times.items(), key=lambda pair: -pair[1])[:12]:
        print(f"{taken:6.2f} s  {name} ({len(DOCUMENTS[name].encode()) // 1024} KiB)")
    return 1 if max(times.values()) > given.limit else 0


if __name__ == "__main__":
    sys.exit(main())
