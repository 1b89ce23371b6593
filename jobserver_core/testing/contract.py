"""The base of all contract suites: their tests can be inherited, but not replaced."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, TypeVar, get_type_hints

import pytest

T = TypeVar("T")


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "",
    timeout: float = 60.0,
    pause: float = 0.01,
) -> None:
    """Wait until a condition holds. Otherwise fail with ``what`` was waited for, or what it returns.

    The pauses between two looks are short at first, up to ``pause`` seconds.
    """
    deadline = time.monotonic() + timeout
    next_pause = min(0.001, pause)
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(next_pause)
        next_pause = min(2 * next_pause, pause)


def raised_by(call: Callable[[], object]) -> type[Exception] | None:
    """Return the type of the error that a call raises, or None."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error)
    return None


def returned(call: str, found: object, expected: type[T]) -> T:
    """Return what a call has returned; fail if it is of another type."""
    assert isinstance(found, expected), (
        f"{call} returned {found!r}; it has to return an instance of {expected.__name__}"
    )
    return found


@contextmanager
def entered(call: str, block: object, expected: type[T]) -> Iterator[T]:
    """Enter a block that a call has returned; fail if it is none, or yields something of another type."""
    assert isinstance(block, AbstractContextManager), (
        f"{call} returned {block!r}; it has to return a context manager, for example with @contextmanager"
    )
    with block as found:
        assert isinstance(found, expected), (
            f"the block of {call} yielded {found!r}; it has to yield an instance of {expected.__name__}"
        )
        yield found


def assert_each_raises(
    expected: type[Exception], raised: Mapping[str, type[Exception] | None], when: str
) -> None:
    """Check what each of several calls has raised, as :func:`raised_by` says; None stands for nothing."""
    wrong = [
        f"{call} raised {kind.__name__}" if kind else f"{call} returned"
        for call, kind in raised.items()
        if kind is not expected
    ]
    assert not wrong, f"{when}, each call has to raise {expected.__name__}, but {', '.join(wrong)}"


@contextmanager
def raising(expected: Exception) -> Iterator[None]:
    """Check that a block raises an error that is equal to this one."""
    with pytest.raises(type(expected)) as caught:
        yield
    assert caught.value == expected


def in_threads(run: Callable[[int], object], count: int) -> None:
    """Run a function in several threads at once, and raise an error of any of them."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as error:  # noqa: BLE001 - given to the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def threads_and_processes() -> set[str]:
    """Return the threads and the child processes of this process, to compare with those of later.

    Processes that have ended do not count, even if nothing has waited for them yet. Python's resource tracker
    does not either: the first use of ``multiprocessing`` starts it, and it ends with this process.
    """
    found = {f"thread {thread.ident}: {thread.name}" for thread in threading.enumerate()}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = status.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "XZ":
                command = (
                    status.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if "multiprocessing.resource_tracker" not in command:
                    found.add(f"process {status.parent.name}: {command.strip()}")
    return found


def assert_none_left(before: set[str], duty: str) -> None:
    """Check that no thread or process was added to those of ``before``. ``duty`` says what would be right."""
    left = sorted(threads_and_processes() - before)
    assert not left, f"still running: {'; '.join(left)}; {duty}"


class Contract:
    """The root of every contract suite: a class of ``test_*`` methods that a backend's tests inherit.

    A subclass supplies the fixtures and methods that the suite needs, and can add tests. Defining a subclass
    in which a test of the contract is replaced (redefined, set to None, or hidden by a mixin) is a TypeError,
    so that passing a contract means the same for every backend.

    A failure quotes what the port says about the call that the failed line is about. If the setup of a
    test fails like that of an earlier one, it is skipped, so a backend that cannot be created fails once.
    """

    _failed_setups: ClassVar[dict[str, str]]
    """The errors of fixtures, each with the first test that had it."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._failed_setups = {}
        for name, member in list(vars(cls).items()):
            if name.startswith("test_") and isinstance(member, FunctionType):
                setattr(cls, name, _quoting(member))
        replaced = sorted(name for name, owner in _tests(cls).items() if owner is not _owner(cls, name))
        if replaced:
            raise TypeError(f"{cls.__qualname__} replaces tests of its contract: {', '.join(replaced)}")

    @pytest.fixture(autouse=True)
    def _set_up_once(self, request: pytest.FixtureRequest) -> None:
        """Set up the fixtures of a test; skip it if that fails as before. It runs first, for its name."""
        call = getattr(request.node, "callspec", None)
        others = {"request", request.fixturename, *(call.params if call else ())}
        try:
            self._check_complete()
            for name in request.fixturenames:
                if name not in others:
                    request.getfixturevalue(name)
        except Exception as error:
            what = (
                f"no fixture {error.argname}" if isinstance(error, pytest.FixtureLookupError) else repr(error)
            )
            first = self._failed_setups.setdefault(what, request.node.name)
            if first == request.node.name:
                raise
            pytest.skip(f"its setup failed like that of {first}: {what}")

    @classmethod
    def _check_complete(cls) -> None:
        """Check that no method is missing. Pytest would ignore a test class that is an ABC."""
        members = {name: getattr(cls, name, None) for name in dir(cls)}
        missing = [name for name, member in members.items() if getattr(member, "__isabstractmethod__", False)]
        if missing:
            raise TypeError(f"{cls.__qualname__} has to implement {', '.join(missing)}")

    @classmethod
    def contract_tests(cls) -> tuple[str, ...]:
        """Return the names of the contract's tests, in the order they are written."""
        return tuple(_tests(cls))


