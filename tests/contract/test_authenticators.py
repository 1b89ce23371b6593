"""The built-in authenticator passes the contract, and faulty ones fail it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from faults import failing

from jobserver_core.config.settings import AuthSettings
from jobserver_core.testing.options import BackendOptions
from jobserver_http import Authenticator, Credentials, Identity
from jobserver_http.credential_files import (
    FileAuthenticator,
    entry_line,
    hash_password,
    hash_token,
    new_token,
)
from jobserver_http.testing import AuthenticatorContract


class FileContract(AuthenticatorContract):
    """A file with one user; the subclass chooses the kind of file."""

    def backend_options(self, directory: Path) -> BackendOptions:
        path = self.write(directory, hash_token(new_token()))
        accepted = {"jobserver.auth.token-file": str(path)}
        option = "jobserver.auth.options.file"
        return BackendOptions(
            backend=FileAuthenticator,
            accepted=[accepted],
            refused=[({}, "jobserver.auth.backend"), ({**accepted, option: "x"}, option)],
        )

    def owner(self) -> tuple[str, frozenset[str]]:
        return "alice", frozenset({"jobs:read", "jobs:start"})

    def write(self, directory: Path, hashed: str) -> Path:
        self.path = directory / "credentials"
        self.path.write_text(entry_line("alice", hashed, "jobs:read,jobs:start") + "\n")
        self.path.chmod(0o600)
        return self.path

    def revoke(self, authenticator: Authenticator) -> None:
        self.path.write_text("# nobody\n")


@pytest.mark.real
class TestPasswordFile(FileContract):
    @pytest.fixture
    def authenticator(self, tmp_path: Path) -> Authenticator:
        path = self.write(tmp_path, hash_password("correct horse"))
        return FileAuthenticator(AuthSettings(password_file=path))

    def valid(self) -> Credentials:
        return Credentials(scheme="basic", user="alice", secret="correct horse")


@pytest.mark.real
class TestTokenFile(FileContract):
    token = new_token()

    @pytest.fixture
    def authenticator(self, tmp_path: Path) -> Authenticator:
        path = self.write(tmp_path, hash_token(self.token))
        return FileAuthenticator(AuthSettings(token_file=path))

    def valid(self) -> Credentials:
        return Credentials(scheme="bearer", secret=self.token)


# -- the contract finds broken authenticators -------------------------------------------------------


class Simple(Authenticator):
    """Knows one user, without a fault."""

    def __init__(self) -> None:
        self.known = {"alice": "secret"}

    def authenticate(self, credentials: Credentials) -> Identity | None:
        name = credentials.user or ""
        if credentials.scheme != "basic" or self.known.get(name) != credentials.secret:
            return None
        return Identity(name=name, permissions=frozenset({"*"}))

    def current(self, identity: Identity) -> bool:
        return identity.name in self.known


class SimpleContract(AuthenticatorContract):
    timeout = 0.2

    def valid(self) -> Credentials:
        return Credentials(scheme="basic", user="alice", secret="secret")

    def owner(self) -> tuple[str, frozenset[str]]:
        return "alice", frozenset({"*"})

    def revoke(self, authenticator: Authenticator) -> None:
        assert isinstance(authenticator, Simple)
        authenticator.known.clear()


class ComparesTheBeginning(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        return super().authenticate(attrs.evolve(credentials, secret=credentials.secret[:6]))


class IgnoresCase(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        return super().authenticate(attrs.evolve(credentials, secret=credentials.secret.lower()))


class RemembersWhoWasThere(Simple):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Identity] = {}

    def authenticate(self, credentials: Credentials) -> Identity | None:
        if found := super().authenticate(credentials):
            self.seen[credentials.secret] = found
        return found or self.seen.get(credentials.secret)


class IgnoresTheScheme(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        return super().authenticate(attrs.evolve(credentials, scheme="basic", user="alice"))


class RaisesForTheUnknown(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        assert self.known[credentials.user or ""]
        return super().authenticate(credentials)


class AllowsEverything(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        found = super().authenticate(credentials)
        return found and attrs.evolve(found, permissions=frozenset({"*", "jobs"}))


class NeverForgets(Simple):
    def current(self, identity: Identity) -> bool:
        return True


class AnswersInWords(Simple):
    def current(self, identity: Identity) -> Any:
        return "yes" if super().current(identity) else ""


class HasNumberedProblems(Simple):
    def problem(self) -> Any:
        return 5


class ShowsTheSecret(Simple):
    def authenticate(self, credentials: Credentials) -> Identity | None:
        found = super().authenticate(credentials)
        return found and attrs.evolve(found, name=credentials.secret)


class ChallengesForAnotherScheme(Simple):
    challenges = ('Bearer realm="jobserver"',)


class IsAnotherEachTime(Simple):
    count = 0

    def authenticate(self, credentials: Credentials) -> Identity | None:
        self.count += 1
        found = super().authenticate(credentials)
        return found and attrs.evolve(found, proof=str(self.count))


def test_an_authenticator_without_a_fault_passes() -> None:
    assert list(failing(SimpleContract, "authenticator", lambda _: Simple())) == []


@pytest.mark.parametrize("fault", Simple.__subclasses__(), ids=lambda fault: fault.__name__)
def test_an_authenticator_with_a_fault_fails(fault: type[Simple]) -> None:
    assert list(failing(SimpleContract, "authenticator", lambda _: fault())) != []
