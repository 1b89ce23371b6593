"""Users with passwords, and bearer tokens, in files.

Each line of the password file is ``user:hash:permissions``, with an argon2 hash as
``python -m jobserver_http.credential_files user jobs:read,contexts`` prints it. Each line of the token
file is ``name:hash:permissions``, with the sha256 of the token in hex. Permissions are those of
:mod:`jobserver_http.permissions`, separated by commas. Blank lines and those that begin with ``#`` do not
count.

A file that its group or everyone may write is refused, and so is one in a directory where everyone may
replace it: its content decides who may run code. A password file that everyone may read is
accepted with a warning, since it has hashes alone and mounted secrets are often readable.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import argon2
import attrs
from argon2.exceptions import InvalidHashError, VerificationError

from jobserver_core.config.settings import AuthSettings, Settings
from jobserver_core.errors import InvalidSetting
from jobserver_http.authentication import Authenticator, Credentials, Identity
from jobserver_http.permissions import parse_permissions

__all__ = ["FileAuthenticator", "entry_line", "hash_password", "hash_token", "new_token"]

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
CHECKED = 1.0
"""Seconds between looks at whether a file has changed."""


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, for a line of the password file."""
    return argon2.PasswordHasher().hash(password)


def new_token() -> str:
    """Return a new random bearer token."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the hash of a token, for a line of the token file. Tokens are random, so sha256 will do."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def entry_line(name: str, hashed: str, permissions: str) -> str:
    """Return a line for either file. Raises ValueError for a name or permissions that it cannot hold."""
    parse_permissions(permissions)
    if not _NAME.fullmatch(name):
        raise ValueError("a name has letters, digits and _ . @ -, and begins with a letter, digit or _")
    return f"{name}:{hashed}:{permissions}"


@attrs.frozen
class _Entry:
    hash: str = attrs.field(repr=False)
    identity: Identity


def _argon2(text: str) -> str:
    try:
        argon2.extract_parameters(text)
    except InvalidHashError:
        raise ValueError("the second field must be an argon2 hash") from None
    return text


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError("the second field must be a sha256 in lower-case hex")
    return text


class _File:
    """A file of entries that is read again when it has changed."""

    def __init__(self, path: Path, key: str, check: Callable[[str], str]) -> None:
        self._path = path
        self._key = key
        self._check = check
        self._lock = threading.Lock()
        self._warned = False
        self._looked = time.monotonic()
        self._stamp = self._stamped()
        self._entries = self._read()

    def entries(self) -> dict[str, _Entry]:
        """Return the entries by name. A change that cannot be read is logged, and changes nothing."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= CHECKED:
                self._looked = now
                try:
                    stamp = self._stamped()
                    if stamp != self._stamp:
                        self._entries, self._stamp = self._read(), stamp
                except InvalidSetting as error:
                    _log.error("%s; what was read before still holds", error)
            return self._entries

    def _check_access(self, status: os.stat_result) -> None:
        """Raise InvalidSetting when others can change the file; warn once when everyone can read it."""
        mode, directory = stat.S_IMODE(status.st_mode), self._path.resolve().parent
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._wrong(f"others may write it (mode {mode:04o}); run: chmod go-w {self._path}")
        around = stat.S_IMODE(directory.stat().st_mode)
        if around & stat.S_IWOTH and not around & stat.S_ISVTX:
            raise self._wrong(
                f"everyone may replace it in {directory} (mode {around:04o}); move it or chmod o-w"
            )
        if mode & stat.S_IROTH and self._check is _argon2 and not self._warned:
            self._warned = True
            _log.warning(
                "%s: everyone may read its password hashes; run: chmod o-r %s", self._key, self._path
            )

    def _stamped(self) -> tuple[int, int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._wrong(str(error.strerror)) from None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode

    def _read(self) -> dict[str, _Entry]:
        try:
            with self._path.open(encoding="utf-8") as file:
                self._check_access(os.fstat(file.fileno()))
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise self._wrong(getattr(error, "strerror", None) or "is not UTF-8 text") from None
        entries: dict[str, _Entry] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    entry = self._parsed(line.strip())
                    if entry.identity.name in entries:
                        raise ValueError("the name is there already")
                except ValueError as error:
                    raise self._wrong(f"line {number}: {error}") from None
                entries[entry.identity.name] = entry
        return entries

    def _parsed(self, line: str) -> _Entry:
        fields = line.split(":", 2)
        if len(fields) != 3:
            raise ValueError("expected name:hash:permissions")
        name, hashed, permissions = fields
        if not _NAME.fullmatch(name):
            raise ValueError("a name has letters, digits and _ . @ -, and begins with a letter, digit or _")
        identity = Identity(name=name, permissions=parse_permissions(permissions), proof=self._check(hashed))
        return _Entry(hashed, identity)

    def _wrong(self, reason: str) -> InvalidSetting:
        return InvalidSetting(key=self._key, message=f"{self._path}: {reason}")


class FileAuthenticator(Authenticator):
    """Authenticates with the configured password file, token file, or both."""

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FileAuthenticator:
        """Create the authenticator that ``jobserver.auth`` describes. Raises InvalidSetting."""
        return cls(settings.auth)

    def __init__(self, settings: AuthSettings) -> None:
        if settings.password_file is None and settings.token_file is None:
            raise InvalidSetting(
                key="jobserver.auth.backend", message="file needs 'password-file' or 'token-file' to be set"
            )
        self._hasher = argon2.PasswordHasher()
        self._nobody = hash_password(secrets.token_hex())
        self._users = self._tokens = None
        challenges: list[str] = []
        if settings.password_file is not None:
            self._users = _File(settings.password_file, "jobserver.auth.password-file", _argon2)
            challenges += Authenticator.challenges
        if settings.token_file is not None:
            self._tokens = _File(settings.token_file, "jobserver.auth.token-file", _sha256)
            challenges.append('Bearer realm="jobserver"')
        self.challenges = tuple(challenges)

    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return whose credentials these are, or None."""
        if credentials.scheme == "bearer":
            return self._by_token(credentials.secret)
        return self._by_password(credentials.user or "", credentials.secret)

    def current(self, identity: Identity) -> bool:
        """Whether a file still lists this identity with these permissions."""
        return any(
            entry.identity == identity
            for file in (self._users, self._tokens)
            if file is not None
            for entry in [file.entries().get(identity.name)]
            if entry is not None
        )

    def _by_password(self, user: str, password: str) -> Identity | None:
        if self._users is None:
            return None
        entry = self._users.entries().get(user)
        try:
            # A user that is not known costs as much time as one that is.
            self._hasher.verify(entry.hash if entry else self._nobody, password)
        except (VerificationError, InvalidHashError):
            return None
        return entry.identity if entry else None

    def _by_token(self, token: str) -> Identity | None:
        if self._tokens is None:
            return None
        hashed = hash_token(token)
        found = None
        for entry in self._tokens.entries().values():
            if hmac.compare_digest(entry.hash, hashed):
                found = entry.identity
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for the password file, or with ``--token`` a new token and its line."""
    parser = argparse.ArgumentParser(prog="python -m jobserver_http.credential_files")
    parser.add_argument("name", help="the user's or the token's name")
    parser.add_argument("permissions", help="such as jobs,contexts:read or *")
    parser.add_argument("--token", action="store_true", help="make a bearer token instead of a password")
    options = parser.parse_args(arguments)
    try:
        entry_line(options.name, "", options.permissions)
    except ValueError as error:
        parser.error(str(error))
    if options.token:
        token = new_token()
        print(f"token (shown only now): {token}", file=sys.stderr)
        hashed = hash_token(token)
    else:
        hashed = hash_password(getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n"))
    print(entry_line(options.name, hashed, options.permissions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
