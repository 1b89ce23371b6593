"""Compares the tags of wheels (binary distribution format, ``WHEEL``) with this interpreter."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["foreign"]


def foreign(directories: Iterable[str]) -> str:
    """Return a message about unpacked wheels for another Python or machine; it is empty without any."""
    found = []
    for file in (file for directory in directories for file in Path(directory).glob("*.dist-info/WHEEL")):
        tags = re.findall(r"^Tag: (\S+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if tags and not any(map(_fits, tags)):
            found.append(f"{file.parent.name.removesuffix('.dist-info')} is made for {', '.join(tags)}")
    if not found:
        return ""
    mine = f"cp{sys.version_info[0]}{sys.version_info[1]} on {sys.platform}_{platform.machine()}"
    return f"the wheel {'; the wheel '.join(found)}, and this is {mine}"


def _fits(tag: str) -> bool:
    python, abi, machine = [*tag.split("-", 2), "", ""][:3]
    return _fits_python(python, abi) and (
        machine == "any" or ("linux" in machine and machine.endswith(f"_{platform.machine()}"))
    )


def _fits_python(python: str, abi: str) -> bool:
    major, minor = sys.version_info[:2]
    match = re.fullmatch(r"(py|cp)(\d)(\d*)", python)
    if match is None or int(match[2]) != major:
        return False
    if match[1] == "cp" and abi != "abi3":
        return match[3] in ("", str(minor))
    return int(match[3] or 0) <= minor
