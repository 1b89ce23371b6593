"""Who calls: credentials, authenticators, and the way from one to the other.

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
from collections.abc import Awaitable, Callable, Iterable
from weakref import WeakValueDictionary

import attrs

from jobserver_core import plugins
from jobserver_core.config.settings import Settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.ports import Backend
from jobserver_http.addresses import network_of
from jobserver_http.errors import Rejected
from jobserver_http.pools import Pool
from jobserver_http.throttle import Throttle

__all__ = [
    "Authenticator",
    "Credentials",
    "Gate",
    "Identity",
    "authenticator_from_settings",
    "parse_authorization",
]

REMEMBERED = 60.0
"""Seconds for which a success is not verified again."""
FAMILIAR = 1000
"""Successful credentials that are kept at most; those that were verified longest ago go first."""
WRONG = 10_000
"""Wrong credentials that are kept at most; the oldest go first."""
WRONG_AGAIN = 60.0
"""Seconds for which the same wrong credentials are not a new failure."""
WRONG_STILL = 5.0
"""Seconds for which wrong credentials are not checked again, in case the password was changed to them."""

MISSING = "The resource requires authentication, which was not supplied with the request"
INVALID = "The supplied authentication is invalid"
"""The contract's words: clients look for them."""

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Credentials:
    """What a caller sent: ``basic`` with a user's name and password, or ``bearer`` with a token."""

    scheme: str
    user: str | None = None
    secret: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Identity:
    """An authenticated caller, with the permissions that it holds.

    ``proof`` is what the credentials were checked against, such as a stored hash: when that changes, an
    earlier success is worth nothing.
    """

    name: str
    permissions: frozenset[str]
    proof: str = attrs.field(default="", repr=False)


