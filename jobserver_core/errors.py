"""All errors that the library raises, as one tree.

::

    JobServerError
    ├── InvalidInput                 the caller's input is invalid
    │   ├── InvalidName              a name of a binary, context, data file …
    │   │   └── InvalidFirstLetter   a context's name that does not start with a letter
    │   ├── InvalidRequest           parameters that contradict each other
    │   ├── InvalidConfig            text that is not HOCON, or exceeds a limit
    │   │   └── InvalidSetting       an unknown setting or an invalid value
    │   │       └── UnknownContextFactory
    │   │                            a context factory that does not exist
    │   ├── UnsupportedMediaType     an upload with the content type of something else
    │   ├── NotAnArchive             an upload that is not a (safe) ZIP file
    │   ├── MalformedUrl             a URI that cannot be fetched from
    │   ├── InvalidCallbackUrl       a callback URL that no transport serves
    │   ├── TooLarge                 data that exceeds a size limit
    │   ├── ContextTooLarge          a context that asks for more than all contexts together may use
    │   └── IdempotencyMismatch      one key for two different requests, or for two users
    ├── NotFound
    │   ├── BinaryNotFound, ContextNotFound, JobNotFound, DataFileNotFound, BlobNotFound
    │   └── LogNotFound
    │       └── LogServerGone        a log on the machine of a server that has ended
    ├── Conflict                     not possible in the current state
    │   ├── ContextExists, ContextStopping, BinaryInUse, JobAlreadyFinal
    │   ├── OnAnotherServer          something that only another server can provide
    │   ├── IllegalTransition        an event that the state does not allow
    │   ├── StaleState               another writer changed the record first
    │   │   └── StaleOwner           another server took the record over
    │   └── DuplicateId              an ID or idempotency key that is taken
    ├── Unavailable
    │   ├── NoSlots                  all job slots of a context are taken
    │   ├── CapacityReached          no more contexts, cores or memory are allowed
    │   └── ServerClosed             the server is draining or closed
    │       ├── JobPostponed         a job that has not started, and runs after the next start
    │       └── JobInterrupted       a running job that ends with the server
    ├── JobUnsuccessful              a job that ended without a result
    │   └── JobFailed, JobKilled
    ├── ContextFailed                a context that could not be started or died
    ├── ResultTimeout                a wait that exceeded its timeout
    └── BackendError                 a backend that does not work
        ├── StorageError, FetchError, LaunchError, TransportError
        ├── SchemaTooNew             a database of a newer release
        ├── DataDirLocked            a data directory that another server uses
        ├── PluginNotFound           a backend that is not installed
        └── PluginFailed             a backend of another package that raised an exception at its start

Errors have fields, and their messages are created from them. All errors can be pickled and copied.

Each class has a ``code`` for programs, such as ``binary_not_found``. It is derived from the class name and
does not depend on the message, so front ends and clients can branch on it. Codes are part of the API:
renaming a class breaks clients.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:  # only the types of fields: errors are the lowest layer
    from jobserver_core.models.failures import ErrorInfo, FailureKind
    from jobserver_core.models.lifecycle import JobState

__all__ = [  # type checkers cannot evaluate anything but a list of names
    "BackendError",
    "BinaryInUse",
    "BinaryNotFound",
    "BlobNotFound",
    "CapacityReached",
    "Conflict",
    "ContextExists",
    "ContextFailed",
    "ContextNotFound",
    "ContextStopping",
    "ContextTooLarge",
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
    "LogServerGone",
    "MalformedUrl",
    "NoSlots",
    "NotAnArchive",
    "NotFound",
    "OnAnotherServer",
    "PluginFailed",
    "PluginNotFound",
    "ResultTimeout",
    "SchemaTooNew",
    "ServerClosed",
    "StaleOwner",
    "StaleState",
    "StorageError",
    "TooLarge",
    "TransportError",
    "Unavailable",
    "UnknownContextFactory",
    "UnsupportedMediaType",
]

Resource: TypeAlias = Literal["contexts", "cores", "memory"]
"""What all contexts together may use only a part of; memory is in bytes."""
CONTEXT_TERMINATED = "ContextTerminated"
"""The class of the error of a job whose context has ended. Its stack is the reason in words."""
JOB_KILLED = "JobKilled"
"""The class of the error of a job that a known user has killed. Its stack names the user, in words."""
_INNER_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def amount_of(resource: Resource, number: int) -> str:
    """Return an amount of a resource for people: ``1 core``, ``3 contexts``, ``1.5 GiB of memory``."""
    if resource != "memory":
        return f"{number} {resource.removesuffix('s') if number == 1 else resource}"
    if number >= 2**30:
        return f"{number / 2**30:.4g} GiB of memory"
    return f"{number / 2**20:.4g} MiB of memory"


def _shown(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _named(name: str) -> str:
    """Return a name as a message shows it, also if it is empty."""
    return name or "''"


class JobServerError(Exception):
    """The base class of all errors of this library.

    A subclass annotates its fields, including inherited ones; without annotations, it has its parent's
    fields. They are keyword arguments and attributes. The message is the ``template``, formatted with the
    fields.
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
        return self.formatted(self.template)

    def formatted(self, template: str) -> str:
        """Return another message about this error: a template, filled with the error's fields."""
        return template.format(**{name: _shown(value) for name, value in self.fields.items()})

    @property
    def fields(self) -> dict[str, object]:
        """The error's fields by name. An equal error can be created from them."""
        return {name: getattr(self, name) for name in self.field_names}

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), **self.fields), ())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.fields == getattr(other, "fields", None)

    __hash__ = Exception.__hash__


