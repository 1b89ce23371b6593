"""Every error that the library raises, as one tree.

::

    JobServerError
    ├── InvalidInput                 what the caller sent can never work
    │   ├── InvalidName              a name of a binary, context, data file …
    │   │   └── InvalidFirstLetter   a context's name that does not start with a letter
    │   ├── InvalidRequest           parameters that do not go together
    │   ├── InvalidConfig            text that is not HOCON, or over the limits
    │   │   └── InvalidSetting       a key or a value that no setting allows
    │   │       └── UnknownContextFactory
    │   │                            a context factory that does not exist
    │   ├── UnsupportedMediaType     an upload of a type that is not a binary's
    │   ├── NotAnArchive             an upload that is not a (safe) ZIP file
    │   ├── MalformedUrl             a URI that cannot be fetched from
    │   ├── InvalidCallbackUrl       a callback URL that no transport serves
    │   ├── TooLarge                 over a limit of size
    │   └── IdempotencyMismatch      one key for two different requests
    ├── NotFound
    │   ├── BinaryNotFound, ContextNotFound, JobNotFound, DataFileNotFound, BlobNotFound, LogNotFound
    ├── Conflict                     possible, but not now
    │   ├── ContextExists, ContextStopping, BinaryInUse, JobAlreadyFinal
    │   ├── IllegalTransition        an event that a state does not know
    │   ├── StaleState               somebody else changed it first
    │   └── DuplicateId              an id or idempotency key that is taken
    ├── Unavailable
    │   ├── NoSlots                  all job slots of a context are taken
    │   └── ServerClosed             the server is draining or closed
    │       ├── JobPostponed         a job that has not begun, and runs when a server starts again
    │       └── JobInterrupted       a job that runs while the server ends, and ends with it
    ├── JobUnsuccessful              what waiting for a job raises when it did not finish
    │   ├── JobFailed, JobKilled
    ├── ContextFailed                a context that could not be started or died
    ├── ResultTimeout                waiting took longer than asked
    └── BackendError                 something behind a port does not work
        ├── StorageError, FetchError, LaunchError, TransportError
        ├── SchemaTooNew             a database of a newer release
        ├── DataDirLocked            another server uses the data folder
        └── PluginNotFound           a backend that is not installed

Errors carry fields; the message is made from them and says what would be right.
All of them survive pickling and copying.

Each class has a ``code`` for programs, such as ``binary_not_found``: it is made from the name of the class
and never depends on the message, so front-ends and clients can branch on it. Codes are part of the
interface: renaming a class breaks clients.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, ClassVar

__all__ = [
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
]


def _rebuild(cls: type[JobServerError], fields: dict[str, object]) -> JobServerError:
    return cls(**fields)


_INNER_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def _shown(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


class JobServerError(Exception):
    """The root of every error that this library raises.

    A subclass annotates its fields, those of its parent that it keeps included; one that annotates none has
    its parent's. It takes them as keyword arguments, keeps each as an attribute, and gives a ``template``
    that makes the message from them.
    """

    template: ClassVar[str] = "{message}"
    field_names: ClassVar[tuple[str, ...]] = ("message",)
    code: ClassVar[str] = "job_server_error"
    message: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if own := inspect.get_annotations(cls):
            cls.field_names = tuple(own)
        if "code" not in vars(cls):
            cls.code = _INNER_CAPITAL.sub("_", cls.__name__).lower()

    def __init__(self, **fields: object) -> None:
        missing = {name for name in self.field_names if name not in fields and not hasattr(self, name)}
        if missing or not fields.keys() <= set(self.field_names):
            raise TypeError(f"{type(self).__name__} takes {self.field_names}, got {tuple(fields)}")
        self.__dict__.update(fields)
        super().__init__(self._text())

    def _text(self) -> str:
        return self.template.format(**{name: _shown(value) for name, value in self.fields.items()})

    @property
    def fields(self) -> dict[str, object]:
        """The error's fields by name, enough to build an equal error again."""
        return {name: getattr(self, name) for name in self.field_names}

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.fields))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.fields == getattr(other, "fields", None)

    __hash__ = Exception.__hash__


# -- invalid input ---------------------------------------------------------------------------------


class InvalidInput(JobServerError):
    """What the caller sent can never work; sending it again changes nothing."""


