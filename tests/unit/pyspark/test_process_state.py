"""A job must not notice the previous job: each test leaks something, and the next job looks for it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

HARNESS = """
import importlib, json, os, sys
from jobserver_pyspark.runner.process_state import ProcessState

def main(report, directory, leak, look):
    state = ProcessState()
    _, before = serve(state, directory, "looking", look)
    reason, _ = serve(state, directory, "leaking", leak)
    _, after = serve(state, directory, "looking", look) if reason is None else (None, None)
    os.write(int(report), json.dumps([reason, before == after, f"{before!r} -> {after!r}"]).encode())
    os._exit(0)

def serve(state, directory, name, source):
    sys.path.insert(0, directory)
    with open(f"{directory}/{name}.py", "w") as file:
        file.write(source)
    seen = getattr(importlib.import_module(name), "seen", None)
    state.end_job([directory], last=False)
    return state.restore([directory]), seen
"""
"""A runner in miniature: it serves a job that looks, one that leaks, and the looking one again."""


def next_job(directory: Path, leak: str, look: str = "seen = None") -> tuple[str | None, bool, str]:
    """Return why the process is unfit, whether both jobs saw the same state, and both views."""
    harness = directory.with_name(f"{directory.name}-harness")
    harness.mkdir()
    (harness / "harness.py").write_text(HARNESS)
    reader, writer = os.pipe()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import harness; harness.main(*sys.argv[2:])"
    arguments = [str(harness), str(writer), str(directory), textwrap.dedent(leak), textwrap.dedent(look)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        pass_fds=[writer],
    )
    os.close(writer)
    with os.fdopen(reader) as file:
        reply = file.read()
    assert done.returncode == 0, done.stderr
    reason, same, views = json.loads(reply)
    return reason, same, views


RESTORED = {
    "an environment variable": (
        "import os; os.environ['LEAK'] = '1'",
        "import os; seen = os.environ.get('LEAK')",
    ),
    "a removed variable": ("import os; del os.environ['PATH']", "import os; seen = os.environ.get('PATH')"),
    "the time zone": (
        "import os, time; os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()",
        "import time; seen = time.timezone",
    ),
    "the working directory": ("import os; os.chdir('/')", "import os; seen = os.getcwd()"),
    "the file mode mask": ("import os; os.umask(0o777)", "import os; seen = os.umask(0o22); os.umask(seen)"),
    "the module search path": (
        "import sys; sys.path.append('/nowhere')",
        "import sys; seen = list(sys.path)",
    ),
    "a replaced search path": ("import sys; sys.path = []", "import sys; seen = list(sys.path)"),
    "arguments": ("import sys; sys.argv[:] = ['leak']", "import sys; seen = list(sys.argv)"),
    "an import hook": ("import sys; sys.meta_path.clear()", "import sys; seen = len(sys.meta_path)"),
    "standard output": (
        "import sys, io; sys.stdout = io.StringIO()",
        "import sys; seen = type(sys.stdout).__name__",
    ),
    "how output is buffered": (
        "import sys; sys.stdout.reconfigure(line_buffering=not sys.stdout.line_buffering, errors='ignore')",
        "import sys; seen = [sys.stdout.line_buffering, sys.stdout.errors]",
    ),
    "an exception hook": ("import sys; sys.excepthook = print", "import sys; seen = sys.excepthook is print"),
    "a thread's exception hook": (
        "import threading; threading.excepthook = print",
        "import threading; seen = threading.excepthook is print",
    ),
    "a trace function": (
        "import sys; sys.settrace(lambda *a: None)",
        "import sys; seen = sys.gettrace() is None",
    ),
    "the recursion limit": (
        "import sys; sys.setrecursionlimit(5000)",
        "import sys; seen = sys.getrecursionlimit()",
    ),
    "a built-in": ("import builtins; builtins.open = None", "seen = open is None"),
    "a new built-in": (
        "import builtins; builtins.leak = 1",
        "import builtins; seen = hasattr(builtins, 'leak')",
    ),
    "the main module": (
        "import sys; sys.modules['__main__'].leak = 1",
        "import sys; seen = hasattr(sys.modules['__main__'], 'leak')",
    ),
    "a module of the class path": ("value = 1", "import sys; seen = 'leaking' in sys.modules"),
    "an injected module": (
        "import sys, types; sys.modules['leak'] = types.ModuleType('leak')",
        "import sys; seen = 'leak' in sys.modules",
    ),
    "a replaced library": (
        "import json, sys, types; sys.modules['json'] = types.ModuleType('json')",
        "import json; seen = hasattr(json, 'dumps')",
    ),
    "a removed library": (
        "import sys; del sys.modules['json']",
        "import json, sys; seen = sys.modules['json'] is sys.modules['harness'].json",
    ),
    "a logger's level": (
        "import logging; logging.getLogger('py4j').setLevel(1)",
        "import logging; seen = logging.getLogger('py4j').level",
    ),
    "a root handler": (
        "import logging; logging.basicConfig()",
        "import logging; seen = len(logging.getLogger().handlers)",
    ),
    "logging as a whole": (
        "import logging; logging.disable(logging.CRITICAL)",
        "import logging; seen = logging.root.manager.disable",
    ),
    "a name of a level": (
        "import logging; logging.addLevelName(10, 'LEAK')",
        "import logging; seen = logging.getLevelName(10)",
    ),
    "a record factory": (
        "import logging; logging.setLogRecordFactory(dict)",
        "import logging; seen = logging.getLogRecordFactory() is dict",
    ),
    "warning filters": (
        "import warnings; warnings.simplefilter('error')",
        "import warnings; seen = [f[0] for f in warnings.filters]",
    ),
    "shown warnings": (
        "import warnings; warnings.showwarning = print",
        "import warnings; seen = warnings.showwarning is print",
    ),
    "a signal handler": (
        "import signal; signal.signal(signal.SIGUSR1, lambda *a: None)",
        "import signal; seen = signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL",
    ),
    "an ignored signal": (
        "import signal as s; s.signal(s.SIGPIPE, s.SIG_IGN); s.signal(s.SIGTERM, s.SIG_IGN)",
        "import signal; seen = [str(signal.getsignal(s)) for s in (signal.SIGPIPE, signal.SIGTERM)]",
    ),
    "a timer": ("import signal; signal.alarm(100)", "import signal; seen = signal.alarm(0)"),
    "a blocked signal": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})",
        "import signal; seen = list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
    ),
    "decimal precision": (
        "import decimal; decimal.getcontext().prec = 3",
        "import decimal; seen = str(decimal.Decimal(1) / 3)",
    ),
    "default decimal precision": (
        "import decimal; decimal.DefaultContext.prec = 3; decimal.setcontext(decimal.DefaultContext)",
        "import decimal; seen = [decimal.DefaultContext.prec, str(decimal.Decimal(1) / 3)]",
    ),
    "the locale": (
        "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
        "import locale; seen = locale.setlocale(locale.LC_ALL)",
    ),
    "a socket time-out": (
        "import socket; socket.setdefaulttimeout(1)",
        "import socket; seen = socket.getdefaulttimeout()",
    ),
    "garbage collection": ("import gc; gc.disable()", "import gc; seen = gc.isenabled()"),
    "a resource limit": (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (99, r.getrlimit(r.RLIMIT_NOFILE)[1]))",
        "import resource as r; seen = r.getrlimit(r.RLIMIT_NOFILE)",
    ),
    "a pickling function": (
        "import copyreg; copyreg.pickle(type(lambda: 0), print)",
        "import copyreg, types; seen = types.FunctionType in copyreg.dispatch_table",
    ),
    "the temporary directory": (
        "import tempfile; tempfile.tempdir = '/nowhere'",
        "import tempfile; seen = tempfile.gettempdir()",
    ),
    "a URL opener": (
        "import urllib.request as u; u.install_opener(u.build_opener())",
        "import urllib.request as u; seen = u._opener is None",
    ),
}


@pytest.mark.parametrize("what", RESTORED)
def test_the_next_job_does_not_see(what: str, tmp_path: Path) -> None:
    leak, look = RESTORED[what]
    reason, same, views = next_job(tmp_path, leak, look)
    assert reason is None
    assert same, views


def test_the_random_numbers_of_two_jobs_differ(tmp_path: Path) -> None:
    code = "import random; random.seed(1)"
    reason, same, _ = next_job(tmp_path, code, "import random; seen = random.random()")
    assert reason is None
    assert not same


UNFIT = {
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "child processes": "import subprocess; kept = subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3)",
    "a listening socket": "import socket, sys; sys.leak = socket.create_server(('127.0.0.1', 0))",
    "open descriptors": "import os, sys; sys.leak = [os.open('/dev/null', 0) for _ in range(200)]",
    "standard streams": "import os; os.close(1)",
    "restored: ValueError": "import sys; sys.stdout.close()",
    "priority": "import os; os.nice(1)",
    "its memory has grown": "import sys; sys.leak = b'x' * (600 << 20)",
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_process_is_not_reused_after_a_job_left(reason: str, tmp_path: Path) -> None:
    found, _, _ = next_job(tmp_path, UNFIT[reason])
    assert found is not None
    assert reason in found


def test_a_thread_that_has_ended_does_no_harm(tmp_path: Path) -> None:
    code = "import threading; t = threading.Thread(target=print); t.start(); t.join()"
    assert next_job(tmp_path, code)[0] is None


def test_an_exit_handler_of_a_job_runs_when_the_job_ends_and_never_again(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"import atexit; atexit.register(lambda: open({str(note)!r}, 'a').write('x'))"
    reason, _, _ = next_job(tmp_path, code)
    assert reason is None
    assert note.read_text() == "x"


def test_an_exit_handler_that_raises_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
        import atexit
        atexit.register(lambda: open({str(note)!r}, 'a').write('x'))
        atexit.register(lambda: 1 / 0)
    """
    assert next_job(tmp_path, code)[0] is None
    assert note.read_text() == "x"


