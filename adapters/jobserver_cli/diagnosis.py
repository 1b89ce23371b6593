"""Checks of everything that a job server needs on its machine, each with advice."""

from __future__ import annotations

import errno
import logging
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.parameters import exit_code_of
from jobserver_core import plugins
from jobserver_core.callbacks.options import check_options
from jobserver_core.callbacks.service import transports_by_scheme
from jobserver_core.config.machine import usable_cores, usable_memory
from jobserver_core.config.settings import Settings
from jobserver_core.config.trees import flatten
from jobserver_core.data_directory import DATA_DIR_ADVICE, server_process
from jobserver_core.errors import (
    DataDirLocked,
    InvalidSetting,
    JobServerError,
    LaunchError,
    PluginFailed,
    PluginNotFound,
    SchemaTooNew,
    StorageError,
    amount_of,
)
from jobserver_core.models.contexts import Resources
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.ports import BlobStore, Fetcher, Launcher, MetadataStore, Transport
from jobserver_core.ports.checked import checked
from jobserver_core.running.capacity import Capacity
from jobserver_core.running.context_settings import (
    check_common_settings,
    configuration_problems,
    configured_context_problems,
    effective_settings,
)

if TYPE_CHECKING:
    from jobserver_core.models.json_values import JsonMapping
    from jobserver_core.plugins import Backend
    from jobserver_http import Authenticator

GIB = 1024**3
SCARCE_DISK = 2 * GIB
SCARCE_MEMORY = 2 * GIB
THREADS_PER_CORE = 2
"""How many threads of a local master per core cause no warning."""
_MASTER_TIMEOUT = 5.0
"""How many seconds a standalone master has to accept a connection."""
_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


_OWN_LAUNCHERS = ("memory", "pyspark")
"""The launchers of this distribution. If one cannot be created, other checks find the reason."""


class Verdict(str, Enum):
    """How bad a finding is."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@attrs.frozen(kw_only=True)
class Finding:
    """The outcome of one check, with advice if there is a problem."""

    name: str
    verdict: Verdict
    text: str
    advice: str | None = None


class _Problem(Exception):
    """What a check has found wrong, and how to solve it. Several problems may have one solution."""

    def __init__(self, text: str | Sequence[str], advice: str, verdict: Verdict = Verdict.BAD) -> None:
        self.texts = [text] if isinstance(text, str) else list(text)
        self.text = "; ".join(self.texts)
        super().__init__(self.text)
        self.advice, self.verdict = advice, verdict


@contextmanager
def _advising(
    advice: str, *kinds: type[Exception], about: str = "", verdict: Verdict = Verdict.BAD
) -> Iterator[None]:
    """Turn errors of these kinds into problems with this advice. Their text begins with ``about``."""
    try:
        yield
    except kinds as error:
        raise _Problem(f"{about}{error}", advice, verdict) from error


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _findings(name: str, check: Callable[[], str]) -> Iterator[Finding]:
    """Run a check, which returns a good finding or raises a problem. What it logs becomes a warning.

    Of several problems with one solution, the last has the advice.
    """
    with _collected_warnings() as logged:
        try:
            text = check()
        except _Problem as found:
            *others, last = found.texts
            yield from (Finding(name=name, verdict=found.verdict, text=other) for other in others)
            text = "; ".join([last, *logged])
            yield Finding(name=name, verdict=found.verdict, text=text, advice=found.advice)
            return
    verdict = Verdict.WARNING if logged else Verdict.GOOD
    yield Finding(name=name, verdict=verdict, text="; ".join([text, *logged]))


def _finding(name: str, check: Callable[[], str]) -> Finding:
    """Run a check that has at most one problem."""
    [finding] = _findings(name, check)
    return finding


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged inside the block, which Python would print without a handler."""
    found = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


def examine(settings: Settings) -> Iterator[Finding]:
    """Run the checks, most important first, and yield their findings."""
    for warning in settings.warnings:
        yield Finding(name="Settings", verdict=Verdict.WARNING, text=warning)
    # Nothing to check: on a version before 3.10, this package cannot be installed or imported.
    yield _finding("Python", lambda: f"{platform.python_version()} ({sys.executable})")
    if settings.launcher.backend == "pyspark":
        yield java_finding()
        yield pyspark_finding()
        yield _finding("Cache directory", partial(_cache_dir, settings))
        yield _finding("File descriptors", _descriptors)
        yield _finding("Host name", _host_name)
        if settings.spark.master.startswith("spark://"):
            yield _finding("Spark master", partial(_master, settings.spark.master))
    bad = set[str]()
    for name, check in _CHECKS.items():
        # The disk of a directory that cannot be used is another one, or has nothing to do with the problem.
        if (name == "Disk" and "Data directory" in bad) or (
            name == "Binaries" and not settings.job_binary_paths
        ):
            continue
        for finding in _findings(name, partial(check, settings)):
            if finding.verdict is Verdict.BAD:
                bad.add(name)
            yield finding


