"""Query parameters: which there are, what they take, and how they are read strictly."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl

import attrs

from jobserver_http.errors import Rejected

__all__ = [
    "Choice",
    "Flag",
    "Kind",
    "Moment",
    "Parameter",
    "Text",
    "Whole",
    "parse_query",
    "parsed",
]

MAX_PARAMETERS = 500
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:?[0-9]{2}$)")


class Kind(ABC):
    """What a parameter takes."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Return the value, or raise ValueError with what would be right."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the parameter."""


@attrs.frozen
class Text(Kind):
    """Any text without control characters, of up to ``longest`` characters."""

    longest: int = 8192

    def parse(self, text: str) -> str:
        """Return the text."""
        if len(text) > self.longest:
            raise ValueError(f"takes at most {self.longest} characters")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise ValueError("must not have control characters")
        return text

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "maxLength": self.longest, "pattern": "^[^\\x00-\\x1f\\x7f]*$"}


@attrs.frozen
class Flag(Kind):
    """``true`` or ``false``, in any case."""

    def parse(self, text: str) -> bool:
        """Return the boolean."""
        if text.lower() not in ("true", "false"):
            raise ValueError(f"takes true or false, got {_shown(text)}")
        return text.lower() == "true"

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "boolean"}


@attrs.frozen
class Whole(Kind):
    """A whole number between two bounds, inclusive."""

    least: int = 0
    most: int = 2**31 - 1

    def parse(self, text: str) -> int:
        """Return the number."""
        if not _WHOLE.fullmatch(text) or not self.least <= int(text) <= self.most:
            raise ValueError(f"takes a whole number from {self.least} to {self.most}, got {_shown(text)}")
        return int(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@attrs.frozen
class Moment(Kind):
    """A date and time in ISO-8601; without an offset it is UTC."""

    def parse(self, text: str) -> datetime:
        """Return the time."""
        # A plus that was not percent-encoded has become a blank.
        written = _LOST_PLUS.sub("+", text.strip())
        if written[-1:] in "Zz":
            written = written[:-1] + "+00:00"
        try:
            moment = datetime.fromisoformat(written)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            raise ValueError(
                f"takes a time such as 2016-06-19T16:27:12.196+05:30, got {_shown(text)}"
            ) from None

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "format": "date-time"}


@attrs.frozen
class Choice(Kind):
    """One of a few words; case counts only when it is said so."""

    words: tuple[str, ...]
    any_case: bool = False

    def parse(self, text: str) -> str:
        """Return the word as it is listed."""
        word = text.upper() if self.any_case else text
        if word not in self.words:
            raise ValueError(f"takes one of {', '.join(self.words)}, got {_shown(text)}")
        return word

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema."""
        return {"type": "string", "enum": list(self.words)}


@attrs.frozen(kw_only=True)
class Parameter:
    """A query parameter of a route, named as on the wire."""

    name: str
    kind: Kind = attrs.field(factory=Text)
    doc: str
    required: bool = False

    def read(self, given: Mapping[str, str]) -> Any:
        """Return the parameter's value, None when it is missing or empty. Raises Rejected (400)."""
        text = given.get(self.name, "")
        if not text:
            if self.required:
                raise Rejected(400, f"parameter {self.name} is missing: {self.doc}")
            return None
        try:
            return self.kind.parse(text)
        except ValueError as error:
            raise Rejected(400, f"parameter {self.name} {error}") from None


def parse_query(query: bytes) -> dict[str, str]:
    """Return the query's parameters; one that is given twice, or is not UTF-8, is refused (400)."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise Rejected(400, "the query is not percent-encoded UTF-8") from None
    except ValueError:
        raise Rejected(400, f"more than {MAX_PARAMETERS} query parameters") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise Rejected(400, f"parameter {_shown(name)} is given more than once")
        given[name] = value
    return given


def parsed(parameters: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a route's parameters by name, None for those that are missing."""
    return {parameter.name: parameter.read(given) for parameter in parameters}


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "...'"