class InvalidName(InvalidInput):
    """A name that is not allowed, with the rule that it breaks."""

    template = "{kind} name {name!r} is not allowed: {rule}"
    kind: str
    name: str
    rule: str


class InvalidFirstLetter(InvalidName):
    """A context's name that does not start with a letter."""


class InvalidRequest(InvalidInput):
    """Parameters of a request that are missing, malformed or do not go together."""


class InvalidConfig(InvalidInput):
    """Configuration text that cannot be parsed or is over a limit.

    ``line`` and ``column`` count from 1, and are None where the parser does not know.
    """

    message: str
    line: int | None = None
    column: int | None = None

    def _text(self) -> str:
        if self.line is None:
            return self.message
        return f"{self.message} (line {self.line}, column {self.column})"


class InvalidSetting(InvalidConfig):
    """A key that is not a setting, or a value that a setting does not take.

    ``key`` is the dotted path, ``nearest`` the known key most like it, or None.
    """

    key: str
    message: str
    nearest: str | None = None
    line: int | None = None
    column: int | None = None

    def _text(self) -> str:
        hint = f"; did you mean '{self.nearest}'?" if self.nearest else ""
        return f"setting '{self.key}': {self.message}{hint}"


class UnknownContextFactory(InvalidSetting):
    """A ``context-factory`` that does not exist; contexts are not made with one."""


class UnsupportedMediaType(InvalidInput):
    """An upload whose content type is missing or is not a binary's."""

    template = "Content type {media_type!r} is not supported. Supported: {supported}"
    media_type: str | None
    supported: tuple[str, ...]


class NotAnArchive(InvalidInput):
    """An upload or a fetched file that is not a ZIP archive, or an unsafe one."""

    template = "Binary is not of the right format: {reason}"
    reason: str


class MalformedUrl(InvalidInput):
    """A URI that cannot be parsed, or one of a protocol, host or folder that is not allowed."""

    template = "Malformed URL: {url}: {reason}"
    url: str
    reason: str


class InvalidCallbackUrl(InvalidInput):
    """A callback URL that no transport serves or that the policy forbids."""

    template = "callbackUrl {url!r} is not allowed: {reason}"
    url: str
    reason: str


class TooLarge(InvalidInput):
    """Something over a limit of size; ``limit`` is in bytes."""

    template = "{what} is larger than the limit of {limit} bytes"
    what: str
    limit: int


class IdempotencyMismatch(InvalidInput):
    """An idempotency key that was used before, for a different request."""

    template = "idempotency key {key!r} belongs to job {job_id}, which was another request"
    key: str
    job_id: str


# -- not found -------------------------------------------------------------------------------------


class NotFound(JobServerError):
    """Something that was named does not exist."""


class BinaryNotFound(NotFound):
    """No binary of this name was uploaded, or it was deleted since."""

    template = "appName {name} not found"
    name: str


class ContextNotFound(NotFound):
    """No context of this name is known."""

    template = "context {name} not found"
    name: str


class JobNotFound(NotFound):
    """No job of this id is known."""

    template = "No such job ID {job_id}"
    job_id: str


class DataFileNotFound(NotFound):
    """A data file that is not the server's."""

    template = "Unable to delete data file '{name}'."
    name: str


class BlobNotFound(NotFound):
    """Bytes that the blob store does not hold."""

    template = "no blob {digest}"
    digest: str


class LogNotFound(NotFound):
    """A log that was never written or was removed."""

    template = "no log of {kind} {id}"
    kind: str
    id: str


# -- conflicts -------------------------------------------------------------------------------------


class Conflict(JobServerError):
    """What was asked is possible in general, but not in the present state."""


class ContextExists(Conflict):
    """A context of this name lives already."""

    template = "context {name} exists"
    name: str


class ContextStopping(Conflict):
    """The context takes no more jobs, since it is being stopped."""

    template = "Context stop in progress"
    name: str


class BinaryInUse(Conflict):
    """The binary cannot be deleted while jobs that are not final use it."""

    template = "Binary is in use by job(s): {job_ids}"
    name: str
    job_ids: tuple[str, ...]


class JobAlreadyFinal(Conflict):
    """The job ended before it could be killed; ``state`` says how."""

    template = "No running job with ID {job_id}"
    job_id: str
    state: str