# -- invalid input ---------------------------------------------------------------------------------


class InvalidInput(JobServerError):
    """The caller's input is invalid. Sending it again cannot succeed."""


class InvalidName(InvalidInput):
    """A name is not allowed. The message says which rule it breaks."""

    template = "{kind} name {name!r} is not allowed: {rule}"
    kind: str
    name: str
    rule: str


class InvalidFirstLetter(InvalidName):
    """A context name does not start with a letter."""


class InvalidRequest(InvalidInput):
    """Parameters of a request are missing, malformed, or contradict each other."""


class InvalidConfig(InvalidInput):
    """A configuration cannot be parsed, or exceeds a limit.

    ``line`` and ``column`` count from 1, and are None if unknown.
    """

    message: str
    line: int | None = None
    column: int | None = None

    def _text(self) -> str:
        if self.line is None:
            return self.message
        return f"{self.message} (line {self.line}, column {self.column})"


class InvalidSetting(InvalidConfig):
    """A setting is unknown, or its value is invalid.

    ``key`` is the dotted path. ``nearest`` is the most similar known key, or None::

        InvalidSetting(key="jobserver.metadata.options.path", message="must be a string")
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
    """The ``context-factory`` of a context does not exist."""


class UnsupportedMediaType(InvalidInput):
    """The content type of an upload is missing, or is not the type of a binary."""

    media_type: str | None
    supported: tuple[str, ...]

    def _text(self) -> str:
        fault = (
            "content type {media_type!r} is not supported" if self.media_type else "no content type is given"
        )
        return self.formatted(f"{fault}; expected one of {{supported}}")


class NotAnArchive(InvalidInput):
    """An uploaded or fetched file is not a ZIP archive, or is an unsafe one."""

    template = "the binary is not a valid archive: {reason}"
    reason: str


class MalformedUrl(InvalidInput):
    """A URI cannot be parsed, or its scheme, host or directory is not allowed."""

    template = "Malformed URL: {url}: {reason}"
    url: str
    reason: str


class InvalidCallbackUrl(InvalidInput):
    """No transport serves the callback URL, or the policy forbids it."""

    template = "callback URL {url!r} is not allowed: {reason}"
    url: str
    reason: str


class TooLarge(InvalidInput):
    """Data exceeds a size limit. ``limit`` is in bytes."""

    template = "{what} is larger than the limit of {limit} bytes"
    what: str
    limit: int


class ContextTooLarge(InvalidInput):
    """A context asks for more than all contexts of the server together may use.

    ``setting`` is the key of the limit of the ``resource``. ``requested`` is the amount that the context asks
    for; None means no upper bound. ``limit`` is the amount that is allowed, and ``reserved`` the part of it
    that spare contexts use. Memory is in bytes.
    """

    resource: Resource
    setting: str
    requested: int | None
    limit: int
    reserved: int

    def _text(self) -> str:
        asked = (
            f"has no upper bound for its {self.resource}"
            if self.requested is None
            else f"asks for {amount_of(self.resource, self.requested)}"
        )
        spares = (
            f", of which spare contexts use {amount_of(self.resource, self.reserved)}"
            if self.reserved
            else ""
        )
        return (
            f"the context {asked}; {self.setting} allows {amount_of(self.resource, self.limit)} for all "
            f"contexts together{spares}"
        )


class IdempotencyMismatch(InvalidInput):
    """The idempotency key was already used for a different request, or by another user.

    ``job_id`` is the job of that request, or None if it may be another user's.
    """

    key: str
    job_id: str | None = None

    def _text(self) -> str:
        text = f"idempotency key {self.key!r} was already used for a different request"
        return f"{text}, job {self.job_id}" if self.job_id else text


# -- not found -------------------------------------------------------------------------------------


class NotFound(JobServerError):
    """A named object does not exist."""


class BinaryNotFound(NotFound):
    """No binary has this name."""

    template = "binary {name!r} not found"
    name: str


class ContextNotFound(NotFound):
    """No context has this name. ``reason`` says why it failed or could not be started, or is None."""

    name: str
    reason: str | None = None

    def _text(self) -> str:
        text = f"context {_named(self.name)} not found"
        return f"{text}: {self.reason}" if self.reason else text


class JobNotFound(NotFound):
    """No job has this ID."""

    job_id: str

    def _text(self) -> str:
        return f"job {_named(self.job_id)} not found"


class DataFileNotFound(NotFound):
    """The server has no such data file."""

    template = "data file {name!r} not found"
    name: str


class BlobNotFound(NotFound):
    """The blob store does not have this blob."""

    template = "blob {digest} not found"
    digest: str


class LogNotFound(NotFound):
    """A log was never written, or has been removed."""

    template = "log of {kind} {id} not found: nothing was written to it, or it was removed"
    kind: str
    id: str


class LogServerGone(LogNotFound):
    """A log is on the machine of a server that has ended.

    It can be read again once a server runs on the same data directory. ``server`` is the address of the ended
    server.
    """

    template = (
        "the log of {kind} {id} is on server {server}, which is not running; "
        "it can be read again once a server runs on its data directory"
    )
    kind: str
    id: str
    server: str


# -- conflicts -------------------------------------------------------------------------------------


class Conflict(JobServerError):
    """The operation is not possible in the current state."""


class ContextExists(Conflict):
    """A live context already has this name."""

    template = "context {name} exists"
    name: str


class ContextStopping(Conflict):
    """The context accepts no more jobs, because it is being stopped."""

    template = "context {name} is being stopped and accepts no more jobs"
    name: str


class BinaryInUse(Conflict):
    """The binary cannot be deleted, because jobs that have not ended use it.

    ``job_ids`` has those that the caller may see.
    """

    name: str
    job_ids: tuple[str, ...]

    def _text(self) -> str:
        jobs = f"jobs {', '.join(self.job_ids)}" if self.job_ids else "jobs of other users"
        return f"binary {self.name!r} is in use by {jobs}"


class JobAlreadyFinal(Conflict):
    """The job had already ended. ``state`` is its final state."""

    template = "job {job_id} has already ended as {state.value}"
    job_id: str
    state: JobState


class IllegalTransition(Conflict):
    """The lifecycle does not allow the event in this state. Nothing was changed."""

    template = "event {event} is not allowed for a {kind} in state {state}; allowed: {allowed}"
    kind: str
    state: str
    event: str
    allowed: tuple[str, ...]


class OnAnotherServer(Conflict):
    """The requested object is on another server, and only that server can return it.

    ``server`` is the address of that server.
    """

    template = "{kind} {id} is on another server, {server}; send the request there"
    kind: str
    id: str
    server: str


class StaleState(Conflict):
    """A compare-and-set failed: the stored state is not the expected one. Nothing was changed.

    ``found`` is None if there is no record with this ID.
    """

    template = "{kind} {id} has state {found}, not {expected}"
    kind: str
    id: str
    expected: str
    found: str | None


class StaleOwner(StaleState):
    """A compare-and-set failed: another server has taken the record over. Nothing was changed."""

    template = "{kind} {id} was taken over by another server; its state is {found}"


class DuplicateId(Conflict):
    """A stored record already has this ID or idempotency key. ``holder`` is the ID of that record."""

    template = "{kind} {id} already exists"
    kind: str
    id: str
    holder: str


# -- unavailable -----------------------------------------------------------------------------------


class Unavailable(JobServerError):
    """The server cannot accept the request now. It may succeed later."""


class NoSlots(Unavailable):
    """All job slots of the context are taken, and its queue is full or disabled, or full for this user."""

    template = "context {context} has no free job slot (running jobs: {running}): {reason}"
    context: str
    running: int
    reason: str = "its queue is full"


class CapacityReached(Unavailable):
    """With one more context, all contexts together would exceed a limit. Nothing was created.

    ``setting`` is the key of the limit of the ``resource``. ``requested`` is the amount that the context asks
    for, and ``used`` the amount that living contexts and spares use; None means no upper bound. Memory is in
    bytes.
    """

    resource: Resource
    setting: str
    requested: int
    used: int | None
    limit: int

    def _text(self) -> str:
        advice = "stop a context or try again later"
        if self.resource == "contexts":
            return f"context limit reached ({self.limit}, {self.setting}); {advice}"
        asked = amount_of(self.resource, self.requested).removesuffix(" of memory")
        used, limit = (
            "an unknown part" if number is None else amount_of(self.resource, number).split(" of ")[0]
            for number in (self.used, self.limit)
        )
        return (
            f"{self.resource.removesuffix('s')} limit reached: the context asks for {asked}, and {used} of "
            f"{limit} are in use ({self.setting}); {advice}"
        )


class ServerClosed(Unavailable):
    """The server is draining or closed, and accepts no new work. The message says which."""

    message: str = "the job server is shutting down and accepts no new work"


class JobPostponed(ServerClosed):
    """The server is shutting down and the job has not started. The job runs after the next start."""

    template = (
        "the job server is shutting down; job {job_id} has not started. It remains accepted, and runs when a "
        "server starts again with the same metadata"
    )
    job_id: str


class JobInterrupted(ServerClosed):
    """The server is shutting down while the job runs. The job's outcome will be recorded."""

    template = (
        "the job server is shutting down while job {job_id} is running. The job ends as ERROR with its "
        "context, or continues if the context outlives the server. Get its final state by its ID when a "
        "server runs again"
    )
    job_id: str


