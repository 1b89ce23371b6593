"""Query parameters: their types, and strict parsing."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from urllib.parse import parse_qsl

import attrs

from jobserver_http.errors import Rejected
from jobserver_http.schemas import Schema

MAX_PARAMETERS = 500
"""The most query parameters of a request: far more than a context has settings."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:?[0-9]{2}$)")


class Kind(ABC):
    """The type of a parameter."""

    @abstractmethod
    def parse(self, text: str) -> object:
        """Parse a value.

        Raises:
            ValueError: It is invalid. The message says what is expected.
        """

    @abstractmethod
    def schema(self) -> Schema:
        """Return the JSON schema of the parameter."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@attrs.frozen
class Text(Kind):
    """A string without control characters, of up to ``max_length`` characters."""

    max_length: int = 8192

    def parse(self, text: str) -> str:
        if len(text) > self.max_length:
            raise ValueError(f"must have at most {self.max_length} characters")
        if _CONTROL.search(text):
            raise ValueError("must not contain control characters")
        return text

    def schema(self) -> Schema:
        return {"type": "string", "maxLength": self.max_length, "pattern": "^[^\\x00-\\x1f\\x7f]*$"}


@attrs.frozen
class Flag(Kind):
    """``true`` or ``false``, case-insensitive."""

    def parse(self, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"must be true or false, got {_shown(text)}")
        return text.lower() == "true"

    def schema(self) -> Schema:
        return {"type": "boolean"}


@attrs.frozen
class Integer(Kind):
    """An integer between two inclusive bounds."""

    minimum: int = 0
    maximum: int = 2**31 - 1

    def parse(self, text: str) -> int:
        if not _INTEGER.fullmatch(text) or not self.minimum <= int(text) <= self.maximum:
            raise ValueError(f"must be an integer from {self.minimum} to {self.maximum}, got {_shown(text)}")
        return int(text)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@attrs.frozen
class Timestamp(Kind):
    """A date and time in ISO 8601, in UTC unless it has an offset."""

    def parse(self, text: str) -> datetime:
        # A plus sign that was not percent-encoded has become a space.
        written = _LOST_PLUS.sub("+", text.strip())
        if written[-1:] in "Zz":
            written = written[:-1] + "+00:00"
        try:
            moment = datetime.fromisoformat(written)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            example = "2016-06-19T16:27:12.196+05:30"
            raise ValueError(f"must be a time such as {example}, got {_shown(text)}") from None

    def schema(self) -> Schema:
        return {"type": "string", "format": "date-time"}


@attrs.frozen
class Choice(Kind):
    """One of several words, case-sensitive unless ``any_case`` is set."""

    words: tuple[str, ...]
    any_case: bool = False

    def parse(self, text: str) -> str:
        word = text.upper() if self.any_case else text
        if word not in self.words:
            expected = ", ".join(self.words) if len(self.words) == 1 else f"one of {', '.join(self.words)}"
            raise ValueError(f"must be {expected}, got {_shown(text)}")
        return word

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}


@attrs.frozen
class Parameter:
    """A query or header parameter of a route, with its name on the wire."""

    name: str
    doc: str
    kind: Kind = attrs.field(factory=Text)
    required: bool = False

    def read(self, given: Mapping[str, str]) -> object:
        """Return the parameter's value, or None if it is missing or empty.

        Raises:
            Rejected: The value is invalid, or a required parameter is missing (400).
        """
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
    """Parse a query string.

    Raises:
        Rejected: A parameter is repeated or is not UTF-8, or there are too many (400).
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise Rejected(400, "the query is not percent-encoded UTF-8") from None
    except ValueError:
        raise Rejected(400, f"the query has more than {MAX_PARAMETERS} parameters") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise Rejected(400, f"parameter {_shown(name)} is repeated")
        given[name] = value
    return given


def parsed(parameters: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, object]:
    """Parse the values of a route's parameters. Missing ones are None."""
    return {parameter.name: parameter.read(given) for parameter in parameters}


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "...'"
