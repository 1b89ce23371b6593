"""Authenticating callers: credentials, authenticators, and the verifier between them.

An authenticator is a :class:`~jobserver_core.ports.Backend` like those of the core. Its class is registered
in the entry point group ``jobserver.authenticator``, and ``jobserver.auth.backend`` selects it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import math
import secrets
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import attrs

from jobserver_core import plugins
from jobserver_core.config.settings import Settings
from jobserver_core.errors import BackendError, InvalidRequest, InvalidSetting, Unavailable
from jobserver_core.models.arguments import are_strings, check_kind
from jobserver_core.ports import Backend
from jobserver_core.ports.checked import checked
from jobserver_core.ports.faults import PortRules
from jobserver_http.access import unknown_permission
from jobserver_http.addresses import network_of
from jobserver_http.errors import Rejected
from jobserver_http.thread_pools import ThreadPool
from jobserver_http.throttle import Throttle

REMEMBER_SECONDS = 60.0
"""How many seconds verified credentials stay valid without another check."""
MAX_FAMILIAR = 1000
"""How many verified credentials are kept. The least recently verified are removed first."""
MAX_WRONG = 10_000
"""How many wrong credentials are kept. The oldest are removed first."""
SAME_FAILURE_SECONDS = 60.0
"""Within this many seconds, repeating the same wrong credentials is not a new failure."""
FAMILIAR_THREADS = 2
"""How many credentials that were valid before are checked at once."""
RECHECK_SECONDS = 5.0
"""Wrong credentials are rechecked after this many seconds, in case the password was changed to them."""

MISSING = "The resource requires authentication, which was not supplied with the request"
INVALID = "The supplied authentication is invalid"
"""The contract prescribes these messages, because clients match on them."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Credentials:
    """Credentials of a request: ``basic`` with a user name and password, or ``bearer`` with a token."""

    scheme: str
    user: str | None = None
    secret: str = attrs.field(repr=False)