# -- unsuccessful jobs and contexts ----------------------------------------------------------------


class JobUnsuccessful(JobServerError):
    """A job ended without a result. Raised when waiting for its result.

    ``error`` is the job's :class:`~jobserver_core.ErrorInfo`.
    """

    template = "job {job_id}: {error.message}"
    job_id: str
    error: ErrorInfo

    def _text(self) -> str:
        kind, message = getattr(self.error, "error_class", ""), getattr(self.error, "message", "")
        if kind == CONTEXT_TERMINATED and self.error.stack:
            message = f"{message}: {self.error.stack}"
        return f"job {self.job_id}: {kind}: {message}" if kind else super()._text()


class JobFailed(JobUnsuccessful):
    """The job ended in the state ERROR. ``failure`` is a :class:`~jobserver_core.FailureKind`.

    It is None if the client's server does not report it.
    """

    job_id: str
    error: ErrorInfo
    failure: FailureKind | None


class JobKilled(JobUnsuccessful):
    """The job ended in the state KILLED."""

    def _text(self) -> str:
        if getattr(self.error, "message", "") != f"Job {self.job_id} killed":
            return super()._text()
        by = f" {self.error.stack}" if self.error.error_class == JOB_KILLED else ""
        return f"job {self.job_id} was killed{by}"