class Authenticator(Backend):
    """Tells who a caller is. Methods may block, and are called from several threads at once."""

    kind = "authenticator"

    challenges: tuple[str, ...] = ('Basic realm="jobserver", charset="UTF-8"',)
    """The values of WWW-Authenticate in an answer 401."""

    @abstractmethod
    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return whose credentials these are, or None for wrong ones.

        Takes as long for a user that is not known as for a wrong password.
        """

    def current(self, identity: Identity) -> bool:
        """Whether an identity that was authenticated a moment ago still holds; cheap."""
        return True


def parse_authorization(header: str) -> Credentials | None:
    """Read an Authorization header; None for what is neither Basic nor Bearer, or is malformed."""
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


class _Line:
    """The log-ins of one account from one network that wait for their check: one at a time, in order."""

    def __init__(self) -> None:
        self.waiting = 0
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self.waiting -= 1
            raise

    async def __aexit__(self, *_exc: object) -> None:
        self.waiting -= 1
        self._turn.release()


class Gate:
    """Lets callers in: verifies credentials off the event loop, remembers, and slows down guessing.

    Verifying a password is costly by design, so it happens as rarely as possible. Equal credentials that
    arrive while they are being checked share one check, and a success is remembered for a minute.
    What is kept is a keyed hash of the credentials: neither passwords nor their plain hashes.

    Credentials that were right before are *familiar* and never wait because of the failures of others,
    who cannot know them. Others may have to wait, as :mod:`~jobserver_http.throttle` explains. A token is an
    account of its own, so wrong tokens say nothing about other tokens.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        pool: Pool,
        *,
        remember: float = REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._authenticator = authenticator
        self._sleep = sleep
        self._pool = pool
        self._throttles = {scheme: Throttle(clock=clock) for scheme in ("basic", "bearer")}
        self._clock = clock
        self._remember = remember
        self._key = secrets.token_bytes(32)
        self._familiar: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._checks: dict[tuple[str, bytes], asyncio.Task[Identity | None]] = {}
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        self._lines: WeakValueDictionary[tuple[str, str], _Line] = WeakValueDictionary()

    async def admit(self, headers: Iterable[tuple[bytes, bytes]], address: str) -> Identity:
        """Return who calls. Raises Rejected: 401 with a challenge, or 429 after too many failures."""
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise self._challenge(MISSING)
        credentials = parse_authorization(values[0].decode("latin-1")) if len(values) == 1 else None
        if credentials is None:
            raise self._challenge(
                INVALID, "the Authorization header has neither Basic nor Bearer credentials"
            )
        mark = self._mark(credentials)
        identity = self._remembered(mark) or await self._checked(credentials, mark, network_of(address))
        if identity is None:
            raise self._challenge(INVALID)
        return identity

    async def _checked(self, credentials: Credentials, mark: bytes, network: str) -> Identity | None:
        """Check credentials, or wait for a check of equal ones that is under way."""
        key = (network, mark)
        check = self._checks.get(key)
        if check is None:
            check = asyncio.create_task(self._check(credentials, mark, network))
            self._checks[key] = check
            check.add_done_callback(lambda done: self._forget_check(key, done))
        return await asyncio.shield(check)  # a caller who leaves does not end the check for the others

    def _forget_check(self, key: tuple[str, bytes], check: asyncio.Task[Identity | None]) -> None:
        del self._checks[key]
        if not check.cancelled():
            check.exception()  # was raised to those who waited, if anyone still did

    async def _check(self, credentials: Credentials, mark: bytes, network: str) -> Identity | None:
        if mark in self._familiar:
            return await self._verified(credentials, mark, network)
        if self._wrong_within(WRONG_STILL, mark):
            return None
        account, throttle = _account(credentials, mark), self._throttles[credentials.scheme]
        line = self._lines.setdefault((network, account), _Line())
        if line.waiting >= throttle.line:
            await self._sleep(throttle.pace)
            seconds = math.ceil(throttle.pace)
            raise Rejected(429, "too many failed log-ins; try again later", {"Retry-After": str(seconds)})
        # In turns, so that many guesses at once are not all checked before the first failure counts.
        async with line:
            await self._sleep(throttle.pause(network, account))
            return await self._verified(credentials, mark, network)

    def _wrong_within(self, seconds: float, mark: bytes) -> bool:
        return self._wrong.get(mark, float("-inf")) > self._clock() - seconds

    async def _verified(self, credentials: Credentials, mark: bytes, network: str) -> Identity | None:
        identity = await self._pool.run(self._authenticator.authenticate, credentials)
        if identity is None:
            self._familiar.pop(mark, None)
            self._failed(credentials, mark, network)
            name = ascii(credentials.user[:64]) if credentials.user else f"a {credentials.scheme} token"
            _log.warning("log-in of %s from %s failed", name, network)
            return None
        self._wrong.pop(mark, None)
        self._familiar[mark] = (self._clock() + self._remember, identity)
        self._familiar.move_to_end(mark)
        while len(self._familiar) > FAMILIAR:
            self._familiar.popitem(last=False)
        return identity

    def _failed(self, credentials: Credentials, mark: bytes, network: str) -> None:
        if not self._wrong_within(WRONG_AGAIN, mark):
            self._throttles[credentials.scheme].failed(network, _account(credentials, mark))
        self._wrong[mark] = self._clock()
        self._wrong.move_to_end(mark)
        while len(self._wrong) > WRONG:
            self._wrong.popitem(last=False)

    def _remembered(self, mark: bytes) -> Identity | None:
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


def _account(credentials: Credentials, mark: bytes) -> str:
    """Return what failures of these credentials count for: the user's name, or the very token."""
    return mark.hex() if credentials.scheme == "bearer" else (credentials.user or "")[:256]


def authenticator_from_settings(settings: Settings) -> Authenticator | None:
    """Return the authenticator that the settings select, None for ``none``.

    Raises:
        PluginNotFound: The authenticator is not installed.
        InvalidSetting: Credential files are configured that nothing reads, or that cannot be read.
    """
    auth = settings.auth
    if auth.backend != "none":
        return plugins.load(Authenticator, auth.backend, settings, settings.data_dir)
    for name in ("password_file", "token_file"):
        if getattr(auth, name) is not None:
            key = f"jobserver.auth.{name.replace('_', '-')}"
            raise InvalidSetting(key=key, message="needs 'jobserver.auth.backend' to be file")
    return None
