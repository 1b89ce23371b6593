"""The authenticator that reads credentials from files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobserver_core.config.settings import AuthSettings, Settings
from jobserver_core.errors import InvalidSetting, PluginNotFound
from jobserver_http import credential_files
from jobserver_http.authentication import (
    Credentials,
    authenticator_from_settings,
)
from jobserver_http.credential_files import FileAuthenticator, hash_password, hash_token, new_token

HASH = hash_password("s3cret")


# -- files of credentials --------------------------------------------------------------------------


def files(directory: Path, passwords: str | None = None, tokens: str | None = None) -> AuthSettings:
    named: dict[str, Any] = {}
    for key, text in (("password_file", passwords), ("token_file", tokens)):
        if text is not None:
            path = directory / key
            path.write_text(text)
            path.chmod(0o600)
            named[key] = path
    return AuthSettings(backend="file", **named)


def login(user: str, password: str) -> Credentials:
    return Credentials(scheme="basic", user=user, secret=password)


def test_users_of_the_password_file_have_its_permissions(tmp_path: Path) -> None:
    settings = files(tmp_path, f"# who\n\nalice:{HASH}:jobs,contexts:read\nbob:{HASH}:*\n")
    authenticator = authenticator_from_settings(Settings(auth=settings))
    assert authenticator is not None
    alice = authenticator.authenticate(login("alice", "s3cret"))
    assert alice is not None
    assert alice.permissions == {"jobs", "contexts:read"}
    assert authenticator.authenticate(login("alice", "S3cret")) is None
    assert authenticator.authenticate(login("carol", "s3cret")) is None
    assert authenticator.authenticate(Credentials(scheme="bearer", secret="s3cret")) is None


def test_a_token_is_as_good_as_the_file_says(tmp_path: Path) -> None:
    token = new_token()
    authenticator = FileAuthenticator(files(tmp_path, tokens=f"ci:{hash_token(token)}:jobs:start"))
    found = authenticator.authenticate(Credentials(scheme="bearer", secret=token))
    assert found is not None
    assert (found.name, found.permissions) == ("ci", {"jobs:start"})
    assert authenticator.authenticate(Credentials(scheme="bearer", secret=token + "x")) is None
    assert authenticator.authenticate(login("ci", token)) is None
    assert authenticator.challenges == ('Bearer realm="jobserver"',)


def test_an_unknown_user_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    authenticator = FileAuthenticator(files(tmp_path, f"alice:{HASH}:*"))

    def seconds(user: str) -> float:
        taken = []
        for _ in range(5):
            begun = time.process_time()
            authenticator.authenticate(login(user, "wrong"))
            taken.append(time.process_time() - begun)
        return min(taken)

    known, unknown = seconds("alice"), seconds("nobody")
    assert unknown > known / 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alice", "line 1: expected name:hash:permissions"),
        (f"\nalice:{HASH}:root", "line 2: unknown permission 'root'"),
        ("alice:plain:*", "line 1: the second field must be an argon2 hash"),
        (f"alice~x:{HASH}:*", "line 1: a name may contain letters"),
        (
            f"alice:{HASH}:*\nalice:{HASH}:jobs",
            "line 2: the name alice is on an earlier line as well; delete one",
        ),
    ],
)
def test_a_malformed_line_is_reported_with_its_number_but_not_its_hash(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(InvalidSetting, match=reason) as caught:
        FileAuthenticator(files(tmp_path, text))
    assert HASH not in str(caught.value)


def test_files_that_are_missing_or_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="No such file"):
        FileAuthenticator(AuthSettings(backend="file", password_file=tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSetting, match="not UTF-8"):
        FileAuthenticator(AuthSettings(backend="file", password_file=tmp_path / "bytes"))
    with pytest.raises(InvalidSetting, match="password-file"):
        FileAuthenticator(AuthSettings(backend="file"))


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(credential_files, "CHECK_INTERVAL", 0.0)
    settings = files(tmp_path, f"alice:{HASH}:*")
    authenticator = FileAuthenticator(settings)
    alice = authenticator.authenticate(login("alice", "s3cret"))
    assert alice is not None
    assert authenticator.current(alice)
    assert settings.password_file is not None
    settings.password_file.write_text("broken")
    assert authenticator.authenticate(login("alice", "s3cret")) == alice
    assert "the previous content remains in effect" in caplog.text
    settings.password_file.write_text(f"alice:{hash_password('new')}:*")
    assert not authenticator.current(alice)
    assert authenticator.authenticate(login("alice", "s3cret")) is None
    assert authenticator.authenticate(login("alice", "new")) is not None


@pytest.mark.parametrize("kind", ["passwords", "tokens"])
@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, kind: str, mode: int) -> None:
    text = {"passwords": f"alice:{HASH}:*", "tokens": f"ci:{hash_token('x')}:*"}[kind]
    settings = files(tmp_path, **{kind: text})
    path = settings.password_file or settings.token_file
    assert path is not None
    path.chmod(mode)
    with pytest.raises(InvalidSetting, match=rf"others may write to it \(mode {mode:04o}\); run: chmod go-w"):
        FileAuthenticator(settings)
    path.chmod(0o640)
    FileAuthenticator(settings)


def test_a_file_that_everyone_may_replace_is_refused(tmp_path: Path) -> None:
    settings = files(tmp_path, f"alice:{HASH}:*")
    try:
        tmp_path.chmod(0o777)
        with pytest.raises(InvalidSetting, match="everyone may replace it in"):
            FileAuthenticator(settings)
        tmp_path.chmod(0o1777)
        FileAuthenticator(settings)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("open_to_all", ["above", "link", "above-link", "second-link"])
def test_a_file_whose_path_everyone_may_redirect_is_refused(
    tmp_path: Path, open_to_all: str, absolute: bool
) -> None:
    def directory(*names: str) -> Path:
        path = tmp_path.joinpath(*names)
        path.mkdir(parents=True)
        return path

    kept = files(directory("above", "kept"), f"alice:{HASH}:*").password_file
    assert kept is not None
    second = directory("second-link") / "passwords"
    second.symlink_to(os.path.relpath(kept, second.parent))
    first = directory("above-link", "link") / "passwords"
    first.symlink_to(second if absolute else os.path.relpath(second, first.parent))
    settings = AuthSettings(backend="file", password_file=first)
    FileAuthenticator(settings)

    changed = next(tmp_path.rglob(open_to_all))
    changed.chmod(0o777)
    with pytest.raises(InvalidSetting, match=rf"everyone may replace it in .*{open_to_all} \(mode 0777\)"):
        FileAuthenticator(settings)
    changed.chmod(0o1777)
    FileAuthenticator(settings)


def test_a_file_that_becomes_writable_for_others_is_not_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(credential_files, "CHECK_INTERVAL", 0.0)
    settings = files(tmp_path, f"alice:{HASH}:*")
    authenticator = FileAuthenticator(settings)
    assert settings.password_file is not None
    settings.password_file.write_text(f"mallory:{HASH}:*")
    settings.password_file.chmod(0o666)
    assert authenticator.authenticate(login("mallory", "s3cret")) is None
    assert authenticator.authenticate(login("alice", "s3cret")) is not None
    assert "others may write to it" in caplog.text


def test_world_readable_password_hashes_are_warned_about_but_token_hashes_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = files(tmp_path, f"alice:{HASH}:*", f"ci:{hash_token('x')}:*")
    for path in (settings.password_file, settings.token_file):
        assert path is not None
        path.chmod(0o644)
    FileAuthenticator(settings)
    assert [record.getMessage() for record in caplog.records] == [
        "jobserver.auth.password-file: everyone may read the password hashes; "
        f"run: chmod o-r {settings.password_file}"
    ]


def test_files_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"password-file.*requires.*backend = file"):
        authenticator_from_settings(Settings(auth=AuthSettings(password_file=tmp_path / "x")))
    assert authenticator_from_settings(Settings(auth=AuthSettings())) is None


def test_an_authenticator_that_is_not_installed_is_named() -> None:
    with pytest.raises(PluginNotFound, match=r"kerberos.*file"):
        authenticator_from_settings(Settings(auth=AuthSettings(backend="kerberos")))
