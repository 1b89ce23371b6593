"""Checks of everything that a job server needs on its machine, each with advice."""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings
    from jobserver_core.errors import JobServerError, PluginNotFound

GIB = 1024**3
SCARCE_DISK = 2 * GIB
SCARCE_MEMORY = 2 * GIB
_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


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


def _good(name: str, text: str) -> Finding:
    return Finding(name=name, verdict=Verdict.GOOD, text=text)


def _warning(name: str, text: str, advice: str) -> Finding:
    return Finding(name=name, verdict=Verdict.WARNING, text=text, advice=advice)


def _bad(name: str, text: str, advice: str) -> Finding:
    return Finding(name=name, verdict=Verdict.BAD, text=text, advice=advice)


def examine(settings: Settings) -> Iterator[Finding]:
    """Run the checks, most important first, and yield their findings."""
    yield _python()
    checks: list[Callable[[Settings], Finding]] = []
    if settings.launcher.backend == "pyspark":
        yield java_finding()
        yield pyspark_finding()
        checks += [_descriptors, _host_name]
    checks += [_backends, _options, _contexts, _metadata, _callbacks, _front_end, _users, _port]
    checks += [_data_dir, _disk, _temporary_disk, _memory]
    for check in checks:
        yield check(settings)


def mistakes(settings: Settings) -> list[JobServerError]:
    """Return what keeps a server from starting: backends, options and transports that do not exist.

    Opens no store, and connects to nothing. The errors are those of a start, in its order.
    """
    from jobserver_core.errors import JobServerError  # noqa: PLC0415 - --help does not need it

    found: dict[str, JobServerError] = {}
    for check in (_check_launcher, _check_transports, _check_options):
        try:
            check(settings)
        except JobServerError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _check_launcher(settings: Settings) -> None:
    from jobserver_core import plugins  # noqa: PLC0415 - --help does not need it
    from jobserver_core.ports import Launcher  # noqa: PLC0415

    plugins.find(Launcher, settings.launcher.backend)


def _python() -> Finding:
    # Nothing to check: on a version before 3.10, this package cannot be installed or imported.
    return _good("Python", f"{platform.python_version()} ({sys.executable})")


def java_finding() -> Finding:
    """Check that there is a Java that Spark supports."""
    try:
        from jobserver_pyspark.installation import java  # noqa: PLC0415 - the extra may be missing
    except ImportError as error:
        return _bad("Java", f"cannot search for it: {error}", "pip install 'jobserver-core[pyspark,jdk]'")
    try:
        found = java.find_java()
    except java.JavaNotFound as error:
        return _bad("Java", error.problem.format(**error.fields), error.advice)
    text = f"{found.version} ({found.program})"
    problem = next((reason for reason in found.refused if reason.startswith("JAVA_HOME")), None)
    if problem is None:
        return _good("Java", text)
    return _warning(
        "Java",
        f"{text}; not used: {problem}",
        "Set JAVA_HOME to the directory of a supported Java, or unset it.",
    )


def pyspark_finding() -> Finding:
    """Check that this interpreter has a PySpark that contexts can use."""
    from jobserver_core.errors import LaunchError  # noqa: PLC0415 - --help does not need it

    advice = "pip install 'jobserver-core[pyspark]'"
    try:
        from jobserver_pyspark.installation.spark import find_installation  # noqa: PLC0415 - the extra may be missing

        found = find_installation(sys.executable)
    except ImportError as error:
        return _bad("PySpark", f"cannot search for it: {error}", advice)
    except LaunchError as error:
        return _bad("PySpark", str(error), advice)
    return _good("PySpark", f"{found.version} ({found.package})")


def _descriptors(_settings: Settings) -> Finding:
    from jobserver_core.errors import LaunchError  # noqa: PLC0415 - --help does not need it

    try:
        from jobserver_pyspark.launcher.descriptors import check_descriptors  # noqa: PLC0415 - the extra may be missing

        check_descriptors()
    except (ImportError, LaunchError) as error:
        return _bad("File descriptors", str(error), "Raise the hard limit for the server's process.")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = "any number of files" if hard == resource.RLIM_INFINITY else f"{hard} files"
    return _good("File descriptors", f"a process may open {most}")


