"""An authenticator for bearer tokens that another service signs: this one stores no users.

A token is ``name|permissions|expiry|signature``: permissions are separated by ``+``, the expiry is in seconds
since 1970, and the signature is an HMAC-SHA256 of the rest. Anyone who knows the key can create tokens.

Comparisons with a secret take constant time, so that an attacker cannot guess a signature byte
by byte. The server remembers a success for a while, so `current` checks again what can change: the expiry,
and the list of revoked names.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from pathlib import Path

from jobserver_core import InvalidSetting, Settings
from jobserver_http import Authenticator, Credentials, Identity


class SignedTokenAuthenticator(Authenticator):
    """Accepts signed tokens.

    The option ``signing-key`` is the shared secret, whose name tells the server not to show it. The option
    ``revoked`` lists names to refuse.
    """

    challenges = ('Bearer realm="jobserver"',)

    def __init__(self, key: str, revoked: Iterable[str] = ()) -> None:
        self._key = key.encode()
        self.revoked = set(revoked)

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        """Refuse unknown options, and keys that are too short."""
        options = settings.auth.options
        if unknown := set(options) - {"signing-key", "revoked"}:
            key = f"jobserver.auth.options.{min(unknown)}"
            raise InvalidSetting(key=key, message="is not an option; expected signing-key or revoked")
        signing_key = options.get("signing-key")
        if not isinstance(signing_key, str) or len(signing_key) < 16:
            key = "jobserver.auth.options.signing-key"
            raise InvalidSetting(key=key, message="must be a string of at least 16 characters")

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> SignedTokenAuthenticator:
        """Create the authenticator that the settings describe."""
        options = settings.auth.options
        return cls(options["signing-key"], options.get("revoked", []))

    def token(self, name: str, permissions: Iterable[str], expiry: int) -> str:
        """Return a signed token, as the other service makes it."""
        claims = f"{name}|{'+'.join(permissions)}|{expiry}"
        return f"{claims}|{self._signature(claims)}"

    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Check the signature before anything that it covers."""
        claims, _, signature = credentials.secret.rpartition("|")
        expected = self._signature(claims)
        if credentials.scheme != "bearer" or not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        name, permissions, expiry = claims.split("|")
        found = Identity(name=name, permissions=frozenset(permissions.split("+")), proof=expiry)
        return found if self.current(found) else None

    def current(self, identity: Identity) -> bool:
        """Whether the token has not expired, and its owner was not revoked."""
        return time.time() < int(identity.proof) and identity.name not in self.revoked

    def _signature(self, claims: str) -> str:
        return hmac.new(self._key, claims.encode(), hashlib.sha256).hexdigest()