def mistakes(settings: Settings) -> list[JobServerError]:
    """Return what keeps a server from starting on any machine with this installation.

    Opens no store, connects to nothing, and reads no file of users or certificates. The errors are those of a
    start, in its order.
    """
    return _errors(
        partial(_check_contexts, settings),
        *_option_checks(settings),
        partial(_check_transports, settings),
        partial(_check_front_end, settings),
    )


def exit_code_of_mistake(error: JobServerError) -> ExitCode:
    """Return the exit code for what keeps a server from starting: no store is open, so none has an outage."""
    return ExitCode.NOT_READY if isinstance(error, StorageError) else exit_code_of(error)


def _option_checks(settings: Settings) -> list[Callable[[], None]]:
    """Return a check of each selected backend: whether it is installed, and knows its options."""
    selected: list[tuple[type[Backend], str]] = [
        (Launcher, settings.launcher.backend),
        *((Transport, name) for name in settings.callbacks.transports),
        *((port, name) for port, name, _ in _storage(settings)),
    ]
    return [partial(plugins.check_options, port, name, settings) for port, name in selected]


def _errors(*checks: Callable[[], None]) -> list[JobServerError]:
    found: dict[str, JobServerError] = {}
    for check in checks:
        try:
            check()
        except JobServerError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def check_start(settings: Settings) -> Authenticator | None:
    """Check what a server needs from others on this machine, before it creates anything.

    Returns the authenticator if it reads files of users.

    Raises:
        CommandFailed: The server could not start. Problems and advice are those of ``doctor``.
    """
    # A launcher or authenticator of another package may need the data directory, so it is created later.
    own_launcher = settings.launcher.backend in _OWN_LAUNCHERS
    contexts = [partial(_check_contexts, settings)] if own_launcher else []
    if found := _errors(*contexts, *_option_checks(settings), partial(_check_front_end, settings)):
        raise CommandFailed("; ".join(map(str, found)), exit_code_of_mistake(found[0]))
    try:
        _front_end(settings)
        authenticator = _authenticator(settings) if settings.auth.backend == "file" else None
        _metadata(settings)
        _data_dir(settings)
        _port(settings)
    except _Problem as problem:
        cause = problem.__cause__
        code = exit_code_of(cause) if isinstance(cause, JobServerError) else ExitCode.NOT_READY
        raise CommandFailed(problem.text, code, problem.advice) from problem
    return authenticator


def context_problems(settings: Settings) -> tuple[list[str], list[str]]:
    """Return why contexts may not start with these settings, and why configured ones certainly cannot."""
    try:
        _check_contexts(settings)
    except JobServerError:  # one of the mistakes
        return [], []
    with _loading_launcher(settings) as launcher:
        certain = list(configured_context_problems(settings.spark, launcher))
        problems = _possible_problems(settings, launcher)
        return [problem for problem in problems if problem not in certain], certain


def _possible_problems(settings: Settings, launcher: Launcher) -> Iterator[str]:
    yield from configuration_problems(settings.spark, launcher)
    limit, configured = settings.contexts.max_contexts, len(settings.spark.contexts)
    spares = sum(pool.size for pool in launcher.spare_pools())
    if limit is not None and configured + spares > limit:
        text = (
            f"jobserver.contexts.max-contexts = {limit} has no room for all {configured} configured contexts"
        )
        yield f"{text} beside {spares} spares" if spares else text


def binary_problems(settings: Settings) -> Iterator[str]:
    """Yield which configured binaries a server could not upload. It starts without them."""
    for name, location in settings.job_binary_paths.items():
        path = Path(location)
        if not (path.is_file() and os.access(path, os.R_OK)):
            reason = "is not a readable file" if path.exists() else "does not exist"
            yield f"the configured binary {name} cannot be uploaded: {path} {reason}"