def _host_name(_settings: Settings) -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        advice = f"Add a line '127.0.0.1 {name}' to /etc/hosts, or set SPARK_LOCAL_IP=127.0.0.1."
        return _warning("Host name", f"{name} does not resolve to an address, which Spark needs", advice)
    return _good("Host name", f"{name} resolves to {address}")


def _backends(settings: Settings) -> Finding:
    from jobserver_core import plugins  # noqa: PLC0415 - --help does not need it
    from jobserver_core.errors import PluginNotFound  # noqa: PLC0415
    from jobserver_core.ports import BlobStore, Fetcher, Launcher, MetadataStore  # noqa: PLC0415

    names = []
    for port, section in (
        (MetadataStore, settings.metadata),
        (BlobStore, settings.blobs),
        (Fetcher, settings.fetcher),
        (Launcher, settings.launcher),
    ):
        name = section.backend
        try:
            plugins.find(port, name)
        except PluginNotFound as error:
            known = ", ".join(error.available) or "none"
            text = f"{port.kind} {name!r} is not installed (installed: {known})"
            if error.__cause__:
                text = f"cannot load {port.kind} {name!r}: {error.__cause__}"
            return _bad("Backends", text, _installation(error))
        names.append(f"{port.kind} {name}")
    return _good("Backends", ", ".join(names))


def _options(settings: Settings) -> Finding:
    from jobserver_core.errors import InvalidSetting, PluginFailed, PluginNotFound  # noqa: PLC0415 - as above

    name = "Options"
    try:
        _check_options(settings)
    except InvalidSetting as error:
        return _bad(name, str(error), "Correct it in the configuration.")
    except (PluginNotFound, PluginFailed) as error:
        return _warning(name, f"they are not checked: {error}", "Solve the other problems first.")
    return _good(name, "those of the stores and the fetcher are known")


def _check_options(settings: Settings) -> None:
    from jobserver_core import plugins  # noqa: PLC0415 - --help does not need it
    from jobserver_core.ports import BlobStore, Fetcher, MetadataStore  # noqa: PLC0415

    plugins.check_options(MetadataStore, settings.metadata.backend, settings)
    plugins.check_options(BlobStore, settings.blobs.backend, settings)
    plugins.check_options(Fetcher, settings.fetcher.backend, settings)


def _installation(missing: PluginNotFound) -> str:
    """Return how to install a backend that is missing."""
    if missing.extra:
        return f"pip install 'jobserver-core[{missing.extra}]'"
    return "Install the package that provides it."


def _contexts(settings: Settings) -> Finding:
    from jobserver_core import plugins  # noqa: PLC0415 - --help does not need it
    from jobserver_core.errors import InvalidSetting, JobServerError  # noqa: PLC0415
    from jobserver_core.ports import Launcher  # noqa: PLC0415
    from jobserver_core.running.context_settings import (  # noqa: PLC0415
        check_common_settings,
        configuration_problems,
    )

    name, advice = "Contexts", "Correct it in the configuration."
    try:
        with closing(
            plugins.load(Launcher, settings.launcher.backend, settings, settings.data_dir)
        ) as launcher:
            check_common_settings(settings.spark, launcher)
            problems = list(configuration_problems(settings.spark, launcher))
    except InvalidSetting as error:
        return _bad(name, str(error), advice)
    except JobServerError as error:
        return _warning(name, f"their settings are not checked: {error}", "Solve the other problems first.")
    if problems:
        return _warning(name, "; ".join(problems), advice)
    return _good(name, "their settings are valid")


def _metadata(settings: Settings) -> Finding:
    from jobserver_core.errors import InvalidSetting, StorageError  # noqa: PLC0415 - --help does not need it

    name, url = "Metadata", settings.metadata.url
    if settings.metadata.backend != "sql" or not url:
        return _good(name, "no database server is used")
    try:
        from jobserver_sql import check_database  # noqa: PLC0415 - the extra may be missing

        check_database(url)
    except ImportError as error:
        return _bad(name, f"cannot load the store: {error}", "pip install 'jobserver-core[sql]'")
    except (InvalidSetting, StorageError) as error:
        return _bad(name, str(error), "Start the database, or correct jobserver.metadata.url.")
    if url.startswith("sqlite"):  # to open the file would create it
        return _good(name, "no database server is used")
    return _good(name, "the database answers")


