"""Code in local files that a command line names: uploaded under a name made of its content, once."""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from pathlib import Path

from jobserver_cli.client import Client, segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.lookups import nearest
from jobserver_cli.terminal import Terminal
from jobserver_cli.uploads import post_file

__all__ = ["BinaryKind", "kind_of", "upload_binary", "uploaded_class_path"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")
LONGEST_STEM = 100
DIGITS = 12
"""Hexadecimal digits of the content's SHA-256 in a name."""


class BinaryKind(str, Enum):
    """The kinds of binaries, as the option ``--type`` takes them."""

    JAR = "jar"
    EGG = "egg"
    WHEEL = "wheel"


_MEDIA_TYPES = {
    BinaryKind.JAR: "application/java-archive",
    BinaryKind.EGG: "application/python-egg",
    BinaryKind.WHEEL: "application/python-wheel",
}
_ENDINGS = {".jar": BinaryKind.JAR, ".egg": BinaryKind.EGG, ".whl": BinaryKind.WHEEL}


def kind_of(file: Path) -> BinaryKind | None:
    """Return what a file is, by its ending."""
    return _ENDINGS.get(file.suffix.lower())


def upload_binary(client: Client, terminal: Terminal, name: str, file: Path, kind: BinaryKind) -> None:
    """Upload a file as the newest version of a binary."""
    post_file(client, terminal, f"/binaries/{segment(name)}", file, _MEDIA_TYPES[kind])


def uploaded_class_path(client: Client, terminal: Terminal, entries: list[str]) -> list[str]:
    """Return the entries of a class path as a server takes them: local files are uploaded first.

    A file that the server has under the name made of its content is not sent again. Raises CommandFailed
    for an entry that is neither a name, nor a URI, nor a file of code, before anything is uploaded.
    """
    files = {entry: _code_file(entry) for entry in entries if _names_a_file(client, entry)}
    return [_uploaded(client, terminal, files[entry]) if entry in files else entry for entry in entries]


def _names_a_file(client: Client, entry: str) -> bool:
    if not entry.strip():
        raise CommandFailed("--cp takes a name, a URI or a file, and got nothing", ExitCode.USAGE)
    if _SCHEME.match(entry):
        _check_uri(entry)
        return False
    if "/" in entry or entry.startswith("~"):
        return True
    file = Path(entry)
    return kind_of(file) is not None and file.exists() and entry not in client.get("/binaries")


def _check_uri(entry: str) -> None:
    scheme, _, rest = entry.partition(":")
    if scheme.lower() in ("file", "local") and not rest.startswith("/"):
        raise CommandFailed(
            f"--cp {entry}: a {scheme} URI has the whole path of a file on the server's machine",
            ExitCode.USAGE,
            f"To upload a file of this machine write its path alone: --cp ./{rest.lstrip('./')}",
        )


def _code_file(entry: str) -> Path:
    """Return the file of an entry. Raises CommandFailed when it cannot be uploaded."""
    file = Path(entry).expanduser()
    if file.is_dir():
        advice = "Build a wheel of the project with: pip wheel --no-deps . — and name that."
        raise CommandFailed(f"--cp {entry}: is a directory", ExitCode.USAGE, advice)
    if not file.is_file():
        raise _missing(entry, file)
    if kind_of(file) is None:
        advice = "Package it; a project with a pyproject.toml becomes a wheel with: pip wheel --no-deps ."
        raise CommandFailed(f"--cp {entry}: does not end in .jar, .egg or .whl", ExitCode.USAGE, advice)
    return file


def _missing(entry: str, file: Path) -> CommandFailed:
    siblings = [one.name for one in file.parent.iterdir() if kind_of(one)] if file.parent.is_dir() else []
    found = nearest(file.name, siblings)
    advice = f"Did you mean {file.parent / found}?" if found else None
    return CommandFailed(f"--cp {entry}: there is no such file", ExitCode.USAGE, advice)


def _uploaded(client: Client, terminal: Terminal, file: Path) -> str:
    """Upload a file unless the server has it; return its name there."""
    digest = _digest(file)
    kind = kind_of(file)
    assert kind is not None  # as checked before the first upload
    name = f"{_stem(file)}-{digest[:DIGITS]}"
    if not _has(client, name, digest):
        upload_binary(client, terminal, name, file, kind)
        terminal.note(f"uploaded {file.name} as {name}")
    return name


def _stem(file: Path) -> str:
    """Return what a name begins with: the project and its version, for a wheel, else the file's own name."""
    stem = "-".join(file.stem.split("-")[:2]) if file.suffix.lower() == ".whl" else file.stem
    return _NOT_IN_NAMES.sub("_", stem).lstrip(".-")[:LONGEST_STEM] or "code"


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as content:
            digest = hashlib.sha256()
            while chunk := content.read(1024 * 1024):
                digest.update(chunk)
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror or error}", ExitCode.USAGE) from error
    return digest.hexdigest()


def _has(client: Client, name: str, digest: str) -> bool:
    """Return whether the newest binary of a name is this content."""
    response = client.send("GET", f"/binaries/{segment(name)}/versions", accept_errors=True)
    return not response.is_error and response.json()[0].get("digest") == digest