def _binaries(settings: Settings) -> str:
    if problems := list(binary_problems(settings)):
        raise _Problem(problems, "Correct jobserver.job-binary-paths.", Verdict.WARNING)
    return f"each file of jobserver.job-binary-paths exists ({', '.join(settings.job_binary_paths)})"


def _loading_launcher(settings: Settings) -> closing[Launcher]:
    launcher = plugins.load(Launcher, settings.launcher.backend, settings, settings.data_dir)
    return closing(checked(Launcher, launcher))


def _check_contexts(settings: Settings) -> None:
    with _loading_launcher(settings) as launcher:
        check_common_settings(settings.spark, launcher)
        Capacity(settings.contexts, launcher.spare_pools())


def java_finding() -> Finding:
    """Check that there is a Java that Spark supports."""
    return _finding("Java", _java)


def _java() -> str:
    with _advising("pip install 'jobserver-core[pyspark,jdk]'", ImportError, about="cannot search for it: "):
        from jobserver_pyspark.installation import java  # noqa: PLC0415 - the extra may be missing
    try:
        found = java.find_java()
    except java.JavaNotFound as error:
        raise _Problem(error.problem.format(**error.fields), error.advice) from error
    text = f"{found.version} ({found.program})"
    problem = next((reason for reason in found.refused if reason.startswith("JAVA_HOME")), None)
    if problem is not None:
        advice = "Set JAVA_HOME to the directory of a supported Java, or unset it."
        raise _Problem(f"{text}; not used: {problem}", advice, Verdict.WARNING)
    return text


def pyspark_finding() -> Finding:
    """Check that this interpreter has a PySpark that contexts can use."""
    return _finding("PySpark", _pyspark)


def _pyspark() -> str:
    advice = "pip install 'jobserver-core[pyspark]'"
    with _advising(advice, ImportError, about="cannot search for it: "):
        from jobserver_pyspark.installation.spark import InterpreterFailed, find_installation  # noqa: PLC0415 - the extra may be missing
    try:
        found = find_installation(sys.executable)
    except InterpreterFailed as error:
        remedy = (
            "Let this user execute it and search its directories (chmod)" if error.forbidden else "Repair it"
        )
        raise _Problem(
            str(error), f"{remedy}, or create the environment with another interpreter."
        ) from error
    except LaunchError as error:
        raise _Problem(str(error), advice) from error
    return f"{found.version} ({found.package})"


def _descriptors() -> str:
    with _advising("Raise the hard limit for the server's process.", ImportError, LaunchError):
        from jobserver_pyspark.launcher.descriptors import check_descriptors  # noqa: PLC0415 - the extra may be missing

        check_descriptors()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return f"a process may open {'any number of' if hard == resource.RLIM_INFINITY else hard} files"


def _host_name() -> str:
    name = socket.gethostname()
    try:
        return f"{name} resolves to {socket.gethostbyname(name)}"
    except OSError as error:
        advice = f"Add a line '127.0.0.1 {name}' to /etc/hosts, or set SPARK_LOCAL_IP=127.0.0.1."
        text = f"{name} does not resolve to an address, which Spark needs"
        raise _Problem(text, advice, Verdict.WARNING) from error


def _master(url: str) -> str:
    problems = list[str]()
    for address in url.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_MASTER_TIMEOUT).close()
        except (OSError, ValueError) as error:
            problems.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        else:
            return f"{address} accepts connections"
    text = f"cannot connect to spark.master ({'; '.join(problems)})"
    raise _Problem(text, "Start the master, or correct spark.master.", Verdict.WARNING)


def _storage(settings: Settings) -> list[tuple[type[Backend], str, JsonMapping]]:
    """Return the backends that only the start of a server creates, with their options."""
    return [
        (MetadataStore, settings.metadata.backend, settings.metadata.options),
        (BlobStore, settings.blobs.backend, settings.blobs.options),
        (Fetcher, settings.fetcher.backend, settings.fetcher.options),
    ]


