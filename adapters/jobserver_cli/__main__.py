"""``python -m jobserver_cli`` is the ``jobserver`` command."""

from jobserver_cli import main

main()
