"""The contract of every launcher."""

from __future__ import annotations

from jobserver_core.testing.launcher.access import RunningContext
from jobserver_core.testing.launcher.calls import CallsContract
from jobserver_core.testing.launcher.contexts import ContextsContract
from jobserver_core.testing.launcher.jobs import JobsContract
from jobserver_core.testing.launcher.survivors import SurvivorsContract
from jobserver_core.testing.recording import RecordingListener

__all__ = ["LauncherContract", "RecordingListener", "RunningContext"]


class LauncherContract(ContextsContract, SurvivorsContract, JobsContract, CallsContract):
    """The behavior of every launcher. A subclass supplies the launcher, the settings and the jobs.

    Any job may report its progress (``job_progress``) between its start and its end. None of the suite's has
    to; what arrives is checked.

    The jobs, each with the class name that :meth:`class_name` returns for its kind:

    - ``echo`` returns ``config["value"]``
    - ``print`` prints ``config["text"]`` to standard output and ``config["error"]`` to standard error, and
      returns null
    - ``raise`` raises an exception with the message ``config["message"]``
    - ``refuse`` rejects its configuration, with the message ``config["message"]``
    - ``endless`` runs until it is killed
    - ``stream`` yields each string in ``config["chunks"]`` as bytes
    - ``astream`` does so as an asynchronous generator; it is like ``stream`` in a language without them
    - ``crash`` ends its process at once, as ``os._exit(3)`` does; jobs that share the server's process raise
      SystemExit instead
    - ``hold`` opens the file ``config["lock"]``, takes an exclusive ``fcntl.flock`` on it, and starts a
      process that inherits the open file and sleeps for an hour. Then it returns null if ``config["return"]``
      is true; if it is false, it runs until it is killed. So the lock is held as long as any process of the
      job lives. If ``config["detached"]`` is true, the process has a session of its own and no pipe of the
      job: give ``Popen`` the arguments ``start_new_session=True`` and ``DEVNULL`` for ``stdin``, ``stdout``
      and ``stderr``. Jobs on threads of the server's process hold the lock themselves.
    """
