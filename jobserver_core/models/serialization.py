"""Converting models and errors to JSON and back, with a single cattrs converter.

The output is for storage and for messages between our own processes. So parsing is strict: unknown keys are
errors, strings are not converted to numbers, and times need an offset. Times are written in ISO 8601 in UTC
with microseconds, and enums as their values. The JSON is ASCII, so that strings of jobs (with NUL or lone
surrogates) can be stored and sent anywhere.

Import this module only where it is used, because the rest of the library does not need cattrs.
"""

from __future__ import annotations

import functools
from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar, get_type_hints

from cattrs import BaseValidationError, Converter, transform_error
from cattrs.v import format_exception

from jobserver_core import errors
from jobserver_core.models import json_values
from jobserver_core.models.failures import ErrorInfo, FailureKind
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject, plain
from jobserver_core.models.lifecycle import JobState

T = TypeVar("T")


def unstructure(value: object, kind: object = None) -> Json:
    """Convert a model, an error, or a collection of them to JSON-like values.

    ``kind`` is the type that it will be parsed as, if that is not its class.
    """
    return converter().unstructure(value, unstructure_as=kind)


def structure(value: Json, kind: type[T]) -> T:
    """Create a ``kind`` from JSON-like values.

    Raises:
        ValueError: The values do not match the type. The message has the path of the wrong value.
    """
    try:
        return converter().structure(value, kind)
    except BaseValidationError as error:
        raise ValueError("; ".join(transform_error(error, format_exception=_reason))) from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


def dumps(value: object, kind: object = None) -> str:
    """Encode a model, an error, or a collection of them as compact JSON; see :func:`unstructure`."""
    return json_values.dumps(unstructure(value, kind), allow_nan=True)


def loads(text: str, kind: type[T]) -> T:
    """Create a ``kind`` from JSON.

    Raises:
        ValueError: The text is not JSON, or :func:`structure` refuses it.
    """
    return structure(json_values.loads(text), kind)


@functools.cache
def converter() -> Converter:
    """Return the shared converter, which is created at the first call. Do not register hooks on it."""
    made = Converter(forbid_extra_keys=True)
    made.register_unstructure_hook(datetime, _write_time)
    made.register_structure_hook(datetime, _read_time)
    made.register_unstructure_hook_func(_is_tree, plain)
    made.register_structure_hook_func(_is_tree, lambda value, _kind: plain(value))
    made.register_unstructure_hook_func(_is_error, lambda error: _write_error(made, error))
    made.register_structure_hook_func(_is_error, lambda value, _kind: _read_error(made, value))
    for scalar in (str, bool, int, float):
        made.register_structure_hook(scalar, _read_scalar)
    return made


def _reason(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, ValueError) else format_exception(error, kind)


def _read_scalar(value: Json, kind: type) -> Json:
    if issubclass(kind, Enum):  # our enums are strings, so this hook is called for them too
        return kind(value)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _write_time(value: datetime) -> str:
    return value.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _read_time(value: str, _kind: object) -> datetime:
    read = datetime.fromisoformat(value)
    if read.tzinfo is None:
        raise ValueError(f"expected a time with an offset, got {value!r}")
    return read.astimezone(timezone.utc)


def _is_tree(kind: object) -> bool:
    return kind in (JsonMapping, str | JsonMapping)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.JobServerError)


def _write_error(made: Converter, error: errors.JobServerError) -> JsonObject:
    return {"type": type(error).__name__, "fields": {k: made.unstructure(v) for k, v in error.fields.items()}}


def _read_error(made: Converter, value: JsonMapping) -> errors.JobServerError:
    name = value["type"]
    if name not in errors.__all__:
        raise ValueError(f"unknown error {name!r}")
    cls: type[errors.JobServerError] = getattr(errors, name)
    # Those that errors.py cannot import.
    models = {"ErrorInfo": ErrorInfo, "FailureKind": FailureKind, "JobState": JobState}
    kinds = get_type_hints(cls, localns=models)
    fields = {k: made.structure(v, kinds.get(k, Any)) for k, v in value["fields"].items()}
    return cls(**fields)
