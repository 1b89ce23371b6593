"""The job itself: loading it by the name of its class, its validation, and its runtime."""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from jobserver_core.models.dotted_keys import hint_for_message, hint_for_missing
from jobserver_core.results import await_value
from jobserver_pyspark.protocol.failures import JobFailure, describe, qualified_name
from jobserver_pyspark.runner.config_trees import plain

if TYPE_CHECKING:
    from jobserver_core.models.json_values import JsonObject
    from jobserver_pyspark.runner.attachment import Attachment
    from jobserver_pyspark.runner.named_objects import NamedObjects

_MISSING_ERROR = "ConfigMissingException"
"""pyhocon's exception, which need not be the pyhocon of this project."""
_MISSING_KEY = re.compile(r"'?No configuration setting found for key (.+?)'?")

_METHODS = ("validate", "run_job")
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_MAX_SEARCHED = 2000
"""How many files of each directory are searched for the class that a missing class may mean."""


class JobObject(Protocol):
    """An object with the methods of a job. Both may be asynchronous."""

    def validate(self, context: object, runtime: object, config: object, /) -> object: ...

    def run_job(self, context: object, runtime: object, data: object, /) -> object: ...


def load_job(name: str, directories: Sequence[str] = ()) -> JobObject:
    """Return a new object of the class, which must be importable from the class path.

    Raises:
        JobFailure: Its kind is class-not-found, loading (the module raised on import), wrong-type (no class
            with ``validate`` and ``run_job``, or one takes other arguments), or raised (the constructor did).
            When an import fails, the message also says which packages in ``directories`` are made for another
            Python or machine.
    """
    found = _find(name, directories)
    if inspect.ismodule(found):
        raise _not_found(name, _jobs_of(found), None)
    return new_job(found, name)


def new_job(found: object, name: str) -> JobObject:
    """Return a new object of what was found under a name, which must be the class of a job.

    Raises:
        JobFailure: Its kind is wrong-type or raised, as in :func:`load_job`.
    """
    if missing := [method for method in _METHODS if not callable(getattr(found, method, None))]:
        raise JobFailure("wrong-type", f"{name} has no method {' and no method '.join(missing)}")
    if not isinstance(found, type):
        raise JobFailure("wrong-type", f"{name} is not a class")
    if abstract := getattr(found, "__abstractmethods__", None):
        raise JobFailure("wrong-type", f"{name} does not define {', '.join(sorted(abstract))}")
    try:
        job: JobObject = found()
    except BaseException as error:
        frames = error.__traceback__
        called = frames is not None and frames.tb_next is not None  # otherwise, no code of the job ran
        if isinstance(error, TypeError) and not called:
            message = f"{name} cannot be created without arguments: {error}"
            raise JobFailure("wrong-type", message) from error
        raise JobFailure.of("raised", error) from error
    for method, third in zip(_METHODS, ("config", "data"), strict=True):
        if (parameters := _unfit_parameters(found, job, method)) is not None:
            expected = f"{method}(self, context, runtime, {third})"
            raise JobFailure("wrong-type", f"{name} has {method}({parameters}), expected {expected}")
    return job


def _unfit_parameters(job_class: type, job: JobObject, method: str) -> str | None:
    """Return the parameters of a method that cannot be called with three arguments, or None if it can be.

    A decorator is judged by what it accepts, not by the method that it wraps.
    """
    bound = getattr(job, method)
    code = getattr(getattr(bound, "__func__", None), "__code__", None)
    if code is not None and (code.co_argcount, code.co_kwonlyargcount) == (4, 0):
        return None  # nearly every job, without the cost of a signature
    try:
        signature = inspect.signature(bound, follow_wrapped=False)
    except (TypeError, ValueError):  # Python does not know those of some functions
        return None
    try:
        signature.bind(None, None, None)
    except TypeError:
        return ", ".join(inspect.signature(getattr(job_class, method), follow_wrapped=False).parameters)
    return None


def _jobs_of(module: ModuleType) -> str:
    """Return what the name of a module should have been followed by."""
    jobs = [
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if isinstance(value, type) and not inspect.isabstract(value)
        if all(callable(getattr(value, method, None)) for method in _METHODS)
    ]
    if not jobs:
        return f"{module.__name__} is a module without a job"
    if len(jobs) == 1:
        return f"{module.__name__} is a module; its job is {jobs[0]}"
    return f"{module.__name__} is a module; its jobs are {', '.join(jobs[:-1])} and {jobs[-1]}"


