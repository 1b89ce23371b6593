"""The ``jobserver`` command: run a server, upload code, submit jobs and watch them.

Commands talk to the server over HTTP. They use spark-jobserver's API and this project's extensions to it,
such as results, logs and events of single jobs. Modules are imported only when a command needs them, so that
``--help`` stays fast.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

COMPLETION_VARIABLE = "_JOBSERVER_COMPLETE"
"""Set by the scripts of :mod:`jobserver_cli.shells`: the command completes a line instead of running."""


def main() -> None:
    """Run the command line of this process and exit with one of the documented codes."""
    try:
        from jobserver_cli.application import app  # noqa: PLC0415 - typer may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.stderr.write(
            "The jobserver command needs a package that is not installed. "
            "Install it with: pip install 'jobserver-core[cli]'\n"
        )
        sys.exit(7)
    if COMPLETION_VARIABLE in os.environ:
        from jobserver_cli.completion import register_shell  # noqa: PLC0415 - only shells need it

        register_shell()
    app(prog_name="jobserver")
