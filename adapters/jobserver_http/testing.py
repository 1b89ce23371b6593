"""The contract of every authenticator."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import ClassVar

import attrs
import pytest

from jobserver_core.testing.contract import in_threads, returned
from jobserver_core.testing.options import OptionsContract
from jobserver_http.authentication import Authenticator, Credentials, Identity


class AuthenticatorContract(OptionsContract):
    """What every authenticator does. Fixtures: ``authenticator``, which knows the owner of :meth:`valid`."""

    timeout: ClassVar[float] = 20.0
    """Seconds after which a revocation that has no effect fails the test."""

    @abstractmethod
    def valid(self) -> Credentials:
        """Return credentials that are valid."""

    @abstractmethod
    def owner(self) -> tuple[str, frozenset[str]]:
        """Return the name and the permissions of the owner of the valid credentials."""

    @abstractmethod
    def revoke(self, authenticator: Authenticator) -> None:
        """Make the valid credentials invalid, as an administrator does."""

    def authenticated(self, authenticator: Authenticator, credentials: Credentials) -> Identity | None:
        """Return what ``authenticate`` returns, and check its type."""
        right = "it has to return an Identity, or None for credentials that are not valid"
        try:
            found = authenticator.authenticate(credentials)
        except Exception as error:
            raise AssertionError(f"authenticate raised {error!r} for {credentials}; {right}") from error
        assert found is None or isinstance(found, Identity), (
            f"authenticate returned {found!r} for {credentials}; {right}"
        )
        return found

    def identity(self, authenticator: Authenticator) -> Identity:
        """Return the owner of the valid credentials."""
        found = self.authenticated(authenticator, self.valid())
        assert found is not None, "authenticate has to know the owner of the credentials of valid()"
        return found

    def is_current(self, authenticator: Authenticator, identity: Identity) -> bool:
        """Return what ``current`` returns, and check its type."""
        try:
            found = authenticator.current(identity)
        except Exception as error:
            right = "it has to return False for an identity that is no longer valid"
            raise AssertionError(f"current raised {error!r} for {identity}; {right}") from error
        return returned("current", found, bool)

    def test_valid_credentials_identify_their_owner(self, authenticator: Authenticator) -> None:
        found = self.identity(authenticator)
        identity = (found.name, found.permissions)
        assert identity == self.owner(), f"the credentials belong to {self.owner()}, not to {identity}"
        assert self.is_current(authenticator, found), "current has to be true while the credentials are valid"

    def test_the_same_credentials_give_equal_identities(self, authenticator: Authenticator) -> None:
        first, again = self.identity(authenticator), self.identity(authenticator)
        assert first == again, f"the same credentials gave {first}, then {again}"

    @pytest.mark.parametrize("change", ["", "x", "ü🙂\0"])
    def test_a_wrong_secret_identifies_nobody(self, authenticator: Authenticator, change: str) -> None:
        valid = self.valid()
        wrong = {change, valid.secret + (change or " "), change + valid.secret[1:], valid.secret.upper()}
        for secret in wrong - {valid.secret}:
            found = self.authenticated(authenticator, attrs.evolve(valid, secret=secret))
            assert found is None, f"the wrong secret {secret!r} was accepted as {found}; return None"

    @pytest.mark.parametrize("user", [None, "nobody", "ü🙂\0"])
    def test_credentials_of_another_scheme_identify_nobody(
        self, authenticator: Authenticator, user: str | None
    ) -> None:
        valid = self.valid()
        scheme = "bearer" if valid.scheme == "basic" else "basic"
        other = Credentials(scheme=scheme, user=user, secret=valid.secret)
        found = self.authenticated(authenticator, other)
        assert found is None, f"{scheme} credentials were accepted as {found}; return None for this scheme"

    @pytest.mark.parametrize("user", [None, "nobody", "ü🙂\0"])
    def test_a_user_name_decides_if_the_scheme_has_one(
        self, authenticator: Authenticator, user: str | None
    ) -> None:
        found = self.authenticated(authenticator, attrs.evolve(self.valid(), user=user))
        if self.valid().scheme == "basic":
            assert found is None, (
                f"the secret of another user was accepted for the user {user!r}; return None"
            )
        else:
            assert found is not None, f"a bearer token was refused because of the user {user!r}: ignore that"

    def test_revoked_credentials_identify_nobody(self, authenticator: Authenticator) -> None:
        found = self.identity(authenticator)
        valid = self.valid()
        self.revoke(authenticator)
        deadline = time.monotonic() + self.timeout
        while self.is_current(authenticator, found) or self.authenticated(authenticator, valid):
            assert time.monotonic() < deadline, "authenticate or current still accepts what was revoked"
            time.sleep(0.05)

    def test_an_identity_does_not_show_its_secret(self, authenticator: Authenticator) -> None:
        found = self.identity(authenticator)
        assert self.valid().secret not in repr(found), "the repr of the identity shows the secret"
        assert not found.proof or found.proof not in repr(found), "the repr of the identity shows its proof"

    def test_its_problem_is_a_string_or_none(self, authenticator: Authenticator) -> None:
        problem: object = authenticator.problem()
        assert problem is None or isinstance(problem, str), (
            f"problem returned {problem!r}; it has to return a string for the operator, or None"
        )

    def test_the_challenge_names_the_scheme(self, authenticator: Authenticator) -> None:
        challenges: object = authenticator.challenges
        assert not isinstance(challenges, str), (
            f"challenges has to be a tuple: challenges = ({challenges!r},), not {challenges!r}"
        )
        schemes = {challenge.split()[0].lower() for challenge in authenticator.challenges}
        assert self.valid().scheme in schemes, (
            f"valid() has {self.valid().scheme} credentials, but the challenges name {schemes}"
        )

    def test_many_threads_may_authenticate_at_once(self, authenticator: Authenticator) -> None:
        found: list[Identity | None] = []

        def run(_number: int) -> None:
            found.append(self.authenticated(authenticator, self.valid()))
            found.append(self.authenticated(authenticator, attrs.evolve(self.valid(), secret="wrong")))

        in_threads(run, 4)
        expected = sorted(map(str, [self.identity(authenticator), None] * 4))
        assert sorted(map(str, found)) == expected, (
            f"calls of several threads at once gave {sorted(map(str, found))}, not {expected}"
        )