def test_a_handler_that_was_unregistered_does_not_run(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"""
        import atexit
        def write(): open({str(note)!r}, 'a').write('x')
        atexit.register(write)
        atexit.unregister(write)
    """
    assert next_job(tmp_path, code)[0] is None
    assert not note.exists()


def test_modules_of_libraries_that_a_job_imported_stay(tmp_path: Path) -> None:
    reason, _, views = next_job(tmp_path, "import wave", "import sys; seen = 'wave' in sys.modules")
    assert reason is None
    assert views == "False -> True"


def test_a_submodule_imported_by_a_job_is_removed_from_its_package(tmp_path: Path) -> None:
    package = tmp_path / "parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("value = 1")
    look = "import parts; seen = hasattr(parts, 'inner')"
    assert next_job(tmp_path, "import parts.inner", look)[:2] == (None, True)


SHADOWING = """
import json, sys
import pure.inner, pure.only, space.part, space.other
from jobserver_pyspark.runner.process_state import ProcessState

def values():
    import pure.inner, space.other, space.part
    from space import part
    return [pure.VALUE, pure.inner.VALUE, space.part.VALUE, part.VALUE, space.other.VALUE]

def main():
    views, state = [values()], ProcessState()
    for _ in range(2):
        sys.path.insert(0, sys.argv[1])
        refused = state.give_way(sys.argv[1:])
        views.append([*values(), "pure.only" in sys.modules, refused])
        unfit = state.restore(sys.argv[1:])
        views.append([*values(), pure.only is sys.modules["pure.only"], unfit])
    print(json.dumps(views))

main()
"""


def _modules(directory: Path, value: str, *names: str) -> None:
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"VALUE = {value!r}\n")


