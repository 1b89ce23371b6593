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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobserver_core.binaries.data_files import DataUpload
    from jobserver_core.binaries.uploads import Upload
    from jobserver_core.callbacks.transports import CallableTransport
    from jobserver_core.config.loading import load_settings
    from jobserver_core.config.settings import (
        AuthSettings,
        BinaryLimits,
        BlobSettings,
        CallbackSettings,
        ContextLimits,
        DataFileLimits,
        FetcherSettings,
        HttpSettings,
        InputLimits,
        JobLimits,
        LauncherSettings,
        MetadataSettings,
        Secret,
        Settings,
        SparkSettings,
    )
    from jobserver_core.errors import (
        BackendError,
        BinaryInUse,
        BinaryNotFound,
        BlobNotFound,
        Conflict,
        ContextExists,
        ContextFailed,
        ContextNotFound,
        ContextStopping,
        DataDirLocked,
        DataFileNotFound,
        DuplicateId,
        FetchError,
        IdempotencyMismatch,
        IllegalTransition,
        InvalidCallbackUrl,
        InvalidConfig,
        InvalidFirstLetter,
        InvalidInput,
        InvalidName,
        InvalidRequest,
        InvalidSetting,
        JobAlreadyFinal,
        JobFailed,
        JobInterrupted,
        JobKilled,
        JobNotFound,
        JobPostponed,
        JobServerError,
        JobUnsuccessful,
        LaunchError,
        LogNotFound,
        MalformedUrl,
        NoSlots,
        NotAnArchive,
        NotFound,
        PluginNotFound,
        ResultTimeout,
        SchemaTooNew,
        ServerClosed,
        StaleState,
        StorageError,
        TooLarge,
        TransportError,
        Unavailable,
        UnknownContextFactory,
        UnsupportedMediaType,
    )
    from jobserver_core.events import (
        ContextChanged,
        DeliveryChanged,
        Event,
        JobChanged,
        JobProgressed,
        Subscription,
    )
    from jobserver_core.models.binaries import (
        Binary,
        BinaryType,
        ClassPathEntry,
        ResolvedEntry,
        parse_class_path,
    )
    from jobserver_core.models.callbacks import Answer, Delivery
    from jobserver_core.models.contexts import Context, ContextQuery, StartQueueStatus
    from jobserver_core.models.data_files import DataFile
    from jobserver_core.models.failures import ErrorInfo, FailureKind
    from jobserver_core.models.jobs import (
        Job,
        JobPage,
        JobProgress,
        JobQuery,
        JobRequest,
        JobResult,
        ResultKind,
    )
    from jobserver_core.models.lifecycle import ContextState, DeliveryState, JobState
    from jobserver_core.running.fetching import Preparation
    from jobserver_core.running.handles import JobHandle
    from jobserver_core.running.results import ResultReader
    from jobserver_core.running.waiting import Waiter
    from jobserver_core.server import JobServer