def _callbacks(settings: Settings) -> Finding:
    from jobserver_core.errors import JobServerError, PluginNotFound  # noqa: PLC0415 - --help does not need it

    name, transports = "Callbacks", settings.callbacks.transports
    try:
        _check_transports(settings)
    except PluginNotFound as error:
        return _bad(name, str(error), _installation(error))
    except JobServerError as error:
        return _bad(name, str(error), "Correct jobserver.callbacks.")
    if not transports:
        return _good(name, "no transports are configured")
    return _good(name, f"sent by {', '.join(transports)}")


def _check_transports(settings: Settings) -> None:
    from jobserver_core import plugins  # noqa: PLC0415 - --help does not need it
    from jobserver_core.callbacks.options import check_options  # noqa: PLC0415
    from jobserver_core.callbacks.service import transports_by_scheme  # noqa: PLC0415
    from jobserver_core.ports import Transport  # noqa: PLC0415

    with ExitStack() as stack:
        transports = [
            stack.enter_context(closing(plugins.load(Transport, name, settings, settings.data_dir)))
            for name in settings.callbacks.transports
        ]
        check_options(settings.callbacks, transports)
        transports_by_scheme(transports)


def _front_end(settings: Settings) -> Finding:
    try:
        from jobserver_http.addresses import EXPOSURE_ADVICE, exposure  # noqa: PLC0415 - the extra may be missing
    except ImportError as error:
        return _bad("HTTP", f"cannot load the front-end: {error}", "pip install 'jobserver-core[http]'")
    problem = exposure(settings.http, authenticated=settings.auth.backend != "none")
    if problem is not None:
        return _bad("HTTP", problem, f"{EXPOSURE_ADVICE[0].upper()}{EXPOSURE_ADVICE[1:]}.")
    return _good("HTTP", "the front-end is installed")


def _users(settings: Settings) -> Finding:
    from jobserver_core.errors import JobServerError  # noqa: PLC0415 - --help does not need it

    try:
        from jobserver_http.authentication import authenticator_from_settings  # noqa: PLC0415 - as above

        authenticator = authenticator_from_settings(settings)
    except ImportError as error:
        return _bad("Users", f"cannot load the front-end: {error}", "pip install 'jobserver-core[http]'")
    except JobServerError as error:
        advice = "Correct jobserver.auth or the file. Create entries with: jobserver credentials"
        return _bad("Users", str(error), advice)
    if authenticator is None:
        return _good("Users", "nobody has to log in")
    return _good("Users", f"authentication {settings.auth.backend} is configured")


def _port(settings: Settings) -> Finding:
    from jobserver_core.data_directory import server_process  # noqa: PLC0415 - --help does not need it

    host, port = settings.http.host, settings.http.port
    where = f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        server = server_process(settings.data_dir)  # its lock is only asked for when something listens
        if error.errno == errno.EADDRINUSE and server is not None and _listens(server, port):
            return _good("Port", f"{where} is used by the running server of this data directory ({server})")
        advice = "Stop the program that listens there (another job server?), or choose a port with --port."
        return _bad("Port", f"cannot listen on {where}: {error.strerror or error}", advice)
    return _good("Port", f"{where} is free")


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


def _data_dir(settings: Settings) -> Finding:
    path = settings.data_dir
    directory = _existing(path)
    try:
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        advice = "Choose another one with --data-dir, or give this user write permission."
        return _bad("Data directory", f"cannot write to {directory}: {error.strerror or error}", advice)
    return _good("Data directory", f"{path} {'is writable' if directory == path else 'can be created'}")


def _disk(settings: Settings) -> Finding:
    return _free_space(
        "Disk", _existing(settings.data_dir), "Free up space, or choose another directory with --data-dir."
    )


def _temporary_disk(_settings: Settings) -> Finding:
    return _free_space(
        "Temporary disk", Path(tempfile.gettempdir()), "Free up space, or set TMPDIR to a larger disk."
    )


def _free_space(name: str, directory: Path, advice: str) -> Finding:
    free = shutil.disk_usage(directory).free
    text = f"{free / GIB:.1f} GiB free in {directory}"
    return _good(name, text) if free >= SCARCE_DISK else _warning(name, text, advice)


def _memory(_settings: Settings) -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / GIB:.1f} GiB in this machine, {os.cpu_count()} cores"
    if total < SCARCE_MEMORY:
        return _warning("Memory", text, "Each context needs about half a GiB. Limit their number.")
    return _good("Memory", text)
