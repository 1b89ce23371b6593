"""What callers pass to the library and the clients: slips in types become errors that say what is right.

Type checkers find most of these, but not every caller uses one, and values often come from elsewhere. What
has only one meaning is accepted (``"wheel"`` for a type, ``"running"`` for a state); nothing else is guessed.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from os import PathLike
from typing import BinaryIO, TypeVar, cast

from jobserver_core.errors import InvalidConfig, InvalidRequest, InvalidSetting
from jobserver_core.models.json_values import JsonMapping, WrittenObject, dumps

CHUNK = 1024 * 1024
"""The number of bytes of a file to read at a time."""

MAX_LIMIT = 10_000
"""The maximum number of jobs or contexts in one list."""

_IDEMPOTENCY_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")

_INSTEAD_OF_ASYNC = "call asyncio.run(…) in a function"

E = TypeVar("E", bound=Enum)


def check_kind(what: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another type. The error names only its type: the value may be secret.

    Raises:
        InvalidRequest: It has another type. ``expected`` says which one is right.
    """
    if not isinstance(value, kind):
        raise InvalidRequest(message=f"{what} must be {expected}, not {_given(value)}")


def check_several(what: str, values: object, kind: type, expected: str) -> None:
    """Refuse what is not a list, or another collection, of values of a type, such as one of them alone.

    Raises:
        InvalidRequest: It is something else, or one of the values is. ``expected`` says which ones are right.
    """
    whole = f"a list of {expected}"
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Collection):
        check_kind(what, values, (), whole)
        return
    for value in values:
        if not isinstance(value, kind):
            raise InvalidRequest(message=f"{what} must be {whole}, but one is {_given(value)}")


def are_strings(values: object) -> bool:
    """Whether a value is a list, or another collection, of strings. One string is not, nor is a mapping."""
    try:
        check_several("", values, str, "")
    except InvalidRequest:
        return False
    return True


