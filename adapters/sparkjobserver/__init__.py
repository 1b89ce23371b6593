"""The API that Python jobs import; see :mod:`sparkjobserver.api`."""
