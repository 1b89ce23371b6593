"""How long a large blob takes to store, and how much memory: against a plain copy with its sha256.

    python benchmarks/blobs_put.py [MiB] [directory]

Prints the median of three runs, each in its own process, and the highest memory use of any run. The blob
store syncs to the disk before a blob counts as stored, so the plain copy does that too.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobserver_fsspec import FsspecBlobStore, FsspecFetcher

MIB = 1024 * 1024


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            yield chunk


def nothing(source: Path, directory: Path) -> None:
    """What the process needs by itself."""


def plain_copy(source: Path, directory: Path) -> None:
    found = hashlib.sha256()
    with (directory / "copy").open("wb") as file:
        for chunk in chunks(source):
            found.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def blob_put(source: Path, directory: Path) -> None:
    FsspecBlobStore(directory / "blobs").put(chunks(source))


def blob_put_again(source: Path, directory: Path) -> None:
    """The same content a second time, which is hashed and written, then dropped: two puts are timed."""
    store = FsspecBlobStore(directory / "blobs")
    store.put(chunks(source))
    store.put(chunks(source))


def fetch_file(source: Path, directory: Path) -> None:
    with FsspecFetcher(cache_directory=directory / "cache", max_size=2**40).fetch(f"file:{source}"):
        pass


CASES = {case.__name__: case for case in (nothing, plain_copy, blob_put, blob_put_again, fetch_file)}


def run_case(name: str, source: Path, directory: Path) -> None:
    begun = time.perf_counter()
    CASES[name](source, directory)
    seconds = time.perf_counter() - begun
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(name: str, source: Path, parent: Path) -> tuple[float, float]:
    times, memory = [], []
    for _ in range(3):
        directory = Path(tempfile.mkdtemp(dir=parent))
        command = [sys.executable, __file__, "--case", name, str(source), str(directory)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        times.append(float(output[0]))
        memory.append(float(output[1]))
        shutil.rmtree(directory)
    return statistics.median(times), max(memory)


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        run_case(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        source = Path(name, "source")
        with source.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(MIB))
        base, plain = 0.0, 0.0
        for case in CASES:
            seconds, memory = measure(case, source, Path(name))
            base = memory if case == "nothing" else base
            plain = seconds if case == "plain_copy" else plain
            ratio = f"{seconds / plain:5.2f} x" if plain else "       "
            print(f"{case:16} {seconds:7.2f} s {ratio}  peak {memory:5.0f} MiB (+{memory - base:.0f})")


if __name__ == "__main__":
    main()