def _backends(settings: Settings) -> str:
    names, problems, advice = list[str](), list[str](), list[str]()
    selected: list[tuple[type[Backend], str]] = [(port, name) for port, name, _ in _storage(settings)]
    selected.append((Launcher, settings.launcher.backend))
    for port, name in selected:
        try:
            plugins.find(port, name)
        except PluginNotFound as error:
            known = ", ".join(error.available) or "none"
            text = f"{port.kind} {name!r} is not installed (installed: {known})"
            if error.__cause__:
                text = f"cannot load {port.kind} {name!r}: {error.__cause__}"
            problems.append(text)
            advice.append(_installation(error))
        except PluginFailed as error:
            problems.append(str(error))
            advice.append(_REPAIR)
        names.append(f"{port.kind} {name}")
    if problems:
        raise _Problem("; ".join(problems), "\n".join(dict.fromkeys(advice)))
    return ", ".join(names)


def _installation(missing: PluginNotFound) -> str:
    """Return how to install a backend that is missing."""
    if missing.extra:
        return f"pip install 'jobserver-core[{missing.extra}]'"
    return "Install the package that provides it."


def _advice(error: JobServerError, otherwise: str) -> str:
    """Return what to do about an error of a backend that may be missing, or of another package."""
    if isinstance(error, PluginNotFound):
        return _installation(error)
    return _REPAIR if isinstance(error, PluginFailed) else otherwise


_CORRECT = "Correct it in the configuration."
_DRIVER = "Install it into this environment: a server opens the store with it."
_CONNECTION = "Start the database, or correct jobserver.metadata.url: its host, database, user or password."
_OTHERS_FIRST = "Solve the other problems first."
_REPAIR = "Repair that package, or choose another backend."
_COMPARE = "Compare them with the documentation of the backend: it may ignore one that is misspelled."


def _options(settings: Settings) -> str:
    unchecked = list[str]()
    for port, name, options in _storage(settings):
        _require(port, name)
        with (
            _advising(_CORRECT, InvalidSetting),
            _advising(_DRIVER, StorageError),
            _advising(_REPAIR, PluginFailed),
        ):
            plugins.check_options(port, name, settings)
        if options and not plugins.checks_options(port, name):
            given = ", ".join(options)
            unchecked.append(f"those of jobserver.{port.kind}.options ({given}) are not checked by {name!r}")
    if unchecked:
        raise _Problem(unchecked, _COMPARE, Verdict.WARNING)
    return "those of the stores and the fetcher are known"


def _require(port: type[Backend], name: str) -> None:
    """Warn that something is not checked if this backend cannot be used. ``_backends`` has the advice."""
    unusable = (PluginNotFound, PluginFailed)
    with _advising(_OTHERS_FIRST, *unusable, about="they are not checked: ", verdict=Verdict.WARNING):
        plugins.find(port, name)


def _contexts(settings: Settings) -> str:
    name = settings.launcher.backend
    _require(Launcher, name)
    try:
        _check_contexts(settings)
        with _loading_launcher(settings) as launcher:
            problems = list(_possible_problems(settings, launcher))
    except InvalidSetting as error:
        raise _Problem(str(error), _CORRECT) from error
    except JobServerError as error:
        if name not in _OWN_LAUNCHERS:
            raise _Problem(str(error), _REPAIR) from error
        text = f"their settings are not checked: {error}"
        raise _Problem(text, _OTHERS_FIRST, Verdict.WARNING) from error
    if problems:
        raise _Problem(problems, _CORRECT, Verdict.WARNING)
    return "their settings are valid"


def _metadata(settings: Settings) -> str:
    url = settings.metadata.url
    if settings.metadata.backend != "sql" or not url:
        return "no database server is used"
    missing = _advising("pip install 'jobserver-core[sql]'", ImportError, about="cannot load the store: ")
    with missing:
        from jobserver_sql import database_problem  # noqa: PLC0415 - the extra may be missing
    with _advising(_OTHERS_FIRST, JobServerError, about="it is not tried: ", verdict=Verdict.WARNING):
        plugins.check_options(MetadataStore, settings.metadata.backend, settings)
    newer = _advising(
        "Install that release, or choose another database (jobserver.metadata.url).", SchemaTooNew
    )
    with newer, _advising(_CONNECTION, StorageError):
        problem = database_problem(url)
    if problem is not None:
        raise _Problem(problem[0], _sentence(problem[1]))
    # To open the file of SQLite would create it.
    return "no database server is used" if url.startswith("sqlite") else "the database answers"


def _callbacks(settings: Settings) -> str:
    transports = settings.callbacks.transports
    installed = (partial(plugins.check_options, Transport, name, settings) for name in transports)
    if found := _errors(*installed, partial(_check_transports, settings)):
        advice = [_advice(error, "Correct jobserver.callbacks.") for error in found]
        raise _Problem("; ".join(map(str, found)), "\n".join(dict.fromkeys(advice)))
    return f"sent by {', '.join(transports)}" if transports else "no transports are configured"


