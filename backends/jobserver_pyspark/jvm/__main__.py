"""``python -m jobserver_pyspark.jvm``: prints, alone on stdout, the class path to compile jobs against."""

from __future__ import annotations

import argparse
import sys

from jobserver_core.errors import LaunchError
from jobserver_pyspark.installation.compiler import JvmToolchain


def main(arguments: list[str] | None = None) -> int:
    """Build the API if it does not exist yet, and print the class path; return 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m jobserver_pyspark.jvm", description=__doc__)
    parser.add_argument("--without-spark", action="store_true", help="only the job API and its libraries")
    options = parser.parse_args(arguments)
    try:
        class_path = JvmToolchain().class_path(with_spark=not options.without_spark)
    except LaunchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{class_path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
