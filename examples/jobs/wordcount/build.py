"""Builds the wheel without a build tool: ``python build.py [folder]``. Any build tool does as well."""

import sys
from pathlib import Path

from jobserver_pyspark.demo import build_wheel

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print(build_wheel(Path(__file__).parent / "wordcount", folder, version="1.0"))