def _check_string(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    check_kind(f"the {attribute.name} of an Identity", value, str, "a string")


def _check_permissions(_instance: object, _attribute: object, value: object) -> None:
    expected = 'a set of permissions, such as frozenset({"jobs:read"})'
    check_kind("the permissions of an Identity", value, (frozenset, set), expected)
    if (problem := unknown_permission(cast("frozenset[object]", value))) is not None:
        raise InvalidRequest(message=f"the permissions of an Identity: {problem}")


@attrs.frozen(kw_only=True)
class Identity:
    """An authenticated caller and its permissions.

    Other types than these, and unknown permissions, raise InvalidRequest.

    ``proof`` is the value that the credentials were checked against, such as a stored hash. When it changes,
    earlier checks are void.
    """

    name: str = attrs.field(validator=_check_string)
    permissions: frozenset[str] = attrs.field(validator=_check_permissions)
    proof: str = attrs.field(default="", repr=False, validator=_check_string)


class Authenticator(Backend):
    """Verifies credentials. Methods may block, and must be thread-safe."""

    kind = "authenticator"

    challenges: tuple[str, ...] = ('Basic realm="jobserver", charset="UTF-8"',)
    """The values of WWW-Authenticate in a 401 response."""

    @abstractmethod
    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return the identity for valid credentials, or None.

        For an unknown user, it must take as long as for a wrong password.

        Raises:
            Unavailable: Users and passwords cannot be read at the moment. The caller gets 503 with
                Retry-After, and no failed login is counted.
        """

    def problem(self) -> str | None:
        """Return what the operator should know when the server starts, such as that there are no users."""
        return None

    def current(self, identity: Identity) -> bool:
        """Whether an authenticated identity is still valid. Must be cheap.

        The server asks at the start of a request whose credentials were verified within the last minute, and
        when a request has read its body or has waited; False has the credentials verified again. It also asks
        from time to time while events or logs are streamed; False ends the stream.

        Raises:
            Unavailable: It cannot be checked at the moment. Requests get 503, and streams end.
        """
        return True


class AuthenticatorFailed(Exception):
    """An authenticator did what its port does not allow. To the caller this is an internal error."""


_RULES = PortRules(
    description="authenticator",
    error=lambda message, _url: AuthenticatorFailed(message),
    expected=(Unavailable,),
)


def checked_authenticator(authenticator: Authenticator) -> Authenticator:
    """Return a stand-in for an authenticator, which checks every call (:mod:`~jobserver_core.ports.checked`).

    Raises:
        BackendError: Its challenges are not a tuple, or another collection, of strings that can be sent.
    """
    challenges = authenticator.challenges
    if not challenges or not are_strings(challenges) or not all(map(_can_be_sent, challenges)):
        raise BackendError(
            message=f"the authenticator {type(authenticator).__name__} must name its challenges, the values "
            f"""of WWW-Authenticate: challenges = ('Basic realm="jobserver"',), not {challenges!r}"""
        )
    return checked(Authenticator, authenticator, _RULES)


def _can_be_sent(challenge: str) -> bool:
    return challenge.strip() != "" and challenge.isprintable()


def parse_authorization(header: str) -> Credentials | None:
    """Parse an Authorization header. Return None if it is malformed, or neither Basic nor Bearer."""
    scheme, _, value = header.strip().partition(" ")
    scheme, value = scheme.lower(), value.strip()
    if scheme == "bearer" and value:
        return Credentials(scheme="bearer", secret=value)
    if scheme != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Credentials(scheme="basic", user=user, secret=password) if colon else None


class _Queue:
    """Logins that wait to be checked, one at a time and in order."""

    def __init__(self) -> None:
        self.waiting = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of a login, which ends with the block."""
        self.waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self.waiting -= 1


class CredentialVerifier:
    """Verifies the credentials of requests in threads, caches the results, and slows down guessing.

    Verifying a password is expensive by design. So requests with equal credentials share a check that is in
    progress, and a success is cached for a minute, by a keyed hash of the credentials.

    Credentials that were valid before are *familiar*: as only their owner knows them, they never wait because
    of other callers' failures, and are checked on threads of their own. Others may have to wait, see
    :mod:`~jobserver_http.throttle`, and are checked one at a time for each network, so that no network
    occupies all of ``threads``. Each token counts as a separate account, so wrong tokens do not affect other
    tokens.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        threads: ThreadPool,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._authenticator = checked_authenticator(authenticator)
        self._sleep = sleep
        self._threads = threads
        self._familiar_threads = ThreadPool(FAMILIAR_THREADS)
        self._throttles = {scheme: Throttle(clock=clock) for scheme in ("basic", "bearer")}
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._familiar: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._checks: dict[tuple[str | bytes, ...], asyncio.Task[Identity | None]] = {}
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        self._queues: WeakValueDictionary[tuple[str, ...], _Queue] = WeakValueDictionary()

    async def admit(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> Identity:
        """Return the identity of the caller.

        Raises:
            Rejected: The credentials are missing or wrong (401), or too many logins are waiting (429).
        """
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise self._challenge(MISSING)
        credentials = parse_authorization(values[0].decode("latin-1")) if len(values) == 1 else None
        if credentials is None:
            raise self._challenge(INVALID, "the Authorization header must have Basic or Bearer credentials")
        mark = self._mark(credentials)
        network = network_of(address)
        identity = self._cached(mark) or await self._share(
            (network, mark), lambda: self._check(credentials, mark, network)
        )
        if identity is None:
            raise self._challenge(INVALID)
        return identity

    async def _share(
        self, key: tuple[str | bytes, ...], begin: Callable[[], Coroutine[Any, Any, Identity | None]]
    ) -> Identity | None:
        """Begin a check, or join the one with this key that is in progress."""
        check = self._checks.get(key)
        if check is None:
            check = self._checks[key] = asyncio.create_task(begin())
            check.add_done_callback(lambda done: self._forget_check(key, done))
        return await asyncio.shield(check)  # a disconnecting caller must not cancel it for the others

    def _forget_check(self, key: tuple[str | bytes, ...], check: asyncio.Task[Identity | None]) -> None:
        del self._checks[key]
        if not check.cancelled():
            check.exception()  # marks it as retrieved, even if no caller waits any longer

    async def _check(self, credentials: Credentials, mark: bytes, network: str) -> Identity | None:
        if mark in self._familiar:
            return await self._verify(credentials, mark, network, self._familiar_threads)
        if self._wrong_within(RECHECK_SECONDS, mark):
            return None
        account, throttle = _account(credentials, mark), self._throttles[credentials.scheme]
        queue = self._queues.setdefault((network, account), _Queue())
        if queue.waiting >= throttle.max_waiting:
            await self._sleep(throttle.pace)
            seconds = math.ceil(throttle.pace)
            raise Rejected(429, "too many failed logins; try again later", {"Retry-After": str(seconds)})
        # One at a time, so that concurrent guesses are counted before further ones are checked.
        async with queue.turn():
            await self._sleep(throttle.pause(network, account))
            async with self._queues.setdefault((network,), _Queue()).turn():
                return await self._verify(credentials, mark, network, self._threads)

    def _wrong_within(self, seconds: float, mark: bytes) -> bool:
        return self._wrong.get(mark, float("-inf")) > self._clock() - seconds

    async def _verify(
        self, credentials: Credentials, mark: bytes, network: str, threads: ThreadPool
    ) -> Identity | None:
        """Check credentials, or join a check of equal ones for another network."""
        if (known := self._cached(mark)) is not None:  # checked while this login waited
            return known
        authenticate = self._authenticator.authenticate
        identity = await self._share((mark,), lambda: threads.run(authenticate, credentials))
        if identity is None:
            self._familiar.pop(mark, None)
            if not self._wrong_within(SAME_FAILURE_SECONDS, mark):
                self._throttles[credentials.scheme].count_failure(network, _account(credentials, mark))
            _keep_newest(self._wrong, mark, self._clock(), most=MAX_WRONG)
            name = ascii(credentials.user[:64]) if credentials.user else f"a {credentials.scheme} token"
            _log.warning("login of %s from %s failed", name, network)
            return None
        self._wrong.pop(mark, None)
        _keep_newest(self._familiar, mark, (self._clock() + REMEMBER_SECONDS, identity), most=MAX_FAMILIAR)
        return identity

    def _cached(self, mark: bytes) -> Identity | None:
        until, identity = self._familiar.get(mark, (0.0, None))
        if identity is None or until < self._clock():
            return None
        if not self._authenticator.current(identity):
            del self._familiar[mark]
            return None
        return identity

    def _mark(self, credentials: Credentials) -> bytes:
        parts = (credentials.scheme, credentials.user or "", credentials.secret)
        text = "\0".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)

    def _challenge(self, message: str, detail: str | None = None) -> Rejected:
        headers = {"WWW-Authenticate": ", ".join(self._authenticator.challenges)}
        return Rejected(401, message, headers, detail=detail)


def _keep_newest(entries: OrderedDict[bytes, T], key: bytes, value: T, *, most: int) -> None:
    """Write an entry, and remove the oldest ones beyond a number."""
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > most:
        entries.popitem(last=False)


def _account(credentials: Credentials, mark: bytes) -> str:
    """Return the account that failures count for: the user's name, or the token."""
    return mark.hex() if credentials.scheme == "bearer" else (credentials.user or "")[:256]


def authenticator_from_settings(settings: Settings) -> Authenticator | None:
    """Create the authenticator that the settings select. Return None for ``none``.

    Raises:
        PluginNotFound: The authenticator is not installed.
        InvalidSetting: A credential file cannot be read, or is set although the backend is ``none``.
        BackendError: Its challenges cannot be sent.
    """
    check_authentication(settings)
    if settings.auth.backend == "none":
        return None
    return checked_authenticator(
        plugins.load(Authenticator, settings.auth.backend, settings, settings.data_dir)
    )


def check_authentication(settings: Settings) -> None:
    """Check the settings of the authenticator, without a look at the files of users.

    Raises:
        PluginNotFound: The authenticator is not installed.
        InvalidSetting: A setting is missing, or a credential file is set although the backend is ``none``.
    """
    auth = settings.auth
    if auth.backend != "none":
        plugins.check_options(Authenticator, auth.backend, settings)
        return
    for name in ("password_file", "token_file"):
        if getattr(auth, name) is not None:
            key = f"jobserver.auth.{name.replace('_', '-')}"
            raise InvalidSetting(key=key, message="requires jobserver.auth.backend = file")