def _check_transports(settings: Settings) -> None:
    with ExitStack() as stack:
        transports = [
            stack.enter_context(closing(plugins.load(Transport, name, settings, settings.data_dir)))
            for name in settings.callbacks.transports
        ]
        check_options(settings.callbacks, transports)
        transports_by_scheme(transports)


def _loading_front_end() -> AbstractContextManager[None]:
    return _advising("pip install 'jobserver-core[http]'", ImportError, about="cannot load the front-end: ")


def _front_end(settings: Settings) -> str:
    with _loading_front_end():
        from jobserver_http.addresses import EXPOSURE_ADVICE, check_certificate, exposure  # noqa: PLC0415 - the extra may be missing
    problem = exposure(settings.http, authenticated=settings.auth.backend != "none")
    if problem is not None:
        raise _Problem(problem, _sentence(EXPOSURE_ADVICE))
    with _advising(_CORRECT, InvalidSetting):
        check_certificate(settings.http)
    return "the front-end is installed"


def _check_front_end(settings: Settings) -> None:
    with suppress(ImportError):  # `serve` says how to install it
        from jobserver_http.addresses import check_exposure  # noqa: PLC0415 - the extra may be missing
        from jobserver_http.authentication import check_authentication  # noqa: PLC0415 - as above

        check_authentication(settings)
        check_exposure(settings.http, authenticated=settings.auth.backend != "none")


def _authenticator(settings: Settings) -> Authenticator | None:
    with _loading_front_end():
        from jobserver_http.authentication import authenticator_from_settings  # noqa: PLC0415 - as above

    try:
        return authenticator_from_settings(settings)
    except JobServerError as error:
        own = settings.auth.backend == "file"
        advice = "Correct jobserver.auth or the file. Create entries with: jobserver credentials"
        raise _Problem(str(error), _advice(error, advice if own else "Correct jobserver.auth.")) from error


def _users(settings: Settings) -> str:
    authenticator = _authenticator(settings)
    if authenticator is None:
        return "nobody has to log in"
    if problem := authenticator.problem():
        own = settings.auth.backend == "file"
        advice = "Create entries with: jobserver credentials" if own else "Correct jobserver.auth."
        raise _Problem(problem, advice, Verdict.WARNING)
    return f"authentication {settings.auth.backend} is configured"


def _port(settings: Settings) -> str:
    host, port = settings.http.host, settings.http.port
    where = f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        server = server_process(settings.data_dir)
        if error.errno == errno.EADDRINUSE and server is not None and _listens(server, port):
            return f"{where} is used by the running server of this data directory ({server})"
        with _loading_front_end():
            from jobserver_http.addresses import listening_problem  # noqa: PLC0415 - as above
        _, problem, advice = listening_problem(host, port, error)
        raise _Problem(problem, _sentence(advice)) from error
    return f"{where} is free"