def _run(code: str, libraries: Path, class_path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(libraries)}
    command = [sys.executable, "-c", code, str(class_path)]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout


def test_a_class_path_shadows_libraries_that_were_imported_before_while_its_jobs_run(tmp_path: Path) -> None:
    files = ("pure/__init__.py", "pure/inner.py", "pure/only.py", "space/part.py", "space/other.py")
    _modules(tmp_path / "libraries", "library", *files)
    _modules(tmp_path / "own", "own", "pure/__init__.py", "pure/inner.py", "space/part.py", "json.py")
    (tmp_path / "own" / "other-1.0.dist-info").mkdir()
    first, *rounds = json.loads(_run(SHADOWING, tmp_path / "libraries", tmp_path / "own"))
    assert first == ["library"] * 5
    own, restored = [*["own"] * 4, "library", False, None], [*["library"] * 5, True, None]
    assert rounds == [own, restored, own, restored]


def test_a_library_with_compiled_extensions_cannot_be_shadowed(tmp_path: Path) -> None:
    extension = Path(importlib.import_module("_json").__file__ or "")
    _modules(tmp_path / "libraries", "library", "fast/__init__.py", "pure.py")
    _modules(tmp_path / "own", "own", "fast/__init__.py", "pure.py")
    shutil.copy(extension, tmp_path / "libraries" / "fast")
    code = """if True:
        import sys, fast._json, pure
        from jobserver_pyspark.runner.process_state import ProcessState
        print(ProcessState().give_way(sys.argv[1:]), pure is sys.modules["pure"])
    """
    assert _run(code, tmp_path / "libraries", tmp_path / "own") == "fast True\n"
