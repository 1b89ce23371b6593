"""Spark as a service, as a library.

Upload code once, keep warm Spark contexts alive, and fire many small jobs at them::

    from jobserver_core import BinaryType, ClassPathEntry, JobRequest, JobServer

    with JobServer.in_memory() as server:
        server.upload("words", BinaryType.WHEEL, wheel_bytes)
        job = server.submit(
            JobRequest(
                class_name="words.WordCount",
                class_path=(ClassPathEntry(name="words"),),
                config="input.string = a b c a b see",
            )
        )
        print(job.result(timeout=60))

These names are the public interface: the server, everything that its methods take and return, and its errors.
:mod:`jobserver_core.ports` and :mod:`jobserver_core.testing` are for authors of backends, and
:mod:`jobserver_core.memory` is for tests. Each name is imported when it is first used, which keeps
``import jobserver_core`` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers see every public name of these modules; at run time it is those below
    from jobserver_core.binaries.data_files import *
    from jobserver_core.binaries.uploads import *
    from jobserver_core.callbacks.transports import *
    from jobserver_core.config.loading import *
    from jobserver_core.config.settings import *
    from jobserver_core.errors import *
    from jobserver_core.events import *
    from jobserver_core.models.binaries import *
    from jobserver_core.models.callbacks import *
    from jobserver_core.models.contexts import *
    from jobserver_core.models.failures import *
    from jobserver_core.models.jobs import *
    from jobserver_core.models.lifecycle import *
    from jobserver_core.models.servers import *
    from jobserver_core.models.storage import *
    from jobserver_core.running.fetching import *
    from jobserver_core.running.logs import *
    from jobserver_core.running.results import *
    from jobserver_core.running.waiting import *
    from jobserver_core.server import *

_PUBLIC = {
    "binaries.data_files": "DataUpload",
    "binaries.uploads": "Upload",
    "callbacks.transports": "CallableTransport",
    "config.loading": "load_settings",
    "config.settings": """
        AuthSettings BinaryLimits BlobSettings CallbackSettings ContextLimits DataFileLimits
        FetcherSettings HttpSettings InputLimits JobLimits LauncherSettings MetadataSettings Secret
        ServerSettings Settings SparkSettings
    """,
    "errors": """
        BackendError BinaryInUse BinaryNotFound BlobNotFound CapacityReached Conflict ContextExists
        ContextFailed ContextNotFound ContextStopping ContextTooLarge DataDirLocked DataFileNotFound
        DuplicateId FetchError IdempotencyMismatch IllegalTransition InvalidCallbackUrl InvalidConfig
        InvalidFirstLetter InvalidInput InvalidName InvalidRequest InvalidSetting JobAlreadyFinal JobFailed
        JobInterrupted JobKilled JobNotFound JobPostponed JobServerError JobUnsuccessful LaunchError
        LogNotFound LogServerGone MalformedUrl NoSlots NotAnArchive NotFound OnAnotherServer PluginFailed
        PluginNotFound ResultTimeout SchemaTooNew ServerClosed StaleOwner StaleState StorageError TooLarge
        TransportError Unavailable UnknownContextFactory UnsupportedMediaType
    """,
    "events": "ContextChanged DeliveryChanged Event JobChanged JobProgressed Subscription",
    "models.binaries": "Binary BinaryType ClassPathEntry DataFile ResolvedEntry parse_class_path",
    "models.callbacks": "Answer Delivery",
    "models.contexts": """
        Context ContextLoad ContextQuery LoadStatus ResourceUsage Resources SparePool StartQueueStatus
    """,
    "models.failures": "ErrorInfo FailureKind",
    "models.jobs": "Job JobPage JobProgress JobQuery JobRequest JobResult QueueLimits ResultKind",
    "models.lifecycle": "ContextState DeliveryState JobState",
    "models.servers": "Server ServerRequest ServerStatus Takeovers",
    "models.storage": "MetadataUsage StorageUsage",
    "running.fetching": "Preparation",
    "running.logs": "LogReader",
    "running.results": "ResultReader",
    "running.waiting": "JobHandle Waiter",
    "server": "JobServer",
}
"""The public names, by the module that defines them."""
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_MODULES)


if not TYPE_CHECKING:  # they would take every other name for one of this module

    def __getattr__(name: str) -> object:
        """Import a public name at its first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
