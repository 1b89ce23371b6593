"""Java's properties files, which HOCON's ``include`` reads in addition to ``.conf`` and ``.json``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jobserver_core.config.hocon.nodes import Object

__all__ = ["parse_properties"]

_BLANK_OR_COMMENT = re.compile(r"[ \t\f]*(?:[#!].*)?")
_KEY = re.compile(r"[ \t\f]*((?:[^\\ \t\f=:]|\\.)*)[ \t\f]*[=:]?[ \t\f]*")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))")
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_CONTINUED = re.compile(r"(?:^|[^\\])(?:\\\\)*\\$")


def parse_properties(text: str) -> Object:
    """Return the object of a properties file: keys are paths with dots, all values are strings.

    If a key has both a value and keys below it, the keys below win.
    """
    root = Object()
    properties = dict(_pairs(text))
    for key in sorted(properties, key=lambda key: key.count(".")):
        *parents, name = key.split(".")
        target = root
        for parent in parents:
            if not isinstance(target.fields.get(parent), Object):
                target.fields[parent] = Object()
            target = target.fields[parent]
        target.fields[name] = properties[key]
    return root


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        match = _KEY.match(line)
        if match is not None:
            yield _unescaped(match[1]), _unescaped(line[match.end() :])


def _lines(text: str) -> Iterator[str]:
    """Yield the lines with content, each joined with its continuation lines."""
    whole = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not whole and _BLANK_OR_COMMENT.fullmatch(line):
            continue
        whole += line.lstrip(" \t\f") if whole else line
        if _CONTINUED.search(whole):
            whole = whole[:-1]
            continue
        yield whole
        whole = ""
    if whole:
        yield whole


def _unescaped(text: str) -> str:
    def letter(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _LETTERS.get(match[2], match[2])

    return _ESCAPE.sub(letter, text)
