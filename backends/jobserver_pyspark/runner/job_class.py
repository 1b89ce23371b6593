"""The job itself: loading it by the name of its class, its runtime, and methods that are ``async def``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import platform
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobserver_core.models.dotted_keys import hint_for_message, hint_for_missing
from jobserver_pyspark.protocol.failures import JobFailure, describe
from jobserver_pyspark.runner.config_trees import plain

_MISSING_ERROR = "ConfigMissingException"
"""pyhocon's exception, which need not be the pyhocon of this project."""
_MISSING_KEY = re.compile(r"'?No configuration setting found for key (.+?)'?")


def load_job(name: str, directories: Sequence[str] = ()) -> Any:
    """Return a new object of the class, which must be importable from the class path.

    Raises:
        JobFailure: Its kind is class-not-found, loading (the module raised on import), wrong-type (no class
            with ``validate`` and ``run_job``), or raised (the constructor did). When an import fails, the
            message also says which packages in ``directories`` are made for another Python or machine.
    """
    return new_job(_find(name, directories), name)


def new_job(found: Any, name: str) -> Any:
    """Return a new object of what was found under a name, which must be the class of a job.

    Raises:
        JobFailure: Its kind is wrong-type or raised, as in :func:`load_job`.
    """
    missing = [method for method in ("validate", "run_job") if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or missing:
        message = (
            f"{name} has no method {' and no method '.join(missing)}" if missing else f"{name} is not a class"
        )
        raise JobFailure("wrong-type", message)
    if abstract := getattr(found, "__abstractmethods__", None):
        raise JobFailure("wrong-type", f"{name} does not define {', '.join(sorted(abstract))}")
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
        "class-not-found", f"class {name} not found", stack=f"no module {parts[0]!r} on the class path"
    )


def _not_loaded(error: BaseException, directories: Sequence[str]) -> JobFailure:
    hint = foreign(directories) if isinstance(error, ImportError) else ""
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
            near = difflib.get_close_matches(name, dir(found), n=1)
            stack = f"{getattr(found, '__name__', found)} has no attribute {name!r}"
            stack += f"; did you mean {near[0]!r}?" if near else ""
            raise JobFailure("class-not-found", f"class {full_name} not found", stack=stack) from None
    return found


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


def validate(job: Any, context: Any, runtime: Any, config: Any) -> Any:
    """Let a job check its configuration, and return its data.

    Raises:
        JobFailure: Its kind is validation, with the problems that the job returned, or raised.
    """
    try:
        data = await_value(job.validate(context, runtime, config))
    except BaseException as error:
        raise raised(error, config) from error
    problems = _problems(data)
    if problems:
        if hint := hint_for_message(plain(config), " ".join(problems)):
            problems.append(hint)
        kind = type(data[0])
        raise JobFailure(
            "validation", "; ".join(problems), error_class=f"{kind.__module__}.{kind.__qualname__}"
        )
    return data


def raised(error: BaseException, config: Any) -> JobFailure:
    """Return the failure that an exception of a job's method is; for a missing key, perhaps with a hint."""
    missing = _MISSING_KEY.fullmatch(describe(error)) if type(error).__name__ == _MISSING_ERROR else None
    hint = "" if missing is None else hint_for_missing(plain(config), missing[1])
    message = f"{describe(error)}; {hint}" if hint else None
    return JobFailure.of("raised", error, skip=1, message=message)


def _problems(data: Any) -> list[str]:
    """Return the messages of validation problems; empty if the value is the job's data."""
    if not isinstance(data, (list, tuple)) or not data:
        return []
    if all(type(item).__name__ == "ValidationProblem" and hasattr(item, "problem") for item in data):
        return [str(item.problem) for item in data]
    return []


def await_value(value: Any) -> Any:
    """Return the value of a method; for an ``async def``, its result.

    An asynchronous generator becomes an iterator, which makes each element when it is needed.
    """
    if isinstance(value, AsyncIterator):
        return _elements(value)
    if not inspect.isawaitable(value):
        return value
    import asyncio  # noqa: PLC0415 - few jobs need it

    return await_value(asyncio.run(_await(value)))


async def _await(value: Awaitable[Any]) -> Any:
    return await value


def _elements(values: AsyncIterator[Any]) -> Iterator[Any]:
    import asyncio  # noqa: PLC0415 - few jobs need it

    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(_await(values.__anext__()))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Runtime:
    """The environment of a job; the ``JobEnvironment`` of ``sparkjobserver.api``."""

    def __init__(self, job_id: str, attachment: Any, context_config: Any, data_dir: Path) -> None:
        self.jobId = job_id
        self.contextConfig = context_config
        self._attachment = attachment
        self.data_dir = data_dir
        self._named_objects: Any = None

    @property
    def namedObjects(self) -> Any:  # noqa: N802 - the old server's name
        """The objects that the jobs of this context share."""
        if self._named_objects is None:
            from jobserver_pyspark.runner.named_objects import NamedObjects  # noqa: PLC0415 - few jobs use them

            self._named_objects = NamedObjects(self._attachment.session, self.jobId)
        return self._named_objects

    def data_file(self, name: str) -> Path:
        """Return the path of a data file, by the name that its upload returned, or the last part of that.

        Raises:
            FileNotFoundError: No data file has this name.
        """
        path = (self.data_dir / name).resolve()
        if path.parent != self.data_dir.resolve() or not path.is_file():
            raise FileNotFoundError(
                f"the server has no data file named {name!r}; upload the file with `jobserver data upload "
                "PREFIX FILE`, and pass the path that this prints. With several servers, only a shared "
                "jobserver.data-files.directory has the files of all"
            )
        return path