_HOMES = {
    "binaries.data_files": ("DataUpload",),
    "binaries.uploads": ("Upload",),
    "callbacks.transports": ("CallableTransport",),
    "config.loading": ("load_settings",),
    "config.settings": (
        "AuthSettings",
        "BinaryLimits",
        "BlobSettings",
        "CallbackSettings",
        "ContextLimits",
        "DataFileLimits",
        "FetcherSettings",
        "HttpSettings",
        "InputLimits",
        "JobLimits",
        "LauncherSettings",
        "MetadataSettings",
        "Secret",
        "Settings",
        "SparkSettings",
    ),
    "errors": (
        "BackendError",
        "BinaryInUse",
        "BinaryNotFound",
        "BlobNotFound",
        "Conflict",
        "ContextExists",
        "ContextFailed",
        "ContextNotFound",
        "ContextStopping",
        "DataDirLocked",
        "DataFileNotFound",
        "DuplicateId",
        "FetchError",
        "IdempotencyMismatch",
        "IllegalTransition",
        "InvalidCallbackUrl",
        "InvalidConfig",
        "InvalidFirstLetter",
        "InvalidInput",
        "InvalidName",
        "InvalidRequest",
        "InvalidSetting",
        "JobAlreadyFinal",
        "JobFailed",
        "JobInterrupted",
        "JobKilled",
        "JobNotFound",
        "JobPostponed",
        "JobServerError",
        "JobUnsuccessful",
        "LaunchError",
        "LogNotFound",
        "MalformedUrl",
        "NoSlots",
        "NotAnArchive",
        "NotFound",
        "PluginNotFound",
        "ResultTimeout",
        "SchemaTooNew",
        "ServerClosed",
        "StaleState",
        "StorageError",
        "TooLarge",
        "TransportError",
        "Unavailable",
        "UnknownContextFactory",
        "UnsupportedMediaType",
    ),
    "events": (
        "ContextChanged",
        "DeliveryChanged",
        "Event",
        "JobChanged",
        "JobProgressed",
        "Subscription",
    ),
    "models.binaries": (
        "Binary",
        "BinaryType",
        "ClassPathEntry",
        "ResolvedEntry",
        "parse_class_path",
    ),
    "models.callbacks": (
        "Answer",
        "Delivery",
    ),
    "models.contexts": (
        "Context",
        "ContextQuery",
        "StartQueueStatus",
    ),
    "models.data_files": ("DataFile",),
    "models.failures": (
        "ErrorInfo",
        "FailureKind",
    ),
    "models.jobs": (
        "Job",
        "JobPage",
        "JobProgress",
        "JobQuery",
        "JobRequest",
        "JobResult",
        "ResultKind",
    ),
    "models.lifecycle": (
        "ContextState",
        "DeliveryState",
        "JobState",
    ),
    "running.fetching": ("Preparation",),
    "running.handles": ("JobHandle",),
    "running.results": ("ResultReader",),
    "running.waiting": ("Waiter",),
    "server": ("JobServer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "AuthSettings",
    "BackendError",
    "Binary",
    "BinaryInUse",
    "BinaryLimits",
    "BinaryNotFound",
    "BinaryType",
    "BlobNotFound",
    "BlobSettings",
    "CallableTransport",
    "CallbackSettings",
    "ClassPathEntry",
    "Conflict",
    "Context",
    "ContextChanged",
    "ContextExists",
    "ContextFailed",
    "ContextLimits",
    "ContextNotFound",
    "ContextQuery",
    "ContextState",
    "ContextStopping",
    "DataDirLocked",
    "DataFile",
    "DataFileLimits",
    "DataFileNotFound",
    "DataUpload",
    "Delivery",
    "DeliveryChanged",
    "DeliveryState",
    "DuplicateId",
    "ErrorInfo",
    "Event",
    "FailureKind",
    "FetchError",
    "FetcherSettings",
    "HttpSettings",
    "IdempotencyMismatch",
    "IllegalTransition",
    "InputLimits",
    "InvalidCallbackUrl",
    "InvalidConfig",
    "InvalidFirstLetter",
    "InvalidInput",
    "InvalidName",
    "InvalidRequest",
    "InvalidSetting",
    "Job",
    "JobAlreadyFinal",
    "JobChanged",
    "JobFailed",
    "JobHandle",
    "JobInterrupted",
    "JobKilled",
    "JobLimits",
    "JobNotFound",
    "JobPage",
    "JobPostponed",
    "JobProgress",
    "JobProgressed",
    "JobQuery",
    "JobRequest",
    "JobResult",
    "JobServer",
    "JobServerError",
    "JobState",
    "JobUnsuccessful",
    "LaunchError",
    "LauncherSettings",
    "LogNotFound",
    "MalformedUrl",
    "MetadataSettings",
    "NoSlots",
    "NotAnArchive",
    "NotFound",
    "PluginNotFound",
    "Preparation",
    "ResolvedEntry",
    "ResultKind",
    "ResultReader",
    "ResultTimeout",
    "SchemaTooNew",
    "Secret",
    "ServerClosed",
    "Settings",
    "SparkSettings",
    "StaleState",
    "StartQueueStatus",
    "StorageError",
    "Subscription",
    "TooLarge",
    "TransportError",
    "Unavailable",
    "UnknownContextFactory",
    "UnsupportedMediaType",
    "Upload",
    "Waiter",
    "load_settings",
    "parse_class_path",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
