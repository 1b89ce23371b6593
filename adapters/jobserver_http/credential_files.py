"""Authentication with a password file, a token file, or both.

``jobserver credentials`` prints lines for both. Each line of the password file is ``user:hash:permissions``,
with an argon2 hash. Each line of the token file is ``name:hash:permissions``, with the SHA-256 of the token
in hexadecimal. Permissions are those of :mod:`jobserver_http.access`, separated by commas. Blank lines and
lines that start with ``#`` are ignored.

The content of these files decides who may run code. So a file is refused if its group or everyone may write
to it, or if everyone may replace it, a directory on its path, or a link that leads to it. A password file
that everyone may read is accepted with a warning, because it contains only hashes, and mounted secrets are
often readable.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from jobserver_core.config.settings import AuthSettings, Settings
from jobserver_core.errors import InvalidSetting
from jobserver_http.access import parse_permissions
from jobserver_http.authentication import Authenticator, Credentials, Identity

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\-]{0,127}")
NAME_RULE = "a name may contain letters, digits and _ . @ -, and must start with a letter, digit or _"
_SHA256 = re.compile(r"[0-9a-f]{64}")
CHECK_INTERVAL = 1.0
"""Seconds between checks for a changed file."""


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, for a line of the password file."""
    return argon2.PasswordHasher().hash(password)


