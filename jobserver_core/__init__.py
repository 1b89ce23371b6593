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

The names here are the public interface, with those of :mod:`jobserver_core.errors`,
:mod:`jobserver_core.ports` (for those who write a backend), :mod:`jobserver_core.memory` and
:mod:`jobserver_core.testing`. Names are imported when they are first used, so that
``import jobserver_core`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings
    from jobserver_core.errors import JobServerError
    from jobserver_core.events import ContextChanged, DeliveryChanged, Event, JobChanged, JobProgressed
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
    from jobserver_core.running.waiting import Waiter
    from jobserver_core.server import JobServer

_HOMES = {
    "models.binaries": ("Binary", "BinaryType", "ClassPathEntry", "ResolvedEntry", "parse_class_path"),
    "models.callbacks": ("Answer", "Delivery"),
    "models.contexts": ("Context", "ContextQuery", "StartQueueStatus"),
    "models.data_files": ("DataFile",),
    "errors": ("JobServerError",),
    "events": ("ContextChanged", "DeliveryChanged", "Event", "JobChanged", "JobProgressed"),
    "models.failures": ("ErrorInfo", "FailureKind"),
    "running.fetching": ("Preparation",),
    "running.handles": ("JobHandle",),
    "models.jobs": ("Job", "JobPage", "JobProgress", "JobQuery", "JobRequest", "JobResult", "ResultKind"),
    "models.lifecycle": ("ContextState", "DeliveryState", "JobState"),
    "server": ("JobServer",),
    "config.settings": ("Settings",),
    "running.waiting": ("Waiter",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "Binary",
    "BinaryType",
    "ClassPathEntry",
    "Context",
    "ContextChanged",
    "ContextQuery",
    "ContextState",
    "DataFile",
    "Delivery",
    "DeliveryChanged",
    "DeliveryState",
    "ErrorInfo",
    "Event",
    "FailureKind",
    "Job",
    "JobChanged",
    "JobHandle",
    "JobPage",
    "JobProgress",
    "JobProgressed",
    "JobQuery",
    "JobRequest",
    "JobResult",
    "JobServer",
    "JobServerError",
    "JobState",
    "Preparation",
    "ResolvedEntry",
    "ResultKind",
    "Settings",
    "StartQueueStatus",
    "Waiter",
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
