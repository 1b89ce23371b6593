"""Uploading local files: data files, and code that is given by its path.

Code gets a name that contains a hash of its content, so that the same file is uploaded only once.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.exits import CommandFailed, ExitCode, reading
from jobserver_cli.lookups import nearest
from jobserver_cli.terminal import Terminal

if TYPE_CHECKING:
    from jobserver_core.models.json_values import Json

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")
MAX_STEM = 100
"""The most characters of a file's name in the name of its binary: with the hash, that may have 255."""
MAX_NAMED = 5
"""How many files of a directory an error names."""
HASH_DIGITS = 12
"""How many hexadecimal digits of the content's SHA-256 are part of the name."""


class BinaryKind(str, Enum):
    """The values of the option ``--type``."""

    JAR = "jar"
    EGG = "egg"
    WHEEL = "wheel"


@attrs.frozen
class Code:
    """The code of a job, as names of binaries and URIs."""

    class_path: list[str]
    packages: list[str]


_SUFFIXES = {
    ".jar": BinaryKind.JAR,
    ".egg": BinaryKind.EGG,
    ".zip": BinaryKind.EGG,
    ".whl": BinaryKind.WHEEL,
}


def kind_of(file: Path) -> BinaryKind | None:
    """Return the kind of a file by its suffix, or None for any other suffix."""
    return _SUFFIXES.get(file.suffix.lower())


def post_file(
    client: CommandClient, terminal: Terminal, path: str, file: Path, media_type: str, **params: str
) -> Json:
    """Send a file as the body of a POST request; return the JSON response."""
    from jobserver_client.options import SLOW_TIMEOUT  # noqa: PLC0415 - --help does not need it

    with reading(file), terminal.opened(file) as content:
        headers = {"Content-Type": media_type, "Content-Length": str(file.stat().st_size)}
        return client.call(
            "POST", path, params=params, content=content, headers=headers, timeout=SLOW_TIMEOUT
        )


def upload_binary(client: CommandClient, terminal: Terminal, name: str, file: Path, kind: BinaryKind) -> None:
    """Upload a file as the newest version of a binary."""
    from jobserver_core.models.binaries import BinaryType  # noqa: PLC0415 - --help does not need it

    media_type = BinaryType.of(kind.value).media_type
    post_file(client, terminal, f"/binaries/{quoted_segment(name)}", file, media_type)


def upload_code(
    client: CommandClient,
    terminal: Terminal,
    cp: list[str],
    packages: list[str],
    *,
    option: str = "--cp",
    before_upload: Callable[[], None] = lambda: None,
) -> Code:
    """Upload the local files among the values of ``--cp`` and ``--package``, and return the names of all.

    Errors call the first one ``option``, which need not be its name. Values may be separated by commas. A
    file that the server already has under its content-based name is not sent again; ``before_upload`` is
    called before each that is sent.

    Raises:
        CommandFailed: An entry is not a name, a URI or a code file. Nothing is uploaded in that case.
    """
    entries = [(option, entry) for given in cp for entry in given.split(",")]
    entries += [("--package", entry) for given in packages for entry in given.split(",")]
    files = {entry: _code_file(name, entry) for name, entry in entries if _names_a_file(client, name, entry)}
    names = [
        (name, _upload(client, terminal, files[entry], before_upload) if entry in files else entry)
        for name, entry in entries
    ]
    return Code(
        class_path=[code for name, code in names if name != "--package"],
        packages=[code for name, code in names if name == "--package"],
    )


def _names_a_file(client: CommandClient, option: str, entry: str) -> bool:
    if not entry.strip():
        raise CommandFailed(f"{option} has an empty entry; expected a name, a URI or a file", ExitCode.USAGE)
    if _SCHEME.match(entry):
        _check_uri(option, entry)
        return False
    if "/" in entry or entry.startswith("~"):
        return True
    like_a_path = kind_of(Path(entry)) or not _may_be_a_binary(entry)
    exists = os.path.exists(entry) if like_a_path else os.path.isfile(entry)
    return exists and entry not in client.get("/binaries")


def _may_be_a_binary(name: str) -> bool:
    from jobserver_core.errors import InvalidName  # noqa: PLC0415 - --help does not need it
    from jobserver_core.models.validation import check_binary_name  # noqa: PLC0415

    try:
        check_binary_name(name)
    except InvalidName:
        return False
    return True