def _find(name: str, directories: Sequence[str]) -> object:
    parts = name.split(".")
    for count in range(max(len(parts) - 1, 1), 0, -1):
        module_name = ".".join(parts[:count])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # It may be the module itself, or a package of it. Otherwise it is one that the module imports.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise _not_loaded(error, directories) from error
        except BaseException as error:
            raise _not_loaded(error, directories) from error
        else:
            return _attribute(module, parts[count:], name, directories)
    raise _not_found(name, f"no module {parts[0]!r} on the class path", _nearest_class(name, directories))


def _not_found(name: str, problem: str, near: str | None) -> JobFailure:
    stack = problem + (f"; did you mean {near!r}?" if near else "")
    return JobFailure("class-not-found", f"class {name} not found", stack=stack)


def _not_loaded(error: BaseException, directories: Iterable[str]) -> JobFailure:
    hint = foreign(directories) if isinstance(error, ImportError) else ""
    message = f"{describe(error)} ({hint})" if hint else None
    return JobFailure.of("loading", error, message=message)


def _nearest_class(name: str, directories: Iterable[str]) -> str | None:
    """Return the class that a missing class may mean: it has the same name elsewhere, or a similar one.

    The source files are searched without importing them.
    """
    classes = [
        ".".join((*file.relative_to(directory).with_suffix("").parts, found)).replace(".__init__.", ".")
        for directory in directories
        for file in itertools.islice(sorted(Path(directory).rglob("*.py")), _MAX_SEARCHED)
        if file.is_file()
        for found in _CLASS.findall(file.read_text(encoding="utf-8", errors="replace"))
    ]
    same = [found for found in classes if _simple(found) == _simple(name)]
    similar = [found for found in classes if difflib.get_close_matches(_simple(name), [_simple(found)])]
    near = difflib.get_close_matches(name, same or similar, n=1, cutoff=0.0 if same else 0.6)
    return near[0] if near else None


def _simple(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _attribute(module: Any, names: list[str], full_name: str, directories: Iterable[str]) -> Any:
    found = module
    for name in names:
        try:
            found = getattr(found, name)
        except AttributeError:
            if (module := _submodule(found, name, directories)) is None:
                near = next(iter(difflib.get_close_matches(name, dir(found), n=1)), None)
                problem = f"{getattr(found, '__name__', found)} has no attribute {name!r}"
                raise _not_found(full_name, problem, near or _nearest_class(full_name, directories)) from None
            found = module
    return found


def _submodule(package: Any, name: str, directories: Iterable[str]) -> ModuleType | None:
    """Import a module of a package; return None if there is none, or what should have it is no package."""
    if not hasattr(package, "__path__"):
        return None
    full_name = f"{package.__name__}.{name}"
    try:
        return importlib.import_module(full_name)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == full_name:
            return None
        raise _not_loaded(error, directories) from error


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


def validate(job: JobObject, context: object, runtime: object, config: JsonObject) -> object:
    """Let a job check its configuration, and return its data.

    Raises:
        JobFailure: Its kind is validation, with the problems that the job returned, or raised.
    """
    try:
        data = await_value(job.validate(context, runtime, config))
    except BaseException as error:
        raise raised(error, config) from error
    if not isinstance(data, (list, tuple)) or not data or not all(map(_is_problem, data)):
        return data
    problems = [str(item.problem) for item in data]
    if hint := hint_for_message(plain(config), " ".join(problems)):
        problems.append(hint)
    raise JobFailure("validation", "; ".join(problems), error_class=qualified_name(type(data[0])))


def _is_problem(item: object) -> bool:
    return type(item).__name__ == "ValidationProblem" and hasattr(item, "problem")


def raised(error: BaseException, config: JsonObject) -> JobFailure:
    """Return the failure that an exception of a job's method is; for a missing key, perhaps with a hint."""
    missing = _MISSING_KEY.fullmatch(describe(error)) if type(error).__name__ == _MISSING_ERROR else None
    hint = "" if missing is None else hint_for_missing(plain(config), missing[1])
    message = f"{describe(error)}; {hint}" if hint else None
    return JobFailure.of("raised", error, message=message)


class Runtime:
    """The environment of a job; the ``JobEnvironment`` of ``sparkjobserver.api``."""

    def __init__(
        self, job_id: str, attachment: Attachment, context_config: JsonObject, data_dir: Path
    ) -> None:
        self.jobId = job_id
        self.contextConfig = context_config
        self._attachment = attachment
        self.data_dir = data_dir
        self._named_objects: NamedObjects | None = None

    @property
    def namedObjects(self) -> NamedObjects:  # noqa: N802 - the old server's name
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