class ContextFailed(JobServerError):
    """A context could not be started, or died. ``error`` is an ``ErrorInfo``."""

    template = "context {name} failed: {error.message}"
    name: str
    error: ErrorInfo


class ResultTimeout(JobServerError, TimeoutError):
    """A wait exceeded its timeout of ``seconds``. The operation itself continues."""

    template = "{what} not done after {seconds} s"
    what: str
    seconds: float


# -- backends --------------------------------------------------------------------------------------


class BackendError(JobServerError):
    """A backend does not work. The message has the reason."""


class StorageError(BackendError):
    """The metadata or blob store failed."""


class FetchError(BackendError):
    """A URI could not be fetched: it was refused, not found, interrupted or timed out."""

    template = "cannot fetch {url}: {reason}"
    url: str
    reason: str


class LaunchError(BackendError):
    """The launcher failed."""


class TransportError(BackendError):
    """A transport is misconfigured. Failed deliveries raise no error; they are reported as answers."""


class SchemaTooNew(BackendError):
    """The database was written by a newer release."""

    template = (
        "the database has schema {found}, but this release supports up to {known}: upgrade jobserver-core"
    )
    found: str
    known: str


class DataDirLocked(BackendError):
    """Another server uses the data directory."""

    template = (
        "{path} is in use by another job server{holder}: stop it, or choose another data directory with "
        "--data-dir (jobserver.data-dir)"
    )
    path: str
    holder: str = ""


class PluginNotFound(BackendError):
    """A configured backend is not installed."""

    kind: str
    name: str
    available: tuple[str, ...]
    extra: str | None = None

    def _text(self) -> str:
        known = ", ".join(self.available) or "none"
        text = f"no {self.kind} backend named {self.name!r} is installed (installed: {known})"
        if self.extra:
            return f"{text}; install it with: pip install 'jobserver-core[{self.extra}]'"
        return f"{text}; choose one of these, or install the package that provides it"


class PluginFailed(BackendError):
    """A backend of another package could not be imported or created.

    ``plugin`` is its entry point, and ``package`` its distribution and version. If the plug-in raised an
    exception, that is the error's ``__cause__``.
    """

    template = "the {kind} backend {name!r} of {package} ({plugin}) does not work: {reason}"
    kind: str
    name: str
    package: str
    plugin: str
    reason: str
