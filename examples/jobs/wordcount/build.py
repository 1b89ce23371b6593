"""Builds the wheel without a build tool: ``python build.py [directory]``. Any other build tool works too."""

import sys
from pathlib import Path

from jobserver_pyspark.demo import build_wheel

if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print(build_wheel(Path(__file__).parent / "wordcount", directory, version="1.0"))
