"""The API for Python jobs. See :mod:`sparkjobserver.api`."""
