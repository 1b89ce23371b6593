"""The example that ``jobserver demo`` runs: a word count, and its wheel."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

__all__ = ["CLASS_NAME", "build_example_wheel", "build_wheel"]

CLASS_NAME = "wordcount_example.WordCountExample"
"""The class to submit; it requires ``input.string`` in its configuration."""

_WHEEL = "Wheel-Version: 1.0\nGenerator: jobserver\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_TIME = (2020, 1, 1, 0, 0, 0)


def build_example_wheel(directory: Path) -> Path:
    """Build the example's wheel in a directory and return its path; the same bytes every time."""
    return build_wheel(Path(__file__).parent / "wordcount_example", directory, version="1.0")


def build_wheel(package: Path, directory: Path, *, version: str) -> Path:
    """Build a wheel of one pure Python package, with its data files, and return its path.

    ``package`` is the directory of the package, or the file of a single module. A wheel is a ZIP archive of
    it, with two files of metadata and a list of hashes (the binary distribution format of
    packaging.python.org).
    """
    name = package.stem
    members = (
        {package.name: package.read_bytes()}
        if package.is_file()
        else {
            f"{name}/{path.relative_to(package).as_posix()}": path.read_bytes()
            for path in sorted(package.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
    )
    info = f"{name}-{version}.dist-info"
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    members[f"{info}/WHEEL"] = _WHEEL.encode()
    record = [f"{member},sha256={_digest(data)},{len(data)}" for member, data in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"]).encode()
    target = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member, date_time=_TIME), data, zipfile.ZIP_DEFLATED)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