def _tests(cls: type) -> dict[str, type]:
    """Every test of the contracts above a class, and the contract that first wrote it."""
    contracts = [base for base in reversed(cls.__mro__) if issubclass(base, Contract)]
    found: dict[str, type] = {}
    for contract in contracts:
        for name in vars(contract):
            if name.startswith("test_"):
                found.setdefault(name, contract)
    return found


def _owner(cls: type, name: str) -> type:
    """Return the class whose definition of a name is used."""
    return next(base for base in cls.__mro__ if name in vars(base))


def _quoting(test: FunctionType) -> Callable[..., None]:
    """Return a test whose failures quote the port."""

    @wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        __tracebackhide__ = True
        try:
            test(*arguments, **fixtures)
        except AssertionError as error:
            error.args = ("\n".join(filter(None, (str(error), *_quotes(test, error)))),)
            raise
        except pytest.fail.Exception as error:  # of pytest.raises
            error.msg = "\n".join(filter(None, (error.msg, *_quotes(test, error))))
            raise

    return run


def _quotes(test: FunctionType, error: BaseException) -> Iterator[str]:
    """Yield what the port says about the calls in the statement that failed, or else in the last before."""
    failed = max(
        (line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code is test.__code__),
        default=0,
    )
    try:
        lines, first = inspect.getsourcelines(test)
        nodes = list(ast.walk(ast.parse("\n" * (first - 1) + textwrap.dedent("".join(lines)))))
        hints = get_type_hints(test)
    except (OSError, SyntaxError, NameError):  # of a test that is not ours
        return
    within = [node for node in nodes if isinstance(node, ast.stmt) and node.lineno <= failed <= _end(node)]
    end = min(within, key=lambda node: _end(node) - node.lineno, default=None)
    for fixture, port in hints.items():
        calls = {
            name: node.lineno
            for node in nodes
            if isinstance(node, ast.expr) and node.lineno <= (_end(end) if end else 0)
            for name in _called(node, fixture, test)
            if hasattr(port, name)
        }
        for name, line in calls.items():
            said = inspect.getdoc(inspect.getattr_static(port, name))
            if said and (line >= failed or line == max(calls.values())):
                yield f"\n{port.__name__}.{name}: {said}"


def _called(node: ast.expr, fixture: str, test: FunctionType) -> tuple[str, ...]:
    """Return the methods of a fixture that an expression uses, itself or in a function of the module."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == fixture:
        return (node.attr,)
    function = test.__globals__.get(node.id) if isinstance(node, ast.Name) else None
    return function.__code__.co_names if isinstance(function, FunctionType) else ()


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