def _check_uri(option: str, entry: str) -> None:
    scheme, _, rest = entry.partition(":")
    if scheme.lower() in ("file", "local") and not rest.startswith("/"):
        raise CommandFailed(
            f"{option} {entry}: a {scheme} URI needs the absolute path of a file on the server's machine",
            ExitCode.USAGE,
            f"To upload a file from this machine, give its path: ./{rest.lstrip('./')}",
        )


def _code_file(option: str, entry: str) -> Path:
    file = Path(os.path.expanduser(entry))
    if file.is_dir():
        message = f"{option} {entry}: is a directory, expected a code file"
        raise CommandFailed(message, ExitCode.USAGE, advice_instead_of(entry))
    if not file.is_file():
        siblings = [one.name for one in file.parent.iterdir() if kind_of(one)] if file.parent.is_dir() else []
        found = nearest(file.name, siblings)
        advice = f"Did you mean {file.parent / found}?" if found else None
        raise CommandFailed(f"{option} {entry}: file not found", ExitCode.USAGE, advice)
    if kind_of(file) is None:
        package = "Package it. To build a wheel from a pyproject.toml: pip wheel --no-deps ."
        message = f"{option} {entry}: the file does not end in .jar, .egg, .zip or .whl"
        if "/" not in entry:
            message += ", and no binary has this name"
        raise CommandFailed(message, ExitCode.USAGE, package)
    return file


def advice_instead_of(directory: str) -> str:
    """Return what to give instead of a directory: a code file in it or its ``dist``, or how to build one."""
    path = Path(os.path.expanduser(directory))
    project = _project_of(path)
    for parent in (path, path / "dist", *([project / "dist"] if project else [])):
        found = sorted(file for file in parent.glob("*") if kind_of(file) and file.is_file())
        if len(found) == 1:
            return f"Did you mean {found[0]}?"
        if found:
            return f"Give one of its files: {', '.join(map(str, found[:MAX_NAMED]))}" + (
                f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            )
    if project is None:
        where = "in the directory of its pyproject.toml"
        return f"Build a wheel {where} with: pip wheel --no-deps . — and give its path."
    # Otherwise pip could take it for an option, or a name on its index.
    given = str(project) if str(project).startswith((".", "/")) else f"./{project}"
    return f"Build a wheel with: pip wheel --no-deps {shlex.quote(given)} — and give its path."


def _project_of(directory: Path) -> Path | None:
    """Return the directory that pip can build: this one, or the one of this package, also below ``src``."""
    for project in (directory, directory / "..", directory / ".." / ".."):
        if any((project / name).is_file() for name in ("pyproject.toml", "setup.py")):
            return Path(os.path.normpath(project))
    return None


def _upload(client: CommandClient, terminal: Terminal, file: Path, before: Callable[[], None]) -> str:
    """Upload a file unless the server has it; return its name there."""
    digest = file_digest(file)
    kind = kind_of(file)
    assert kind is not None  # checked by _code_file
    name = f"{_stem(file)}-{digest[:HASH_DIGITS]}"
    if not has(client, name, digest, kind):
        before()
        upload_binary(client, terminal, name, file, kind)
        terminal.note(f"uploaded {file.name} as {name}")
    return name


def _stem(file: Path) -> str:
    """Return the first part of a name: project and version for a wheel, otherwise the file name."""
    stem = "-".join(file.stem.split("-")[:2]) if file.suffix.lower() == ".whl" else file.stem
    return _NOT_IN_NAMES.sub("_", stem).lstrip(".-")[:MAX_STEM] or "code"


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        CommandFailed: It cannot be read.
    """
    from jobserver_core.models import arguments  # noqa: PLC0415 - --help does not need it

    with reading(file), file.open("rb") as content:
        return arguments.digest_of(content)


def has(client: CommandClient, name: str, digest: str, kind: BinaryKind) -> bool:
    """Return whether the newest version of a binary has this content and this kind."""
    response = client.send("GET", f"/binaries/{quoted_segment(name)}/versions", accept_errors=True)
    if response.is_error:
        return False
    newest = response.json()[0]
    same_kind = str(newest.get("binary-type", "")).lower() == kind.value
    return newest.get("digest") == digest and same_kind