def _listens(process: int, port: int) -> bool:
    """Whether a process listens on a TCP port, as far as this user may know."""
    directory = Path("/proc") / str(process)
    descriptors, lines = set[str](), list[str]()
    with suppress(OSError):
        for descriptor in (directory / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                descriptors.add(os.readlink(descriptor))
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # IPv6 may be off
            lines += (directory / "net" / table).read_text().splitlines()[1:]
    return any(
        state == _LISTENING
        and int(address.rpartition(":")[2], 16) == port
        and f"socket:[{inode}]" in descriptors
        for _, address, _, state, _, _, _, _, _, inode, *_ in map(str.split, lines)
    )


def _existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent directory that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _data_dir(settings: Settings) -> str:
    path = settings.data_dir
    writable = _writable(path, DATA_DIR_ADVICE)
    server = server_process(path)
    if server is not None:
        if not _listens(server, settings.http.port):
            locked = DataDirLocked(path=str(path), holder=f" (process {server})")
            text, _, advice = str(locked).partition(": ")
            raise _Problem(text, _sentence(advice))
        return f"{path} is used by the running server ({server})"
    return writable


def _cache_dir(settings: Settings) -> str:
    advice = "set XDG_CACHE_HOME, or jobserver.launcher.options.cache-dir, to a directory you can write to"
    missing = _advising(_OTHERS_FIRST, ImportError, about="it is not checked: ", verdict=Verdict.WARNING)
    with missing:
        from jobserver_pyspark.launcher.options import LauncherOptions  # noqa: PLC0415 - the extra may be missing
    with _advising(_CORRECT, InvalidSetting):
        options = LauncherOptions.from_settings(settings)
    return _writable(options.cache_dir, advice)


def _writable(path: Path, advice: str) -> str:
    """Check that this user can write to a directory, or create it."""
    directory = _existing(path)
    try:
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        text = f"cannot write to {directory}: {error.strerror or error}"
        if directory != path:
            text = f"cannot create {path}: {text}"
        raise _Problem(text, _sentence(advice)) from error
    return f"{path} {'is writable' if directory == path else 'can be created'}"


def _free_space(directory: Path, advice: str) -> str:
    free = shutil.disk_usage(directory).free
    text = f"{free / GIB:.1f} GiB free in {directory}"
    if free < SCARCE_DISK:
        raise _Problem(text, f"Free up space, or {advice}", Verdict.WARNING)
    return text


def _disk(settings: Settings) -> str:
    return _free_space(_existing(settings.data_dir), "choose another directory with --data-dir.")


def _temporary_disk(_settings: Settings) -> str:
    return _free_space(Path(tempfile.gettempdir()), "set TMPDIR to a larger disk.")


def _memory(settings: Settings) -> str:
    total, cores = usable_memory(), usable_cores()
    text = f"{total / GIB:.1f} GiB in this machine, {amount_of('cores', cores)}"
    if total < SCARCE_MEMORY:
        advice = "Each context needs about half a GiB. Limit their number."
        raise _Problem(text, advice, Verdict.WARNING)
    with suppress(JobServerError):  # of the settings, which another check reports
        if problems := list(_excesses(settings, total, cores)):
            verdict = Verdict.BAD if any(refused for _, refused in problems) else Verdict.WARNING
            raise _Problem("; ".join([text, *(problem for problem, _ in problems)]), _SMALLER, verdict)
    return text


_SMALLER = (
    "Contexts with a local master run on this machine: lower the cores (spark.master, num-cpu-cores) or the "
    "memory (memory-per-node, spark.driver.memory, jobserver.contexts.max-memory)."
)


def _excesses(settings: Settings, memory: int, cores: int) -> Iterator[tuple[str, bool]]:
    """Yield what contexts may ask of this machine that it does not have, and whether no context can start.

    A few more threads than cores are common: tasks that wait for disks and networks use none.
    """
    most = settings.contexts.max_memory
    if settings.spark.master.startswith("local") and most is not None and most > memory:
        yield f"jobserver.contexts.max-memory allows {amount_of('memory', most)}", False
    with _loading_launcher(settings) as launcher:
        common = _asked_here(settings, {}, launcher)
        configured = {
            name: _asked_here(settings, own, launcher) for name, own in settings.spark.contexts.items()
        }
    different = {f"context {name}": asked for name, asked in configured.items() if asked != common}
    for name, asked in {"every context": common, **different}.items():
        if asked.memory is not None and asked.memory > memory:
            yield f"{name} asks for {amount_of('memory', asked.memory)}", asked is common
        if asked.cores is not None and asked.cores > THREADS_PER_CORE * cores:
            yield f"{name} asks for {amount_of('cores', asked.cores)}", False
    sizes = [asked.memory or 0 for asked in configured.values()]
    if sum(sizes) > memory >= max(sizes):
        yield f"the configured contexts together ask for {amount_of('memory', sum(sizes))}", False


def _asked_here(settings: Settings, own: JsonMapping, launcher: Launcher) -> Resources:
    """Return what a context asks of this machine: nothing, if its executors are elsewhere."""
    effective = effective_settings(settings.spark, own)
    local = str(flatten(effective).get("spark.master")).startswith("local")
    return launcher.resources(effective) if local else Resources()


_CHECKS: Mapping[str, Callable[[Settings], str]] = {
    "Backends": _backends,
    "Options": _options,
    "Contexts": _contexts,
    "Binaries": _binaries,
    "Metadata": _metadata,
    "Callbacks": _callbacks,
    "HTTP": _front_end,
    "Users": _users,
    "Port": _port,
    "Data directory": _data_dir,
    "Disk": _disk,
    "Temporary disk": _temporary_disk,
    "Memory": _memory,
}
"""The checks for every launcher, most important first."""
