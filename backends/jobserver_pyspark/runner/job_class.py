"""Loads a job by the dotted name of its class."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from jobserver_pyspark.protocol.failures import JobFailure, describe
from jobserver_pyspark.runner import wheel_tags

__all__ = ["load_job"]

_WRONG_TYPE = "Invalid job type for this context"


def load_job(name: str, directories: Sequence[str] = ()) -> Any:
    """Return a new object of the class, which must be importable from the class path.

    Raises JobFailure: class-not-found, loading (its module raised on import), wrong-type (not a class with
    ``validate`` and ``run_job``), or raised (its constructor did). When an import fails, the message also
    says which of the packages in ``directories`` are made for another Python or machine.
    """
    found = _find(name, directories)
    missing = [method for method in ("validate", "run_job") if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or missing:
        what = (
            f"{name} has no method {' and no method '.join(missing)}" if missing else f"{name} is not a class"
        )
        raise JobFailure("wrong-type", _WRONG_TYPE, stack=what)
    if abstract := getattr(found, "__abstractmethods__", None):
        raise JobFailure(
            "wrong-type", _WRONG_TYPE, stack=f"{name} does not define {', '.join(sorted(abstract))}"
        )
    try:
        return found()
    except BaseException as error:
        raise JobFailure.of("raised", error, skip=1) from error


def _find(name: str, directories: Sequence[str]) -> Any:
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:count])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and _leads_to(error.name, module_name):
                continue
            raise _not_loaded(error, directories) from error
        except BaseException as error:
            raise _not_loaded(error, directories) from error
        return _attribute(module, parts[count:], name)
    raise JobFailure(
        "class-not-found", f"classPath {name} not found", stack=f"no module {parts[0]!r} on the class path"
    )


def _not_loaded(error: BaseException, directories: Sequence[str]) -> JobFailure:
    hint = wheel_tags.foreign(directories) if isinstance(error, ImportError) else ""
    message = f"{describe(error)} ({hint})" if hint else None
    return JobFailure.of("loading", error, skip=1, message=message)


def _leads_to(missing: str, wanted: str) -> bool:
    """Return whether the missing module is the wanted one or a package of it, not one that it imports."""
    return wanted == missing or wanted.startswith(missing + ".")


def _attribute(module: Any, names: list[str], full_name: str) -> Any:
    found = module
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError:
            stack = f"{getattr(found, '__name__', found)} has no attribute {name!r}"
            raise JobFailure("class-not-found", f"classPath {full_name} not found", stack=stack) from None
    return found
