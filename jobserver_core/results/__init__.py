"""The JSON of the values that Python jobs return, by the rules of ``docs/reference/results.md``.

The processes of Python jobs use it, in interpreters that may have nothing but PySpark, and the in-memory
launcher, so that a result is the same in both. So it imports only the standard library.
"""

from jobserver_core.results.awaiting import await_value
from jobserver_core.results.encoding import MAX_DEPTH, encode, opened
from jobserver_core.results.library_values import RESULT_REFUSED, UnusableResult

__all__ = ["MAX_DEPTH", "RESULT_REFUSED", "UnusableResult", "await_value", "encode", "opened"]