class IllegalTransition(Conflict):
    """An event that the lifecycle does not allow in this state; nothing was changed."""

    template = "a {kind} in state {state} does not allow {event}; it allows {allowed}"
    kind: str
    state: str
    event: str
    allowed: tuple[str, ...]


class StaleState(Conflict):
    """A compare-and-set lost: the stored state is not the expected one; nothing was changed.

    ``found`` is None when nothing is stored under the id.
    """

    template = "{kind} {id} is {found}, not {expected}"
    kind: str
    id: str
    expected: str
    found: str | None


class DuplicateId(Conflict):
    """An id, or an idempotency key, that a stored record has already; ``holder`` is its id."""

    template = "{kind} {id} exists"
    kind: str
    id: str
    holder: str


# -- unavailable -----------------------------------------------------------------------------------


class Unavailable(JobServerError):
    """The server cannot take this now; later it may."""


class NoSlots(Unavailable):
    """All job slots of the context are taken, and its queue is full or switched off."""

    template = "Too many running jobs ({running}) for job context '{context}'"
    context: str
    running: int


class ServerClosed(Unavailable):
    """The server is draining or closed, and takes nothing new."""

    template = "the job server is shutting down and takes no new work"
    field_names = ()


class JobPostponed(ServerClosed):
    """The job has not begun when the server ends; it stays accepted and runs at the next start."""

    template = (
        "the job server is shutting down; job {job_id} has not begun, stays accepted, and runs when a server "
        "starts again on the same metadata"
    )
    job_id: str


class JobInterrupted(ServerClosed):
    """The job runs while the server ends: whatever becomes of it is recorded under its id."""

    template = (
        "the job server is shutting down; job {job_id} still runs, and is ended together with its context. "
        "Its final state is recorded: ask for the job by its id when a server runs again"
    )
    job_id: str


# -- unsuccessful jobs and contexts ----------------------------------------------------------------


class JobUnsuccessful(JobServerError):
    """A job ended without a result; waiting for its result raises this.

    ``error`` is the job's :class:`jobserver_core.models.jobs.ErrorInfo`.
    """

    template = "job {job_id}: {error.message}"
    job_id: str
    error: Any


class JobFailed(JobUnsuccessful):
    """The job ended ERROR; ``failure`` is its :class:`jobserver_core.models.jobs.FailureKind`."""

    job_id: str
    error: Any
    failure: Any


class JobKilled(JobUnsuccessful):
    """The job ended KILLED."""


class ContextFailed(JobServerError):
    """A context could not be started, or ended by itself; ``error`` is an ``ErrorInfo``."""

    template = "context {name} failed: {error.message}"
    name: str
    error: Any


class ResultTimeout(JobServerError, TimeoutError):
    """A wait took longer than ``seconds``; what was waited for goes on."""

    template = "{what} not done after {seconds} s"
    what: str
    seconds: float


# -- backends --------------------------------------------------------------------------------------


class BackendError(JobServerError):
    """Something behind a port does not work; the message has the reason."""


class StorageError(BackendError):
    """The metadata or blob store failed."""


class FetchError(BackendError):
    """A URI could not be fetched: refused, not found, interrupted, timed out."""

    template = "cannot fetch {url}: {reason}"
    url: str
    reason: str


class LaunchError(BackendError):
    """The launcher cannot do what it was asked to."""


class TransportError(BackendError):
    """A transport is misconfigured; a failed delivery is not an error but an answer."""


class SchemaTooNew(BackendError):
    """The database was written by a newer release than this one."""

    template = "the database has schema {found}, this release knows up to {known}: upgrade jobserver-core"
    found: str
    known: str


class DataDirLocked(BackendError):
    """Another server works in the data folder."""

    template = "{path} is in use by another job server{holder}: stop that one or choose another data folder"
    path: str
    holder: str = ""


class PluginNotFound(BackendError):
    """A backend that is named in the configuration is not installed."""

    kind: str
    name: str
    available: tuple[str, ...]
    extra: str | None = None

    def _text(self) -> str:
        known = ", ".join(self.available) or "none"
        text = f"no {self.kind} backend named {self.name!r} is installed (installed: {known})"
        if self.extra:
            text += f"; install it with: pip install 'jobserver-core[{self.extra}]'"
        return text