def new_token() -> str:
    """Return a new random bearer token."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the hash of a token, for a line of the token file. SHA-256 is enough, as tokens are random."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def entry_line(name: str, hashed: str, permissions: str) -> str:
    """Return a line for either file.

    Raises:
        ValueError: The name or the permissions are invalid.
    """
    parse_permissions(permissions)
    if not _NAME.fullmatch(name):
        raise ValueError(NAME_RULE)
    return f"{name}:{hashed}:{permissions}"


def _argon2(text: str) -> str:
    try:
        argon2.extract_parameters(text)
    except InvalidHashError:
        raise ValueError("the second field must be an argon2 hash") from None
    return text


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError("the second field must be a SHA-256 in lower-case hexadecimal")
    return text


class _File:
    """A file of identities, whose proofs are the hashes. It is reloaded when it has changed."""

    def __init__(self, path: Path, key: str, check: Callable[[str], str]) -> None:
        self._path = path
        self._key = key
        self._check = check
        self._lock = threading.Lock()
        self._warned = False
        self._checked_at = time.monotonic()
        self._stamp = self._read_stamp()
        self._entries = self._read()

    def entries(self) -> dict[str, Identity]:
        """Return the identities by name. If a changed file is invalid, log it and keep the old ones."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked_at >= CHECK_INTERVAL:
                self._checked_at = now
                try:
                    stamp = self._read_stamp()
                    if stamp != self._stamp:
                        self._entries, self._stamp = self._read(), stamp
                except InvalidSetting as error:
                    _log.error("%s; the previous content remains in effect", error)
            return self._entries

    def _check_access(self, status: os.stat_result) -> None:
        """Check who can access the file. Warn once if everyone can read it.

        Raises:
            InvalidSetting: Others can change it.
        """
        mode = stat.S_IMODE(status.st_mode)
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise self._invalid(f"others may write to it (mode {mode:04o}); run: chmod go-w {self._path}")
        for directory in _directories_of(self._path):
            parent = stat.S_IMODE(directory.stat().st_mode)
            if parent & stat.S_IWOTH and not parent & stat.S_ISVTX:
                raise self._invalid(
                    f"everyone may replace it in {directory} (mode {parent:04o}); "
                    f"move it, or run: chmod o-w {directory}"
                )
        if mode & stat.S_IROTH and self._check is _argon2 and not self._warned:
            self._warned = True
            text = "%s: everyone may read the password hashes; run: chmod o-r %s"
            _log.warning(text, self._key, self._path)

    def _read_stamp(self) -> tuple[int, int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._invalid(str(error.strerror)) from None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode

    def _read(self) -> dict[str, Identity]:
        try:
            with self._path.open(encoding="utf-8") as file:
                self._check_access(os.fstat(file.fileno()))
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise self._invalid(getattr(error, "strerror", None) or "not UTF-8") from None
        entries: dict[str, Identity] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    found = self._parsed(line.strip())
                    if found.name in entries:
                        raise ValueError(f"the name {found.name} is on an earlier line as well; delete one")
                except ValueError as error:
                    raise self._invalid(f"line {number}: {error}") from None
                entries[found.name] = found
        return entries

    def _parsed(self, line: str) -> Identity:
        fields = line.split(":", 2)
        if len(fields) != 3:
            raise ValueError("expected name:hash:permissions")
        name, hashed, permissions = fields
        if not _NAME.fullmatch(name):
            raise ValueError(NAME_RULE)
        return Identity(name=name, permissions=parse_permissions(permissions), proof=self._check(hashed))

    def _invalid(self, reason: str) -> InvalidSetting:
        return InvalidSetting(key=self._key, message=f"{self._path}: {reason}")


def _directories_of(path: Path) -> Iterator[Path]:
    """Yield the directories that decide which file a path names, including those of links."""
    seen, remaining = set(), [path.absolute()]
    while remaining:
        entry = remaining.pop()
        if entry in seen or entry == entry.parent:
            continue
        seen.add(entry)
        yield entry.parent.resolve()
        remaining.append(entry.parent)
        if entry.is_symlink():
            remaining.append(entry.parent / entry.readlink())


def _check_files(settings: AuthSettings) -> None:
    if settings.password_file is None and settings.token_file is None:
        message = "file requires password-file or token-file"
        raise InvalidSetting(key="jobserver.auth.backend", message=message)


class FileAuthenticator(Authenticator):
    """Authenticates with the configured password file, token file, or both."""

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        _check_files(settings.auth)
        for name in settings.auth.options:
            message = "is not an option of the authenticator file, which has none"
            raise InvalidSetting(key=f"jobserver.auth.options.{name}", message=message)

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> FileAuthenticator:
        return cls(settings.auth)

    def __init__(self, settings: AuthSettings) -> None:
        _check_files(settings)
        self._hasher = argon2.PasswordHasher()
        self._dummy_hash = hash_password(secrets.token_hex())
        self._users = self._tokens = None
        challenges: list[str] = []
        if settings.password_file is not None:
            self._users = _File(settings.password_file, "jobserver.auth.password-file", _argon2)
            challenges += Authenticator.challenges
        if settings.token_file is not None:
            self._tokens = _File(settings.token_file, "jobserver.auth.token-file", _sha256)
            challenges.append('Bearer realm="jobserver"')
        self.challenges = tuple(challenges)

    def problem(self) -> str | None:
        if any(file.entries() for file in (self._users, self._tokens) if file is not None):
            return None
        return "nobody can log in: the files of jobserver.auth have no entries"

    def authenticate(self, credentials: Credentials) -> Identity | None:
        if credentials.scheme == "bearer":
            return self._by_token(credentials.secret)
        return self._by_password(credentials.user or "", credentials.secret)

    def current(self, identity: Identity) -> bool:
        """Whether a file still has an entry for this identity with these permissions."""
        files = (file for file in (self._users, self._tokens) if file is not None)
        return any(file.entries().get(identity.name) == identity for file in files)

    def _by_password(self, user: str, password: str) -> Identity | None:
        if self._users is None:
            return None
        found = self._users.entries().get(user)
        try:
            # Verify a dummy hash for an unknown user, so that both cases take the same time.
            self._hasher.verify(found.proof if found else self._dummy_hash, password)
        except (VerificationError, InvalidHashError):
            return None
        return found

    def _by_token(self, token: str) -> Identity | None:
        if self._tokens is None:
            return None
        hashed = hash_token(token)
        found = None
        for identity in self._tokens.entries().values():
            if hmac.compare_digest(identity.proof, hashed):
                found = identity
        return found