def _given(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_callable(what: str, value: object, *, arguments: int, instead: str = _INSTEAD_OF_ASYNC) -> None:
    """Check that a value can be called with a number of arguments. ``instead`` says how to call async code.

    Raises:
        InvalidRequest: It cannot be called, takes other arguments, or is declared with ``async def``.
    """
    if not callable(value):
        raise InvalidRequest(message=f"{what} must be a function, not {type(value).__name__}")
    for function in (value, type(value).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidRequest(message=f"{what} must not be declared with async def; {instead}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of some functions in C it is not known
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        expected = "one argument" if arguments else "no arguments"
        raise InvalidRequest(message=f"{what} must take {expected}: {error}") from None


def check_job_id(value: object) -> None:
    """Check a job's ID.

    Raises:
        InvalidRequest: It is not a string, such as a handle.
    """
    expected = "a string (handle.id or job.id)" if hasattr(value, "id") else "a string"
    check_kind("a job's ID", value, str, expected)


def check_name(kind: str, name: object) -> None:
    """Check the name of a ``kind`` of thing, such as a context.

    Raises:
        InvalidRequest: It is not a string, such as the thing itself.
    """
    expected = f"a string ({kind}.name)" if hasattr(name, "name") else "a string"
    check_kind(f"a {kind}'s name", name, str, expected)


def check_data_file_name(name: object) -> None:
    """Check the name of a data file.

    Raises:
        InvalidRequest: It is neither a string nor a path.
    """
    check_kind("a data file's name", name, (str, PathLike), "a string or a path")


def check_size(size: object) -> None:
    """Check how many bytes to read.

    Raises:
        InvalidRequest: It is not a whole number.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidRequest(message=f"size must be a number of bytes, or -1 for all, not {_given(size)}")


def check_last(last: object) -> None:
    """Check how many bytes of a log are wanted.

    Raises:
        InvalidRequest: It is neither None nor a whole number from 0.
    """
    if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 0):
        raise InvalidRequest(message=f"last must be a number of bytes, such as 100_000, not {last!r}")


def check_idempotency_key(key: str) -> None:
    """Check an idempotency key. It must be one that a header of HTTP carries unchanged.

    Raises:
        InvalidRequest: It is empty or too long, or has other characters.
    """
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest(
            message="an idempotency key must have 1 to 255 characters of printable ASCII, without spaces "
            "around them"
        )


def check_seconds(what: str, value: object, *, optional: bool = True, least: float | None = None) -> None:
    """Check a duration. None is accepted if it is ``optional``.

    Raises:
        InvalidRequest: It is not a number of seconds, or less than ``least``.
    """
    expected = f"{what} must be a number of seconds, such as 30 or 0.5"
    try:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    except OverflowError:  # an integer of hundreds of digits
        raise InvalidRequest(message=f"{expected}, got one that is too large") from None
    if not number and not (value is None and optional):
        raise InvalidRequest(message=f"{expected}, got {value!r}")
    if least is not None and value is not None and cast("float", value) < least:
        raise InvalidRequest(message=f"{what} must be {least} or more, got {value!r}")


def check_limit(limit: object, least: int = 0) -> None:
    """Check the greatest length of a list.

    Raises:
        InvalidRequest: It is not an integer from ``least`` to MAX_LIMIT.
    """
    check_kind("limit", limit, int, "an integer")
    if isinstance(limit, bool):
        raise InvalidRequest(message="limit must be an integer, not bool")
    if not least <= cast("int", limit) <= MAX_LIMIT:
        raise InvalidRequest(message=f"limit must be {least} to {MAX_LIMIT}, got {limit}")


def check_query_time(what: str, value: object) -> None:
    """Check a time. None is accepted.

    Raises:
        InvalidRequest: It is not a datetime with a time zone.
    """
    if value is not None and not (isinstance(value, datetime) and value.tzinfo is not None):
        raise InvalidRequest(message=f"{what} must be a datetime with a time zone, got {value!r}")


def check_settings(settings: object, argument: str = "") -> None:
    """Check the form of context settings, which are the value of an ``argument`` or of the configuration.

    Raises:
        InvalidSetting: They are not an object of JSON values.
        InvalidRequest: The argument is not a mapping.
    """
    if argument:
        check_kind(
            argument, settings, Mapping, 'a mapping of context settings, such as {"memory-per-node": "2g"}'
        )
    if not isinstance(settings, Mapping):
        message = f"must be an object {{ … }} or a mapping, not {type(settings).__name__}"
        raise InvalidSetting(key="spark.context-settings", message=message)
    if not settings:
        return
    try:
        dumps(settings)
    except (TypeError, ValueError) as error:
        key, problem = _fault(settings, error)
        path = ".".join(filter(None, ("spark.context-settings", key)))
        raise InvalidSetting(key=path, message=f"must hold only JSON values: {problem}") from error


def check_config(config: object) -> None:
    """Check the form of a job's configuration.

    Raises:
        InvalidConfig: It is neither text nor a mapping.
    """
    if not isinstance(config, (str, Mapping)):
        message = f"a job's configuration must be HOCON text or a mapping, not {_given(config)}"
        raise InvalidConfig(message=message)


def config_text(config: JsonMapping) -> str:
    """Return a job's configuration as JSON.

    Raises:
        InvalidConfig: It cannot be represented in JSON.
    """
    if isinstance(config, WrittenObject):
        return config.written
    try:
        return dumps(config)
    except (TypeError, ValueError) as error:
        key, problem = _fault(config, error)
        place = f"key '{key}': " if key else ""
        message = f"a job's configuration must hold only JSON values: {place}{problem}"
        raise InvalidConfig(message=message) from error


def _fault(tree: JsonMapping, error: Exception) -> tuple[str, str]:
    """Return the dotted key of the value that raised an error of ``dumps``, empty if unknown, and why."""
    from jobserver_core.models.unsupported_values import first_unsupported  # noqa: PLC0415 - only for errors

    return first_unsupported(tree) or ("", str(error))


def member(kind: type[E], value: E | str, what: str) -> E:
    """Return the member of an enumeration with this name, in any case.

    Raises:
        InvalidRequest: There is none. Says which there are.
    """
    if isinstance(value, kind):
        return value
    found = kind.__members__.get(value.upper()) if isinstance(value, str) else None
    if found is None:
        names = ", ".join(one.value for one in kind)
        raise InvalidRequest(message=f"unknown {what} {value!r}; expected one of {names}")
    return found


def members(kind: type[E], values: Iterable[E | str] | E | str | None, what: str) -> tuple[E, ...] | None:
    """Return several members, or one, as a tuple; None stays None.

    Raises:
        InvalidRequest: One is unknown.
    """
    if values is None:
        return None
    if isinstance(values, (str, Enum)) or not isinstance(values, Iterable):
        return (member(kind, values, what),)
    return tuple(member(kind, value, what) for value in values)


def chunks_of(data: bytes | BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """Read bytes, a file or an iterable in chunks of bounded size. Empty chunks of an iterable are skipped.

    Raises:
        InvalidRequest: It is something else, or does not have bytes.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        yield bytes(data)
    elif hasattr(data, "read"):
        while chunk := _bytes(data.read(CHUNK), "a file in text mode"):
            yield chunk
    elif isinstance(data, Iterable) and not isinstance(data, (str, PathLike, Mapping)):
        for item in data:
            if chunk := _bytes(item, f"an iterable of {type(item).__name__}"):
                yield chunk
    else:
        raise _no_content(type(data).__name__)


def digest_of(data: bytes | BinaryIO | Iterable[bytes]) -> str:
    """Return the SHA-256 of bytes, a file or an iterable, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    for chunk in chunks_of(data):
        digest.update(chunk)
    return digest.hexdigest()


def _bytes(chunk: object, what: str) -> bytes:
    if not isinstance(chunk, (bytes, bytearray, memoryview)):
        raise _no_content(what)
    return bytes(chunk)


def _no_content(what: str) -> InvalidRequest:
    expected = 'bytes, a file opened with open(path, "rb"), or an iterable of bytes'
    return InvalidRequest(message=f"the content of an upload must be {expected}, not {what}")
